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
