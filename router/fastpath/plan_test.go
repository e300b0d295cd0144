// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// table is a routing table: what it says of the addresses of a prefix.
type table map[string]Hop

func (x table) route(to netip.Addr) (Hop, bool) {
	best, hop := -1, Hop{}
	for p, h := range x {
		if p := netip.MustParsePrefix(p); p.Contains(to) && p.Bits() > best {
			best, hop = p.Bits(), h
		}
	}
	return hop, best >= 0
}

func addrs(list string) (all []netip.Addr) {
	for f := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParseAddr(f))
	}
	return all
}

func prefixes(list string) (all []netip.Prefix) {
	for f := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParsePrefix(f))
	}
	return all
}

func endpoints(list string) (all []netip.AddrPort) {
	for f := range strings.FieldsSeq(list) {
		all = append(all, netip.AddrPortFrom(netip.MustParseAddr(f), 6783))
	}
	return all
}

// here is a node on two networks, with others behind a gateway, and a peer on the same networks: both trust both.
func here() (Self, Peer) {
	self := Self{
		ID: 1, Kinds: []Kind{Direct, VXLAN, UDP}, Trusted: prefixes("192.0.2.0/24 2001:db8::/64 198.51.100.0/24"), VNI: 6783, V4: true,
		Overlay: prefixes("10.32.0.0/12 fd00:32::/64"),
		Route: table{
			"192.0.2.0/24":    {netip.MustParseAddr("192.0.2.1"), "eth0", 1500, true},
			"2001:db8::/64":   {netip.MustParseAddr("2001:db8::1"), "eth0", 1500, true},
			"198.51.100.0/24": {netip.MustParseAddr("198.51.100.1"), "eth1", 9000, true},
			"203.0.113.0/24":  {netip.MustParseAddr("192.0.2.1"), "eth0", 1500, false},
			"172.17.0.1/32":   {netip.MustParseAddr("172.17.0.1"), "lo", 65536, true},
			"10.32.0.0/12":    {netip.MustParseAddr("10.32.0.1"), "weft0", 1420, true},
		}.route,
	}
	peer := Peer{
		ID: 2, Name: "two", Endpoints: endpoints("192.0.2.2 198.51.100.2 2001:db8::2"), Trusted: self.Trusted,
		Kinds: self.Kinds, VNI: 6783, VXLANPort: 6784, Hosts: addrs("10.33.0.1 fd00:32::1:1"),
	}
	return self, peer
}

// tell writes a candidate down.
func tell(c Candidate) string {
	var b strings.Builder
	for _, w := range c.Ways {
		hops := ""
		if w.Kind == Direct {
			hops = fmt.Sprintf(" hops %v %v", w.Hop4, w.Hop6)
		}
		fmt.Fprintf(&b, "%v%s, MTU %d, probe %v\n", w, hops, w.MTU, w.Probe)
	}
	if len(c.Accept) > 0 {
		fmt.Fprintf(&b, "accept %v\n", c.Accept)
	}
	if len(c.AcceptDirect) > 0 {
		fmt.Fprintf(&b, "accept direct %v\n", c.AcceptDirect)
	}
	for _, k := range Kinds() {
		if why, ok := c.Why[k]; ok {
			fmt.Fprintf(&b, "no %v: %s\n", k, why)
		}
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	const (
		acceptVXLAN  = "accept [192.0.2.2 198.51.100.2 2001:db8::2]\n"
		acceptDirect = "accept direct [{eth0 192.0.2.2} {eth1 198.51.100.2} {eth0 2001:db8::2}]\n"
		direct       = "direct to 192.0.2.2 on eth0 hops 192.0.2.2 invalid IP, MTU 1500, probe [10.33.0.1]\n"
		vxlan        = "vxlan to 192.0.2.2:6784, MTU 1450, probe [10.33.0.1]\n"
	)
	for _, c := range []struct {
		name   string
		change func(s *Self, p *Peer)
		want   string
	}{
		{"all", func(*Self, *Peer) {}, direct + vxlan + acceptVXLAN + acceptDirect},
		{
			"what is in use", func(_ *Self, p *Peer) { p.Current = netip.MustParseAddrPort("[::ffff:198.51.100.2]:7000") },
			"direct to 198.51.100.2 on eth1 hops 198.51.100.2 invalid IP, MTU 9000, probe [10.33.0.1]\n" +
				"vxlan to 198.51.100.2:6784, MTU 8950, probe [10.33.0.1]\n" +
				"accept [198.51.100.2 192.0.2.2 2001:db8::2]\naccept direct [{eth1 198.51.100.2} {eth0 192.0.2.2} {eth0 2001:db8::2}]\n",
		},
		{
			"what is in use, and not in its record", func(_ *Self, p *Peer) { p.Current = netip.MustParseAddrPort("192.0.2.9:6783") },
			direct + vxlan + acceptVXLAN + acceptDirect,
		},
		{
			"narrow workloads", func(_ *Self, p *Peer) { p.MTU = 1400 },
			strings.ReplaceAll(strings.ReplaceAll(direct+vxlan, "1500", "1400"), "1450", "1400") + acceptVXLAN + acceptDirect,
		},
		{
			"both families inside", func(s *Self, _ *Peer) { s.V6 = true },
			"direct to 192.0.2.2 on eth0 hops 192.0.2.2 2001:db8::2, MTU 1500, probe [10.33.0.1 fd00:32::1:1]\n" +
				"vxlan to 192.0.2.2:6784, MTU 1450, probe [10.33.0.1 fd00:32::1:1]\n" + acceptVXLAN + acceptDirect,
		},
		{
			"both families inside, on the other network", func(s *Self, p *Peer) { s.V6, p.Current = true, netip.MustParseAddrPort("198.51.100.2:6783") },
			"direct to 192.0.2.2 on eth0 hops 192.0.2.2 2001:db8::2, MTU 1500, probe [10.33.0.1 fd00:32::1:1]\n" +
				"vxlan to 198.51.100.2:6784, MTU 8950, probe [10.33.0.1 fd00:32::1:1]\n" +
				"accept [198.51.100.2 192.0.2.2 2001:db8::2]\naccept direct [{eth1 198.51.100.2} {eth0 192.0.2.2} {eth0 2001:db8::2}]\n",
		},
		{
			"IPv4 by IPv6", func(_ *Self, p *Peer) { p.Endpoints = endpoints("2001:db8::2") },
			"direct to 2001:db8::2 on eth0 hops 2001:db8::2 invalid IP, MTU 1500, probe [10.33.0.1]\n" +
				"vxlan to [2001:db8::2]:6784, MTU 1430, probe [10.33.0.1]\naccept [2001:db8::2]\naccept direct [{eth0 2001:db8::2}]\n",
		},
		{
			"IPv6 not by IPv4", func(s *Self, p *Peer) { s.V4, s.V6, p.Endpoints = false, true, endpoints("192.0.2.2") },
			"vxlan to 192.0.2.2:6784, MTU 1450, probe [fd00:32::1:1]\naccept [192.0.2.2]\naccept direct [{eth0 192.0.2.2}]\n" +
				"no direct: two has no IPv6 address on eth0 that both trust, to carry IPv6\n",
		},
		{
			"behind a gateway", func(s *Self, p *Peer) {
				s.Trusted, p.Endpoints = prefixes("203.0.113.0/24"), endpoints("203.0.113.2")
			},
			"vxlan to 203.0.113.2:6784, MTU 1450, probe [10.33.0.1]\naccept [203.0.113.2]\n" +
				"no direct: two is not on a network of this host: a gateway lies between\n",
		},
		{
			"an address behind a gateway, by the same device", func(s *Self, p *Peer) {
				s.Trusted, p.Endpoints = append(prefixes("203.0.113.0/24"), s.Trusted...), endpoints("203.0.113.2 2001:db8::2")
			},
			"direct to 2001:db8::2 on eth0 hops 2001:db8::2 invalid IP, MTU 1500, probe [10.33.0.1]\n" +
				"vxlan to 203.0.113.2:6784, MTU 1450, probe [10.33.0.1]\naccept [203.0.113.2 2001:db8::2]\naccept direct [{eth0 2001:db8::2}]\n",
		},
		{
			"we trust nobody", func(s *Self, _ *Peer) { s.Trusted = nil },
			"no direct: this node trusts no subnet: see --trusted-subnets\nno vxlan: this node trusts no subnet: see --trusted-subnets\n",
		},
		{
			"we trust others", func(s *Self, p *Peer) {
				s.Trusted, p.Endpoints = prefixes("192.0.2.0/31"), endpoints("192.0.2.2 203.0.113.2")
			},
			"no direct: 192.0.2.2 of two is in no trusted subnet of this node: see --trusted-subnets\n" +
				"no vxlan: 192.0.2.2 of two is in no trusted subnet of this node: see --trusted-subnets\n",
		},
		{
			"it trusts nobody", func(_ *Self, p *Peer) { p.Trusted = nil },
			"no direct: two trusts no subnet: see its --trusted-subnets\nno vxlan: two trusts no subnet: see its --trusted-subnets\n",
		},
		{
			"it trusts others", func(_ *Self, p *Peer) { p.Trusted = prefixes("192.0.2.2/31") },
			"no direct: two does not trust 192.0.2.1 of this node: see its --trusted-subnets\n" +
				"no vxlan: two does not trust 192.0.2.1 of this node: see its --trusted-subnets\n",
		},
		{
			"it trusts another address of ours", func(s *Self, p *Peer) {
				s.Addrs, p.Trusted = addrs("198.18.0.1"), prefixes("198.18.0.0/15")
			},
			acceptVXLAN + acceptDirect + "no direct: two does not trust 192.0.2.1 of this node: see its --trusted-subnets\n" +
				"no vxlan: two does not trust 192.0.2.1 of this node: see its --trusted-subnets\n",
		},
		{"no encryption", func(s *Self, p *Peer) { s.Trusted, p.Trusted, s.Plain = nil, nil, true }, direct + vxlan + acceptVXLAN + acceptDirect},
		{
			"one network is trusted by both", func(_ *Self, p *Peer) { p.Trusted = prefixes("198.51.100.0/24") },
			"direct to 198.51.100.2 on eth1 hops 198.51.100.2 invalid IP, MTU 9000, probe [10.33.0.1]\n" +
				"vxlan to 198.51.100.2:6784, MTU 8950, probe [10.33.0.1]\n" + acceptVXLAN + acceptDirect,
		},
		{
			"we do UDP only", func(s *Self, _ *Peer) { s.Kinds = []Kind{UDP} },
			"no direct: this node does not offer direct: --paths excludes it, or this host cannot do it\n" +
				"no vxlan: this node does not offer vxlan: --paths excludes it, or this host cannot do it\n",
		},
		{
			"it does VXLAN only", func(_ *Self, p *Peer) { p.Kinds = []Kind{VXLAN} },
			vxlan + acceptVXLAN + "no direct: two does not offer direct: its --paths excludes it, or its host cannot do it\n",
		},
		{
			"another VXLAN", func(_ *Self, p *Peer) { p.VNI = 7 },
			direct + acceptDirect + "no vxlan: two is on VXLAN network 7 and this node on 6783: start both with the same --vxlan-vni\n",
		},
		{"no port", func(_ *Self, p *Peer) { p.VXLANPort = 0 }, direct + acceptDirect + "no vxlan: two names no port for VXLAN\n"},
		{
			"no address of the host", func(s *Self, p *Peer) { s.V6, p.Hosts = true, addrs("10.33.0.1") },
			acceptVXLAN + acceptDirect + "no direct: two names no IPv6 address of its own on the overlay that could be probed\n" +
				"no vxlan: two names no IPv6 address of its own on the overlay that could be probed\n",
		},
		{
			"an address of the host elsewhere", func(_ *Self, p *Peer) { p.Hosts = addrs("192.0.2.2") },
			acceptVXLAN + acceptDirect + "no direct: two names no IPv4 address of its own on the overlay that could be probed\n" +
				"no vxlan: two names no IPv4 address of its own on the overlay that could be probed\n",
		},
		{
			"addresses that are none", func(s *Self, p *Peer) {
				s.Plain = true
				p.Endpoints = endpoints("127.0.0.1 169.254.1.1 224.0.0.1 fe80::1%eth0 ::1 0.0.0.0 255.255.255.255 10.33.0.7 fd00:32::7 ff02::1")
			},
			"no direct: no underlay address of two is known\nno vxlan: no underlay address of two is known\n",
		},
		{
			"our own address", func(s *Self, p *Peer) { s.Plain, p.Endpoints = true, endpoints("172.17.0.1") },
			"accept [172.17.0.1]\nno direct: this host has no route to 172.17.0.1 of two\nno vxlan: this host has no route to 172.17.0.1 of two\n",
		},
		{
			"no route", func(s *Self, p *Peer) { s.Plain, p.Endpoints = true, endpoints("198.18.0.1") },
			"accept [198.18.0.1]\nno direct: this host has no route to 198.18.0.1 of two\nno vxlan: this host has no route to 198.18.0.1 of two\n",
		},
		{
			"addresses twice", func(_ *Self, p *Peer) {
				p.Endpoints = endpoints("192.0.2.2 ::ffff:192.0.2.2 198.51.100.2 2001:db8::2 192.0.2.2")
			},
			direct + vxlan + acceptVXLAN + acceptDirect,
		},
		{
			"narrow links", func(s *Self, p *Peer) {
				s.V6 = true
				s.Route = func(netip.Addr) (Hop, bool) { return Hop{netip.MustParseAddr("192.0.2.1"), "eth0", 1280, true}, true }
				p.Endpoints = endpoints("192.0.2.2 2001:db8::2")
			},
			"direct to 192.0.2.2 on eth0 hops 192.0.2.2 2001:db8::2, MTU 1280, probe [10.33.0.1 fd00:32::1:1]\n" +
				"accept [192.0.2.2 2001:db8::2]\naccept direct [{eth0 192.0.2.2} {eth0 2001:db8::2}]\n" +
				"no vxlan: the MTU of eth0, 1280, leaves less than the 1280 bytes that IPv6 needs: raise it to 1330\n",
		},
		{
			"our hardware address", func(_ *Self, p *Peer) { p.ID = 1<<40 | 1 },
			direct + acceptVXLAN + acceptDirect + "no vxlan: two would have the hardware address 0e0000000001 of this node: reset one of them\n",
		},
	} {
		s, p := here()
		c.change(&s, &p)
		got := Plan(s, []Peer{p}, nil)
		if len(got) != 1 || got[0].ID != p.ID || tell(got[0]) != c.want {
			t.Errorf("%s:\n%swanted:\n%s", c.name, tell(got[0]), c.want)
		}
	}
}

// What was chosen stays while it is possible.
func TestPlanAgain(t *testing.T) {
	s, p := here()
	far := netip.MustParseAddrPort("198.51.100.2:6783")
	plan := func(before []Candidate) ([]Candidate, string) {
		all := Plan(s, []Peer{p}, before)
		return all, fmt.Sprint(all[0].Ways[0], ", ", all[0].Ways[1])
	}
	const near, other = "direct to 192.0.2.2 on eth0, vxlan to 192.0.2.2:6784", "direct to 198.51.100.2 on eth1, vxlan to 198.51.100.2:6784"
	all, got := plan(nil)
	if got != near {
		t.Fatal(got)
	}
	p.Current = far
	if all, got = plan(all); got != near {
		t.Errorf("it is reached elsewhere now: %s", got)
	}
	p.Unused = true
	if _, got = plan(all); got != other {
		t.Errorf("nothing is in use: %s", got)
	}
	p.Unused, p.Trusted = false, prefixes("198.51.100.0/24")
	if all, got = plan(all); got != other {
		t.Errorf("one is not trusted any more: %s", got)
	}
	p.Trusted, p.Current = s.Trusted, netip.AddrPort{}
	if _, got = plan(all); got != other {
		t.Errorf("it is trusted again: %s", got)
	}
}

// Of two with one hardware address the one of the greater ID has to do without VXLAN, in whatever order they are given.
func TestPlanHardwareAddresses(t *testing.T) {
	s, a := here()
	b, c := a, a
	a.ID, b.ID, c.ID = 5, 5|1<<40, 6
	a.Name, b.Name, c.Name = "a", "b", "c"
	got := Plan(s, []Peer{b, c, a}, nil)
	if len(got) != 3 || got[0].ID != a.ID || got[1].ID != c.ID || got[2].ID != b.ID {
		t.Fatalf("%+v", got)
	}
	for i, want := range []string{"", "", "b would have the hardware address 0e0000000005 of a: reset one of them"} {
		if _, ok := got[i].Way(VXLAN); ok != (want == "") || got[i].Why[VXLAN] != want {
			t.Errorf("%d: %s", got[i].ID, tell(got[i]))
		}
	}
	a.VXLANPort = 0 // does not use it
	if got = Plan(s, []Peer{a, b}, nil); len(got[1].Ways) != 2 {
		t.Errorf("nobody has it: %s", tell(got[1]))
	}
	if MAC(0x1122334455667788) != [6]byte{0x0e, 0x44, 0x55, 0x66, 0x77, 0x88} {
		t.Errorf("%x", MAC(0x1122334455667788))
	}
}

func TestKinds(t *testing.T) {
	for _, k := range Kinds() {
		if got, err := ParseKind(k.String()); got != k || err != nil {
			t.Errorf("%v: %v, %v", k, got, err)
		}
	}
	if !slices.IsSortedFunc(Kinds(), func(a, b Kind) int { return int(b) - int(a) }) {
		t.Errorf("%v are not the best first", Kinds())
	}
	if _, err := ParseKind("relay"); err == nil || err.Error() != `"relay" is no path; choose direct, vxlan or udp` {
		t.Error(err)
	}
	if s := Kind(9).String(); s != "kind(9)" {
		t.Error(s)
	}
}
