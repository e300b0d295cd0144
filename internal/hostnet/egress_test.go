// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// device makes an interface, up and with a carrier.
func device(t testing.TB, c conn, name string, mtu int, addrs ...string) netlink.Link {
	t.Helper()
	v := netlink.NewVeth(netlink.NewLinkAttrs())
	v.Name, v.PeerName, v.MTU = name, "p"+name, mtu
	must(t, c.LinkAdd(v))
	up(t, c, "p"+name)
	l := addAddr(t, c, name, addrs...)
	if !c.running(l, patience) {
		t.Fatalf("%s does not come up", name)
	}
	for _, s := range addrs {
		if p := netip.MustParsePrefix(s); !c.settled(p.Addr(), patience) {
			t.Fatalf("%s does not come up", s)
		}
	}
	return l
}

func parseAddrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestEgress(t *testing.T) {
	type link = netlink.Link
	gateway := func(t *testing.T, c conn, l link, gw string, metric, mtu int) {
		must(t, c.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw), Priority: metric, MTU: mtu}))
	}
	for _, c := range []struct {
		name      string
		make      func(t *testing.T, c conn)
		advertise string
		want      Link
		err       string
	}{
		{
			name: "nothing", make: func(t *testing.T, c conn) { up(t, c, "lo") },
			err: "no interface of this host is up and has an address that others could reach; connect it to a network",
		},
		{name: "no default route", make: func(t *testing.T, c conn) {
			device(t, c, "big", 9000, "192.0.2.1/24")
			device(t, c, "small", 1400, "198.51.100.1/24", "2001:db8::1/64")
		}, want: Link{"small", 1400, netip.MustParseAddr("198.51.100.1"), parseAddrs("198.51.100.1", "2001:db8::1", "192.0.2.1")}},
		{name: "default route", make: func(t *testing.T, c conn) {
			device(t, c, "small", 1400, "198.51.100.1/24")
			gateway(t, c, device(t, c, "wan", 1500, "192.0.2.1/24", "192.0.2.9/24", "2001:db8::1/64"), "192.0.2.2", 0, 0)
		}, want: Link{"wan", 1500, netip.MustParseAddr("192.0.2.1"), parseAddrs("192.0.2.1", "192.0.2.9", "198.51.100.1", "2001:db8::1")}},
		{name: "two default routes, and an MTU of the route", make: func(t *testing.T, c conn) {
			gateway(t, c, device(t, c, "wlan", 1500, "198.51.100.1/24"), "198.51.100.2", 600, 0)
			gateway(t, c, device(t, c, "wan", 9000, "192.0.2.1/24"), "192.0.2.2", 100, 8000)
		}, want: Link{"wan", 8000, netip.MustParseAddr("192.0.2.1"), parseAddrs("192.0.2.1", "198.51.100.1")}},
		{name: "IPv6 leaves elsewhere", make: func(t *testing.T, c conn) {
			gateway(t, c, device(t, c, "tunnel", 1480, "2001:db8::1/64"), "2001:db8::2", 0, 0)
			gateway(t, c, device(t, c, "wan", 1500, "192.0.2.1/24"), "192.0.2.2", 0, 0)
		}, want: Link{"wan", 1480, netip.MustParseAddr("192.0.2.1"), parseAddrs("192.0.2.1", "2001:db8::1")}},
		{name: "IPv6 only", make: func(t *testing.T, c conn) {
			gateway(t, c, device(t, c, "wan", 1500, "2001:db8::1/64"), "2001:db8::2", 0, 0)
		}, want: Link{"wan", 1500, netip.MustParseAddr("2001:db8::1"), parseAddrs("2001:db8::1")}},
		{name: "preferred source", make: func(t *testing.T, c conn) {
			l := device(t, c, "wan", 1500, "192.0.2.1/24", "192.0.2.9/24")
			must(t, c.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("192.0.2.2"), Src: net.ParseIP("192.0.2.9")}))
		}, want: Link{"wan", 1500, netip.MustParseAddr("192.0.2.9"), parseAddrs("192.0.2.9", "192.0.2.1")}},
		{name: "advertised", advertise: "198.51.100.1", make: func(t *testing.T, c conn) {
			gateway(t, c, device(t, c, "wan", 1500, "192.0.2.1/24"), "192.0.2.2", 0, 0)
			device(t, c, "lan", 9000, "198.51.100.1/24")
		}, want: Link{"lan", 9000, netip.MustParseAddr("198.51.100.1"), parseAddrs("198.51.100.1", "192.0.2.1")}},
		{name: "advertised, of a NAT", advertise: "203.0.113.1", make: func(t *testing.T, c conn) {
			gateway(t, c, device(t, c, "wan", 1500, "192.0.2.1/24"), "192.0.2.2", 0, 0)
		}, want: Link{"wan", 1500, netip.MustParseAddr("203.0.113.1"), parseAddrs("192.0.2.1")}},
		{name: "not for others", make: func(t *testing.T, c conn) {
			lo := up(t, c, "lo")
			must(t, c.AddrAdd(lo, address(netip.MustParseAddr("203.0.113.7"))))
			device(t, c, "weft0123456789", 1400, "203.0.113.8/24")
			must(t, c.LinkSetAlias(up(t, c, "weft0123456789"), "weft: x"))
			down := device(t, c, "down", 1300, "203.0.113.9/24")
			must(t, c.LinkSetDown(down))
			bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0", TxQLen: -1}}
			must(t, c.LinkAdd(bridge))
			must(t, c.LinkSetMaster(up(t, c, "pdown"), bridge))
			addAddr(t, c, "docker0", "172.17.0.1/16") // no carrier
			br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: -1, MTU: 1300}}
			must(t, c.LinkAdd(br))
			device(t, c, "port", 1300)
			must(t, c.LinkSetMaster(up(t, c, "port"), br))
			addAddr(t, c, "br0", "172.18.0.1/16")
			if !c.running(br, patience) {
				t.Fatal("the bridge does not come up")
			}
			device(t, c, "lan", 1500, "192.0.2.1/24")
		}, want: Link{"lan", 1500, netip.MustParseAddr("192.0.2.1"), parseAddrs("192.0.2.1", "172.18.0.1")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := newNamespace(t)
			c.make(t, connect(t, ns))
			var advertise netip.Addr
			if c.advertise != "" {
				advertise = netip.MustParseAddr(c.advertise)
			}
			got, err := ns.egress(advertise)
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Errorf("got %v, want %s", err, c.err)
				}
				return
			}
			must(t, err)
			if got.Name != c.want.Name || got.MTU != c.want.MTU || got.Addr != c.want.Addr || !slices.Equal(got.Addrs, c.want.Addrs) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// The namespace that the tests run in has what it has; no test may depend on it, but these must work there.
func TestHere(t *testing.T) {
	if l, err := Egress(netip.Addr{}); err == nil && (l.Name == "" || l.MTU == 0 || !l.Addr.IsValid()) {
		t.Errorf("got %+v", l)
	}
	if err := Overlap([]netip.Prefix{netip.MustParsePrefix("fd77:8899:aabb::/64")}); err != nil {
		t.Error(err)
	}
}

func TestOverlap(t *testing.T) {
	ns := newNamespace(t)
	c := connect(t, ns)
	up(t, c, "lo")
	l := device(t, c, "eth0", 1500, "10.200.0.1/16", "fd00:1::1/64")
	add := func(dst string, kind int) {
		r := netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Type: kind}
		if kind == unix.RTN_UNICAST {
			r.LinkIndex = l.Attrs().Index
		}
		must(t, c.RouteAdd(&r))
	}
	add("10.40.0.0/16", unix.RTN_UNICAST)
	add("fd00:2::/48", unix.RTN_UNICAST)
	add("0.0.0.0/0", unix.RTN_UNICAST)
	add("0.0.0.0/1", unix.RTN_UNICAST)
	add("128.0.0.0/1", unix.RTN_UNICAST)
	add("172.16.0.0/12", unix.RTN_UNREACHABLE)
	add("172.31.5.0/24", unix.RTN_BLACKHOLE)
	must(t, c.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.64.0.0/12")), LinkIndex: l.Attrs().Index, Protocol: RouteProtocol}))
	for universe, want := range map[string]string{
		"10.32.0.0/12":    "range 10.32.0.0/12 overlaps the host's route 10.40.0.0/16 dev eth0; choose another with --range",
		"10.40.3.0/24":    "range 10.40.3.0/24 overlaps the host's route 10.40.0.0/16 dev eth0; choose another with --range",
		"10.192.0.0/12":   "range 10.192.0.0/12 overlaps the host's address 10.200.0.1/16 on eth0; choose another with --range",
		"fd00:1::/96":     "range fd00:1::/96 overlaps the host's address fd00:1::1/64 on eth0; choose another with --range",
		"fd00:2:0:7::/64": "range fd00:2:0:7::/64 overlaps the host's route fd00:2::/48 dev eth0; choose another with --range",
		"172.31.0.0/16":   "range 172.31.0.0/16 overlaps the host's route 172.31.5.0/24; choose another with --range",
		"10.64.0.0/12":    "",
		"172.20.0.0/16":   "",
		"10.80.0.0/12":    "",
		"fd00:3::/64":     "",
	} {
		err := ns.overlap([]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix(universe)})
		if got := errorText(err); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", universe, got, want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// What Weft itself has on the host, as after a restart, does not count.
func TestOverlapWithOneself(t *testing.T) {
	h := newHost(t)
	d := desired()
	h.apply(t, d)
	h.attach(t, 1)
	before, err := h.ns.egress(netip.Addr{})
	must(t, err)
	// What an earlier run may have left of kernel paths.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "weft-vx4"
	must(t, h.conn.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 6783, Port: 6784}))
	must(t, h.conn.LinkSetAlias(&netlink.Vxlan{LinkAttrs: attrs}, "weft: vxlan"))
	l := addAddr(t, h.conn, "weft-vx4", host4.String()+"/32")
	eth0, err := h.conn.link("eth0")
	must(t, err)
	for i, index := range []int{l.Attrs().Index, eth0.Attrs().Index} {
		dst := ipNet(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(34 + i), 0, 0}), 16))
		must(t, h.conn.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: index, Protocol: kernelPathProtocol, Scope: netlink.SCOPE_LINK}))
	}
	if err := h.ns.overlap(d.Universe); err != nil {
		t.Error(err)
	}
	after, err := h.ns.egress(netip.Addr{})
	must(t, err)
	if !slices.Equal(before.Addrs, after.Addrs) || before.Addr != after.Addr {
		t.Errorf("the way out was %v, and is %v with kernel paths", before, after)
	}
}
