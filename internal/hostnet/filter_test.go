// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// onlySecond sends a datagram that must not arrive, then one that must, by the same way, and fails if the first one does.
func onlySecond(t *testing.T, bad, good func(port uint16) error, dst namespace, of netip.Addr) {
	t.Helper()
	c := listen(t, dst, of)
	if err := bad(port(c)); err != nil && !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	must(t, good(port(c)))
	if got, from := receive(t, c); got != "good" {
		t.Errorf("%q from %v has arrived", got, from)
	}
}

func TestSpoofedSourcesAreDropped(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	h.spoof(t, h.attach(t, 1), h.attach(t, 2))
}

// A device whose group somebody has changed is recognised by its name, until the next Apply sets the group again.
func TestDevicesWithoutGroups(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w, other := h.attach(t, 1), h.attach(t, 2)
	groups := map[string]uint32{DefaultDevice: groupTunnel, HostIf(w.ID): groupWorkloads, HostIf(other.ID): groupWorkloads}
	for name, want := range groups {
		l := up(t, h.conn, name)
		if got := l.Attrs().Group; got != want {
			t.Errorf("%s is in group %#x, want %#x", name, got, want)
		}
		must(t, h.conn.LinkSetGroup(l, 0))
	}
	h.spoof(t, w, other)
	for _, from := range []netip.Addr{netip.MustParseAddr("10.40.0.1"), netip.MustParseAddr("fd77::9:9")} {
		_, err := h.tun.Write(datagram(from, w.Addrs[map[bool]int{true: 1}[from.Is6()]], 64))
		must(t, err)
	}
	if n := dropped(t, h.ns, "forged: source is in the overlay"); n != 0 {
		t.Errorf("%d packets of the router are dropped", n)
	}
	h.apply(t, desired(w, other))
	for name, want := range groups {
		if got := up(t, h.conn, name).Attrs().Group; got != want {
			t.Errorf("after Apply %s is in group %#x, want %#x", name, got, want)
		}
	}
}

// spoof has a workload send to another one, and to the host, from sources that are not its own. Nothing arrives but what is from its own.
func (h *testHost) spoof(t *testing.T, w, other Workload) {
	t.Helper()
	for i, victim := range other.Addrs {
		for _, source := range []string{"10.32.1.3", "10.32.0.1", "10.40.0.1", "192.0.2.9", "fd77::1:3", "fd77::1", "fd77::9:9", "2001:db8::9"} {
			from := netip.MustParseAddr(source)
			if from.Is4() != victim.Is4() {
				continue
			}
			before := dropped(t, h.ns, "source is not this workload's")
			sender := func(from netip.Addr, payload string) func(uint16) error {
				return func(port uint16) error {
					return send(t, w.ns(t), from, netip.AddrPortFrom(victim, port), payload)
				}
			}
			onlySecond(t, sender(from, "bad from "+source), sender(w.Addrs[i], "good"), other.ns(t), victim)
			if n := dropped(t, h.ns, "source is not this workload's") - before; n != 1 {
				t.Errorf("%s: %d packets dropped, want 1", source, n)
			}
		}
		// The other workload's own address, from this one, to the host.
		gateway := desired().Addrs[i]
		sender := func(from netip.Addr, payload string) func(uint16) error {
			return func(port uint16) error {
				return send(t, w.ns(t), from, netip.AddrPortFrom(gateway, port), payload)
			}
		}
		onlySecond(t, sender(victim, "bad"), sender(w.Addrs[i], "good"), h.ns, gateway)
	}
}

// A workload that forgot the permanent entry still finds the gateway's neighbour by asking, as far as the kernel answers; but it
// cannot announce itself as a router.
func TestLinkLocalMessages(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	c := connect(t, w.ns(t))
	l, err := c.link("eth0")
	must(t, err)
	a, err := netlink.ParseAddr("fe80::77/64")
	must(t, err)
	a.Flags = unix.IFA_F_NODAD
	must(t, c.AddrAdd(l, a))
	for _, x := range []struct {
		kind byte
		pass bool
	}{{134, false}, {137, false}, {128, false}, {133, true}, {135, true}, {143, true}} {
		before, rejected := dropped(t, h.ns, "neighbour discovery"), dropped(t, h.ns, "not for workloads")
		in(t, w.ns(t), func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(fd) }()
			if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr("fe80::77").As16(), ZoneId: uint32(l.Attrs().Index)}); err != nil {
				return err
			}
			to := unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(l.Attrs().Index)}
			return unix.Sendto(fd, append([]byte{x.kind}, make([]byte, 23)...), 0, &to)
		})
		// The kernel sends messages of its own, so there can be more that passes.
		if passed := dropped(t, h.ns, "neighbour discovery") > before; x.pass && !passed {
			t.Errorf("type %d does not pass", x.kind)
		}
		if n := dropped(t, h.ns, "not for workloads") - rejected; (n == 1) == x.pass {
			t.Errorf("type %d: %d dropped", x.kind, n)
		}
	}
}

// A source inside the universe that comes from elsewhere is forged.
func TestForgedSourcesFromOutside(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	c := connect(t, h.outside)
	eth0 := up(t, c, "eth0").Attrs().Index
	for i, p := range desired().Universe {
		gw := netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1"}[i])
		must(t, c.RouteAdd(&netlink.Route{Dst: ipNet(p), LinkIndex: eth0, Gw: gw.AsSlice()}))
		forged := netip.MustParseAddr([]string{"10.32.9.9", "fd77::9:9"}[i])
		actual := netip.MustParseAddr([]string{"192.0.2.2", "2001:db8::2"}[i])
		sender := func(from netip.Addr, payload string) func(uint16) error {
			return func(port uint16) error {
				return send(t, h.outside, from, netip.AddrPortFrom(w.Addrs[i], port), payload)
			}
		}
		onlySecond(t, sender(forged, "bad"), sender(actual, "good"), w.ns(t), w.Addrs[i])
	}
	if n := dropped(t, h.ns, "forged: source is in the overlay"); n != 2 {
		t.Errorf("%d packets dropped, want 2", n)
	}
}

func TestMasquerade(t *testing.T) {
	h := newHost(t)
	outside := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	hosts := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	d := desired()
	h.apply(t, d)
	w, other := h.attach(t, 1), h.attach(t, 2)
	for i, to := range outside {
		if from := reaches(t, w.ns(t), h.outside, to); from != hosts[i] {
			t.Errorf("the outside sees %v, want %v", from, hosts[i])
		}
		if from := reaches(t, w.ns(t), other.ns(t), other.Addrs[i]); from != w.Addrs[i] {
			t.Errorf("the other workload sees %v, want %v", from, w.Addrs[i])
		}
	}
	// Switched off, the outside needs a way back.
	d.Masquerade, d.Workloads = false, []Workload{w, other}
	h.apply(t, d)
	c := connect(t, h.outside)
	for i, p := range d.Universe {
		must(t, c.RouteAdd(&netlink.Route{Dst: ipNet(p), LinkIndex: up(t, c, "eth0").Attrs().Index, Gw: hosts[i].AsSlice()}))
		if from := reaches(t, w.ns(t), h.outside, outside[i]); from != w.Addrs[i] {
			t.Errorf("the outside sees %v, want %v", from, w.Addrs[i])
		}
		// And in.
		if from := reaches(t, h.outside, w.ns(t), w.Addrs[i]); from != outside[i] {
			t.Errorf("the workload sees %v, want %v", from, outside[i])
		}
	}
}

// What enters the overlay from elsewhere does so as this host: the peers' routers would drop any other source.
func TestIntoTheOverlayAsThisHost(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Masquerade = false
	h.apply(t, d)
	c := connect(t, h.outside)
	for i, p := range d.Universe {
		gw := netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1"}[i])
		own := gw
		must(t, c.RouteAdd(&netlink.Route{Dst: ipNet(p), LinkIndex: up(t, c, "eth0").Attrs().Index, Gw: gw.AsSlice()}))
		remote := netip.MustParseAddr([]string{"10.47.1.1", "fd77::7:7"}[i])
		for _, x := range []struct {
			src  namespace
			from netip.Addr
		}{{h.outside, netip.Addr{}}, {h.ns, own}, {h.ns, netip.Addr{}}} {
			payload := fmt.Sprintf("%v %v", x, remote)
			must(t, send(t, x.src, x.from, netip.AddrPortFrom(remote, 9), payload))
			b := make([]byte, 2048)
			n := read(t, h.tun, b)
			for !strings.HasSuffix(string(b[:n]), payload) {
				n = read(t, h.tun, b)
			}
			from, _ := netip.AddrFromSlice(b[12:16])
			if remote.Is6() {
				from, _ = netip.AddrFromSlice(b[8:24])
			}
			if from != d.Addrs[i] {
				t.Errorf("the overlay sees %v, want %v", from, d.Addrs[i])
			}
		}
	}
}

// Whatever becomes of routes and device, packets to the universe do not leave the host.
func TestUniverseDoesNotLeak(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	c := connect(t, h.outside)
	remote := []netip.Addr{netip.MustParseAddr("10.47.1.1"), netip.MustParseAddr("fd77::7:7")}
	for _, a := range remote { // the outside would take them
		must(t, c.AddrAdd(up(t, c, "lo"), address(a)))
		c.settled(a, patience)
	}
	controls := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	leaks := func(t *testing.T, src namespace, want ...error) {
		t.Helper()
		for i, to := range remote {
			onlySecond(t, func(port uint16) error {
				err := send(t, src, netip.Addr{}, netip.AddrPortFrom(to, port), "leak to "+to.String())
				if slices.ContainsFunc(want, func(e error) bool { return errors.Is(err, e) }) {
					return nil
				}
				return err
			}, func(port uint16) error {
				return send(t, src, netip.Addr{}, netip.AddrPortFrom(controls[i], port), "good")
			}, h.outside, to)
		}
	}
	// The device is down: nowhere to go.
	tun, err := h.conn.link(DefaultDevice)
	must(t, err)
	must(t, h.conn.LinkSetDown(tun))
	leaks(t, h.ns, unix.EHOSTUNREACH)
	leaks(t, w.ns(t))
	// The routes are gone, too: the rules hold.
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.conn.routes(f)
		must(t, err)
		for i, r := range list {
			if r.Type == unix.RTN_UNREACHABLE {
				must(t, h.conn.RouteDel(&list[i]))
			}
		}
	}
	leaks(t, h.ns)
	leaks(t, w.ns(t))
	if n := dropped(t, h.ns, "never in plaintext"); n != 4 {
		t.Errorf("%d packets dropped, want 4", n)
	}
	// Even the device is.
	must(t, h.conn.LinkDel(tun))
	leaks(t, h.ns)
	// Without them they would leave: the test is worth something.
	_, err = removeTable(h.ns)
	must(t, err)
	for _, to := range remote {
		srv := listen(t, h.outside, to)
		must(t, send(t, h.ns, netip.Addr{}, netip.AddrPortFrom(to, port(srv)), "leak"))
		if got, _ := receive(t, srv); got != "leak" {
			t.Errorf("got %q", got)
		}
	}
}

// On kernels that lack a part of nftables the rest works.
func TestFewerFeatures(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Device = DefaultDevice
	f := filters{device: d.Device, universe: d.Universe, masquerade: true}
	for _, use := range []features{{}, {fib: true}, {nat: true}, {fib: true, nat: true}} {
		must(t, f.table(use, nil).send(h.connection(t), tableName))
		rules := strings.Join(ruleset(t, h.ns), "\n")
		if got := strings.Contains(rules, "expr.Fib"); got != use.fib {
			t.Errorf("%+v: fib %v", use, got)
		}
		if got := strings.Contains(rules, "expr.Masq"); got != use.nat {
			t.Errorf("%+v: masquerade %v", use, got)
		}
		if !strings.Contains(rules, "chain 1 weft leaving filter") {
			t.Errorf("%+v: no leak rule", use)
		}
	}
	if got := len(f.lacking(features{fib: true, nat: true})); got != 0 {
		t.Errorf("%d warnings when nothing is lacking", got)
	}
	if got := f.lacking(features{}); len(got) != 2 || !strings.Contains(got[0], "IPv6 senders not at all") {
		t.Errorf("warnings %q", got)
	}
}

// Without the fib expression the reverse path filter has to do, for IPv4.
func TestReversePathFilterInstead(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	must(t, filters{device: DefaultDevice, universe: desired().Universe, masquerade: true}.table(features{nat: true}, nil).send(h.connection(t), tableName))
	h.last.strict = true
	w, other := h.attach(t, 1), h.attach(t, 2)
	victim := other.Addrs[0]
	sender := func(from netip.Addr, payload string) func(uint16) error {
		return func(port uint16) error {
			return send(t, w.ns(t), from, netip.AddrPortFrom(victim, port), payload)
		}
	}
	onlySecond(t, sender(netip.MustParseAddr("10.32.1.3"), "bad"), sender(w.Addrs[0], "good"), other.ns(t), victim)
	in(t, h.ns, func() error {
		if got := looseFilter(); len(got) > 0 {
			t.Errorf("warnings %q", got)
		}
		err := writeSysctl(confKey("ipv4", "all", "rp_filter"), "2")
		if got := looseFilter(); len(got) != 1 {
			t.Errorf("no warning if the filter of all is loose")
		}
		return err
	})
}

// A firewall that drops what is forwarded is named, until it lets Weft through.
func TestFirewallInTheWay(t *testing.T) {
	h := newHost(t)
	c, err := h.ns.nftables()
	must(t, err)
	drop := nftables.ChainPolicyDrop
	table := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	user := c.AddChain(&nftables.Chain{Name: "DOCKER-USER", Table: table})
	must(t, c.Flush())
	res, err := h.Apply(desired(), Changes{})
	must(t, err)
	want := []string{"the firewall's chain FORWARD in table filter drops what it does not know, packets of workloads too; " +
		"let it accept devices weft*, as by: iptables -I FORWARD -i weft+ -j ACCEPT; iptables -I FORWARD -o weft+ -j ACCEPT (ip6tables for IPv6)"}
	if !slices.Equal(res.Warnings, want) {
		t.Errorf("warnings %q", res.Warnings)
	}
	for _, ch := range []*nftables.Chain{user, chain} {
		c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: append(prefixed(expr.MetaKeyIIFNAME, expr.CmpOpEq), verdict(expr.VerdictAccept, ""))})
		must(t, c.Flush())
		res, err = h.Apply(desired(), res.Changes)
		must(t, err)
		if len(res.Warnings) > 0 {
			t.Errorf("warnings %q", res.Warnings)
		}
		c.FlushChain(ch)
		must(t, c.Flush())
	}
}
