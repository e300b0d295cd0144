// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// program runs nft in the namespace.
func (s *space) program(input string, args ...string) (out string, err error) {
	err = s.do(func() error {
		c := exec.Command("nft", args...)
		c.Stdin = strings.NewReader(input)
		b, err := c.CombinedOutput()
		if out = string(b); err != nil {
			err = fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return err
	})
	return out, err
}

// Whatever is in the table, nft(8) lists it, loads what it has listed, and that is the same table.
func TestNftPrintsTheTable(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("there is no nft(8) whose listing could be tried")
	}
	plain := func(change func(s *compile.State)) *compile.State {
		s := isolated(0, 80)
		change(s)
		return s
	}
	for name, tt := range map[string]struct {
		state *compile.State
		quiet bool
	}{
		"all":    {sample(), false},
		"quiet":  {sample(), true},
		"narrow": {isolated(0), false},
		"ranges": {plain(func(s *compile.State) {
			s.Tables[1].Cells[compile.Cell{Identity: 3, Protocol: policy.UDP, First: 0, Last: 65535}] = by(true, "all")
			s.Tables[1].Cells[compile.Cell{Identity: 4, Protocol: policy.UDP, First: 0, Last: 9}] = by(true, "some")
			s.Tables[1].Cells[compile.Cell{Identity: 4, Protocol: policy.UDP, First: 10, Last: 65535}] = by(false, "none")
		}), false},
		"blocks": {plain(func(s *compile.State) { s.Blocks = sample().Blocks }), false},
		"selves": {plain(func(s *compile.State) {
			for _, v6 := range []bool{false, true} {
				s.Selves[podAddr(0, v6)] = 4
			}
		}), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from, to := newSpace(t), newSpace(t)
			f := newFilter(t, from)
			f.quiet = tt.quiet
			must(t, f.Replace(tt.state))
			_, err := from.program("", "-j", "list", "ruleset")
			must(t, err)
			listed, err := from.program("", "list", "ruleset")
			must(t, err)
			if _, err := to.program(listed, "-f", "-"); err != nil {
				t.Fatalf("%v\n%s", err, listed)
			}
			g := newFilter(t, to)
			have, err := f.conn.look(Table, whole)
			must(t, err)
			if !have.judges() {
				t.Error("it is taken for one that does not judge")
			}
			loaded, err := g.conn.look(Table, whole)
			must(t, err)
			for i := range min(len(have.skeleton), len(loaded.skeleton)) {
				if have.skeleton[i] != loaded.skeleton[i] {
					t.Errorf("%q\nis loaded as\n%q", have.skeleton[i], loaded.skeleton[i])
				}
			}
			if len(have.skeleton) != len(loaded.skeleton) {
				t.Errorf("%d lines are loaded as %d", len(have.skeleton), len(loaded.skeleton))
			}
			if e := f.model.difference(loaded, true); !e.empty() {
				t.Errorf("other elements are loaded: %+v", e.sets)
			}
		})
	}
}
