// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// flush deletes all routes of Weft, as by ip route flush.
func (h *host) flush(t testing.TB) {
	t.Helper()
	c, err := h.ns.open()
	must(t, err)
	defer func() { must(t, c.close()) }()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := c.dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Protocol: RouteProtocol}})
		must(t, err)
		for _, r := range list {
			must(t, c.resend(unix.RTM_DELROUTE, r))
		}
	}
}

// Whatever somebody does to what Weft has made is seen, put right and reported, each thing once.
func TestForeignChanges(t *testing.T) {
	hosts := newHosts(t, 3)
	connected(t, hosts, under4, fastpath.VXLAN)
	h := hosts[0]
	for _, other := range hosts { // both devices
		d := other.toAll(hosts, under4, fastpath.VXLAN)
		if other == h {
			d.Peers[1].VXLAN = netip.AddrPortFrom(under6(3), testPort)
		}
		must(t, other.Apply(d))
	}
	told, stop := h.watch(t)
	defer stop()
	drain(told)
	hop := hop4(idOf(2), 0)
	m := macOf(idOf(2))
	entryOf := func(mac net.HardwareAddr, ip string) *netlink.Neigh {
		return &netlink.Neigh{
			LinkIndex: h.link(t, Device4).Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT | netlink.NUD_NOARP,
			HardwareAddr: mac, IP: net.ParseIP(ip),
		}
	}
	for _, x := range []struct {
		name  string
		do    func(t *testing.T)
		lines []string
		quiet bool // the kernel tells nothing of it
	}{
		{"a route deleted", func(t *testing.T) {
			must(t, h.handle.RouteDel(&netlink.Route{Dst: ipNet(prefixes(2)[0]), Table: mainTable, Scope: unix.RT_SCOPE_UNIVERSE}))
		}, []string{"route to 10.34.0.0/16 was deleted by somebody; set again"}, false},
		{"a route of IPv6 deleted", func(t *testing.T) {
			must(t, h.handle.RouteDel(&netlink.Route{Dst: ipNet(prefixes(2)[1]), Table: mainTable}))
		}, []string{"route to fd77::2:0/112 was deleted by somebody; set again"}, false},
		{"a route changed", func(t *testing.T) {
			must(t, h.handle.RouteReplace(&netlink.Route{Dst: ipNet(prefixes(2)[0]), LinkIndex: h.eth0.Attrs().Index, Protocol: RouteProtocol, Scope: unix.RT_SCOPE_LINK}))
		}, []string{"route to 10.34.0.0/16 was changed by somebody; set again"}, false},
		{"a route for probes deleted", func(t *testing.T) {
			must(t, h.handle.RouteDel(&netlink.Route{Dst: ipNet(prefixes(2)[1]), Table: TableVXLAN}))
		}, []string{"route to fd77::2:0/112 by vxlan (table 8702) was deleted by somebody; set again"}, false},
		{"a route added with our mark", func(t *testing.T) {
			must(t, h.handle.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.99.0.0/16")), LinkIndex: h.eth0.Attrs().Index, Protocol: RouteProtocol, Scope: unix.RT_SCOPE_LINK}))
		}, []string{"route to 10.99.0.0/16 was added by somebody; removed"}, false},
		{"all routes flushed", func(t *testing.T) { h.flush(t) }, []string{
			"route to 10.32.0.0/12 by direct (table 8701) was deleted by somebody; set again",
			"route to 10.34.0.0/16 by direct (table 8701) was deleted by somebody; set again",
			"route to 10.34.0.0/16 was deleted by somebody; set again",
			"route to 10.35.0.0/16 by direct (table 8701) was deleted by somebody; set again",
			"route to 10.35.0.0/16 was deleted by somebody; set again",
			"route to fd77::/64 by direct (table 8701) was deleted by somebody; set again",
			"route to fd77::/64 by vxlan (table 8702) was deleted by somebody; set again",
			"route to fd77::2:0/112 by direct (table 8701) was deleted by somebody; set again",
			"route to fd77::2:0/112 by vxlan (table 8702) was deleted by somebody; set again",
			"route to fd77::2:0/112 was deleted by somebody; set again",
			"route to fd77::3:0/112 by direct (table 8701) was deleted by somebody; set again",
			"route to fd77::3:0/112 by vxlan (table 8702) was deleted by somebody; set again",
			"route to fd77::3:0/112 was deleted by somebody; set again",
		}, false},
		{
			"a device deleted", func(t *testing.T) { must(t, h.handle.LinkDel(h.link(t, Device4))) },
			[]string{"device weft-vx4 was deleted by somebody; made again"},
			false,
		},
		{
			"the other device deleted", func(t *testing.T) { must(t, h.handle.LinkDel(h.link(t, Device6))) },
			[]string{"device weft-vx6 was deleted by somebody; made again"},
			false,
		},
		{
			"a device set down", func(t *testing.T) { must(t, h.handle.LinkSetDown(h.link(t, Device4))) },
			[]string{"device weft-vx4 was set down by somebody; it is up again"},
			false,
		},
		{
			"an MTU changed", func(t *testing.T) { must(t, h.handle.LinkSetMTU(h.link(t, Device4), 1300)) },
			[]string{"MTU of device weft-vx4 was changed to 1300 by somebody; set to 1450 again"},
			false,
		},
		{
			"an MTU too small for IPv6", func(t *testing.T) { must(t, h.handle.LinkSetMTU(h.link(t, Device6), 1000)) },
			[]string{"device weft-vx6 was changed by somebody; made anew"},
			false,
		},
		{
			"an alias changed", func(t *testing.T) { must(t, h.handle.LinkSetAlias(h.link(t, Device4), "mine")) },
			[]string{"alias of device weft-vx4 was changed by somebody; set again"},
			false,
		},
		{
			"a group changed", func(t *testing.T) { must(t, h.handle.LinkSetGroup(h.link(t, Device4), 5)) },
			[]string{"group of device weft-vx4 was changed by somebody; set again"},
			false,
		},
		{"a hardware address changed", func(t *testing.T) {
			must(t, h.handle.LinkSetHardwareAddr(h.link(t, Device4), net.HardwareAddr{2, 0, 0, 0, 0, 1}))
		}, []string{"hardware address of device weft-vx4 was changed by somebody; set again"}, false},
		{"an address deleted", func(t *testing.T) {
			must(t, h.handle.AddrDel(h.link(t, Device4), &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(over4(1), 32))}))
		}, []string{"address 10.33.0.1 of device weft-vx4 was deleted by somebody; set again"}, false},
		{
			"an address added", func(t *testing.T) { h.addAddr(t, h.link(t, Device4), netip.MustParseAddr("198.51.100.1"), 24) },
			[]string{"address 198.51.100.1/24 was added to device weft-vx4 by somebody; removed"},
			false,
		},
		{
			"an address mode changed", func(t *testing.T) { must(t, h.handle.LinkSetIP6AddrGenMode(h.link(t, Device4), 0)) },
			[]string{"IPv6 address mode of device weft-vx4 was changed by somebody; set again"},
			true,
		},
		{"a device replaced by another of ours", func(t *testing.T) {
			must(t, h.handle.LinkDel(h.link(t, Device4)))
			a := netlink.NewLinkAttrs()
			a.Name, a.HardwareAddr = Device4, MAC(idOf(1))
			must(t, h.handle.LinkAdd(&netlink.Vxlan{LinkAttrs: a, VxlanId: 77, Port: 4789}))
		}, []string{"device weft-vx4 was changed by somebody; made anew"}, false},
		{
			"IPv6 disabled", func(t *testing.T) { setSysctl(t, h.ns, "ipv6/conf/weft-vx4/disable_ipv6", "1") },
			[]string{"net.ipv6.conf.weft-vx4.disable_ipv6 was changed to 1 by somebody; set to 0 again"},
			false,
		},
		{
			"the reverse path filter made strict", func(t *testing.T) { setSysctl(t, h.ns, "ipv4/conf/weft-vx4/rp_filter", "1") },
			[]string{"net.ipv4.conf.weft-vx4.rp_filter was changed to 1 by somebody; set to 2 again"},
			true,
		},
		{
			"a forwarding entry deleted", func(t *testing.T) { must(t, h.handle.NeighDel(entryOf(m[:], "192.0.2.2"))) },
			[]string{"forwarding entry of 0e:78:9a:bc:de:02 on weft-vx4 was deleted by somebody; set again"},
			false,
		},
		{
			"a forwarding entry changed", func(t *testing.T) { must(t, h.handle.NeighSet(entryOf(m[:], "192.0.2.66"))) },
			[]string{"forwarding entry of 0e:78:9a:bc:de:02 on weft-vx4 was changed by somebody; set again"},
			false,
		},
		{
			"a forwarding entry for all", func(t *testing.T) { must(t, h.handle.NeighAppend(entryOf(make(net.HardwareAddr, 6), "192.0.2.66"))) },
			[]string{"forwarding entry of 00:00:00:00:00:00 on weft-vx4 was added by somebody; removed"},
			false,
		},
		{"two forwarding entries for all", func(t *testing.T) {
			must(t, h.handle.NeighAppend(entryOf(make(net.HardwareAddr, 6), "192.0.2.66")))
			must(t, h.handle.NeighAppend(entryOf(make(net.HardwareAddr, 6), "192.0.2.67")))
		}, []string{
			"forwarding entry of 00:00:00:00:00:00 on weft-vx4 was added by somebody; removed",
			"a second forwarding entry of 00:00:00:00:00:00 on weft-vx4 was added by somebody; removed",
		}, false},
		{"a neighbour deleted", func(t *testing.T) {
			must(t, h.handle.NeighDel(&netlink.Neigh{LinkIndex: h.link(t, Device4).Attrs().Index, Family: unix.AF_INET, IP: hop.AsSlice()}))
		}, []string{fmt.Sprintf("neighbour %v on weft-vx4 was deleted by somebody; set again", hop)}, false},
		{"a neighbour of probes deleted", func(t *testing.T) {
			must(t, h.handle.NeighDel(&netlink.Neigh{LinkIndex: h.link(t, Device4).Attrs().Index, Family: unix.AF_INET, IP: over4(2).AsSlice()}))
		}, []string{"neighbour 10.34.0.1 on weft-vx4 was deleted by somebody; set again"}, false},
		{"a neighbour changed", func(t *testing.T) {
			must(t, h.handle.NeighSet(&netlink.Neigh{
				LinkIndex: h.link(t, Device4).Attrs().Index, Family: unix.AF_INET6, IP: hop6(idOf(2)).AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
			}))
		}, []string{"neighbour fe80::1234:5678:9abc:de02 on weft-vx4 was changed by somebody; set again"}, false},
		{"rules deleted", func(t *testing.T) {
			for family, table := range map[int]int{netlink.FAMILY_V4: TableDirect, netlink.FAMILY_V6: TableVXLAN} {
				r := netlink.NewRule()
				r.Family, r.Priority, r.Table = family, table, table
				must(t, h.handle.RuleDel(r))
			}
		}, []string{"rule 8701 of IPv4 for the mark 0x57650001 was deleted by somebody; set again", "rule 8702 of IPv6 for the mark 0x57650002 was deleted by somebody; set again"}, false},
		{"a rule added with our mark", func(t *testing.T) {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table, r.Mark, r.Protocol = netlink.FAMILY_V4, 100, TableVXLAN, 7, RouteProtocol
			must(t, h.handle.RuleAdd(r))
		}, []string{"rule 100 of IPv4 for the mark 0x7 was added by somebody; removed"}, false},
		{"an interface set down and up", func(t *testing.T) { // the kernel deletes the routes by it, and says so of IPv6 only
			must(t, h.handle.LinkSetDown(h.eth0))
			must(t, h.handle.LinkSetUp(h.eth0))
			h.settled(t)
		}, []string{
			"route to 10.34.0.0/16 by direct (table 8701) was deleted by somebody; set again",
			"route to 10.35.0.0/16 by direct (table 8701) was deleted by somebody; set again",
			"route to fd77::2:0/112 by direct (table 8701) was deleted by somebody; set again",
			"route to fd77::3:0/112 by direct (table 8701) was deleted by somebody; set again",
		}, false},
	} {
		ok := t.Run(x.name, func(t *testing.T) {
			before := stable(snapshot(t, h.ns))
			x.do(t)
			if !x.quiet {
				select {
				case <-told:
				case <-time.After(patience):
					t.Fatal("Watch does not tell of it")
				}
			}
			h.reconciled(t, x.lines...)
			same(t, "afterwards", before, stable(snapshot(t, h.ns)))
			h.reconciled(t)
			if err := exchange(t, h, hosts[1], false, 1450, 0); err != nil {
				t.Error(err)
			}
			if err := exchange(t, h, hosts[2], true, 1430, 0); err != nil {
				t.Error(err)
			}
			drain(told) // of what was told before Reconcile had the lock
			m := newMonitor(t, h.ns)
			h.reconciled(t)
			m.quiet(t, "Reconcile when all is right")
			select {
			case <-told:
				t.Error("Watch tells of what Reconcile did")
			case <-time.After(2 * watchSettle):
			}
		})
		if !ok {
			break
		}
	}
}

// stable is a snapshot without the indexes of interfaces, and without the settings that the kernel makes anew for each.
func stable(lines []string) []string {
	var out []string
	for _, l := range lines {
		if rest, ok := strings.CutPrefix(l, "link "); ok {
			_, l, _ = strings.Cut(rest, " ")
		}
		if !strings.Contains(l, "stable_secret") && !strings.HasPrefix(l, "rule ") || strings.Contains(l, "870") {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return out
}

func drain(told <-chan struct{}) {
	for {
		select {
		case <-told:
		case <-time.After(2 * watchSettle):
			return
		}
	}
}

// watch watches h until stop is called, which the test does before it ends.
func (h *host) watch(t testing.TB) (told <-chan struct{}, stop func()) {
	t.Helper()
	ch := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Watch(ctx, func() { ch <- struct{}{} }) }()
	// It is there once a first change is told.
	first := time.After(patience)
	for heard := false; !heard; {
		r := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.98.0.0/16")), LinkIndex: h.eth0.Attrs().Index, Protocol: RouteProtocol, Scope: unix.RT_SCOPE_LINK}
		must(t, h.handle.RouteAdd(r))
		must(t, h.handle.RouteDel(r))
		select {
		case <-ch:
			heard = true
		case <-first:
			t.Fatal("nothing is told")
		case <-time.After(2 * watchSettle):
		}
	}
	return ch, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
