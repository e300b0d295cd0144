// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/policytest"
)

// changed is a world in which one policy of u is another one.
func changed(u policytest.Universe, i int, change func(p *policy.Policy)) *policy.World {
	p := *u.Policies[i]
	for d := range p.Rules {
		p.Rules[d] = slices.Clone(p.Rules[d])
	}
	change(&p)
	w := u.World()
	w.SetPolicy(&p)
	return w
}

// property asks for something of a world, one with a policy changed, and connections in both.
func property(t *testing.T, change func(s policytest.Source, p *policy.Policy), holds func(before, after policy.Decision) bool) {
	t.Helper()
	rapid.Check(t, func(t *rapid.T) {
		s := policytest.Rapid(t)
		u := policytest.Generate(s)
		after := changed(u, s.IntN(len(u.Policies)), func(p *policy.Policy) { change(s, p) })
		before := u.World()
		for range 8 {
			c := u.Connection(s)
			if b, a := before.Judge(c), after.Judge(c); !holds(b, a) {
				t.Fatalf("%v:\nbefore %+v\nafter  %+v", c, b, a)
			}
		}
	})
}

func anyRule(s policytest.Source) policy.Rule {
	p := policytest.NetworkPolicy(s, policy.Name{Namespace: "default", Name: "donor"})
	for _, rules := range p.Rules {
		if len(rules) > 0 {
			return rules[0]
		}
	}
	return policy.Rule{AnyPeer: true, AnyPort: true}
}

// TestAnotherAllowingRule shows that one more rule that accepts, of any policy, never denies anything.
func TestAnotherAllowingRule(t *testing.T) {
	property(t, func(s policytest.Source, p *policy.Policy) {
		d := policy.Direction(s.IntN(2))
		p.Rules[d] = slices.Insert(p.Rules[d], s.IntN(len(p.Rules[d])+1), anyRule(s))
	}, func(before, after policy.Decision) bool { return after.Allowed() || !before.Allowed() })
}

// TestAnotherDenyingRule shows that one more rule that denies never allows anything.
func TestAnotherDenyingRule(t *testing.T) {
	property(t, func(s policytest.Source, p *policy.Policy) {
		if p.Tier != policy.Network {
			r := anyRule(s)
			r.Action = policy.Deny
			d := policy.Direction(s.IntN(2))
			p.Rules[d] = slices.Insert(p.Rules[d], s.IntN(len(p.Rules[d])+1), r)
		}
	}, func(before, after policy.Decision) bool { return before.Allowed() || !after.Allowed() })
}

// TestDisabledRule shows that a rule that says nothing is the same as none, and that of the Network tier it never allows more than it did.
func TestDisabledRule(t *testing.T) {
	property(t, func(s policytest.Source, p *policy.Policy) {
		r := anyRule(s)
		r.Disabled, r.Action = true, policy.Action(s.IntN(3))
		d := policy.Direction(s.IntN(2))
		p.Rules[d] = append(p.Rules[d], r)
	}, func(before, after policy.Decision) bool {
		return same(before.Egress) == same(after.Egress) && same(before.Ingress) == same(after.Ingress)
	})
	property(t, func(s policytest.Source, p *policy.Policy) {
		d := policy.Direction(s.IntN(2))
		if n := len(p.Rules[d]); n > 0 && p.Tier == policy.Network {
			p.Rules[d][s.IntN(n)].Disabled = true
		}
	}, func(before, after policy.Decision) bool { return before.Allowed() || !after.Allowed() })
}

// TestClosed shows that what is enforced in place of a policy never allows anything that it would deny, whichever it is, and is itself in order.
func TestClosed(t *testing.T) {
	property(t, func(_ policytest.Source, p *policy.Policy) {
		*p = *p.Closed(errTest)
		if err := p.Check(); err != nil {
			t.Fatal(err)
		}
		if len(p.Problems) != 1 {
			t.Fatalf("%q", p.Problems)
		}
	}, func(before, after policy.Decision) bool { return before.Allowed() || !after.Allowed() })
}

// TestEachEnd shows that a connection's verdicts are those of each end: nothing of the other end's policies changes them.
func TestEachEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := policytest.Rapid(t)
		u := policytest.Generate(s)
		w := u.World()
		c := u.Connection(s)
		d := w.Judge(c)
		if d.Ingress.Endpoint == d.Egress.Endpoint {
			return
		}
		only := u.World()
		for _, p := range u.Policies {
			if e, ok := u.World().EndpointAt(c.Dst); ok && w.Selects(p, e) {
				only.DeletePolicy(p.PolicyKey)
			}
		}
		for _, p := range u.Policies {
			if e, ok := u.World().EndpointAt(c.Src); ok && w.Selects(p, e) {
				only.SetPolicy(p)
			}
		}
		if same(only.Judge(c).Egress) != same(d.Egress) {
			t.Fatalf("%v: %+v, with its own policies alone %+v", c, d.Egress, only.Judge(c).Egress)
		}
	})
}

// TestClosedIsNarrow shows what it is that is enforced: nothing of what accepts, all that denies or passes as one that denies, for the same subject.
func TestClosedIsNarrow(t *testing.T) {
	odd := &policy.Selector{{Key: "app", Operator: 9}}
	for _, c := range []struct {
		what string
		p    *policy.Policy
		want map[string]string
	}{
		{"a NetworkPolicy", np("prod/p", "app=db", "i", rules(rule("")), nil), map[string]string{"web prod/db TCP 80": "open / !p", "prod/db web TCP 80": "open / open", "web prod/cache TCP 80": "open / open"}},
		{"one whose subject cannot be read", with(np("prod/p", "", "i", nil, nil), func(p *policy.Policy) { p.Pods = odd }), map[string]string{"web prod/db TCP 80": "open / !p", "web api TCP 80": "open / open"}},
		{"rules that accept", cnp("c", policy.Admin, 1, "", rules(rule("")), nil), map[string]string{"web prod/db TCP 80": "open / open"}},
		{"a rule that denies", cnp("c", policy.Baseline, 1, "team=b", rules(rule(""), deny(rule("TCP 1"))), nil), map[string]string{"web prod/db UDP 80": "open / -c:1", "prod/db web UDP 80": "open / open"}},
		{"a rule that passes", cnp("c", policy.Admin, 1, "", nil, rules(pass(rule("TCP 1")))), map[string]string{"web prod/db ICMP": "-c:1 / open"}},
		{"namespaces that cannot be read", with(cnp("c", policy.Admin, 1, "/app=db", rules(deny(rule(""))), nil), func(p *policy.Policy) { p.Namespaces = odd }), map[string]string{"web prod/db ICMP": "open / -c:1", "web prod/cache ICMP": "open / open"}},
	} {
		w := town(c.p.Closed(errTest))
		for asked, want := range c.want {
			if got := short(w.Judge(connection(t, w, asked))); got != want {
				t.Errorf("%s: %s: %s, want %s", c.what, asked, got, want)
			}
		}
	}
}
