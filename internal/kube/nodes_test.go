// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestNodeIsTrimmed(t *testing.T) {
	for name, c := range map[string]struct {
		json string
		want machine
	}{
		"empty": {`{}`, machine{}},
		"whole": {
			`{"metadata": {"name": "n1", "uid": "u1", "labels": {"a": "b"}, "annotations": {"weftnet.dev/node-id": "0123456789abcdef", "more": "x"}},
			"spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00::/64"], "unschedulable": true},
			"status": {"images": [{"names": ["a"]}], "addresses": [
				{"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"},
				{"type": "InternalIP", "address": "2001:db8::1"}, {"type": "InternalIP", "address": "192.0.2.1"}],
				"conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False", "reason": "Other"}]}}`,
			machine{
				name: "n1", uid: "u1", nodeID: "0123456789abcdef", podCIDRs: []string{"10.244.0.0/24", "fd00::/64"}, ready: true,
				addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("198.51.100.1")},
				all:       []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
				condition: nodeCondition{Type: "NetworkUnavailable", Status: "False", Reason: "Other"}, labels: map[string]string{"a": "b"},
			},
		},
		"of no use to others": {
			`{"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.0.0/24"}, "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"},
				{"type": "InternalIP", "address": "fe80::1"}, {"type": "InternalIP", "address": "0.0.0.0"}, {"type": "InternalIP", "address": "n1.example"},
				{"type": "InternalIP", "address": "fe80::1%eth0"}, {"type": "InternalIP", "address": "224.0.0.1"}, {"type": "InternalDNS", "address": "192.0.2.1"}]}}`,
			machine{name: "n1", podCIDRs: []string{"10.244.0.0/24"}, all: []netip.Addr{netip.MustParseAddr("fe80::1"), netip.MustParseAddr("192.0.2.1")}},
		},
		"more addresses than are used": {
			`{"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "192.0.2.2"},
				{"type": "InternalIP", "address": "192.0.2.3"}, {"type": "InternalIP", "address": "192.0.2.4"}, {"type": "InternalIP", "address": "192.0.2.5"}]}}`,
			machine{name: "n1", addresses: []netip.Addr{
				netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4"),
			}, all: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4"), netip.MustParseAddr("192.0.2.5")}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var n node
			if err := json.Unmarshal([]byte(c.json), &n); err != nil {
				t.Fatal(err)
			}
			if got := trimNode(&n); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func machines(n int) map[string]machine {
	all := map[string]machine{}
	for i := range n {
		name := fmt.Sprintf("n%d", i)
		all[name] = machine{name: name, addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte(i / 250), byte(1 + i%250)})}}
	}
	return all
}

func TestPeersAreChosen(t *testing.T) {
	all := machines(500)
	chosen := map[string]int{}
	for name := range all {
		hosts := choosePeers(name, all)
		if len(hosts) != maxPeers || slices.Contains(hosts, all[name].addresses[0].String()) {
			t.Fatalf("%s connects to %v", name, hosts)
		}
		for _, h := range hosts {
			chosen[h]++
		}
	}
	for name, m := range all {
		if n := chosen[m.addresses[0].String()]; n > 5*maxPeers {
			t.Errorf("%d nodes connect to %s", n, name)
		}
	}
	if got := choosePeers("n0", machines(1)); len(got) != 0 {
		t.Errorf("a node alone connects to %v", got)
	}
}

// TestPeersChangeLittle adds and removes one node: of the others, each changes one peer at the most.
func TestPeersChangeLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 100).Draw(t, "nodes")
		all := machines(n)
		before := choosePeers("n0", all)
		delete(all, fmt.Sprintf("n%d", rapid.IntRange(1, n-1).Draw(t, "removed")))
		after, changed := choosePeers("n0", all), 0
		for _, h := range after {
			if !slices.Contains(before, h) {
				changed++
			}
		}
		if changed > 1 {
			t.Fatalf("%v became %v", before, after)
		}
	})
}

func TestDoorsBeginWithTheFounder(t *testing.T) {
	all := machines(100)
	for _, name := range []string{"n40", "n41"} {
		m := all[name]
		m.ready = true
		all[name] = m
	}
	hosts := chooseDoors("n7", "n99", all)
	ready := []string{all["n40"].addresses[0].String(), all["n41"].addresses[0].String()}
	if len(hosts) != maxPeers || hosts[0] != all["n99"].addresses[0].String() || !slices.Contains(ready, hosts[1]) || !slices.Contains(ready, hosts[2]) {
		t.Errorf("it joins by %v", hosts)
	}
	if hosts := chooseDoors("n7", "n7", all); !slices.Contains(ready, hosts[0]) || slices.Contains(hosts, all["n7"].addresses[0].String()) {
		t.Errorf("a founder that lost its disk joins by %v", hosts)
	}
}

// TestRanks shows that all agree on an order, and that each is first about as often.
func TestRanks(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e"}
	firsts := map[string]int{}
	for i := range 1000 {
		matter, seen := fmt.Sprint("matter ", i), map[int]bool{}
		for _, n := range names {
			r := rank(n, matter, names)
			if seen[r] {
				t.Fatalf("two are number %d in %s", r, matter)
			}
			if seen[r] = true; r == 0 {
				firsts[n]++
			}
		}
	}
	for _, n := range names {
		if firsts[n] < 120 || firsts[n] > 280 {
			t.Errorf("%s is the first in %d matters of 1000", n, firsts[n])
		}
	}
}

func TestWhoIsGone(t *testing.T) {
	const self = "0000000000000001"
	now := time.Unix(1000, 0)
	other := Member{Name: "n2", NodeID: "0000000000000002", Alive: true, Guided: true}
	lost := Member{Name: "n3", NodeID: "0000000000000003", Guided: true}
	with := func(m Member, change func(*Member)) Member {
		change(&m)
		return m
	}
	for name, c := range map[string]struct {
		members []Member
		nodes   map[string]machine
		gone    bool
	}{
		"its Node was deleted":          {[]Member{other, lost}, map[string]machine{"n1": {name: "n1"}}, true},
		"it lost its network only":      {[]Member{other, lost}, map[string]machine{"n3": {name: "n3", nodeID: lost.NodeID}}, false},
		"it answers":                    {[]Member{other, with(lost, func(m *Member) { m.Alive = true })}, machines(3), false},
		"it is no node of a cluster":    {[]Member{other, with(lost, func(m *Member) { m.Guided = false })}, machines(3), false},
		"nothing of it is left":         {[]Member{other, with(lost, func(m *Member) { m.Gone = true })}, machines(3), false},
		"its name is not known":         {[]Member{other, with(lost, func(m *Member) { m.Name = "" })}, machines(3), false},
		"its Node says nothing yet":     {[]Member{other, lost}, map[string]machine{"n3": {name: "n3"}}, false},
		"a node that is away has it":    {[]Member{other, lost}, map[string]machine{"n3": {name: "n3", nodeID: "0000000000000009"}}, false},
		"a node that is alive has it":   {[]Member{other, lost}, map[string]machine{"n3": {name: "n3", nodeID: other.NodeID}}, true},
		"this node has its name by now": {[]Member{other, lost}, map[string]machine{"n3": {name: "n3", nodeID: self}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := c.nodes
			r := reclaimer{since: map[string]time.Time{}, tried: map[string]time.Time{}}
			if got := r.due(self, c.members, nodes, now); len(got) != 0 {
				t.Fatalf("at once %v", got)
			}
			if got := r.due(self, c.members, nodes, now.Add(goneFor-time.Second)); len(got) != 0 {
				t.Fatalf("early %v", got)
			}
			got := r.due(self, c.members, nodes, now.Add(goneFor+rankPatience))
			if want := c.gone; (len(got) == 1 && got[0] == lost) != want || len(got) > 1 {
				t.Fatalf("gone are %v", got)
			}
			if again := r.due(self, c.members, nodes, now.Add(goneFor+2*rankPatience)); len(again) != 0 {
				t.Errorf("again %v", again)
			}
			if again := r.due(self, c.members, nodes, now.Add(goneFor+rankPatience+forgetPatience+forgetAgain)); (len(again) == 1) != c.gone {
				t.Errorf("after a failure %v", again)
			}
		})
	}
}
