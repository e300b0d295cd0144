// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"sort"

	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
)

// addrOwners says whose workloads may have which addresses of the mesh's range: those of the node to which they belong by the ring, whatever others say. It is never
// changed once made.
type addrOwners struct {
	space ipam.Universe
	held  []heldPrefix // by address; none in another
}

// heldPrefix is a part of the range, and what its owner may be called: by its name alone, or with its NodeID behind it.
type heldPrefix struct {
	netip.Prefix
	name, full string
}

func newOwners(space ipam.Universe, holdings []ipam.Holding, nodes []mesh.Node) *addrOwners {
	names := make(map[ring.Owner]string, len(nodes))
	for _, m := range nodes {
		names[ring.Owner(m.ID)] = m.Name
	}
	o := &addrOwners{space: space}
	for _, h := range holdings {
		name, known := names[h.Owner]
		full := name + "." + mesh.NodeID(h.Owner).String()
		if !known {
			full = mesh.NodeID(h.Owner).String()
		}
		for _, p := range h.Prefixes {
			o.held = append(o.held, heldPrefix{p, name, full})
		}
	}
	slices.SortFunc(o.held, func(a, b heldPrefix) int { return a.Addr().Compare(b.Addr()) })
	return o
}

// owns tells whether a workload of a node may have an address. Those out of the mesh's range are nobody's.
func (o *addrOwners) owns(node string, a netip.Addr) bool {
	if !o.space.Contains(a) {
		return true
	}
	i := sort.Search(len(o.held), func(i int) bool { return a.Less(o.held[i].Addr()) })
	if i == 0 || !o.held[i-1].Contains(a) {
		return false
	}
	h := o.held[i-1]
	return node != "" && (node == h.name || node == h.full)
}

// changed tells whether it is another one than o, which may be nil.
func (o *addrOwners) changed(from *addrOwners) bool {
	return from == nil || !slices.Equal(o.held, from.held)
}

// tellOwners tells whose the addresses are, if that has changed. Where hosts share their workloads these are told with the names of nodes, see policyHosts: told
// apart, a node that has just got another name would have none of its own addresses for a moment. The caller has n.syncing.
func (n *Node) tellOwners(e *engines, nodes []mesh.Node, holdings []ipam.Holding) {
	if e.shared != nil {
		return
	}
	if now := newOwners(e.universe, holdings, nodes); now.changed(n.owners) {
		n.owners = now
		n.policies.SetOwners(now.owns)
	}
}
