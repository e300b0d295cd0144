// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"net/netip"
	"testing"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// sample is a state with something in every set.
func sample() *compile.State {
	s := compile.NewState()
	t := &compile.Table{ID: 7, Default: by(false, "isolate"), Cells: map[compile.Cell]compile.Verdict{
		{Identity: 5, Protocol: policy.TCP, First: 80, Last: 80}:   by(true, "web"),
		{Identity: 5, Protocol: policy.TCP, First: 100, Last: 200}: by(true, "web"),
		{Identity: 5, Protocol: policy.UDP, First: 0, Last: 65535}: by(true, "dns"),
		{Identity: 6}: by(true, "all"),
		{Identity: 9, Protocol: policy.SCTP, First: 65535, Last: 65535}:    by(true, "sctp"),
		{Identity: compile.World, Protocol: policy.TCP, First: 1, Last: 9}: by(true, "world"),
		{Identity: compile.OwnNode}:                                        by(true, "node"),
	}}
	s.Tables[7] = t
	for _, v6 := range []bool{false, true} {
		s.Sides[compile.Side{Addr: podAddr(0, v6), Direction: policy.Ingress}] = 7
		s.Sides[compile.Side{Addr: podAddr(1, v6), Direction: policy.Egress}] = 7
		s.Identities[podAddr(2, v6)] = 5
		s.Identities[podAddr(3, v6)] = 6
		s.Identities[nodeAddr(v6)] = compile.OwnNode
		s.Selves[podAddr(1, v6)] = 6
	}
	s.Blocks[netip.MustParsePrefix("0.0.0.0/0")] = 9
	s.Blocks[netip.MustParsePrefix("192.0.2.0/24")] = 5
	s.Blocks[netip.MustParsePrefix("192.0.2.128/25")] = 6
	s.Blocks[netip.MustParsePrefix("2001:db8::/32")] = 5
	return s
}

func TestReplaceAdopts(t *testing.T) {
	t.Parallel()
	ns := newSpace(t)
	f := newFilter(t, ns)
	must(t, f.Replace(sample()))
	have, err := f.conn.look(Table, whole)
	must(t, err)
	want := f.layout.describe()
	for i := range max(len(want), len(have.skeleton)) {
		if i >= len(want) || i >= len(have.skeleton) || want[i] != have.skeleton[i] {
			t.Errorf("\nwant %s\nhave %s", want[min(i, len(want)-1)], have.skeleton[min(i, len(have.skeleton)-1)])
			break
		}
	}
	e := f.model.difference(have, true)
	for set, m := range e.sets {
		for _, c := range m {
			t.Errorf("%s: %+v %+v", set, c.old, c.now)
		}
	}
}
