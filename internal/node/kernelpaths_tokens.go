// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"

	"github.com/weftnet/weft/internal/rotation"
	"github.com/weftnet/weft/mesh"
)

// sharing returns the nodes without those that accept none of the tokens that this node accepts, as their records say: they are not of this mesh any
// more, and nothing else would end their kernel paths, as they are silent like those whose daemons are down. Nodes of earlier releases do not say
// what they accept, and stay. Who was left out by the rotation that has ended may have said anything of itself before: it has to be heard.
func sharing(nodes []mesh.Node, s rotation.State) []mesh.Node {
	names := tokenNames(s)
	var without []uint64
	if s.Register.Phase == rotation.Revoked && s.Certain() {
		without = s.Register.Without
	}
	return slices.DeleteFunc(slices.Clone(nodes), func(m mesh.Node) bool {
		if m.Status == mesh.Self {
			return false
		}
		if m.Status != mesh.Alive && slices.Contains(without, uint64(m.ID)) {
			return true
		}
		return len(m.Keys) > 0 && !slices.ContainsFunc(m.Keys, func(id uint32) bool { return slices.Contains(names, id) })
	})
}
