// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestApplyTwiceEqualsOnce(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	ws := []Workload{h.attach(t, 1), h.attach(t, 2)}
	h.apply(t, desired(ws...))
	once := snapshot(t, h.ns)
	if res := h.apply(t, desired(ws...)); len(res.Missing) > 0 {
		t.Errorf("missing: %q", res.Missing)
	}
	differ(t, "the second Apply has changed something", once, snapshot(t, h.ns))
}

func TestApplyMakes(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 7)
	l, err := h.conn.link(DefaultDevice)
	must(t, err)
	a := l.Attrs()
	if a.MTU != 1420 || a.Flags&net.FlagUp == 0 || a.Alias != "weft: tunnel" || a.TxQLen != queueLen {
		t.Errorf("device: %+v", a)
	}
	addrs, err := h.conn.addrs(l, netlink.FAMILY_ALL)
	must(t, err)
	var got []string
	for _, x := range addrs {
		got = append(got, x.IPNet.String())
		if x.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%v is tentative", x.IPNet)
		}
	}
	if want := []string{"10.32.0.1/32", "fd77::1/128"}; !slices.Equal(got, want) {
		t.Errorf("addresses %q, want %q", got, want)
	}
	all := snapshot(t, h.ns)
	for _, want := range []string{
		"route 10.32.0.0/12 via <nil> dev weft0 src 10.32.0.1 type 1 proto 87 metric 0 table 254 scope 253 onlink false",
		"route fd77::/64 via <nil> dev weft0 src fd77::1 type 1 proto 87 metric 1024 table 254 scope 0 onlink false",
		"route 10.32.1.7/32 via <nil> dev " + HostIf(w.ID) + " src 10.32.0.1 type 1 proto 87 metric 0 table 254 scope 253 onlink false",
		"route fd77::1:7/128 via <nil> dev " + HostIf(w.ID) + " src fd77::1 type 1 proto 87 metric 1024 table 254 scope 0 onlink false",
		"neighbour 10.32.1.7 " + workloadMAC(w.ID).String() + " dev " + HostIf(w.ID),
		"neighbour fd77::1:7 " + workloadMAC(w.ID).String() + " dev " + HostIf(w.ID),
	} {
		if !slices.Contains(all, want) {
			t.Errorf("there is no %s", want)
		}
	}
	for key, want := range map[string]string{
		forward4: "1", forward6: "1", "net/ipv4/conf/weft0/rp_filter": "2", "net/ipv6/conf/weft0/accept_ra": "0",
		"net/ipv6/conf/eth0/accept_ra": "2", "net/ipv6/conf/" + HostIf(w.ID) + "/accept_ra": "0",
	} {
		if got := sysctl(t, h.ns, key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}

// Whatever somebody did to Weft's objects, Apply puts it right.
func TestApplyRepairs(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w, stale := h.attach(t, 1), h.attach(t, 2)
	h.apply(t, desired(w, stale))
	outer, err := h.conn.link(HostIf(w.ID))
	must(t, err)
	gone, err := h.conn.link(HostIf(stale.ID))
	must(t, err)
	must(t, h.Detach(stale))
	right := snapshot(t, h.ns)
	h.apply(t, desired(w))
	differ(t, "Apply has changed what was right", right, snapshot(t, h.ns))
	if _, err := h.conn.LinkByIndex(gone.Attrs().Index); err == nil {
		t.Fatal("the detached workload's interface is there")
	}
	tun, err := h.conn.link(DefaultDevice)
	must(t, err)

	damage := map[string]func() error{
		"link down":   func() error { return h.conn.LinkSetDown(outer) },
		"device down": func() error { return h.conn.LinkSetDown(tun) },
		"device MTU":  func() error { return h.conn.LinkSetMTU(tun, 1300) },
		"addresses": func() error {
			for _, a := range []string{"10.32.0.1/32", "fd77::1/128"} {
				x, _ := netlink.ParseAddr(a)
				if err := h.conn.AddrDel(tun, x); err != nil {
					return err
				}
			}
			x, _ := netlink.ParseAddr("10.32.5.5/32")
			return h.conn.AddrAdd(tun, x)
		},
		"routes": func() error {
			for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				if _, err := removeRoutes(h.conn, f); err != nil {
					return err
				}
			}
			return nil
		},
		"stray routes": func() error {
			r := h.last.route(netip.MustParsePrefix("10.32.9.9/32"), tun.Attrs().Index)
			other := h.last.route(netip.MustParsePrefix("10.32.1.1/32"), tun.Attrs().Index)
			if err := h.conn.RouteReplace(&other); err != nil {
				return err
			}
			return h.conn.RouteAdd(&r)
		},
		"neighbours": func() error {
			n := neighbour(outer.Attrs().Index, w.Addrs[0], workloadMAC(w.ID))
			if err := h.conn.NeighDel(n); err != nil {
				return err
			}
			return h.conn.NeighSet(neighbour(outer.Attrs().Index, w.Addrs[1], net.HardwareAddr{2, 0, 0, 0, 0, 1}))
		},
		"rules": func() error {
			_, err := removeTable(h.ns)
			return err
		},
		"MAC":      func() error { return h.conn.LinkSetHardwareAddr(outer, net.HardwareAddr{2, 0, 0, 0, 0, 1}) },
		"veth MTU": func() error { return h.conn.LinkSetMTU(outer, 1300) },
		"no alias": func() error { return h.conn.LinkSetAlias(tun, "") },
		"sysctls": func() error {
			return h.ns.run(func() error {
				if err := writeSysctl(forward4, "0"); err != nil {
					return err
				}
				return writeSysctl(forward6, "0")
			})
		},
	}
	for name, do := range damage {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			must(t, do())
			if res := h.apply(t, desired(w)); len(res.Missing) > 0 {
				t.Errorf("missing: %q", res.Missing)
			}
			differ(t, "not as before", right, snapshot(t, h.ns))
			for _, a := range w.Addrs {
				reaches(t, h.ns, w.ns(t), a)
			}
		})
	}
}

func TestApplyRemovesStaleWorkloadsAndNamesMissing(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	before := snapshot(t, h.ns)
	h.attach(t, 1)
	absent := workload(2, newNamespace(t))
	// One that crashed before it had its alias.
	v := netlink.NewVeth(netlink.NewLinkAttrs())
	v.Name, v.PeerName, v.HardwareAddr = HostIf("half"), "half", hostMAC("half")
	must(t, h.conn.LinkAdd(v))
	res := h.apply(t, desired(absent))
	if !slices.Equal(res.Missing, []string{absent.ID}) {
		t.Errorf("missing: %q", res.Missing)
	}
	differ(t, "something is left", before, snapshot(t, h.ns))
}

func TestForeignObjectsStay(t *testing.T) {
	h := newHost(t)
	// Things that resemble Weft's, and others.
	for _, name := range []string{"weft-bridge", "weft0123456789"} {
		v := netlink.NewVeth(netlink.NewLinkAttrs())
		v.Name, v.PeerName = name, "p"+name[len(name)-5:]
		must(t, h.conn.LinkAdd(v))
	}
	eth0 := up(t, h.conn, "eth0")
	must(t, h.conn.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24")), LinkIndex: eth0.Attrs().Index, Protocol: 186}))
	must(t, h.conn.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24")), Type: unix.RTN_UNREACHABLE}))
	must(t, h.conn.NeighSet(neighbour(eth0.Attrs().Index, netip.MustParseAddr("192.0.2.77"), net.HardwareAddr{2, 0, 0, 0, 0, 7})))
	c, err := h.ns.nftables()
	must(t, err)
	table := c.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyINet})
	c.AddChain(&nftables.Chain{Table: table, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	must(t, c.Flush())
	setSysctl(t, h.ns, "net/ipv4/conf/eth0/rp_filter", "1")
	must(t, h.conn.LinkDel(up(t, h.conn, DefaultDevice))) // not part of the comparison
	before := snapshot(t, h.ns)

	h.tun = openTUN(t, h.ns, DefaultDevice)
	for range 2 {
		h.apply(t, desired())
	}
	ws := []Workload{h.attach(t, 1), h.attach(t, 2)}
	h.apply(t, desired(ws...))
	during := snapshot(t, h.ns)
	for _, l := range before {
		if !slices.Contains(during, l) && !strings.HasPrefix(l, "sysctl ") {
			t.Errorf("gone while Weft works: %s", l)
		}
	}
	removed, err := h.Remove(h.changes)
	must(t, err)
	differ(t, "Remove does not leave the host as it was", before, snapshot(t, h.ns))
	for _, want := range []string{
		"device weft0", "device " + HostIf("workload-1") + " of workload workload-1", "route to 10.32.0.0/12", "route to fd77::/64",
		"nftables table inet weft", "sysctl net/ipv4/ip_forward, 0 again", "sysctl net/ipv6/conf/all/forwarding, 0 again",
	} {
		if !slices.Contains(removed, want) {
			t.Errorf("Remove does not name %q: %q", want, removed)
		}
	}
	if removed, err = h.Remove(h.changes); err != nil || len(removed) > 0 {
		t.Errorf("the second Remove: %q, %v", removed, err)
	}
	differ(t, "the second Remove has changed something", before, snapshot(t, h.ns))
}

func TestRemoveNeedsNoApply(t *testing.T) {
	h := newHost(t)
	must(t, h.conn.LinkDel(up(t, h.conn, DefaultDevice)))
	before := snapshot(t, h.ns)
	h.tun = openTUN(t, h.ns, DefaultDevice)
	h.apply(t, desired())
	h.attach(t, 1)
	other := newAt(h.log, h.ns)
	_, err := other.Remove(h.changes)
	must(t, err)
	differ(t, "something is left", before, snapshot(t, h.ns))
}

func TestApplyRefuses(t *testing.T) {
	h := newHost(t)
	before := snapshot(t, h.ns)
	for name, c := range map[string]struct {
		change func(*Desired)
		want   string
	}{
		"no device":   {func(d *Desired) { d.Device = "weft9" }, "device weft9 does not exist; it must be opened before the host's network is set up"},
		"other kind":  {func(d *Desired) { d.Device = "eth0" }, "interface eth0 exists and is not Weft's; rename it, or delete it as by: ip link delete eth0"},
		"MTU":         {func(d *Desired) { d.MTU = 100 }, "an MTU of 100 is not possible for weft0; choose 576 to 65535"},
		"outside":     {func(d *Desired) { d.Addrs[0] = netip.MustParseAddr("10.0.0.1") }, "address 10.0.0.1 lies outside the range of this mesh, [10.32.0.0/12 fd77::/64]"},
		"two ranges":  {func(d *Desired) { d.Universe[1] = netip.MustParsePrefix("10.0.0.0/8") }, "the universe has both 10.32.0.0/12 and 10.0.0.0/8; only one of a family is possible"},
		"two of host": {func(d *Desired) { d.Addrs[1] = netip.MustParseAddr("10.32.0.2") }, "the host has both 10.32.0.1 and 10.32.0.2; only one of a family is possible"},
		"host bits":   {func(d *Desired) { d.Universe[0] = netip.MustParsePrefix("10.32.0.1/12") }, "10.32.0.1/12 is no range; give one whose host bits are zero"},
	} {
		d := desired()
		c.change(&d)
		prior := Changes{Sysctls: []Sysctl{{Key: "a", Was: "0", Set: "1"}}}
		res, err := h.Apply(d, prior)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, c.want)
		}
		if !res.Changes.has("a") {
			t.Errorf("%s: the prior changes are lost", name)
		}
	}
	differ(t, "a refused Apply has changed something", before, snapshot(t, h.ns))
}

// A universe of one family touches the other one nowhere.
func TestOneFamily(t *testing.T) {
	for i, v6 := range []bool{false, true} {
		h := newHost(t)
		d := desired()
		d.Addrs, d.Universe = d.Addrs[i:i+1], d.Universe[i:i+1]
		forward := sysctl(t, h.ns, forward6)
		h.apply(t, d)
		w := workload(1, newNamespace(t))
		w.Addrs = w.Addrs[i : i+1]
		_, err := h.Attach(w)
		must(t, err)
		reaches(t, h.ns, w.ns(t), w.Addrs[0])
		reaches(t, w.ns(t), h.ns, d.Addrs[0])
		if got := sysctl(t, h.ns, forward6); !v6 && got != forward {
			t.Errorf("IPv6 forwarding is %s, was %s", got, forward)
		}
		for _, l := range snapshot(t, w.ns(t)) {
			if !v6 && strings.HasPrefix(l, "route ::/0") || v6 && strings.HasPrefix(l, "route 0.0.0.0/0") {
				t.Errorf("the workload has %s", l)
			}
		}
	}
}

// The host may be without its overlay address at first.
func TestNoAddressYet(t *testing.T) {
	h := newHost(t)
	w := workload(1, newNamespace(t))
	_, err := h.Attach(w)
	if err == nil || err.Error() != "the host's network is not set up yet; try again in a moment" {
		t.Errorf("before Apply: %v", err)
	}
	d := desired()
	d.Addrs = nil
	h.apply(t, d)
	if _, err = h.Attach(w); err == nil || err.Error() != "the host has no overlay address yet to be the gateway of 10.32.1.1; try again in a moment" {
		t.Errorf("without address: %v", err)
	}
	h.apply(t, desired())
	if _, err = h.Attach(w); err != nil {
		t.Error(err)
	}
	reaches(t, h.ns, w.ns(t), w.Addrs[0])
}

// What came before an address, a route or a rule of the host is kept, and the error says so.
func TestForeignRouteInTheWay(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	eth0 := up(t, h.conn, "eth0")
	w := workload(1, newNamespace(t))
	must(t, h.conn.RouteAdd(&netlink.Route{Dst: hostPrefix(w.Addrs[0]), LinkIndex: eth0.Attrs().Index}))
	before := snapshot(t, h.ns)
	_, err := h.Attach(w)
	if err == nil || err.Error() != "there is a route to 10.32.1.1/32 already that is not Weft's; delete it" {
		t.Errorf("got %v", err)
	}
	differ(t, "a failed Attach has left something", before, snapshot(t, h.ns))
}
