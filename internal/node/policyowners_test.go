// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"

	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
)

// TestOwners says whose workloads may have an address: of two nodes of one name each its own, and of a node whose record is still to come nobody's but its own.
func TestOwners(t *testing.T) {
	p := netip.MustParsePrefix
	space := ipam.Universe{V4: p("10.32.0.0/12"), V6: p("fd00::/112")}
	n := func(id mesh.NodeID, name string) mesh.Node {
		var m mesh.Node
		m.ID, m.Name = id, name
		return m
	}
	o := newOwners(space, []ipam.Holding{
		{Owner: 1, Prefixes: []netip.Prefix{p("10.32.0.0/16"), p("10.34.0.0/32"), p("fd00::/120")}},
		{Owner: 2, Prefixes: []netip.Prefix{p("10.33.0.0/16")}},
		{Owner: 3, Prefixes: []netip.Prefix{p("10.34.0.1/32")}},
		{Owner: 4, Prefixes: []netip.Prefix{p("10.35.0.0/16")}},
	}, []mesh.Node{n(1, "a"), n(2, "twin"), n(3, "twin")})
	for _, c := range []struct {
		node, addr string
		want       bool
	}{
		{"a", "10.32.0.0", true},
		{"a", "10.32.255.255", true},
		{"a", "10.33.0.0", false},
		{"a", "10.34.0.0", true},
		{"a", "10.34.0.1", false},
		{"a", "fd00::ff", true},
		{"a", "fd00::100", false},
		{"a", "10.40.0.1", false},
		{"a", "192.0.2.1", true}, // out of the range
		{"twin", "10.33.0.1", true},
		{"twin." + mesh.NodeID(2).String(), "10.33.0.1", true},
		{"twin." + mesh.NodeID(3).String(), "10.33.0.1", false},
		{"b", "10.35.0.1", false},
		{"", "10.35.0.1", false},
		{mesh.NodeID(4).String(), "10.35.0.1", true},
	} {
		if got := o.owns(c.node, netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%s of %s: %v", c.addr, c.node, got)
		}
	}
}
