// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
)

func TestWhomForgetMeans(t *testing.T) {
	node := func(id mesh.NodeID, name string, s mesh.Status) mesh.Node {
		return mesh.Node{Record: mesh.Record{ID: id, Name: name}, Status: s}
	}
	seed := ipam.NameOwner
	k := known{
		nodes: []mesh.Node{
			node(1, "n1", mesh.Self), node(2, "n2", mesh.Alive), node(3, "n3", mesh.Failed), node(4, "n4", mesh.Left),
			node(5, "again", mesh.Failed), node(6, "again", mesh.Alive), // a host that was set up anew
			node(7, "twice", mesh.Failed), node(8, "twice", mesh.Stopped),
			node(9, "old", mesh.Failed), node(10, "old", mesh.Failed), // 9 is done with
			node(11, "done", mesh.Failed),
			node(12, "shared", mesh.Stopped),
			node(13, "n1", mesh.Failed), // had this node's name before
			node(14, "", mesh.Failed),
		},
		holdings: []ipam.Holding{
			{Owner: 1, Slots: 10},
			{Owner: 3, Slots: 10},
			{Owner: 77, Slots: 5}, // of whom the mesh knows nothing any more
			{Owner: seed("never"), Slots: 8},
			{Owner: seed("shared"), Slots: 8},
		},
		retired: []ipam.Retirement{{Dead: 9, Heir: 1}, {Dead: 11, Heir: 1}, {Dead: 78, Heir: 1}, {Dead: seed("before"), Heir: 1}},
	}
	name := func(o ring.Owner) string {
		for _, m := range k.nodes {
			if ring.Owner(m.ID) == o && m.Name != "" {
				return m.Name
			}
		}
		if o == seed("never") {
			return "never"
		}
		return mesh.NodeID(o).String()
	}
	everybody := strings.Join(slices.Sorted(slices.Values([]string{
		"000000000000000e", "000000000000004d", "again", name(seed("shared")), "n1", "n2", "n3", "n4", "never", "old", "shared", "twice",
	})), ", ")
	for what, want := range map[string]struct {
		dead []ring.Owner
		err  string
	}{
		"n2":               {dead: []ring.Owner{2}}, // that it answers is ipam's to say
		"n3":               {dead: []ring.Owner{3}},
		"n4":               {dead: []ring.Owner{4}},
		"0000000000000003": {dead: []ring.Owner{3}},
		"000000000000000E": {dead: []ring.Owner{14}},
		"000000000000004d": {dead: []ring.Owner{77}},
		"000000000000004e": {dead: []ring.Owner{78}}, // again
		"again":            {dead: []ring.Owner{5}},
		"0000000000000006": {dead: []ring.Owner{6}},
		"old":              {dead: []ring.Owner{10}},
		"done":             {dead: []ring.Owner{11}}, // again
		"never":            {dead: []ring.Owner{seed("never")}},
		"before":           {dead: []ring.Owner{seed("before")}}, // again
		"shared":           {dead: []ring.Owner{12, seed("shared")}},
		"n1":               {dead: []ring.Owner{13}},
		"0000000000000001": {err: "n1 is this node; take it out of the mesh by weft leave"},
		"twice":            {err: `"twice" may be each of 2 nodes; give the NodeID of one: 0000000000000007 (failed), 0000000000000008 (stopped)`},
		"n9":               {err: `there is no node "n9"; known are: ` + everybody},
		"":                 {err: `there is no node ""; known are: ` + everybody},
		"3":                {err: `there is no node "3"; known are: ` + everybody},
		"00000000000000ff": {err: `there is no node "00000000000000ff"; known are: ` + everybody},
	} {
		dead, err := k.find(what, name)
		if !slices.Equal(dead, want.dead) || fmt.Sprint(err) != cmp.Or(want.err, "<nil>") {
			t.Errorf("%q:\ngot  %x, %v\nwant %x, %v", what, dead, err, want.dead, want.err)
		}
	}
	alone := known{nodes: []mesh.Node{node(1, "n1", mesh.Self)}, holdings: []ipam.Holding{{Owner: 1, Slots: 10}}}
	if _, err := alone.find("n2", name); err == nil || err.Error() != `there is no node "n2": this node knows no other one` {
		t.Errorf("alone: %v", err)
	}
	both := known{nodes: []mesh.Node{node(2, "x", mesh.Alive), node(3, "x", mesh.Alive)}}
	if _, err := both.find("x", name); err == nil || err.Error() != `"x" may be each of 2 nodes; give the NodeID of one: 0000000000000002 (alive), 0000000000000003 (alive)` {
		t.Errorf("two that are alive: %v", err)
	}
}

// What is told is told once, and of the nodes that were asked for only. The addresses are whose they are, whoever was named.
func TestTakeoverWatch(t *testing.T) {
	var told []string
	w := takeoverWatch{
		dead: []ring.Owner{3, 5}, left: map[ring.Owner]uint64{3: 10}, texts: map[ring.Owner]string{},
		tell: func(p api.ForgetProgress) { told = append(told, p.Text) },
	}
	for _, now := range [][]ipam.Reclaim{
		{{Dead: 3, Left: 10, Text: "3: 10%"}, {Dead: 4, Text: "4: 20%"}},
		{{Dead: 3, Left: 12, Text: "3: 10%"}},
		{{Dead: 3, Left: 2, Text: "3: 60%"}, {Dead: 5}},
		nil,
	} {
		w.look(now)
	}
	if want := []string{"3: 10%", "3: 60%"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	name := func(o ring.Owner) string { return fmt.Sprint("n", o) }
	at := time.Unix(1e9, 0)
	prefix := func(s string) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix(s), netip.MustParsePrefix("fd00::/64")}
	}
	w.before = []ipam.Holding{{Owner: 2, Prefixes: prefix("10.0.1.0/24")}, {Owner: 3, Prefixes: prefix("10.0.0.0/24")[:1]}}
	after := []ipam.Holding{ // node 1 has granted a part on
		{Owner: 1, Prefixes: append(prefix("10.0.0.0/25"), prefix("10.0.0.128/26")...)},
		{Owner: 2, Prefixes: prefix("10.0.0.192/26")},
		{Owner: 6, Prefixes: prefix("10.0.2.0/23")},
	}
	got := w.result([]ipam.Retirement{
		{Dead: 3, Heir: 2, By: 1, At: at}, {Dead: 4, Heir: 2, By: 1, At: at}, {Dead: 5, Heir: 2, By: 1, At: at, Forced: true}, {Dead: 7, Heir: 1, By: 1, At: at},
	}, after, name)
	id := func(n mesh.NodeID) string { return n.String() }
	want := api.ForgetResult{Forgotten: []api.Forgotten{
		{Retirement: api.Retirement{Node: "n3", NodeID: id(3), Heir: "n1", HeirID: id(1), By: "n1", ByID: id(1), At: at}, Addresses: 12},
		{Retirement: api.Retirement{Node: "n5", NodeID: id(5), Heir: "n2", HeirID: id(2), By: "n1", ByID: id(1), At: at, Forced: true}}, // had nothing left
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	w.before = nil // it was not known what it had: the last heir takes over for all
	if got := w.result([]ipam.Retirement{{Dead: 3, Heir: 2}, {Dead: 7, Heir: 6}}, after, name); got.Forgotten[0].Heir != "n6" {
		t.Errorf("got %+v", got)
	}
}

func TestTakeoverShown(t *testing.T) {
	name := func(o ring.Owner) string { return fmt.Sprint("n", o) }
	since := time.Unix(1e9, 0)
	got := takeover(ipam.Reclaim{Dead: 3, Heir: 1, Since: since, Slots: 41, Size: 100, Left: 7, Missing: []ring.Owner{5}, Text: "t"}, name)
	voted := 41.0
	want := api.Takeover{
		Node: "n3", NodeID: mesh.NodeID(3).String(), Heir: "n1", HeirID: mesh.NodeID(1).String(), Since: since, Voted: &voted, Left: 7,
		Missing: []string{"n5"}, Text: "t",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := takeover(ipam.Reclaim{Dead: 3}, name); got.Heir != "" || got.HeirID != "" || got.Voted == nil || *got.Voted != 0 {
		t.Errorf("undecided: %+v", got)
	}
	if b, err := json.Marshal(takeover(ipam.Reclaim{Dead: 3, Heir: 2, Size: 100, Left: 7}, name)); err != nil || strings.Contains(string(b), "voted") {
		t.Errorf("decided, and another node is the heir: %s, %v", b, err)
	}
}

// Nodes that are done with are told from those that somebody has to look after.
func TestGone(t *testing.T) {
	holdings := []ipam.Holding{{Owner: 2, Slots: 1}}
	for _, c := range []struct {
		id      mesh.NodeID
		status  mesh.Status
		retired bool
		want    bool
	}{
		{1, mesh.Alive, false, false},
		{1, mesh.Failed, false, false},
		{1, mesh.Stopped, false, false},
		{1, mesh.Left, false, true},
		{2, mesh.Left, false, false}, // owns something
		{1, mesh.Alive, true, false}, // wants a reset
		{1, mesh.Failed, true, true},
		{2, mesh.Left, true, true},
	} {
		if got := isGone(mesh.Node{Record: mesh.Record{ID: c.id}, Status: c.status}, c.retired, holdings); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
	nodes := []mesh.Node{
		{Record: mesh.Record{ID: 1}, Status: mesh.Self}, {Record: mesh.Record{ID: 2}, Status: mesh.Alive}, {Record: mesh.Record{ID: 3}, Status: mesh.Failed},
	}
	if got := without(nodes, nil); !reflect.DeepEqual(got, nodes) {
		t.Errorf("nobody is retired: %+v", got)
	}
	if got := without(nodes, []ipam.Retirement{{Dead: 3}, {Dead: 1}}); !reflect.DeepEqual(got, nodes[:2]) {
		t.Errorf("node 3 is retired, and this one: %+v", got)
	}
}
