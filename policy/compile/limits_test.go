// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/policytest"
)

// TestLimitsDeny has random worlds and changes under limits that are much too small: nothing is allowed that the world denies, what can be enforced is
// decided as the world does, no more is kept than there may be, and where there are no problems nothing is denied for them.
func TestLimitsDeny(t *testing.T) {
	var exact, denied, whole int
	for seed := range uint64(600) {
		s := policytest.Seeded(seed)
		l := Limits{Identities: 1 + s.IntN(6), Memberships: 1 + s.IntN(20), Rules: 1 + s.IntN(30), Cells: 1 + s.IntN(60)}
		b := both{policy.NewWorld(), New(here, l)}
		policytest.Generate(s).Tell(b)
		applied := NewState()
		for range 8 {
			applied.Apply(b.c.Commit())
			state := b.c.State()
			if diff := differ(applied, state); diff != "" {
				t.Fatalf("seed %d: the delta leads elsewhere: %s", seed, diff)
			}
			sound(seeded{t, seed}, state)
			bounded(seeded{t, seed}, b.c, l)
			problems := len(b.c.Problems()) > 0
			u := policytest.Of(b.World)
			for range 20 {
				c := u.Connection(s)
				d := ours(b.World, c)
				egress, ingress := state.Verdict(c)
				for _, v := range []struct {
					want policy.Verdict
					got  Verdict
				}{{d.Egress, egress}, {d.Ingress, ingress}} {
					switch {
					case v.got.Allow && !v.want.Allowed:
						t.Fatalf("seed %d: %v is allowed by %+v, and denied by %+v", seed, c, v.got.By, v.want)
					case !v.got.Allow && v.want.Allowed && (!problems || v.got.By.Reason != policy.Beyond):
						t.Fatalf("seed %d: %v is denied by %+v, and allowed by %+v; problems: %v", seed, c, v.got.By, v.want, b.c.Problems())
					case v.got.By.Reason == policy.Beyond:
						denied++
					default:
						exact++
					}
				}
			}
			if !problems {
				whole++
			}
			for range 2 {
				policytest.NewChange(s).Apply(b)
			}
		}
	}
	if exact < 10_000 || denied < 1000 || whole < 200 {
		t.Errorf("%d verdicts exact, %d denied beyond limits, %d states without problems", exact, denied, whole)
	}
}

// ours judges the ends that are endpoints of this node; others are open.
func ours(w *policy.World, c policy.Connection) policy.Decision {
	d := w.Judge(c)
	if e, _ := w.EndpointAt(c.Src); e.Node != here {
		d.Egress = policy.Verdict{Allowed: true}
	}
	if e, _ := w.EndpointAt(c.Dst); e.Node != here {
		d.Ingress = policy.Verdict{Allowed: true}
	}
	return d
}

// bounded fails if a compiler keeps more than it may, or counts wrongly.
func bounded(t failing, c *Compiler, l Limits) {
	t.Helper()
	var cells, rules, sorted, memberships int
	for _, table := range c.tables {
		rules += len(table.rules)
		for _, of := range table.cells {
			cells += len(of)
		}
	}
	for _, x := range c.classes.byKey {
		if x.kind() == 0 {
			sorted++
			memberships += x.peers() + x.values()
		}
	}
	if cells != c.cells || rules != c.rules || sorted != c.classes.sorted || memberships != c.classes.memberships {
		t.Fatalf("counted %d cells, %d rules, %d identities, %d memberships: it says %d, %d, %d, %d",
			cells, rules, sorted, memberships, c.cells, c.rules, c.classes.sorted, c.classes.memberships)
	}
	blocks := 0
	for _, p := range c.peers.inUse() {
		blocks += parts(p.block)
	}
	if blocks > c.blocksRoom() {
		t.Fatalf("%d blocks: more than %d", blocks, c.blocksRoom())
	}
	if cells > l.Cells || rules > l.Rules || sorted > l.Identities || memberships > l.Memberships {
		t.Fatalf("%d cells, %d rules, %d identities, %d memberships: more than %+v", cells, rules, sorted, memberships, l)
	}
}

// TestLimitsLift shows that what was denied is enforced again when there is room for it.
func TestLimitsLift(t *testing.T) {
	peer := func(i int) policy.Peer {
		return policy.Peer{Block: &policy.Block{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)}}
	}
	p := func(name string, peers, ports int) *policy.Policy {
		p := &policy.Policy{
			PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "ns", Name: name}},
			Tier:      policy.Network, Isolates: [2]bool{policy.Ingress: true},
		}
		for i := range peers {
			r := policy.Rule{Peers: []policy.Peer{peer(i)}}
			for n := range ports {
				r.Ports = append(r.Ports, policy.Ports{Protocol: policy.TCP, First: uint16(2*n + 1), Last: uint16(2*n + 1)})
			}
			p.Rules[policy.Ingress] = append(p.Rules[policy.Ingress], r)
		}
		return p
	}
	e := benchEndpoint(0)
	from := netip.AddrFrom4([4]byte{192, 0, 2, 0})
	const table = "ns/workload-0-7d4f9c6b5d-00000: all ingress is denied: the 2 policies that select it have more rules than this node can enforce; select it by fewer, or use fewer peers and ports"
	const need = "the network policies of this node's endpoints need "
	for _, tt := range []struct {
		name   string
		limits Limits
		more   *policy.Policy
		most   string
	}{
		{"cells", Limits{Cells: 20}, p("more", 3, 10), need + "at least 30 combinations of peer and port, and it can enforce 20: those of the namespace ns need the most, at least 30"},
		{"rules", Limits{Rules: 3}, p("more", 5, 1), need + "7 rules, and it can enforce 3: those of the namespace ns need the most, 7"},
		{"blocks", Limits{Identities: 4}, p("more", 4, 1), need + "6 blocks of addresses, and it can enforce 2: those of the namespace ns need the most, 6"},
		{"overlaps", Limits{Memberships: 4}, p("more", 4, 1), "the 6 blocks of addresses in the network policies of this node's endpoints are in each other more often than it can enforce: those of the namespace ns are the most, 6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New(here, tt.limits)
			c.SetEndpoint(e)
			c.SetPolicy(p("few", 2, 2))
			allowed := func(step string, want bool) {
				t.Helper()
				c.Commit()
				if _, v := c.State().Verdict(policy.Connection{Src: from, Dst: e.Addrs[0], Protocol: policy.TCP, Port: 3}); v.Allow != want {
					t.Errorf("%s: %+v", step, v.By)
				}
			}
			allowed("within the limits", true)
			c.SetPolicy(tt.more)
			allowed("beyond them", false)
			if got := c.Problems(); !slices.Equal(got, []string{tt.most, table}) {
				t.Errorf("problems: %s\nwant %s", strings.Join(got, "\n"), tt.most)
			}
			c.DeletePolicy(tt.more.PolicyKey)
			allowed("within them again", true)
			if got := c.Problems(); len(got) > 0 {
				t.Errorf("problems are left: %v", got)
			}
		})
	}
}

// TestHostile has objects that are made to cost much: it neither panics nor takes what it should not, and allows nothing that the world denies.
func TestHostile(t *testing.T) {
	many := func(n int, f func(i int) policy.Rule) *policy.Policy {
		p := &policy.Policy{
			PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "ns", Name: "hostile"}},
			Tier:      policy.Network, Isolates: [2]bool{true, true},
		}
		for i := range n {
			p.Rules[i%2] = append(p.Rules[i%2], f(i))
		}
		return p
	}
	long := strings.Repeat("x", 1<<16)
	v4 := netip.MustParsePrefix("0.0.0.0/0")
	tests := map[string]*policy.Policy{
		"10,000 ports": many(2, func(int) policy.Rule {
			r := policy.Rule{AnyPeer: true}
			for i := range 10_000 {
				r.Ports = append(r.Ports, policy.Ports{Protocol: policy.Protocol(i), First: uint16(i * 7), Last: uint16(i * 13)})
			}
			return r
		}),
		"overlapping ranges for overlapping blocks": many(2000, func(i int) policy.Rule {
			b := policy.Block{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, byte(i >> 3), 0}), i%33)}
			return policy.Rule{
				Peers: []policy.Peer{{Block: &b}},
				Ports: []policy.Ports{{Protocol: policy.TCP, First: uint16(i), Last: uint16(65535 - i)}},
			}
		}),
		"excepts around, beside and in each other": many(2, func(int) policy.Rule {
			b := policy.Block{Prefix: v4}
			for i := range 5000 {
				b.Except = append(b.Except, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i >> 4), byte(i << 4), byte(i), 1}), 1+i%32))
			}
			b.Except = append(b.Except, netip.Prefix{}, netip.MustParsePrefix("::/0"), netip.MustParsePrefix("::ffff:10.0.0.0/104"))
			return policy.Rule{Peers: []policy.Peer{{Block: &b}, {Block: &policy.Block{Prefix: v4, Except: []netip.Prefix{v4}}}, {Block: &policy.Block{}}, {}}, AnyPort: true}
		}),
		"each block but for another part": many(4000, func(i int) policy.Rule {
			b := policy.Block{Prefix: v4, Except: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}}
			return policy.Rule{Peers: []policy.Peer{{Block: &b}}, AnyPort: true}
		}),
		"selectors with odd operators": many(500, func(i int) policy.Rule {
			s := policy.Selector{
				{Key: "app", Operator: policy.Operator(i)},
				{Key: fmt.Sprint(long, i), Operator: policy.NotIn, Values: []string{long, long}},
				{Key: "app", Operator: policy.In, Values: []string{"", "a0", "a0"}},
			}[i%3:]
			return policy.Rule{Peers: []policy.Peer{{Pods: &s}, {Namespaces: &s}, {Namespaces: &s, Pods: &s}, {Nodes: &s}}, AnyPort: true}
		}),
		"names of ports": many(2000, func(i int) policy.Rule {
			return policy.Rule{AnyPeer: true, Ports: []policy.Ports{{Name: "http"}, {Name: long[:i]}, {Name: fmt.Sprint(i), Protocol: policy.UDP}}}
		}),
		"nothing": many(2, func(int) policy.Rule { return policy.Rule{} }),
		"unknown actions": many(20, func(i int) policy.Rule {
			return policy.Rule{Action: policy.Action(i), AnyPeer: true, AnyPort: true}
		}),
	}
	for name, p := range tests {
		t.Run(name, func(t *testing.T) {
			b := both{policy.NewWorld(), New(here, Limits{Memberships: 1 << 18, Cells: 1 << 16})}
			before := heap()
			for i := range 200 {
				e := benchEndpoint(i)
				for n := range i % 3 {
					e.Ports = append(e.Ports, policy.NamedPort{Name: fmt.Sprint(n + i), Protocol: policy.Protocol(17 * (i % 2)), Port: 80})
				}
				b.SetEndpoint(e)
			}
			b.SetPolicy(p)
			b.c.Commit()
			state := b.c.State()
			if used := heap() - before; used > 96<<20 {
				t.Errorf("%d MiB", used>>20)
			}
			bounded(t, b.c, b.c.limits)
			s := policytest.Seeded(1)
			u := policytest.Of(b.World)
			u.Policies = nil // connections cannot be aimed at what is no prefix
			exact := 0
			for range 300 {
				c := u.Connection(s)
				egress, ingress := state.Verdict(c)
				d := ours(b.World, c)
				if egress.Allow && !d.Egress.Allowed || ingress.Allow && !d.Ingress.Allowed {
					t.Fatalf("%v is allowed: %+v, %+v", c, egress.By, ingress.By)
				}
				if egress.Allow == d.Egress.Allowed && ingress.Allow == d.Ingress.Allowed {
					exact++
				} else if len(b.c.Problems()) == 0 {
					t.Fatalf("%v: %+v and %+v, want %+v", c, egress.By, ingress.By, d)
				}
			}
			if exact == 0 {
				t.Error("all is denied")
			}
			b.DeletePolicy(p.PolicyKey)
			b.c.Commit()
			if left := b.c.State(); len(left.Tables)+len(left.Blocks)+len(left.Identities) > 0 || len(b.c.peers.byKey)+len(b.c.names)+len(b.c.classes.byKey) > 1 {
				t.Errorf("left behind: %+v", left)
			}
		})
	}
}
