// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"testing"
)

func TestEndpointAt(t *testing.T) {
	a := netip.MustParseAddr("10.32.0.1")
	old := Endpoint{Name: Name{"ns", "old"}, ID: "1", Addrs: []netip.Addr{a}}
	successor := Endpoint{Name: Name{"ns", "a-successor"}, ID: "2", Addrs: []netip.Addr{a}}
	w := NewWorld()
	at := func(step, want string) {
		t.Helper()
		e, ok := w.EndpointAt(a)
		if ok != (want != "") || e.Name.Name != want {
			t.Errorf("%s: %q has the address, not %q", step, e.Name.Name, want)
		}
	}
	at("nobody", "")
	w.SetEndpoint(old)
	at("the only one", "old")
	w.SetEndpoint(successor)
	at("the one that has come by it last", "a-successor")
	old.Labels = map[string]string{"a": "b"}
	w.SetEndpoint(old)
	at("others' labels do not matter", "a-successor")
	old.ID = "3"
	w.SetEndpoint(old)
	at("another one of the same name", "old")
	w.DeleteEndpoint(old.Name)
	at("who still has it", "a-successor")
	w.SetEndpoint(old)
	successor.Addrs = nil
	w.SetEndpoint(successor)
	at("let go by the other", "old")
	old.Addrs = nil
	w.SetEndpoint(old)
	at("let go", "")
	w.DeleteEndpoint(old.Name)
	w.DeleteEndpoint(old.Name)
	if len(w.owners)+len(w.earlier) != 0 {
		t.Errorf("left behind: %v, %v", w.owners, w.earlier)
	}
}

func TestNodesAt(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	w := NewWorld()
	w.SetNode(Node{Name: "n2", Addrs: []netip.Addr{a}})
	w.SetNode(Node{Name: "n1", Addrs: []netip.Addr{a, b}})
	if n := w.NodesAt(a); len(n) != 2 || n[0].Name != "n1" || n[1].Name != "n2" {
		t.Errorf("%v", n)
	}
	w.SetEndpoint(Endpoint{Name: Name{"ns", "e"}, Addrs: []netip.Addr{a}})
	if n := w.NodesAt(a); n != nil {
		t.Errorf("an endpoint's address is a node's: %v", n)
	}
	w.DeleteEndpoint(Name{"ns", "e"})
	w.DeleteNode("n1")
	if n := w.NodesAt(a); len(n) != 1 || n[0].Name != "n2" {
		t.Errorf("%v", n)
	}
	if n := w.NodesAt(b); n != nil {
		t.Errorf("%v", n)
	}
}

func TestNamespaceLabels(t *testing.T) {
	w := NewWorld()
	if l := w.NamespaceLabels("ns"); len(l) != 1 || l[NameLabel] != "ns" {
		t.Errorf("without an object: %v", l)
	}
	given := map[string]string{"team": "a", NameLabel: "another"}
	w.SetNamespace(Namespace{Name: "ns", Labels: given})
	if l := w.NamespaceLabels("ns"); len(l) != 2 || l[NameLabel] != "ns" || l["team"] != "a" {
		t.Errorf("with an object: %v", l)
	}
	if given[NameLabel] != "another" {
		t.Error("what was given was changed")
	}
	w.DeleteNamespace("ns")
	if l := w.NamespaceLabels("ns"); len(l) != 1 {
		t.Errorf("deleted: %v", l)
	}
}
