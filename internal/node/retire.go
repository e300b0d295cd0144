// SPDX-License-Identifier: Apache-2.0

package node

import (
	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
)

// A node that was declared gone while it was not, or came back, is retired: others use its addresses. It runs nothing of
// its own from then on, and this launch and every later one only answers commands, until weft reset makes it a new node.
// Its interfaces go, its own address on the overlay goes, and the router knows no peers; the route of the range stays, so
// that nothing meant for the overlay leaves the host by another way. The records of the workloads stay for weft ps.

// retire notices whether this node was declared gone, and says so, once.
func (n *Node) retire(e *engines) bool {
	why, ok := e.alloc.Retired()
	if !ok {
		return false
	}
	n.mu.Lock()
	first := n.retired == nil
	n.retired = why
	n.mu.Unlock()
	if first {
		n.setPhase(api.Retired, why.Error())
		n.log.Error("retired: "+why.Error(), zap.Stringer("node", n.state.identity.ID))
	}
	return true
}

// whyRetired is why this node is retired, nil if it is not.
func (n *Node) whyRetired() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.retired == nil {
		return nil
	}
	return n.retired
}

// withdraw takes the workloads off the network if this node is retired. What it cannot do repair does later.
func (n *Node) withdraw(e *engines) {
	why := n.whyRetired()
	if why == nil {
		return
	}
	if err := e.workloads.withdraw(why); err != nil {
		n.setWarning("host", err.Error())
		n.log.Warn("the workloads of this retired node could not be taken off the network; trying again", zap.Error(err))
	}
}

// withdraw removes all interfaces, and the host's own address, and refuses new ones, for good. Records and leases stay.
// Doing it again does nothing.
func (ws *workloads) withdraw(why error) error {
	ws.gate.Lock()
	defer ws.gate.Unlock()
	ws.mu.Lock()
	again, begun := ws.retired, ws.desired.Device != ""
	ws.retired, ws.refusal = true, why
	ws.mu.Unlock()
	if again || !begun { // it is done, or else reconcile does it
		return nil
	}
	_, err := ws.apply()
	if err == nil {
		ws.unpermit(ws.ids()...)
	}
	return err
}

func (ws *workloads) isRetired() bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.retired
}

// refuse makes attach refuse what is not attached yet, for the reason given; nil ends that. When it returns, every attach
// that was not refused has ended.
func (ws *workloads) refuse(why error) {
	ws.gate.Lock()
	defer ws.gate.Unlock()
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if !ws.retired {
		ws.refusal = why
	}
}

// admits tells why a namespace cannot be attached now; one that is attached may be attached again, for as long as the
// node is not retired.
func (ws *workloads) admits(id string) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if _, known := ws.all[id]; known && !ws.retired {
		return nil
	}
	return ws.refusal
}

// retirees are the nodes that were declared gone.
func retirees(log []ipam.Retirement) map[mesh.NodeID]bool {
	gone := make(map[mesh.NodeID]bool, len(log))
	for _, r := range log {
		gone[mesh.NodeID(r.Dead)] = true
	}
	return gone
}

// members are the nodes of the mesh, without those that were declared gone.
func (e *engines) members() []mesh.Node { return without(e.mesh.Nodes(), e.alloc.Retirements()) }

func without(nodes []mesh.Node, log []ipam.Retirement) []mesh.Node {
	gone := retirees(log)
	if len(gone) == 0 {
		return nodes
	}
	left := make([]mesh.Node, 0, len(nodes))
	for _, m := range nodes {
		if m.Status == mesh.Self || !gone[m.ID] {
			left = append(left, m)
		}
	}
	return left
}

// isGone tells whether nothing of a node is left that anybody would have to look after.
func isGone(m mesh.Node, retired bool, holdings []ipam.Holding) bool {
	if retired {
		return m.Status != mesh.Alive
	}
	return m.Status == mesh.Left && !known{holdings: holdings}.owns(ring.Owner(m.ID))
}
