// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"

	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router/session"
)

// keyHolders remembers which node was the first to say that a key is its own. A node's record can name any key; that of another node would take that
// one's place in the router, and cut it off. Honest nodes never share one: a node's id comes from its key, too. The zero value is ready.
type keyHolders struct {
	first map[session.PublicKey]mesh.NodeID
}

// only returns the nodes without those that claim a key after another node has, and says which these are. Nodes that have left, or name no key, stay.
// A key is free again when its holder does not claim it any more. The order of nodes decides between those of whom it learns at once, but
// this node goes first.
func (k *keyHolders) only(nodes []mesh.Node) (honest []mesh.Node, warning string) {
	claims := func(m *mesh.Node) bool { return m.Status != mesh.Left && m.PublicKey != [32]byte{} }
	next := make(map[session.PublicKey]mesh.NodeID, len(nodes))
	for i := range nodes {
		m := &nodes[i]
		if claims(m) && (m.Status == mesh.Self || k.first[m.PublicKey] == m.ID && next[m.PublicKey] == 0) {
			next[m.PublicKey] = m.ID
		}
	}
	names := make(map[mesh.NodeID]string)
	late := false
	for i := range nodes {
		m := &nodes[i]
		if !claims(m) {
			continue
		}
		if next[m.PublicKey] == 0 {
			next[m.PublicKey] = m.ID
		}
		late = late || next[m.PublicKey] != m.ID
	}
	k.first = next
	if !late {
		return nodes, ""
	}
	for _, m := range nodes {
		names[m.ID] = cmp.Or(m.Name, m.ID.String())
	}
	for _, m := range nodes {
		holder := next[m.PublicKey]
		if !claims(&m) || holder == m.ID {
			honest = append(honest, m)
			continue
		}
		warning = fmt.Sprintf("node %s (%v) claims the key of node %s (%v), which one node alone can have, and is not connected; find out which of them means harm, and be rid of it by weft token rotate --without",
			names[m.ID], m.ID, names[holder], holder)
	}
	return honest, warning
}
