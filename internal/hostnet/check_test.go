// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestCheckNamesTheFirstDifference(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	ns := w.ns(t)
	inner, name := connect(t, ns), HostIf(w.ID)
	eth0 := func() netlink.Link {
		l, err := inner.link("eth0")
		must(t, err)
		return l
	}
	outer := func() netlink.Link {
		l, err := h.conn.link(name)
		must(t, err)
		return l
	}
	a4, a6 := w.Addrs[0], w.Addrs[1]
	hostMACs, other := hostMAC(w.ID), net.HardwareAddr{2, 0, 0, 0, 0, 7}
	out := func(c conn, family int, match func(netlink.Route) bool) func() error {
		return func() error {
			list, err := c.routes(family)
			must(t, err)
			for _, r := range list {
				if r.Protocol == RouteProtocol && match(r) {
					return c.RouteDel(&r)
				}
			}
			return errors.New("there is no such route")
		}
	}
	to := func(a netip.Addr) func(netlink.Route) bool {
		return func(r netlink.Route) bool {
			k, ok := keyOf(r)
			return ok && k.dst == netip.PrefixFrom(a, a.BitLen())
		}
	}
	way := func(r netlink.Route) bool { return r.Gw != nil }

	for _, x := range []struct {
		do   func() error
		want string
	}{
		{func() error { return h.conn.LinkSetDown(outer()) }, "interface " + name + " on the host is down"},
		{func() error { return inner.LinkSetDown(eth0()) }, "interface eth0 in " + w.Netns + " is down"},
		{func() error { return h.conn.LinkSetHardwareAddr(outer(), other) }, "interface " + name + " on the host has the hardware address 02:00:00:00:00:07 instead of " + hostMACs.String()},
		{func() error { return inner.LinkSetHardwareAddr(eth0(), other) }, "interface eth0 in " + w.Netns + " has the hardware address 02:00:00:00:00:07 instead of " + w.mac().String()},
		{func() error { return h.conn.LinkSetMTU(outer(), 1300) }, "interface " + name + " on the host has an MTU of 1300 instead of 1420"},
		{func() error { return inner.LinkSetMTU(eth0(), 1300) }, "interface eth0 in " + w.Netns + " has an MTU of 1300 instead of 1420"},
		{func() error { return inner.AddrDel(eth0(), address(a4)) }, "interface eth0 in " + w.Netns + " lacks the address 10.32.1.1"},
		{func() error { return inner.AddrDel(eth0(), address(a6)) }, "interface eth0 in " + w.Netns + " lacks the address fd77::1:1"},
		{func() error {
			must(t, inner.AddrDel(eth0(), address(a4)))
			return inner.AddrAdd(eth0(), &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a4, 24))})
		}, "interface eth0 in " + w.Netns + " has the address 10.32.1.1 with another prefix than 10.32.1.1/32"},
		{func() error { return inner.AddrAdd(eth0(), address(netip.MustParseAddr("10.32.9.9"))) }, "interface eth0 in " + w.Netns + " has the address 10.32.9.9, which is not its own"},
		{func() error { return inner.LinkSetDown(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}) }, "interface lo in " + w.Netns + " is down"},
		{out(inner, netlink.FAMILY_V4, way), w.Netns + " has no route out by 10.32.0.1 from 10.32.1.1"},
		{out(inner, netlink.FAMILY_V6, way), w.Netns + " has no route out by fd77::1 from fd77::1:1"},
		{func() error { return inner.NeighSet(neighbour(eth0().Attrs().Index, host4, other)) }, "the neighbour 10.32.0.1 in " + w.Netns + " has the hardware address 02:00:00:00:00:07 instead of " + hostMACs.String()},
		{func() error { return inner.NeighDel(neighbour(eth0().Attrs().Index, host6, hostMACs)) }, "the permanent neighbour fd77::1 in " + w.Netns + " is gone"},
		{out(h.conn, netlink.FAMILY_V4, to(a4)), "the host has no route to 10.32.1.1 by " + name},
		{out(h.conn, netlink.FAMILY_V6, to(a6)), "the host has no route to fd77::1:1 by " + name},
		{func() error {
			r := h.last.route(netip.PrefixFrom(a4, 32), 1)
			return h.conn.RouteReplace(&r)
		}, "the host has no route to 10.32.1.1 by " + name},
		{func() error { return h.conn.NeighDel(neighbour(outer().Attrs().Index, a4, w.mac())) }, "the permanent neighbour 10.32.1.1 on the host is gone"},
		{func() error { return h.conn.NeighSet(neighbour(outer().Attrs().Index, a6, other)) }, "the neighbour fd77::1:1 on the host has the hardware address 02:00:00:00:00:07 instead of " + w.mac().String()},
		{func() error { return h.conn.LinkDel(outer()) }, "interface " + name + " on the host is gone"},
		{func() error {
			must(t, inner.LinkSetDown(eth0()))
			return inner.LinkSetName(eth0(), "other")
		}, "interface eth0 in " + w.Netns + " is gone"},
		{func() error {
			must(t, inner.LinkSetDown(eth0()))
			must(t, inner.LinkSetName(eth0(), "other"))
			v := netlink.NewVeth(netlink.NewLinkAttrs())
			v.Name, v.PeerName = "eth0", "eth1"
			return inner.LinkAdd(v)
		}, "interface eth0 in " + w.Netns + " is not the other end of " + name},
	} {
		t.Run(strings.ReplaceAll(x.want, " ", "-"), func(t *testing.T) {
			must(t, h.Check(w))
			must(t, x.do())
			host, inside := snapshot(t, h.ns), snapshot(t, ns)
			var d *DifferenceError
			if err := h.Check(w); !errors.As(err, &d) || err.Error() != x.want {
				t.Errorf("got  %v\nwant %s", err, x.want)
			}
			differ(t, "a look changes the host", host, snapshot(t, h.ns))
			differ(t, "a look changes the workload", inside, snapshot(t, ns))
			for _, stray := range []string{"eth1", "eth0"} { // of the last case
				if l, err := inner.link(stray); err == nil && l != nil && l.Attrs().NetNsID < 0 {
					must(t, inner.remove(l))
				}
			}
			_, err := h.Attach(w)
			must(t, err)
		})
	}
}

// What the namespace had before, and what others have put there since, is no difference.
func TestCheckOfOddNamespaces(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	without6 := newNamespace(t)
	setSysctl(t, without6, "net/ipv6/conf/all/disable_ipv6", "1")
	w := workload(1, without6)
	got, err := h.Attach(w)
	must(t, err)
	w.Addrs = got.Addrs
	must(t, h.Check(w))

	routed := newNamespace(t)
	c := connect(t, routed)
	up(t, c, "lo")
	must(t, c.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "docker"}, PeerName: "x"}))
	up(t, c, "x")
	l := addAddr(t, c, "docker", "172.17.0.2/16")
	must(t, c.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("172.17.0.1")}))
	w = workload(2, routed)
	_, err = h.Attach(w)
	must(t, err)
	must(t, h.Check(w))
	addAddr(t, c, "eth0", "192.0.2.7/32") // of a chained plugin
	must(t, h.Check(w))

	w.Netns = "/run/netns/weft-none"
	if err := h.Check(w); err == nil || errors.As(err, new(*DifferenceError)) {
		t.Errorf("a namespace that is not there: %v", err)
	}
	must(t, h.Detach(w))
	w.Netns = routed.path()
	if want := fmt.Sprintf("interface %s on the host is gone", HostIf(w.ID)); h.Check(w) == nil || h.Check(w).Error() != want {
		t.Errorf("got  %v\nwant %s", h.Check(w), want)
	}
}
