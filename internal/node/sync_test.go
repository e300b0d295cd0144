// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

func TestPeersOf(t *testing.T) {
	prefix := func(s ...string) (p []netip.Prefix) {
		for _, x := range s {
			p = append(p, netip.MustParsePrefix(x))
		}
		return p
	}
	ap := netip.MustParseAddrPort
	record := func(id mesh.NodeID, key byte, mtu uint16, eps ...string) mesh.Record {
		r := mesh.Record{ID: id, Name: id.String(), PublicKey: [32]byte{key}, MTU: mtu, Suites: []uint8{0}}
		for _, e := range eps {
			r.Endpoints = append(r.Endpoints, ap(e))
		}
		return r
	}
	nodes := []mesh.Node{
		{Record: record(1, 1, 1420), Status: mesh.Self},
		{Record: record(2, 2, 1300, "192.0.2.2:6783", "[2001:db8::2]:6783"), Status: mesh.Failed, Addr: ap("192.0.2.2:6783")},
		{Record: record(3, 3, 8000, "192.0.2.3:6783"), Status: mesh.Alive, Addr: ap("198.51.100.3:6783")},
		{Record: record(4, 4, 1420), Status: mesh.Left},
		{Record: record(5, 0, 1420), Status: mesh.Alive}, // has not said its key yet
		{Record: record(6, 3, 1420), Status: mesh.Alive}, // claims the key of another
		{Record: record(7, 1, 1420), Status: mesh.Alive}, // claims ours
	}
	nodes[1].Boot, nodes[1].Links, nodes[1].Features = 12, []mesh.NodeID{3}, []string{featureNoRelay}
	holdings := []ipam.Holding{
		{Owner: 1, Prefixes: prefix("10.32.0.0/13")},
		{Owner: 2, Prefixes: prefix("10.40.0.0/14", "fd00::/110")},
		{Owner: 9, Prefixes: prefix("10.44.0.0/14")},
	}
	got := peersOf(nodes, holdings, 1420)
	want := []router.Peer{
		{
			Key: session.PublicKey{2}, ID: 2, Boot: 12, Links: []uint64{3}, NoRelay: true, Name: nodes[1].Name, MTU: 1300, Prefixes: prefix("10.40.0.0/14", "fd00::/110"),
			Endpoints: []netip.AddrPort{ap("192.0.2.2:6783"), ap("[2001:db8::2]:6783")},
		},
		{
			Key: session.PublicKey{3}, ID: 3, Name: nodes[2].Name, MTU: 1420,
			Endpoints: []netip.AddrPort{ap("198.51.100.3:6783"), ap("192.0.2.3:6783")},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// One node with a key that is none keeps nobody else from being connected.
func TestUnusableKeys(t *testing.T) {
	good, bad := router.Peer{Key: clientKey(1), Name: "n2"}, router.Peer{Key: session.PublicKey{1}, Name: "n3"}
	var c keyCheck
	usable, warning := c.of([]router.Peer{bad, good})
	if !reflect.DeepEqual(usable, []router.Peer{good}) {
		t.Errorf("got %+v", usable)
	}
	if want := "node n3 claims a key that nobody can own, and is not connected; reset that node"; warning != want {
		t.Errorf("got  %s\nwant %s", warning, want)
	}
	if usable, warning := c.of([]router.Peer{good}); len(usable) != 1 || warning != "" {
		t.Errorf("got %+v, %s", usable, warning)
	}
}
