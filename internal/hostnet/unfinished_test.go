// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"slices"
	"testing"
)

// An interface that a crash has left half connected has no alias yet: Apply puts the host's end right, and names the workload as missing, so
// that it is connected anew, which does the rest.
func TestUnfinishedInterface(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	h.apply(t, desired(w))
	outer, err := h.conn.link(HostIf(w.ID))
	must(t, err)
	right, rightInside := snapshot(t, h.ns), snapshot(t, w.ns(t))
	inner, err := w.ns(t).open()
	must(t, err)
	defer inner.Close()
	peer, err := inner.link(DefaultIfName)
	must(t, err)

	must(t, h.conn.LinkSetAlias(outer, ""))
	must(t, inner.LinkSetDown(peer))
	list, err := inner.addrs(peer, 0)
	must(t, err)
	for i := range list {
		must(t, inner.AddrDel(peer, &list[i]))
	}
	if res := h.apply(t, desired(w)); !slices.Equal(res.Missing, []string{w.ID}) {
		t.Errorf("missing: %q", res.Missing)
	}
	_, err = h.Attach(w)
	must(t, err)
	differ(t, "the host is not as before", right, snapshot(t, h.ns))
	differ(t, "the workload is not as before", rightInside, snapshot(t, w.ns(t)))
	if res := h.apply(t, desired(w)); len(res.Missing) > 0 {
		t.Errorf("missing: %q", res.Missing)
	}
	for _, a := range w.Addrs {
		reaches(t, h.ns, w.ns(t), a)
	}
}
