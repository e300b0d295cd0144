// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/policytest"
)

// naive is a second evaluator, to check the first by: it does not ask whether a rule fits a connection, but writes out, for all that there is, who is meant by
// each selector and peer, and which destinations by each port, and looks the connection up in that. It shares nothing with World but the objects.
type naive struct{ u policytest.Universe }

// holds says whether labels meet a selector, requirement by requirement.
func (n naive) holds(s policy.Selector, labels map[string]string) bool {
	met := 0
	for _, r := range s {
		values := map[string]bool{}
		for _, v := range r.Values {
			values[v] = true
		}
		value, there := labels[r.Key]
		ok := map[policy.Operator]bool{
			policy.In: there && values[value], policy.NotIn: !(there && values[value]), policy.Exists: there, policy.DoesNotExist: !there,
		}[r.Operator]
		if ok {
			met++
		}
	}
	return met == len(s)
}

// endpoints are the addresses of those that two selectors mean in a policy.
func (n naive) endpoints(p *policy.Policy, spaces, pods *policy.Selector) map[netip.Addr]bool {
	meant := map[netip.Addr]bool{}
	for _, e := range n.u.Endpoints {
		labels := map[string]string{}
		for _, space := range n.u.Namespaces {
			if space.Name == e.Namespace {
				for k, v := range space.Labels {
					labels[k] = v
				}
			}
		}
		labels["kubernetes.io/metadata.name"] = e.Namespace
		if spaces == nil {
			spaces = &policy.Selector{{Key: "kubernetes.io/metadata.name", Operator: policy.In, Values: []string{p.Namespace}}}
		}
		if pods == nil {
			pods = &policy.Selector{}
		}
		for _, a := range e.Addrs {
			if n.holds(*spaces, labels) && n.holds(*pods, e.Labels) {
				meant[a] = true
			}
		}
	}
	return meant
}

// peers says of these addresses which ones are meant by a rule.
func (n naive) peers(p *policy.Policy, r policy.Rule, of ...netip.Addr) map[netip.Addr]bool {
	meant := map[netip.Addr]bool{}
	for _, peer := range r.Peers {
		if peer.Nodes != nil {
			for _, node := range n.u.Nodes {
				for _, a := range node.Addrs {
					if n.holds(*peer.Nodes, node.Labels) {
						meant[a] = true
					}
				}
			}
		}
		if peer.Namespaces != nil || peer.Pods != nil {
			for a := range n.endpoints(p, peer.Namespaces, peer.Pods) {
				meant[a] = true
			}
		}
		for _, a := range of {
			if peer.Block == nil || !peer.Block.Prefix.Contains(a) {
				continue
			}
			left := 0
			for _, e := range peer.Block.Except {
				if e.Contains(a) {
					left++
				}
			}
			if left == 0 {
				meant[a] = true
			}
		}
	}
	for _, a := range of {
		if r.AnyPeer {
			meant[a] = true
		}
	}
	return meant
}

// ports are the numbers of a protocol that a rule means at a destination.
func (n naive) ports(r policy.Rule, dst netip.Addr, of policy.Protocol) func(uint16) bool {
	var ranges [][2]uint16
	if r.AnyPort {
		ranges = append(ranges, [2]uint16{0, 65535})
	}
	for _, p := range r.Ports {
		if p.Name != "" {
			for _, e := range n.u.Endpoints {
				for _, named := range e.Ports {
					if slices.Contains(e.Addrs, dst) && named.Name == p.Name && named.Protocol == of && (p.Protocol == of || p.Protocol == 0) {
						ranges = append(ranges, [2]uint16{named.Port, named.Port})
					}
				}
			}
		} else if p.Protocol == of {
			if p.Last == 0 {
				p.Last = 65535
			}
			ranges = append(ranges, [2]uint16{p.First, p.Last})
		}
	}
	return func(port uint16) bool {
		return slices.ContainsFunc(ranges, func(r [2]uint16) bool { return r[0] <= port && port <= r[1] })
	}
}

// end is the outcome at one end: "allow", "deny", and which policy and rule said so, if one did.
func (n naive) end(d policy.Direction, c policy.Connection) string {
	own, other := c.Src, c.Dst
	if d == policy.Ingress {
		own, other = c.Dst, c.Src
	}
	node, there := "", false
	for _, e := range n.u.Endpoints {
		if slices.Contains(e.Addrs, own) {
			node, there = e.Node, true
		}
	}
	if !there {
		return "allow: no endpoint"
	}
	ownNode := false
	for _, o := range n.u.Nodes {
		ownNode = ownNode || o.Name == node && slices.Contains(o.Addrs, other)
	}
	if ownNode && d == policy.Ingress {
		return "allow: own node"
	}
	fits := func(p *policy.Policy, r policy.Rule) bool {
		return !r.Disabled && n.peers(p, r, other)[other] && n.ports(r, c.Dst, c.Protocol)(c.Port)
	}
	// the policies of a tier that select the endpoint, in the order of their priorities and names
	selecting := func(t policy.Tier) []*policy.Policy {
		byPlace := map[string]*policy.Policy{}
		for _, p := range n.u.Policies {
			if p.Tier == t && n.endpoints(p, p.Namespaces, p.Pods)[own] {
				byPlace[fmt.Sprintf("%08d %s/%s", p.Priority, p.Namespace, p.Name.Name)] = p
			}
		}
		var places []string
		for place := range byPlace {
			places = append(places, place)
		}
		slices.Sort(places)
		var all []*policy.Policy
		for _, place := range places {
			all = append(all, byPlace[place])
		}
		return all
	}
	ordered := func(t policy.Tier) string {
		for _, p := range selecting(t) {
			for i, r := range p.Rules[d] {
				if fits(p, r) {
					return fmt.Sprintf("%s: %s rule %d", []string{"allow", "deny", "pass"}[r.Action], p.Name.Name, i)
				}
			}
		}
		return "pass"
	}
	if v := ordered(policy.Admin); v[:4] != "pass" {
		return v
	}
	isolated, allowing := "", ""
	for _, p := range selecting(policy.Network) {
		if !p.Isolates[d] {
			continue
		}
		isolated += " " + p.Name.Name
		for i, r := range p.Rules[d] {
			if allowing == "" && fits(p, r) {
				allowing = fmt.Sprintf("allow: %s rule %d", p.Name.Name, i)
			}
		}
	}
	switch {
	case isolated != "" && own == other:
		return "allow: itself"
	case isolated != "" && ownNode:
		return "allow: own node"
	case allowing != "":
		return allowing
	case isolated != "":
		return "deny:" + isolated
	}
	if v := ordered(policy.Baseline); v[:4] != "pass" {
		return v
	}
	return "allow: default"
}

// same is the verdict of World in naive's words.
func same(v policy.Verdict) string {
	outcome := map[bool]string{true: "allow: ", false: "deny: "}[v.Allowed]
	switch v.Reason {
	case policy.NotAnEndpoint:
		return outcome + "no endpoint"
	case policy.Itself:
		return outcome + "itself"
	case policy.OwnNode:
		return outcome + "own node"
	case policy.ByRule:
		return fmt.Sprintf("%s%s rule %d", outcome, v.Policy.Name.Name, v.Rule)
	case policy.Open:
		return outcome + "default"
	default:
		for i, k := range v.Isolating {
			if i > 0 {
				outcome += " "
			}
			outcome += k.Name.Name
		}
		return outcome
	}
}

// compare holds both evaluators to the same answer.
func compare(t testing.TB, u policytest.Universe, w *policy.World, c policy.Connection) {
	t.Helper()
	d := w.Judge(c)
	n := naive{u}
	if e, i := n.end(policy.Egress, c), n.end(policy.Ingress, c); same(d.Egress) != e || same(d.Ingress) != i {
		t.Fatalf("%v: %s and %s, but naively %s and %s\n%s", c, same(d.Egress), same(d.Ingress), e, i, w.Why(c).Text())
	}
}

// TestJudgeIsNaive compares them on 40,000 connections.
func TestJudgeIsNaive(t *testing.T) {
	for seed := range uint64(1600) {
		s := policytest.Seeded(seed)
		u := policytest.Generate(s)
		w := u.World()
		for range 25 {
			compare(t, u, w, u.Connection(s))
		}
	}
}

// TestJudgeIsNaiveAfterChanges compares them in worlds that have changed, and worlds that never were otherwise.
func TestJudgeIsNaiveAfterChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := policytest.Rapid(t)
		w := policytest.Generate(s).World()
		for range 1 + s.IntN(8) {
			policytest.NewChange(s).Apply(w)
		}
		u := policytest.Of(w)
		never := policytest.Universe{Namespaces: u.Namespaces, Nodes: u.Nodes, Endpoints: slices.Clone(u.Endpoints), Policies: slices.Clone(u.Policies)}
		slices.Reverse(never.Endpoints)
		slices.Reverse(never.Policies)
		fresh := never.World()
		for range 5 {
			c := u.Connection(s)
			n := naive{u}
			d, f := w.Judge(c), fresh.Judge(c)
			if same(d.Egress) != n.end(policy.Egress, c) || same(d.Ingress) != n.end(policy.Ingress, c) {
				t.Fatalf("%v: %s and %s", c, same(d.Egress), same(d.Ingress))
			}
			if same(d.Egress) != same(f.Egress) || same(d.Ingress) != same(f.Ingress) {
				t.Fatalf("%v: %s and %s, in a new world %s and %s", c, same(d.Egress), same(d.Ingress), same(f.Egress), same(f.Ingress))
			}
		}
	})
}
