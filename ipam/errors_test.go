// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weftnet/weft/ipam/ring"
)

func TestNewRefuses(t *testing.T) {
	good := newLone(t, "10.32.0.0/24")
	for i := range 3 {
		good.must(fmt.Sprint(i))
	}
	for name, c := range map[string]struct {
		change func(*Config, *fakeStore)
		want   string
	}{
		"no identity":    {func(c *Config, _ *fakeStore) { c.Self = 0 }, "ipam: 0000000000000000 cannot be a node's identity"},
		"a seed's":       {func(c *Config, _ *fakeStore) { c.Self = NameOwner("a") }, "cannot be a node's identity"},
		"no clock":       {func(c *Config, _ *fakeStore) { c.Now = nil }, "ipam: universe, store, net and clock must be given"},
		"no seed":        {func(c *Config, _ *fakeStore) { c.Seed = Seed{} }, "the seed does not fit the range 10.32.0.0/24: ring: cannot split 256 slots among 0 owners"},
		"a corrupt ring": {func(_ *Config, s *fakeStore) { s.ring = s.ring[:5] }, "the stored ring is not readable: ring: malformed ring of 5 bytes; reset this node (weft reset) and forget it on another (weft forget), or restore a copy of the data directory that is not older than its last change"},
		"a foreign ring": {func(_ *Config, s *fakeStore) { s.ring = ring.New(16).Encode() }, "the stored ring has 16 slots, the range 10.32.0.0/24 has 256; reset this node (weft reset) and forget it on another (weft forget), or restore a copy of the data directory that is not older than its last change"},
		"corrupt grants": {func(_ *Config, s *fakeStore) { s.grants = s.grants[:3] }, "the stored grants of 3 bytes are malformed; reset this node (weft reset) and forget it on another (weft forget), or restore a copy of the data directory that is not older than its last change"},
		"no grants":      {func(_ *Config, s *fakeStore) { s.grants = nil }, "the stored grants of 0 bytes are malformed or were written by a later version; reset this node (weft reset) and forget it on another (weft forget), or restore a copy of the data directory that is not older than its last change"},
		"one slot twice": {func(_ *Config, s *fakeStore) { s.allocs["x"] = 1 }, "the stored allocation of slot 1 to x is not possible; reset this node (weft reset) and forget it on another (weft forget), or restore a copy of the data directory that is not older than its last change"},
		"no such slot":   {func(_ *Config, s *fakeStore) { s.allocs["x"] = 256 }, "the stored allocation of slot 256 to x is not possible; reset this node (weft reset) and forget it on another (weft forget), or restore a copy of the data directory that is not older than its last change"},
	} {
		cfg, store := good.cfg, newFakeStore(256)
		store.ring, store.grants = good.store.ring, good.store.grants
		for o, s := range good.store.allocs {
			store.allocs[o] = s
		}
		cfg.Store = store
		c.change(&cfg, store)
		if _, err := New(cfg); err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: error %v\nwant %s", name, err, c.want)
		}
	}
	store := newFakeStore(256)
	store.fault = func(Change) fault { return failBefore }
	cfg := good.cfg
	cfg.Store = store
	if _, err := New(cfg); err == nil || err.Error() != "cannot store the addresses: disk full" {
		t.Errorf("error %v", err)
	}
}

func TestErrorTexts(t *testing.T) {
	u := mustUniverse(t, "10.32.0.0/24")
	addr := netip.MustParseAddr("10.32.0.9")
	holders := []Holder{
		{Owner: 1, Name: "n1", Usable: 100, InUse: 90, Resting: 10, Reachable: true},
		{Owner: 2, Name: "n2", Usable: 54, InUse: 54, Reachable: true},
		{Owner: 3, Name: "n3", Usable: 100},
	}
	many := []Holder{}
	for i := range 12 {
		many = append(many, Holder{Name: fmt.Sprintf("n%02d", i), Usable: 20, InUse: 20, Reachable: true})
	}
	for want, err := range map[string]error{
		"no address left in 10.32.0.0/24: 144 of 254 in use (n1 90, n2 54), 10 resting after their release (n1 10), 100 held by nodes that do not answer (n3 100); detach workloads or start a mesh with a larger range":                       &ExhaustedError{Universe: u, Usable: 254, Majority: true, Self: 1, Holders: holders},
		"no address left on this node (90 of 100 in use, 10 resting after their release), and the nodes that can be reached hold no more than half of 10.32.0.0/24, so none can be granted; reconnect the others (n3 100) or detach workloads": &ExhaustedError{Universe: u, Usable: 254, Self: 1, Holders: holders},
		"this node has no addresses yet, and the nodes that can be reached hold no more than half of 10.32.0.0/24, so none can be granted; reconnect the others (n3 100) or detach workloads":                                                  &ExhaustedError{Universe: u, Usable: 254, Self: 9, Holders: holders},
		"no address left in 10.32.0.0/24: 240 of 254 in use (n00 20, n01 20, n02 20, n03 20, n04 20, n05 20, n06 20, n07 20, 4 more); detach workloads or start a mesh with a larger range":                                                    &ExhaustedError{Universe: u, Usable: 254, Majority: true, Holders: many},
		"address 10.32.0.9 belongs to node n2, and the nodes that can be reached hold no more than half of the range, so it cannot be moved here; attach it on n2 or choose another":                                                           &ElsewhereError{Addr: addr, Node: "n2", Reason: ElsewhereNoMajority},
	} {
		if err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}
