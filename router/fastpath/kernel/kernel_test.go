// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

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
		fmt.Sprintf("%d neighbour %v %v", setNeighbour, over4(2), MAC(idOf(2))), fmt.Sprintf("%d neighbour %v %v", setNeighbour, hop, MAC(idOf(2))), fmt.Sprintf("%d neighbour %v %v", setNeighbour, hop6(idOf(2)), MAC(idOf(2))),
		line(set, TableDirect, p4, under4(2)), line(set, TableDirect, p6, under6(2)),
		line(set, TableVXLAN, p6, hop6(idOf(2))),
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
	order := []string{"entry", "neighbour", "candidate", "rule", "main"}
	if got := kinds(m.told(t)); !slices.Equal(got, order) {
		t.Errorf("a peer that comes: %q", got)
	}
	must(t, h.Apply(h.desired()))
	slices.Reverse(order)
	if got := kinds(m.told(t)); !slices.Equal(got, order) {
		t.Errorf("a peer that goes: %q", got)
	}
}
