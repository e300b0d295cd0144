// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/policytest"
)

// TestDeniedBlocksCostOthersNothing has a namespace with policies about far more blocks than there may be. Endpoints and policies of others that come and go
// after it do not pay for these: not even peers are made for them again.
func TestDeniedBlocksCostOthersNothing(t *testing.T) {
	const policies, each = 80, 1000
	var rules [][]policy.Rule
	for k := range policies {
		r := policy.Rule{AnyPort: true}
		for i := range each {
			r.Peers = append(r.Peers, single(byte(100+k), i))
		}
		rules = append(rules, []policy.Rule{r})
	}
	whole := policy.Rule{AnyPort: true}
	for i := range 40_000 {
		whole.Peers = append(whole.Peers, single(99, i))
	}
	good := func(name string, last byte, rules ...policy.Rule) tenant {
		return tenant{name, netip.AddrFrom4([4]byte{10, 0, 9, last}), [][]policy.Rule{append(rules, fromWeb(3))}}
	}
	for _, tt := range []struct {
		name  string
		rules [][]policy.Rule
		other tenant
	}{
		{"a pod that no block is about", rules, good("other", 1)},
		{"a pod with a policy about a block", rules, good("other", 1, policy.Rule{Peers: []policy.Peer{single(98, 1)}, AnyPort: true})},
		{"one policy about too many", [][]policy.Rule{{whole}}, good("other", 1, policy.Rule{Peers: []policy.Peer{single(98, 1)}, AnyPort: true})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New(here, Limits{})
			evil := tenant{"evil", netip.MustParseAddr("10.0.0.1"), tt.rules}
			for d := range 2 + len(tt.rules) {
				evil.tell(c, d)
			}
			c.Commit()
			if got := len(c.peers.byID); got > c.blocksRoom() {
				t.Errorf("%d peers were made", got)
			}
			come := func() {
				for d := range 3 {
					tt.other.tell(c, d)
				}
				c.Commit()
			}
			come()
			allocs := testing.AllocsPerRun(4, func() {
				c.DeleteEndpoint(policy.Name{Namespace: tt.other.name, Name: "db"})
				c.Commit()
				come()
			})
			if allocs > 2000 {
				t.Errorf("%v allocations for a pod that goes and comes", allocs)
			}
			if problems := c.Problems(); len(problems) != 2 {
				t.Errorf("problems: %q", problems)
			}
			state := c.State()
			web := tt.other.addr.As4()
			web[3] = 2
			if _, v := state.Verdict(policy.Connection{Src: netip.AddrFrom4(web), Dst: tt.other.addr, Protocol: policy.TCP, Port: 1}); !v.Allow {
				t.Errorf("the other one's policy is not in force: %+v", v.By)
			}
			if _, v := state.Verdict(policy.Connection{Src: netip.MustParseAddr("192.0.2.1"), Dst: evil.addr, Protocol: policy.TCP, Port: 1}); v.Allow || v.By.Reason != policy.Beyond {
				t.Errorf("%+v", v.By)
			}
			for k := range tt.rules {
				c.DeletePolicy(policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "evil", Name: fmt.Sprint("p", k+2)}})
			}
			c.Commit()
			if problems := c.Problems(); len(problems) > 0 {
				t.Errorf("with the policies gone: %q", problems)
			}
			if left := len(c.counted.byHash); left > 1 {
				t.Errorf("%d blocks are still counted", left)
			}
		})
	}
}

// TestTally holds what is counted of blocks without peers to the peers that are made, and to what those cut the addresses into.
func TestTally(t *testing.T) {
	some := 0
	for seed := range uint64(300) {
		s := policytest.Seeded(seed)
		b := both{policy.NewWorld(), New(here, Limits{})}
		policytest.Generate(s).Tell(b)
		for range 5 {
			b.c.Commit()
			n := b.c.tally(map[*table]lack{})
			want := 0
			for _, p := range b.c.peers.inUse() {
				want += parts(p.block)
			}
			if n.parts != want || n.used != len(b.c.peers.inUse()) {
				t.Fatalf("seed %d: %d blocks, %d parts; there are %d, %d", seed, n.used, n.parts, len(b.c.peers.inUse()), want)
			}
			for most := range 40 {
				fits, deepest := true, 0
				for _, x := range cut(b.c.peers.inUse(), most) {
					fits, deepest = fits && !x.beyond, max(deepest, len(x.peers))
				}
				all, deep, ok := n.cut(most)
				if ok != fits || ok && deep != deepest {
					t.Fatalf("seed %d: in up to %d: %v, %d deep; want %v, %d", seed, most, ok, deep, fits, deepest)
				}
				for _, x := range all {
					if got := len(b.c.blocks.all[x.prefix].peers); got != x.deep {
						t.Fatalf("seed %d: %v is in %d, counted %d", seed, x.prefix, got, x.deep)
					}
					some++
				}
			}
			n.done()
			for range 2 {
				policytest.NewChange(s).Apply(b)
			}
		}
	}
	if some < 1000 {
		t.Errorf("only %d blocks", some)
	}
}
