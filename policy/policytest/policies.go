// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

func portNames() []string            { return []string{"http", "dns"} }
func ports() []uint16                { return []uint16{80, 443, 8080, 1, 65535} }
func protocols() []policy.Protocol   { return []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} }
func directions() []policy.Direction { return []policy.Direction{policy.Ingress, policy.Egress} }

// Policy returns the i-th one: its name and kind are the same each time, and nothing else is.
func Policy(s Source, i int) *policy.Policy {
	name := fmt.Sprintf("p%d", i)
	if i%2 == 1 {
		return ClusterPolicy(s, name)
	}
	return NetworkPolicy(s, policy.Name{Namespace: namespaces()[i/2%len(namespaces())], Name: name})
}

// NetworkPolicy returns one of the Network tier.
func NetworkPolicy(s Source, n policy.Name) *policy.Policy {
	p := &policy.Policy{PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: n}, Tier: policy.Network}
	p.Pods = selector(s)
	switch s.IntN(4) {
	case 0, 1:
		p.Isolates = [2]bool{policy.Ingress: true, policy.Egress: true}
	case 2:
		p.Isolates[policy.Ingress] = true
	default:
		p.Isolates[policy.Egress] = true
	}
	for _, d := range directions() {
		// with rules in a direction that it does not isolate, too: they say nothing
		p.Rules[d] = some(s, 3, func(int) policy.Rule { return rule(s, p, d) })
	}
	return p
}

// ClusterPolicy returns one of the Admin or the Baseline tier.
func ClusterPolicy(s Source, name string) *policy.Policy {
	p := &policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Admin, Name: policy.Name{Name: name}},
		Tier:      pick(s, policy.Admin, policy.Baseline),
		Priority:  int32(s.IntN(3)),
	}
	p.Namespaces = must(selector(s))
	p.Pods = selector(s)
	for _, d := range directions() {
		p.Rules[d] = some(s, 4, func(int) policy.Rule { return rule(s, p, d) })
	}
	return p
}

// rule returns one that p may have in that direction.
func rule(s Source, p *policy.Policy, d policy.Direction) policy.Rule {
	r := policy.Rule{Name: pick(s, "", "", "named")}
	if p.Tier != policy.Network {
		r.Action = pick(s, policy.Accept, policy.Deny, policy.Pass)
	}
	r.Disabled = chance(s, 16)
	if r.AnyPeer = chance(s, 5); !r.AnyPeer {
		for range 1 + s.IntN(3) {
			r.Peers = append(r.Peers, peer(s, p, d))
		}
		if chance(s, 24) {
			r.Peers = nil // fits nobody
		}
	}
	if r.AnyPort = chance(s, 3); !r.AnyPort {
		for range 1 + s.IntN(3) {
			r.Ports = append(r.Ports, portsOf(s, p))
		}
	}
	return r
}

// peer returns one that a rule of p may have in that direction.
func peer(s Source, p *policy.Policy, d policy.Direction) policy.Peer {
	cluster := p.Tier != policy.Network
	switch i := s.IntN(8); {
	case i < 2 && !cluster:
		return policy.Peer{Pods: must(selector(s))}
	case i < 2:
		return policy.Peer{Namespaces: must(selector(s)), Pods: must(selector(s))}
	case i < 4:
		return policy.Peer{Namespaces: must(selector(s)), Pods: selector(s)}
	case i < 5 && cluster && d == policy.Egress:
		return policy.Peer{Nodes: must(selector(s))}
	case cluster && d == policy.Ingress:
		return policy.Peer{Namespaces: must(selector(s))}
	default:
		return policy.Peer{Block: block(s, cluster)}
	}
}

// must returns the empty selector for none.
func must(s *policy.Selector) *policy.Selector {
	if s == nil {
		return &policy.Selector{}
	}
	return s
}

// selector returns one in the order that is asked of it, or nil.
func selector(s Source) *policy.Selector {
	if chance(s, 4) {
		return nil
	}
	var sel policy.Selector
	for range s.IntN(3) {
		r := policy.Requirement{Key: pick(s, keys()...), Operator: policy.Operator(s.IntN(4))}
		if chance(s, 6) {
			r.Key = policy.NameLabel
		}
		of := values()
		if r.Key == policy.NameLabel {
			of = namespaces()
		}
		if r.Operator == policy.In || r.Operator == policy.NotIn {
			for range 1 + s.IntN(2) {
				r.Values = append(r.Values, pick(s, of...))
			}
			slices.Sort(r.Values)
			r.Values = slices.Compact(r.Values)
		}
		sel = append(sel, r)
	}
	slices.SortFunc(sel, func(a, b policy.Requirement) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
	})
	return &sel
}

// block returns one around an address that something has, of a cluster's policy without parts left out.
func block(s Source, whole bool) *policy.Block {
	b := &policy.Block{Prefix: around(s, anAddr(s))}
	if whole {
		return b
	}
	for range s.IntN(3) {
		// often around an address of the block, and overlapping another one
		e := around(s, anAddr(s))
		if e.Addr().Is4() == b.Prefix.Addr().Is4() && e.Bits() > b.Prefix.Bits() && b.Prefix.Contains(e.Addr()) {
			b.Except = append(b.Except, e)
		}
	}
	return b
}

// around returns a prefix that a is in.
func around(s Source, a netip.Addr) netip.Prefix {
	bits := pick(s, 32, 31, 30, 29, 24, 16, 1, 0)
	if a.Is6() {
		bits = pick(s, 128, 127, 126, 125, 120, 64, 16, 0)
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// anAddr returns one that an endpoint, a node or nobody has.
func anAddr(s Source) netip.Addr {
	switch i := s.IntN(10); {
	case i < 5:
		return netip.AddrFrom4([4]byte{10, 32, 0, byte(1 + s.IntN(maxEndpoints))})
	case i < 7:
		return v6(1 + s.IntN(maxEndpoints))
	case i < 8:
		return pick(s, netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + s.IntN(3))}), netip.AddrFrom4([4]byte{10, 32, 1, byte(1 + s.IntN(3))}),
			v6(0x100+s.IntN(3)), netip.AddrFrom4([4]byte{192, 0, 2, 9}))
	default:
		return pick(s, outside()...)
	}
}

// portsOf returns ports that a rule of p may have.
func portsOf(s Source, p *policy.Policy) policy.Ports {
	protocol := pick(s, protocols()...)
	switch s.IntN(5) {
	case 0, 1:
		n := pick(s, ports()...)
		return policy.Ports{Protocol: protocol, First: n, Last: n}
	case 2:
		a, b := pick(s, ports()...), pick(s, ports()...)
		return policy.Ports{Protocol: protocol, First: min(a, b), Last: max(a, b)}
	case 3:
		return policy.Ports{Protocol: protocol}
	default:
		if p.Tier != policy.Network {
			protocol = 0
		}
		return policy.Ports{Protocol: protocol, Name: pick(s, portNames()...)}
	}
}
