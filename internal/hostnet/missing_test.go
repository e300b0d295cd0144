// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestMissingChangesNothing(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	there, deleted, never := h.attach(t, 1), h.attach(t, 2), workload(3, newNamespace(t))
	must(t, connect(t, deleted.ns(t)).LinkDel(up(t, connect(t, deleted.ns(t)), DefaultIfName))) // from inside
	foreign := netlink.NewVeth(netlink.NewLinkAttrs())
	foreign.Name, foreign.PeerName = HostIf("foreign"), "peer"
	must(t, h.conn.LinkAdd(foreign))
	before := snapshot(t, h.ns)
	missing, err := h.Missing([]Workload{there, deleted, never, {ID: "foreign"}})
	if want := []string{deleted.ID, never.ID, "foreign"}; err != nil || !slices.Equal(missing, want) {
		t.Errorf("missing: %q, %v, want %q", missing, err, want)
	}
	if missing, err := h.Missing(nil); err != nil || len(missing) != 0 {
		t.Errorf("of nothing: %q, %v", missing, err)
	}
	differ(t, "the host", before, snapshot(t, h.ns))
}

// A host that is to have neither addresses nor workloads any more loses them, and what is meant for the overlay still goes
// to the device and nowhere else.
func TestApplyTakesOffTheNetwork(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	bare := desired()
	bare.Addrs = nil
	for range 2 {
		if res := h.apply(t, bare); len(res.Missing) > 0 {
			t.Errorf("missing: %q", res.Missing)
		}
	}
	if h.Present(w.ID) {
		t.Error("the workload has its interface")
	}
	device := up(t, h.conn, DefaultDevice)
	if have, err := h.conn.addrs(device, netlink.FAMILY_ALL); err != nil || len(have) > 0 {
		t.Errorf("%s has %v, %v", DefaultDevice, have, err)
	}
	for _, p := range bare.Universe {
		for _, a := range []netip.Addr{p.Addr().Next(), w.Addrs[0], w.Addrs[1]} {
			if a.Is4() != p.Addr().Is4() {
				continue
			}
			if r, err := h.conn.RouteGet(a.AsSlice()); err != nil || len(r) != 1 || r[0].LinkIndex != device.Attrs().Index {
				t.Errorf("the way to %v is %v, %v", a, r, err)
			}
		}
	}
}
