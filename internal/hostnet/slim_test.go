// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// multicastRoutes counts the routes to multicast by interfaces of workloads.
func (h *testHost) multicastRoutes(t *testing.T) (n int) {
	t.Helper()
	of := netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(multicast6())}
	list, err := h.conn.RouteListFiltered(netlink.FAMILY_V6, &of, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	must(t, err)
	for _, r := range list {
		if l, err := h.conn.LinkByIndex(r.LinkIndex); err == nil && isHostIf(l.Attrs().Name) {
			n++
		}
	}
	return n
}

// The host's ends of workloads have no route to multicast, which all of IPv6 would go through, whichever way they were connected; and those that come later are taken away.
func TestNoMulticastRoutes(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	quick, thorough := workload(1, newNamespace(t)), workload(2, newNamespace(t))
	a := h.attacher(t, quick)
	if done, made := a.quick(h.ns); !done || !made {
		t.Fatalf("done: %v, made: %v", done, made)
	}
	a.hangUp()
	must(t, h.attacher(t, thorough).thorough(h.ns, false))
	for _, w := range []Workload{quick, thorough} { // on a busy machine the carrier comes later
		must(t, h.Settle(w))
	}
	if n := h.multicastRoutes(t); n > 0 {
		t.Errorf("there are %d routes", n)
	}
	outer, err := h.conn.link(HostIf(quick.ID))
	must(t, err)
	must(t, h.conn.LinkSetDown(outer))
	must(t, h.conn.LinkSetUp(outer))
	if !eventually(patience, func() bool { return h.multicastRoutes(t) == 1 }) {
		t.Fatal("the kernel makes none")
	}
	h.apply(t, desired(quick, thorough))
	if n := h.multicastRoutes(t); n > 0 {
		t.Errorf("%d routes are left", n)
	}
	for _, w := range []Workload{quick, thorough} {
		for _, addr := range w.Addrs {
			reaches(t, h.ns, w.ns(t), addr)
		}
	}
}
