// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weftnet/weft/policy"
)

// TestDirectory tells apart what is told and what is attached.
func TestDirectory(t *testing.T) {
	w := policy.NewWorld()
	d := newDirectory("n1", w, w)
	expect := func(step string, want ...string) {
		t.Helper()
		var got []string
		for e := range w.Endpoints() {
			got = append(got, fmt.Sprint(nameText(e.Name), " ", e.Node, " ", e.Labels["app"], " ", e.Addrs))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, not %q", step, got, want)
		}
	}
	tell := func(e policy.Endpoint) { d.tell(e.Name, &e) }

	tell(pod("r", "u-r", "n2", "web", "10.33.0.1"))
	tell(pod("a", "u-a", "n1", "db", "10.32.0.1"))
	expect("told", "default/a n1 db []", "default/r n2 web [10.33.0.1]")
	if len(d.told) != 1 || len(d.claims) != 1 || len(d.entries) != 1 {
		t.Errorf("what the world has is kept twice: %v", d.told)
	}
	d.bind(attached("k", "a", "u-a", "10.32.0.5"), false)
	expect("attached", "default/a n1 db [10.32.0.5]", "default/r n2 web [10.33.0.1]")

	// Others claim the address, before and after it was given out here.
	tell(pod("x", "u-x", "n2", "web", "10.32.0.5", "fd00::9"))
	tell(pod("y", "u-y", "n2", "web", "10.32.0.6"))
	d.bind(attached("k2", "b", "u-b", "10.32.0.6"), false)
	expect("claimed", "default/a n1 db [10.32.0.5]", "default/r n2 web [10.33.0.1]", "default/x n2 web [fd00::9]", "default/y n2 web []")
	d.dismiss("k")
	d.dismiss("k2")
	expect("detached", "default/a n1 db []", "default/r n2 web [10.33.0.1]", "default/x n2 web [10.32.0.5 fd00::9]", "default/y n2 web [10.32.0.6]")
	if len(d.told) != 1 {
		t.Errorf("what the world has is kept twice: %v", d.told)
	}

	// What another node has is attached here: a pod of this name is told of later.
	d.bind(attached("k3", "r", "u-r2", "10.32.0.7"), false)
	expect("not known", "default/a n1 db []", "default/r n2 web [10.33.0.1]", "default/x n2 web [10.32.0.5 fd00::9]", "default/y n2 web [10.32.0.6]")
	tell(pod("r", "u-r2", "n1", "db"))
	expect("known", "default/a n1 db []", "default/r n1 db [10.32.0.7]", "default/x n2 web [10.32.0.5 fd00::9]", "default/y n2 web [10.32.0.6]")
	for _, name := range []string{"a", "r", "x", "y"} {
		d.tell(named(name), nil)
	}
	expect("untold", "default/r n1 db [10.32.0.7]")
	d.dismiss("k3")
	expect("the end")
	if n := len(d.told) + len(d.claims) + len(d.locals) + len(d.named) + len(d.taken) + len(d.entries); n != 0 {
		t.Errorf("there is something left: %+v", d)
	}
}

// TestNodes joins what a source and the mesh say of nodes.
func TestNodes(t *testing.T) {
	w := policy.NewWorld()
	d := newDirectory("n1", w, w)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.32.0.1")
	d.tellNode("n1", &policy.Node{Name: "n1", Labels: map[string]string{"zone": "z"}, Addrs: []netip.Addr{a}})
	d.hosts = map[string][]netip.Addr{"n1": {b, a}, "n2": {b}}
	d.flushNodes()
	got := fmt.Sprint(slices.Collect(w.Nodes()))
	if want := "[{n1 map[zone:z] [10.32.0.1 192.0.2.1]} {n2 map[] [10.32.0.1]}]"; got != want {
		t.Error(got)
	}
	d.tellNode("n1", nil)
	d.hosts = map[string][]netip.Addr{"n2": {b}}
	d.flushNodes()
	if got, want := fmt.Sprint(slices.Collect(w.Nodes())), "[{n2 map[] [10.32.0.1]}]"; got != want {
		t.Error(got)
	}
}
