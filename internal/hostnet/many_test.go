// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// What the kernel is asked for a workload that comes, and by those who look for the way out of the host, does not grow with the workloads that are there.
func TestOneOfManyWorkloads(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	heard := func() (least int) {
		t.Helper()
		for range 5 { // the kernel may have to be asked again whether an interface is up
			a := h.attacher(t, workload(1, newNamespace(t)))
			if done, _ := a.quick(h.ns); !done {
				t.Fatal("it is not done")
			}
			a.hangUp()
			must(t, h.Detach(a.Workload))
			if least == 0 || a.heard < least {
				least = a.heard
			}
		}
		if least == 0 {
			t.Error("nothing was heard")
		}
		return least
	}
	looked := func() int {
		t.Helper()
		links := candidates{c: h.conn, known: map[int]netlink.Link{}}
		_, err := exits(links)
		must(t, err)
		return len(links.known)
	}
	const few, many = 10, 200
	var bytes, links int
	for i := range many {
		_, err := h.Attach(Workload{ID: fmt.Sprintf("many-%d", i), Netns: newNamespace(t).path(), Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 32, 7, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd77::7:%x", i)),
		}})
		must(t, err)
		if i == few-1 {
			bytes, links = heard(), looked()
		}
	}
	if n := heard(); n > 2*bytes {
		t.Errorf("with %d workloads it answers %d bytes for one that comes, with %d %d bytes", many, n, few, bytes)
	}
	if n := looked(); n != links || n > 3 {
		t.Errorf("with %d workloads %d interfaces are looked at, with %d %d", many, n, few, links)
	}
}

// A workload that goes takes its own routes with it, whatever addresses it is said to have, and nobody else's.
func TestDetachByAddresses(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	before := snapshot(t, h.ns)
	other := h.attach(t, 1)
	with := snapshot(t, h.ns)
	for name, addrs := range map[string][]netip.Addr{
		"its own": {netip.MustParseAddr("10.32.1.2"), netip.MustParseAddr("fd77::1:2")}, "none": nil, "of another": other.Addrs, "of nobody": {netip.MustParseAddr("10.32.9.9")},
	} {
		w := h.attach(t, 2)
		w.Addrs = addrs
		must(t, h.Detach(w))
		differ(t, name, with, snapshot(t, h.ns))
	}
	must(t, h.Detach(other))
	differ(t, "the host", before, snapshot(t, h.ns))
}
