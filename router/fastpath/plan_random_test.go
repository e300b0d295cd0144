// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// node is a node of a small world: both what it is for itself and what it is for others.
type node struct {
	Self
	Peer
	gates []byte // the networks that it is on, which are eth0, eth1...
}

// addrOf returns the address of a node on one of the networks.
func addrOf(network, host byte, v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: network, 15: host})
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, network<<4 | host})
}

// drawNode draws a node that is on some of three networks, each of both families, with a gateway between them. What it says of itself may be
// wrong.
func drawNode(t *rapid.T, host byte, v4, v6, plain bool) node {
	label := func(s string) string { return fmt.Sprint(s, host) }
	n := node{gates: rapid.SliceOfNDistinct(rapid.ByteRange(1, 3), 1, 3, rapid.ID[byte]).Draw(t, label("networks"))}
	kinds := rapid.SliceOfDistinct(rapid.SampledFrom(Kinds()), rapid.ID[Kind])
	var pool []netip.Prefix
	for network := range byte(4) {
		for h := range byte(4) {
			for _, v6 := range []bool{false, true} {
				a := addrOf(network, h, v6)
				pool = append(pool, netip.PrefixFrom(a, a.BitLen()), netip.PrefixFrom(a, a.BitLen()-4).Masked())
			}
		}
	}
	if !rapid.Bool().Draw(t, label("careful")) {
		pool = append(pool, prefixes("0.0.0.0/0 ::/0")...)
	}
	trusted := rapid.SliceOfN(rapid.SampledFrom(pool), 0, 8).Draw(t, label("trusted"))
	var known []netip.AddrPort
	for _, g := range n.gates {
		for _, v6 := range []bool{false, true} {
			if rapid.IntRange(0, 4).Draw(t, label("hidden")) > 0 {
				known = append(known, netip.AddrPortFrom(addrOf(g, host, v6), 6783))
			}
		}
	}
	odd := append(endpoints("127.0.0.1 169.254.0.9 fe80::9 ff02::9 10.32.0.9 fd00:32::9 0.0.0.0 ::ffff:192.0.2.17"), netip.AddrPort{})
	known = append(known, rapid.SliceOfN(rapid.SampledFrom(odd), 0, 3).Draw(t, label("odd"))...)
	n.Self = Self{
		ID: uint64(host), Kinds: kinds.Draw(t, label("does")), Trusted: trusted, Plain: plain,
		VNI: rapid.Uint32Range(1, 2).Draw(t, label("vni")), V4: v4, V6: v6, Overlay: prefixes("10.32.0.0/12 fd00:32::/64"),
	}
	n.Route = func(to netip.Addr) (Hop, bool) {
		for network := byte(1); network <= 3; network++ {
			for h := range byte(16) {
				if to != addrOf(network, h, to.Is6()) {
					continue
				}
				if i := slices.Index(n.gates, network); i >= 0 {
					return Hop{addrOf(network, host, to.Is6()), fmt.Sprint("eth", i), 1500, true}, true
				}
				return Hop{addrOf(n.gates[0], host, to.Is6()), "eth0", 1500, false}, true
			}
		}
		return Hop{}, false
	}
	n.Peer = Peer{
		ID: uint64(host), Name: fmt.Sprint("n", host), Endpoints: known, Trusted: trusted, Kinds: n.Self.Kinds, VNI: n.Self.VNI, VXLANPort: 6784,
		Hosts: rapid.SliceOfNDistinct(rapid.SampledFrom([]netip.Addr{
			netip.AddrFrom4([4]byte{10, 32, host, 1}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x32, 14: host}), netip.MustParseAddr("192.0.2.77"),
		}), 0, 3, rapid.ID[netip.Addr]).Draw(t, label("hosts")),
		Unused: rapid.Bool().Draw(t, label("unused")),
	}
	for _, e := range known {
		n.Addrs = append(n.Addrs, e.Addr())
	}
	if len(known) > 0 {
		n.Current = rapid.SampledFrom(known).Draw(t, label("current"))
	}
	return n
}

// consent tells whether both sides of an address trust each other, by the definition.
func consent(from, to node, a netip.Addr) bool {
	hop, ok := from.Route(a)
	if !ok {
		return false
	}
	if from.Plain {
		return true
	}
	in := func(list []netip.Prefix, a netip.Addr) bool {
		for _, p := range list {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	return in(from.Self.Trusted, a) && in(to.Peer.Trusted, hop.Source)
}

// Whatever nodes say of themselves: there is no way but by addresses that both sides consent to, and what one side may send the other one accepts.
func TestPlanRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v4 := rapid.Bool().Draw(t, "v4")
		v6 := !v4 || rapid.Bool().Draw(t, "v6")
		plain := rapid.IntRange(0, 3).Draw(t, "plain") == 0
		a, b := drawNode(t, 1, v4, v6, plain), drawNode(t, 2, v4, v6, plain)
		there := Plan(a.Self, []Peer{b.Peer}, nil)[0]
		back := Plan(b.Self, []Peer{a.Peer}, nil)[0]
		checkCandidate(t, a, b, there)

		for _, w := range there.Ways {
			switch w.Kind {
			case VXLAN:
				hop, _ := a.Route(w.Remote.Addr())
				if known(a.Peer, hop.Source) && !slices.Contains(back.Accept, hop.Source) {
					t.Fatalf("what goes by %v from %v is not accepted: %v", w, hop.Source, back.Accept)
				}
			case Direct:
				ok := slices.ContainsFunc(back.AcceptDirect, func(s Segment) bool {
					for _, hop := range []netip.Addr{w.Hop4, w.Hop6} {
						if h, on := a.Route(hop); hop.IsValid() && on && h.Source == s.Hop {
							return true
						}
					}
					return false
				})
				hop := w.Hop4
				if !hop.IsValid() {
					hop = w.Hop6
				}
				if h, _ := a.Route(hop); known(a.Peer, h.Source) && !ok {
					t.Fatalf("what goes by %v is not accepted: %v", w, back.AcceptDirect)
				}
			}
		}

		again := Plan(a.Self, []Peer{b.Peer}, []Candidate{there})[0]
		if fmt.Sprint(again.Ways) != fmt.Sprint(there.Ways) {
			t.Fatalf("planned again, %v becomes %v", there.Ways, again.Ways)
		}
		moved := b
		moved.Unused, moved.Current = false, netip.AddrPort{}
		later := Plan(a.Self, []Peer{moved.Peer}, []Candidate{there})[0]
		if fmt.Sprint(later.Ways) != fmt.Sprint(there.Ways) {
			t.Fatalf("it is not reached directly any more, and %v becomes %v", there.Ways, later.Ways)
		}
	})
}

// known tells whether an address is one of those that others know of a node.
func known(p Peer, a netip.Addr) bool {
	return slices.ContainsFunc(p.Endpoints, func(e netip.AddrPort) bool { return e.Addr().Unmap() == a })
}

func checkCandidate(t *rapid.T, a, b node, c Candidate) {
	for k := VXLAN; k <= Direct; k++ {
		_, is := c.Way(k)
		why, not := c.Why[k]
		if is == not || not && why == "" {
			t.Fatalf("%v: a way %v, and why not: %q", k, is, why)
		}
		if both := slices.Contains(a.Self.Kinds, k) && slices.Contains(b.Peer.Kinds, k); is && !both {
			t.Fatalf("%v, which not both do", k)
		}
	}
	if !slices.IsSortedFunc(c.Ways, func(x, y Way) int { return int(y.Kind) - int(x.Kind) }) {
		t.Fatalf("not the best first: %v", c.Ways)
	}
	for _, w := range c.Ways {
		families := 0
		for _, p := range w.Probe {
			if !known(Peer{Endpoints: []netip.AddrPort{netip.AddrPortFrom(p, 1)}}, p) || !slices.Contains(b.Hosts, p) || !within(a.Overlay, p) {
				t.Fatalf("probes go to %v", p)
			}
			families++
		}
		want := 0
		for _, f := range []bool{a.V4, a.V6} {
			if f {
				want++
			}
		}
		if families != want {
			t.Fatalf("%v is probed in %d families", w, families)
		}
		switch w.Kind {
		case VXLAN:
			if r := w.Remote.Addr(); !consent(a, b, r) || !known(b.Peer, r) || a.Self.VNI != b.Peer.VNI {
				t.Fatalf("%v without consent", w)
			}
			if over := map[bool]int{true: 50, false: 70}[w.Remote.Addr().Is4()]; w.MTU != 1500-over {
				t.Fatalf("MTU of %v is %d", w, w.MTU)
			}
		case Direct:
			if w.Hop4.IsValid() != a.V4 || w.Hop6.IsValid() != a.V6 || a.V6 && !w.Hop6.Is6() || w.MTU != 1500 {
				t.Fatalf("%+v cannot carry this overlay", w)
			}
			for _, hop := range []netip.Addr{w.Hop4, w.Hop6} {
				if !hop.IsValid() {
					continue
				}
				if h, _ := a.Route(hop); !consent(a, b, hop) || !known(b.Peer, hop) || !h.OnLink || h.Device != w.Device {
					t.Fatalf("%+v by %v, without consent or elsewhere", w, hop)
				}
			}
		default:
			t.Fatalf("%v is no kernel path", w)
		}
	}
	for _, s := range c.Accept {
		if !known(b.Peer, s) || !a.trustsAddr(s) {
			t.Fatalf("packets from %v are accepted", s)
		}
	}
	for _, s := range c.AcceptDirect {
		if h, ok := a.Route(s.Hop); !known(b.Peer, s.Hop) || !a.trustsAddr(s.Hop) || !ok || !h.OnLink || h.Device != s.Device {
			t.Fatalf("packets from %v are accepted", s)
		}
	}
	if !a.Plain && (len(a.Self.Trusted) == 0 || len(b.Peer.Trusted) == 0) && len(c.Ways)+len(c.Accept)+len(c.AcceptDirect) > 0 {
		t.Fatalf("one trusts nobody, and yet %+v", c)
	}
}

func (n node) trustsAddr(a netip.Addr) bool {
	return n.Plain || slices.ContainsFunc(n.Self.Trusted, func(p netip.Prefix) bool { return p.Contains(a) })
}
