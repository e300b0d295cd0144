// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/router/fastpath"
)

// All of it again, and a look at all of it, send no message that changes something.
func TestIdempotent(t *testing.T) {
	for _, use := range fastpath.Kinds() {
		t.Run(use.String(), func(t *testing.T) {
			hosts := newHosts(t, 3)
			h := hosts[0]
			connected(t, hosts, under6, use)
			m := newMonitor(t, h.ns)
			for range 2 {
				must(t, h.Apply(h.toAll(hosts, under6, use)))
				m.quiet(t, "a second Apply")
				h.reconciled(t)
				m.quiet(t, "Reconcile")
			}
			next := h.newKernel(t)
			must(t, next.Apply(h.toAll(hosts, under6, use)))
			m.quiet(t, "Apply of the next run")
		})
	}
}

// reconciled calls Reconcile, which has to return these lines.
func (h *host) reconciled(t testing.TB, want ...string) {
	t.Helper()
	got, err := h.Reconcile()
	must(t, err)
	if !slices.Equal(got, want) {
		t.Errorf("Reconcile:\n got %q\nwant %q", got, want)
	}
}

// A peer that changes its path, its address or its prefixes, that comes or goes, changes its own entries only, and no more of
// them than it has to.
func TestOnePeer(t *testing.T) {
	hosts := newHosts(t, 1)
	h := hosts[0]
	others := []Peer{peer(3, under4(3), fastpath.VXLAN), peer(4, under6(4), fastpath.VXLAN), peer(5, under4(5), fastpath.Direct)}
	apply := func(p ...Peer) {
		t.Helper()
		must(t, h.Apply(h.desired(slices.Concat(others, p)...)))
	}
	apply()
	m := newMonitor(t, h.ns)
	const set, gone, setNeighbour, goneNeighbour = 24, 25, 28, 29
	p4, p6 := prefixes(2)[0], prefixes(2)[1]
	hop := hop4(idOf(2), 0)
	line := func(kind int, table uint32, p netip.Prefix, via netip.Addr) string {
		return fmt.Sprintf("%d %v via %v", kind, routeKey{table: table, dst: p}, via)
	}
	entry := func(kind int, to netip.Addr) string {
		return fmt.Sprintf("%d forwarding entry %v to %v", kind, MAC(idOf(2)), to)
	}

	p := peer(2, under4(2), fastpath.UDP)
	apply(p)
	all := []string{
		entry(setNeighbour, under4(2)),
		fmt.Sprintf("%d neighbour %v %v", setNeighbour, hop, MAC(idOf(2))), fmt.Sprintf("%d neighbour %v %v", setNeighbour, hop6(idOf(2)), MAC(idOf(2))),
		line(set, TableDirect, p4, under4(2)), line(set, TableDirect, p6, under6(2)),
		line(set, TableVXLAN, p4, hop), line(set, TableVXLAN, p6, hop6(idOf(2))),
	}
	m.expect(t, "a peer that comes", all...)

	p.Path = fastpath.VXLAN
	apply(p)
	m.expect(t, "udp to vxlan", line(set, mainTable, p4, hop), line(set, mainTable, p6, hop6(idOf(2))))
	p.Path = fastpath.Direct
	apply(p)
	m.expect(t, "vxlan to direct", line(set, mainTable, p4, under4(2)), line(set, mainTable, p6, under6(2)))
	p.Path = fastpath.UDP
	apply(p)
	m.expect(t, "direct to udp", line(gone, mainTable, p4, under4(2)), line(gone, mainTable, p6, under6(2)))

	p.VXLAN = netip.AddrPortFrom(under4(99), testPort)
	apply(p)
	m.expect(t, "another underlay address", entry(setNeighbour, under4(99)))
	p.Prefixes = prefixes(2)[:1]
	apply(p)
	m.expect(t, "a prefix less", line(gone, TableDirect, p6, under6(2)), line(gone, TableVXLAN, p6, hop6(idOf(2))),
		fmt.Sprintf("%d neighbour %v %v", goneNeighbour, hop6(idOf(2)), mac{}))
	apply()
	if got := m.told(t); len(got) != 4 {
		t.Errorf("a peer that goes: %q", got)
	}
	if got := snapshot(t, h.ns); slices.ContainsFunc(got, func(l string) bool { return slices.Contains(all, l) }) {
		t.Errorf("left: %q", got)
	}
}

// Five hundred peers are put in place, looked at and repaired within a second where the machine is idle, and one of them is switched
// by the messages that it needs.
func TestFiveHundred(t *testing.T) {
	h := newHosts(t, 1)[0]
	var peers []Peer
	for i := range 500 {
		p := Peer{
			ID: uint64(i+1) * 0x9e3779b97f4a7c15, VXLAN: netip.AddrPortFrom(under4(2).Next(), testPort), Path: fastpath.VXLAN,
			Device: "eth0", Hop4: under4(2), Hop6: under6(2),
		}
		for j := range 2 {
			p.Prefixes = append(p.Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(40 + i/128), byte(i%128*2 + j), 0}), 24),
				netip.MustParsePrefix(fmt.Sprintf("fd77::%x:%x:0/112", i+1, j)))
		}
		peers = append(peers, p)
	}
	peers[249].Path = fastpath.Direct // so that both tables are of use
	d := h.desired(peers...)
	took := func(what string, f func()) time.Duration {
		start := time.Now()
		f()
		x := time.Since(start)
		t.Logf("%s: %v", what, x.Round(time.Millisecond/10))
		if x > limit {
			t.Errorf("%s took %v", what, x)
		}
		return x
	}
	took("500 peers, 2 prefixes of each family: the first Apply", func() { must(t, h.Apply(d)) })
	m := newMonitor(t, h.ns)
	took("Reconcile", func() { h.reconciled(t) })
	m.quiet(t, "Reconcile")
	took("the first Apply of the next run", func() { must(t, h.newKernel(t).Apply(d)) })
	m.quiet(t, "adoption")
	d.Peers = slices.Clone(d.Peers)
	d.Peers[250].Path = fastpath.Direct
	took("the switch of one", func() { must(t, h.Apply(d)) })
	if got := m.told(t); len(got) != 4 {
		t.Errorf("the switch of one peer with 4 prefixes: %d messages: %q", len(got), got)
	}
	must(t, h.handle.LinkDel(h.link(t, Device4)))
	took("Reconcile after the device was deleted", func() { h.reconciled(t, "device weft-vx4 was deleted by somebody; made again") })
	h.reconciled(t)
	start := time.Now()
	_, err := h.Remove()
	must(t, err)
	t.Logf("Remove: %v", time.Since(start).Round(time.Millisecond))
}

// What a route needs is there before the route is, and goes after it: no packet is sent to where nothing is known of the peer.
func TestOrder(t *testing.T) {
	h := newHosts(t, 1)[0]
	must(t, h.Apply(h.desired()))
	m := newMonitor(t, h.ns)
	kinds := func(lines []string) (out []string) {
		for _, l := range lines {
			for what, name := range map[string]string{
				" forwarding entry ": "entry", " neighbour ": "neighbour", " by vxlan (table 8702) ": "candidate", " rule ": "rule", " route to 10.34.0.0/16 via": "main", " route to fd77::2:0/112 via": "main",
			} {
				if strings.Contains(l, what) && (len(out) == 0 || out[len(out)-1] != name) {
					out = append(out, name)
				}
			}
		}
		return out
	}
	p := peer(2, under4(2), fastpath.VXLAN)
	p.Device = ""
	must(t, h.Apply(h.desired(p)))
	order := []string{"entry", "neighbour", "candidate", "main"}
	if got := kinds(m.told(t)); !slices.Equal(got, order) {
		t.Errorf("a peer that comes: %q", got)
	}
	must(t, h.Apply(h.desired()))
	slices.Reverse(order)
	if got := kinds(m.told(t)); !slices.Equal(got, order) {
		t.Errorf("a peer that goes: %q", got)
	}
}

// There are rules while a table has something that the main table has not, but those that are too many go with the next look at everything, so that a
// peer that goes to and fro does not change them each time. Probes take their way with them and without.
func TestRules(t *testing.T) {
	h := newHosts(t, 1)[0]
	p, q := peer(2, under4(2), fastpath.VXLAN), peer(3, under4(3), fastpath.VXLAN)
	p.Device, q.Device = "", ""
	m := newMonitor(t, h.ns)
	step := func(what string, paths [2]fastpath.Kind, rules, changed int) {
		t.Helper()
		m.told(t)
		p.Path, q.Path = paths[0], paths[1]
		must(t, h.Apply(h.desired(p, q)))
		h.rules(t, what, rules)
		got := slices.DeleteFunc(m.told(t), func(l string) bool { return !strings.Contains(l, " rule ") })
		if len(got) != changed {
			t.Errorf("%s: %q", what, got)
		}
		for _, to := range []netip.Prefix{p.Prefixes[0], q.Prefixes[0]} {
			routes, err := h.handle.RouteGetWithOptions(to.Addr().Next().AsSlice(), &netlink.RouteGetOptions{Mark: MarkVXLAN})
			must(t, err)
			if len(routes) != 1 || routes[0].LinkIndex != h.link(t, Device4).Attrs().Index {
				t.Errorf("%s: a probe to %v goes by %v", what, to, routes)
			}
		}
	}
	tunnel, sealed := fastpath.VXLAN, fastpath.UDP
	step("both by VXLAN", [2]fastpath.Kind{tunnel, tunnel}, 0, 0)
	step("one leaves", [2]fastpath.Kind{sealed, tunnel}, 2, 2)
	step("it returns", [2]fastpath.Kind{tunnel, tunnel}, 2, 0)
	step("another leaves", [2]fastpath.Kind{tunnel, sealed}, 2, 0)
	h.reconciled(t)
	h.rules(t, "still needed", 2)
	step("it returns as well", [2]fastpath.Kind{tunnel, tunnel}, 2, 0)
	h.reconciled(t)
	h.rules(t, "not needed", 0)
	step("both leave", [2]fastpath.Kind{sealed, sealed}, 2, 2)
	must(t, h.newKernel(t).Apply(h.desired(p, q)))
	h.rules(t, "found by the next run", 2)
}

// rules fails the test unless there are so many with Weft's mark.
func (h *host) rules(t *testing.T, what string, want int) {
	t.Helper()
	list, err := h.handle.RuleList(netlink.FAMILY_ALL)
	must(t, err)
	if list = slices.DeleteFunc(list, func(r netlink.Rule) bool { return r.Protocol != RouteProtocol }); len(list) != want {
		t.Errorf("%s: rules %v", what, list)
	}
}
