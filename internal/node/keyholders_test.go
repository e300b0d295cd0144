// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"

	"github.com/weftnet/weft/mesh"
)

// Who claims a key that another node has is left out, whatever its id and however often it changes its mind; the holder is never left out for it.
func TestKeyHolders(t *testing.T) {
	var k keyHolders
	node := func(id mesh.NodeID, key byte, s mesh.Status) mesh.Node {
		return mesh.Node{Record: mesh.Record{ID: id, Name: map[mesh.NodeID]string{5: "victim", 2: "rogue"}[id], PublicKey: [32]byte{key}}, Status: s}
	}
	self, victim, rogue := node(4, 4, mesh.Self), node(5, 5, mesh.Alive), node(2, 5, mesh.Alive)
	const text = "node rogue (0000000000000002) claims the key of node victim (0000000000000005), which one node alone can have, and is not connected; " +
		"find out which of them means harm, and be rid of it by weft token rotate --without"
	for _, c := range []struct {
		name    string
		nodes   []mesh.Node
		want    []mesh.NodeID
		warning string
	}{
		{"nobody", nil, nil, ""},
		{"the holder", []mesh.Node{self, victim}, []mesh.NodeID{4, 5}, ""},
		{"one with a lower id claims its key", []mesh.Node{rogue, self, victim}, []mesh.NodeID{4, 5}, text},
		{"again", []mesh.Node{rogue, self, victim}, []mesh.NodeID{4, 5}, text},
		{"with its own key", []mesh.Node{node(2, 2, mesh.Alive), self, victim}, []mesh.NodeID{2, 4, 5}, ""},
		{"the holder fails", []mesh.Node{rogue, self, node(5, 5, mesh.Failed)}, []mesh.NodeID{4, 5}, text},
		{"it claims ours", []mesh.Node{node(2, 4, mesh.Alive), self, victim}, []mesh.NodeID{4, 5}, "node rogue (0000000000000002) claims the key of node 0000000000000004 (0000000000000004), which one node " +
			"alone can have, and is not connected; find out which of them means harm, and be rid of it by weft token rotate --without"},
		{"nodes without a key", []mesh.Node{node(7, 0, mesh.Alive), node(8, 0, mesh.Alive), self, victim}, []mesh.NodeID{7, 8, 4, 5}, ""},
		{"the holder has left", []mesh.Node{rogue, self, node(5, 5, mesh.Left)}, []mesh.NodeID{2, 4, 5}, ""},
	} {
		got, warning := k.only(c.nodes)
		var ids []mesh.NodeID
		for _, m := range got {
			ids = append(ids, m.ID)
		}
		if len(ids) != len(c.want) || warning != c.warning {
			t.Errorf("%s: %v, %q", c.name, ids, warning)
			continue
		}
		for i := range ids {
			if ids[i] != c.want[i] {
				t.Errorf("%s: %v, want %v", c.name, ids, c.want)
			}
		}
	}
}
