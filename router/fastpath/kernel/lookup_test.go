// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
)

func TestRoute(t *testing.T) {
	h := newHosts(t, 1)[0]
	must(t, h.handle.RouteAdd(&netlink.Route{Gw: net.ParseIP("192.0.2.254"), LinkIndex: h.eth0.Attrs().Index}))
	must(t, h.handle.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24")), LinkIndex: h.eth0.Attrs().Index, MTU: 1400}))
	must(t, h.handle.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.51.101.0/24")), LinkIndex: h.eth0.Attrs().Index, MTU: 9000}))
	must(t, h.handle.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24")), Type: unix.RTN_UNREACHABLE}))
	for to, want := range map[string]fastpath.Hop{
		"192.0.2.7":    {Source: under4(1), Device: "eth0", MTU: 1500, OnLink: true},
		"2001:db8::7":  {Source: under6(1), Device: "eth0", MTU: 1500, OnLink: true},
		"9.9.9.9":      {Source: under4(1), Device: "eth0", MTU: 1500},
		"198.51.100.1": {Source: under4(1), Device: "eth0", MTU: 1400, OnLink: true},
		"198.51.101.1": {Source: under4(1), Device: "eth0", MTU: 1500, OnLink: true},
	} {
		if got, ok := h.Route(netip.MustParseAddr(to)); !ok || got != want {
			t.Errorf("%s: %+v, %v", to, got, ok)
		}
	}
	for _, to := range []netip.Addr{under4(1), over6(1), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:1::1"), {}} {
		if got, ok := h.Route(to); ok {
			t.Errorf("%v: %+v", to, got)
		}
	}
}

// The hardware address of a neighbour is asked for, told when it is there, and told again when it is another.
func TestNeighbour(t *testing.T) {
	hosts := newHosts(t, 2)
	h, other := hosts[0], hosts[1]
	if _, ok := h.Neighbour("eth9", under4(2)); ok {
		t.Error("on an interface that does not exist")
	}
	if _, ok := h.Neighbour("eth0", netip.Addr{}); ok {
		t.Error("of no address")
	}
	must(t, h.Apply(h.toAll(hosts, under4, fastpath.UDP)))
	told, stop := h.watch(t)
	defer stop()
	for _, hop := range []netip.Addr{under4(2), under6(2)} {
		drain(told)
		if mac, ok := h.Neighbour("eth0", hop); ok {
			t.Fatalf("%v is known already: %v", hop, mac)
		}
		select {
		case <-told:
		case <-time.After(patience):
			t.Fatal("that it is found is not told")
		}
		if mac, ok := h.Neighbour("eth0", hop); !ok || !bytes.Equal(mac, other.eth0.Attrs().HardwareAddr) {
			t.Errorf("%v: %v, %v; it is %v", hop, mac, ok, other.eth0.Attrs().HardwareAddr)
		}
	}
	drain(told)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 99}
	must(t, h.handle.NeighSet(&netlink.Neigh{LinkIndex: h.eth0.Attrs().Index, Family: unix.AF_INET, IP: under4(2).AsSlice(), HardwareAddr: mac, State: netlink.NUD_REACHABLE}))
	select {
	case <-told:
	case <-time.After(patience):
		t.Fatal("that it is another is not told")
	}
	if got, ok := h.Neighbour("eth0", under4(2)); !ok || !bytes.Equal(got, mac) {
		t.Errorf("%v, %v", got, ok)
	}
	// One that was lost and comes back is told, also if it is the same: who asks meanwhile is told that it is not known.
	for what, lose := range map[string]func() error{
		"is gone": func() error {
			return h.handle.NeighDel(&netlink.Neigh{LinkIndex: h.eth0.Attrs().Index, Family: unix.AF_INET, IP: under4(2).AsSlice()})
		},
		"does not answer": func() error {
			return h.handle.NeighSet(&netlink.Neigh{LinkIndex: h.eth0.Attrs().Index, Family: unix.AF_INET, IP: under4(2).AsSlice(), State: netlink.NUD_FAILED})
		},
	} {
		must(t, lose())
		drain(told)
		must(t, h.handle.NeighSet(&netlink.Neigh{LinkIndex: h.eth0.Attrs().Index, Family: unix.AF_INET, IP: under4(2).AsSlice(), HardwareAddr: mac, State: netlink.NUD_REACHABLE}))
		select {
		case <-told:
		case <-time.After(patience):
			t.Errorf("one that %s and is there again is not told", what)
		}
	}
	// The neighbours of others are nobody's business.
	drain(told)
	must(t, h.handle.NeighSet(&netlink.Neigh{LinkIndex: h.eth0.Attrs().Index, Family: unix.AF_INET, IP: under4(77).AsSlice(), HardwareAddr: mac, State: netlink.NUD_REACHABLE}))
	must(t, h.handle.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.47.1.0/24")), LinkIndex: h.eth0.Attrs().Index, Scope: netlink.SCOPE_LINK}))
	h.addAddr(t, h.eth0, netip.MustParseAddr("198.51.100.1"), 24)
	select {
	case <-told:
		t.Error("what does not concern kernel paths is told")
	case <-time.After(3 * watchSettle):
	}
}
