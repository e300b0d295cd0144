// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// randomState is one of the world's pods, in a small universe of ports.
func randomState(r *rand.Rand) *compile.State {
	s := compile.NewState()
	identities := []compile.Identity{compile.World, compile.Unsorted, compile.OwnNode, compile.OwnNode + 1, 5, 6, 7}
	for id := compile.TableID(1); id <= 3; id++ {
		t := &compile.Table{ID: id, Default: by(r.IntN(2) == 0, fmt.Sprint("default", id)), Cells: map[compile.Cell]compile.Verdict{}}
		for _, i := range identities {
			for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
				for first := 1; first < 8; {
					last := first + r.IntN(3)
					if r.IntN(3) == 0 {
						t.Cells[compile.Cell{Identity: i, Protocol: p, First: uint16(first), Last: uint16(last)}] = by(r.IntN(2) == 0, "cell")
					}
					first = last + 1
				}
			}
			if i != compile.World && r.IntN(3) == 0 {
				t.Cells[compile.Cell{Identity: i}] = by(r.IntN(2) == 0, "wide")
			}
		}
		s.Tables[id] = t
	}
	for _, v6 := range []bool{false, true} {
		for i := range podCount {
			for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
				if r.IntN(3) > 0 {
					s.Sides[compile.Side{Addr: podAddr(i, v6), Direction: d}] = compile.TableID(1 + r.IntN(3))
				}
			}
			if r.IntN(3) > 0 {
				s.Identities[podAddr(i, v6)] = identities[4+r.IntN(3)]
			}
			if r.IntN(3) == 0 {
				s.Selves[podAddr(i, v6)] = identities[4+r.IntN(3)]
			}
		}
		s.Identities[nodeAddr(v6)] = identities[2+r.IntN(2)]
		if r.IntN(2) == 0 { // as one that has moved to another host
			s.Identities[clientAddr(v6)] = identities[2+r.IntN(2)]
		}
	}
	for _, p := range []string{"0.0.0.0/0", "192.0.2.0/24", "192.0.2.2/32", "192.0.0.0/8", "10.9.0.0/24", "255.255.255.255/32", "2001:db8::/32", "2001:db8::2/128", "::/0"} {
		if r.IntN(2) == 0 {
			s.Blocks[netip.MustParsePrefix(p).Masked()] = identities[[]int{0, 4, 5, 6}[r.IntN(4)]]
		}
	}
	return s
}

// The kernel decides on real connections as the state says: from and to pods, from outside and from the node, by TCP and UDP of both families.
func TestKernelDecidesAsTheState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 12 {
		s := randomState(r)
		must(t, f.Replace(s))
		var tries sync.WaitGroup
		for range 60 {
			v6 := r.IntN(2) == 0
			all := []netip.Addr{clientAddr(v6), nodeAddr(v6)}
			for i := range podCount {
				all = append(all, podAddr(i, v6))
			}
			c := policy.Connection{Src: all[r.IntN(len(all))], Dst: all[r.IntN(len(all))], Protocol: policy.TCP, Port: uint16(1 + r.IntN(9))}
			if r.IntN(2) == 0 {
				c.Protocol = policy.UDP
			}
			from := w.of(c.Src)
			if from == w.of(c.Dst) {
				continue // does not pass the node
			}
			judge := s.Forwarded
			if from == w.node || w.of(c.Dst) == w.node {
				judge = s.Verdict
			}
			egress, ingress := judge(c)
			want := lost
			if egress.Allow && ingress.Allow {
				want = refused
			}
			tries.Go(func() {
				try := from.tcp
				if c.Protocol == policy.UDP {
					try = from.udp
				}
				limit := patience
				if want == lost {
					limit = never
				}
				if got := try(c.Src, c.Dst, c.Port, limit); got != want {
					t.Errorf("round %d: %+v: %s, the state says %s (%+v, %+v)", round, c, got, want, egress, ingress)
				}
			})
		}
		tries.Wait()
		if t.Failed() {
			return
		}
	}
}
