// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"net/netip"
	"testing"

	"github.com/weftnet/weft/policy"
)

// TestStrangeAddresses has a node claim the address of another one's endpoint: it stays whose it is, whoever tells it last, and counts as another's once it is known to be.
func TestStrangeAddresses(t *testing.T) {
	w := policy.NewWorld()
	d := newDirectory("n1", w, w)
	of := map[string]string{"10.33.0.1": "n2"}
	looked := 0
	owners := func(node string, a netip.Addr) bool {
		looked++
		return of[a.String()] == node || !netip.MustParsePrefix("10.32.0.0/12").Contains(a)
	}
	d.setOwners(owners)
	tell := func(e policy.Endpoint) { d.tell(e.Name, &e) }
	expect := func(step, addr, want string) {
		t.Helper()
		if e, _ := w.EndpointAt(netip.MustParseAddr(addr)); e.Name.Name != want {
			t.Errorf("%s: %s is %q, not %q", step, addr, e.Name.Name, want)
		}
	}
	tell(pod("db", "u-db", "n2", "db", "10.33.0.1"))
	tell(pod("evil", "u-e", "n3", "web", "10.33.0.1", "10.34.0.1"))
	expect("claimed", "10.33.0.1", "db")
	expect("claimed", "10.34.0.1", "")
	of["10.34.0.1"] = "n3"
	tell(pod("evil", "u-e", "n3", "web", "10.34.0.1", "192.0.2.7"))
	expect("its own", "10.34.0.1", "evil")
	expect("out of the range", "192.0.2.7", "evil")
	if len(d.strange)+len(d.told) > 0 {
		t.Errorf("kept: %v, %v", d.strange, d.told)
	}

	// Told before it is known to be its node's.
	tell(pod("late", "u-l", "n4", "web", "10.35.0.1"))
	expect("early", "10.35.0.1", "")
	of["10.35.0.1"] = "n4"
	looked = 0
	d.setOwners(owners)
	expect("late", "10.35.0.1", "late")
	if looked != 1 || len(d.strange)+len(d.told) > 0 {
		t.Errorf("%d addresses looked at; kept: %v, %v", looked, d.strange, d.told)
	}

	// It goes over to another node, which says so.
	of["10.35.0.1"] = "n2"
	d.setOwners(owners)
	expect("before it is told", "10.35.0.1", "late")
	tell(pod("new", "u-n", "n2", "db", "10.35.0.1"))
	expect("told", "10.35.0.1", "new")
	tell(pod("late", "u-l", "n4", "api", "10.35.0.1"))
	expect("told by the former one", "10.35.0.1", "new")
	for _, name := range []string{"db", "evil", "late", "new"} {
		d.tell(named(name), nil)
	}
	if len(d.strange)+len(d.told)+len(d.claims)+len(d.entries) > 0 {
		t.Errorf("left: %+v", d)
	}
}

// TestOwnersAreKnownLate has endpoints told before anything is known of whose addresses are: once that is known, no node has another one's.
func TestOwnersAreKnownLate(t *testing.T) {
	w := policy.NewWorld()
	d := newDirectory("n1", w, w)
	tell := func(e policy.Endpoint) { d.tell(e.Name, &e) }
	tell(pod("db", "u-db", "n2", "db", "10.33.0.1"))
	tell(pod("evil", "u-e", "n3", "web", "10.33.0.1", "10.34.0.1"))
	tell(pod("here", "u-h", "n1", "web"))
	d.setOwners(func(node string, a netip.Addr) bool {
		return map[string]string{"10.33.0.1": "n2", "10.34.0.1": "n3"}[a.String()] == node
	})
	for addr, want := range map[string]string{"10.33.0.1": "db", "10.34.0.1": "evil"} {
		if e, _ := w.EndpointAt(netip.MustParseAddr(addr)); e.Name.Name != want {
			t.Errorf("%s is %q, not %q", addr, e.Name.Name, want)
		}
	}
	if len(d.strange) != 1 || !d.strange[named("evil")] {
		t.Errorf("strange: %v", d.strange)
	}
}

// TestOwnersAndNamesAtOnce has a node get another name, told with the owners who know it by that: its endpoints have their addresses all the time, though the owners before
// do not know the name, and those after it not the one before.
func TestOwnersAndNamesAtOnce(t *testing.T) {
	of := func(name string) Owners { return func(node string, _ netip.Addr) bool { return node == name } }
	e := &Enforcer{wake: make(chan struct{}, 1), pending: newBatch()}
	x := pod("web", "u-w", "n2", "web", "10.33.0.9")
	e.ChangeOwned(of("n2"), func(c Changes) { c.SetEndpoint(x) })
	e.ChangeOwned(nil, func(c Changes) { c.DeleteEndpoint(named("other")) })
	w := policy.NewWorld()
	e.world, e.dir = w, newDirectory("n1", w, w)
	e.make(e.pending)
	has := func(step, node string) {
		t.Helper()
		if got, _ := w.EndpointAt(x.Addrs[0]); got.Name != x.Name || got.Node != node {
			t.Errorf("%s: %+v", step, got)
		}
	}
	has("at first", "n2")
	e.pending = newBatch()
	e.ChangeOwned(of("n2.ID"), func(c Changes) {
		renamed := x
		renamed.Node = "n2.ID"
		c.DeleteEndpoint(x.Name)
		c.SetEndpoint(renamed)
	})
	e.make(e.pending)
	has("with another name", "n2.ID")
}
