// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/policytest"
)

// tenant is a namespace with a workload here, and the ingress of its policies.
type tenant struct {
	name  string
	addr  netip.Addr
	rules [][]policy.Rule // of a policy each
}

func (x tenant) tell(c *Compiler, d int) {
	switch d {
	case 0:
		c.SetEndpoint(policy.Endpoint{Name: policy.Name{Namespace: x.name, Name: "db"}, Node: here, Labels: map[string]string{"app": "db"}, Addrs: []netip.Addr{x.addr}})
	case 1:
		web := x.addr.As4()
		web[3] = 2
		c.SetEndpoint(policy.Endpoint{
			Name: policy.Name{Namespace: x.name, Name: "web"}, Node: "n2", Labels: map[string]string{"app": "web"}, Addrs: []netip.Addr{netip.AddrFrom4(web)},
		})
	default:
		c.SetPolicy(&policy.Policy{
			PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: x.name, Name: fmt.Sprint("p", d)}},
			Tier:      policy.Network, Pods: &policy.Selector{{Key: "app", Operator: policy.In, Values: []string{"db"}}},
			Isolates: [2]bool{policy.Ingress: true}, Rules: [2][]policy.Rule{policy.Ingress: x.rules[d-2]},
		})
	}
}

// fromWeb allows the namespace's workload "web" at that many ports.
func fromWeb(ports int) policy.Rule {
	r := policy.Rule{Peers: []policy.Peer{{Pods: &policy.Selector{{Key: "app", Operator: policy.In, Values: []string{"web"}}}}}}
	for i := range ports {
		r.Ports = append(r.Ports, policy.Ports{Protocol: policy.TCP, First: uint16(1 + 2*i), Last: uint16(1 + 2*i)})
	}
	return r
}

// single is the i-th address of some network, as a peer.
func single(net byte, i int) policy.Peer {
	return policy.Peer{Block: &policy.Block{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{net, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}}
}

// TestLimitsAreShared has one namespace take all that there is, of whatever there are limits. Whoever comes first, that one is denied and named, and the
// others' policies are in force.
func TestLimitsAreShared(t *testing.T) {
	limits := Limits{Identities: 1 << 12, Memberships: 1 << 17, Rules: 1 << 15, Cells: 1 << 14} // a 16th
	blocks := func(k, n int) policy.Rule {
		r := policy.Rule{AnyPort: true}
		for i := range n {
			r.Peers = append(r.Peers, single(byte(100+k), i))
		}
		return r
	}
	everywhere := netip.MustParsePrefix("0.0.0.0/0")
	evil := map[string][][]policy.Rule{}
	for k := range 5 {
		evil["blocks"] = append(evil["blocks"], []policy.Rule{blocks(k, 1200)})
		wide := fromWeb(650)
		wide.Peers = blocks(k, 8).Peers
		evil["combinations"] = append(evil["combinations"], []policy.Rule{wide})
		around := policy.Rule{AnyPort: true}
		for i := range 150 {
			around.Peers = append(around.Peers, policy.Peer{Block: &policy.Block{Prefix: everywhere, Except: []netip.Prefix{single(byte(100+k), i).Block.Prefix}}})
		}
		evil["are in each other"] = append(evil["are in each other"], []policy.Rule{around})
	}
	for range 8 {
		evil["rules"] = append(evil["rules"], slices.Repeat([]policy.Rule{fromWeb(1)}, 5000))
	}
	for name, rules := range evil {
		t.Run(name, func(t *testing.T) {
			all := []tenant{{"evil", netip.MustParseAddr("10.0.0.1"), rules}}
			for i := range 5 {
				all = append(all, tenant{fmt.Sprint("good-", i), netip.AddrFrom4([4]byte{10, 0, byte(i + 1), 1}), [][]policy.Rule{{fromWeb(500), {Peers: []policy.Peer{single(200, i)}, AnyPort: true}}}})
			}
			var first []string
			for order := range 3 {
				c, s := New(here, limits), rand.New(rand.NewPCG(uint64(order), 0))
				type step struct{ tenant, d int }
				var steps []step
				for i, x := range all {
					for d := range 2 + len(x.rules) {
						steps = append(steps, step{i, d})
					}
				}
				switch order {
				case 1:
					slices.Reverse(steps)
				case 2:
					s.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
				}
				for i, x := range steps {
					if all[x.tenant].tell(c, x.d); i%20 == 0 {
						c.Commit()
					}
				}
				c.Commit()
				state := c.State()
				for _, x := range all[1:] {
					web := x.addr.As4()
					web[3] = 2
					_, v := state.Verdict(policy.Connection{Src: netip.AddrFrom4(web), Dst: x.addr, Protocol: policy.TCP, Port: 1})
					_, n := state.Verdict(policy.Connection{Src: netip.AddrFrom4(web), Dst: x.addr, Protocol: policy.TCP, Port: 2})
					if !v.Allow || n.Allow || n.By.Reason == policy.Beyond {
						t.Errorf("order %d: %s: %+v, %+v", order, x.name, v.By, n.By)
					}
				}
				if _, v := state.Verdict(policy.Connection{Src: netip.MustParseAddr("192.0.2.1"), Dst: all[0].addr, Protocol: policy.TCP, Port: 2}); v.Allow || v.By.Reason != policy.Beyond {
					t.Errorf("order %d: %+v", order, v.By)
				}
				problems := c.Problems()
				if len(problems) != 2 || !strings.Contains(problems[0], name) || !strings.Contains(problems[0], "those of the namespace evil") || !strings.HasPrefix(problems[1], "evil/db: all ingress is denied") {
					t.Errorf("order %d: problems: %s", order, strings.Join(problems, "\n"))
				}
				if got := canonical(state); order == 0 {
					first = got
				} else if !slices.Equal(got, first) {
					t.Errorf("order %d leads elsewhere", order)
				}
			}
		})
	}
}

// TestLimitsDoNotDependOnOrder holds what is denied for rules, blocks and cells in random worlds that have changed to what it is in a compiler that is told their
// last objects at once.
func TestLimitsDoNotDependOnOrder(t *testing.T) {
	compared, denied := 0, 0
	for seed := range uint64(500) {
		s := policytest.Seeded(seed)
		l := Limits{Rules: 5 + s.IntN(60), Cells: 20 + s.IntN(100), Identities: 200 + 2*s.IntN(20)}
		if seed%3 == 0 {
			l.Identities = 2 + s.IntN(20)
		}
		b := both{policy.NewWorld(), New(here, l)}
		policytest.Generate(s).Tell(b)
		for range 6 {
			b.c.Commit()
			again := New(here, l)
			policytest.Of(b.World).Tell(again)
			again.Commit()
			vague := func(c *Compiler) bool { // whose addresses are not told apart depends on who came first
				return len(c.unsorted) > 0 || slices.ContainsFunc(c.tables, func(t *table) bool { return t.huge })
			}
			if !vague(b.c) && !vague(again) {
				compared++
				got, want := canonical(b.c.State()), canonical(again.State())
				if !slices.Equal(got, want) {
					t.Fatalf("seed %d:\n%s\nwant\n%s\nproblems: %v\nwant %v", seed, strings.Join(got, "\n"), strings.Join(want, "\n"), b.c.Problems(), again.Problems())
				}
				if !slices.Equal(b.c.Problems(), again.Problems()) {
					t.Fatalf("seed %d: problems: %v\nwant %v", seed, b.c.Problems(), again.Problems())
				}
				if len(again.Problems()) > 0 {
					denied++
				}
			}
			bounded(seeded{t, seed}, b.c, b.c.limits)
			for range 2 {
				policytest.NewChange(s).Apply(b)
			}
		}
	}
	if compared < 1000 || denied < 150 {
		t.Errorf("%d states compared, in %d something was denied", compared, denied)
	}
}
