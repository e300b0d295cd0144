// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

// The paths to a node, as the API names them, too.
const (
	pathDirect = router.PathUDP
	pathRelay  = router.PathRelay
	pathNone   = router.PathNone
)

const (
	// pathGap is how long changes of paths gather before they are told: where a relay dies, many change at once.
	pathGap = 250 * time.Millisecond
	// A node's path may change pathBurst times in a row, and once in pathRest from then on, for each change to be told. What is
	// held back is told later, if it is still so then.
	pathBurst = 5
	pathRest  = 10 * time.Second
)

// pathChange says that a node is reached by another path.
type pathChange struct {
	node mesh.NodeID
	path string         // pathDirect, pathRelay or pathNone
	addr netip.AddrPort // of pathDirect
	via  []mesh.NodeID  // of pathRelay, the nearest one first
	why  string
	// kernel is the kernel path by which packets go on although the router does not reach the node; empty: none.
	kernel string

	at time.Time // zero: filled in by note
}

// key tells paths apart.
func (c pathChange) key() string {
	switch c.path {
	case pathDirect:
		return fmt.Sprint(c.path, " ", c.addr)
	case pathRelay:
		return fmt.Sprint(c.path, " ", c.via)
	}
	return c.path
}

// pathNews gathers changes of paths for whoever tells them.
type pathNews struct {
	raised signal

	mu     sync.Mutex
	latest map[mesh.NodeID]pathChange
	order  []mesh.NodeID // of latest
}

func newPathNews() pathNews {
	return pathNews{raised: newSignal(), latest: map[mesh.NodeID]pathChange{}}
}

// note takes note of a change. It does not block.
func (p *pathNews) note(c pathChange) {
	if c.at.IsZero() {
		c.at = time.Now()
	}
	p.mu.Lock()
	if _, again := p.latest[c.node]; !again {
		p.order = append(p.order, c.node)
	}
	p.latest[c.node] = c
	p.mu.Unlock()
	p.raised.raise()
}

// take returns what has gathered: for each node the last change.
func (p *pathNews) take() []pathChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []pathChange
	for _, id := range p.order {
		list = append(list, p.latest[id])
	}
	p.latest, p.order = map[mesh.NodeID]pathChange{}, nil
	return list
}

// pathTeller makes events of changes of paths, of which there may be many.
type pathTeller struct {
	h      *history
	budget map[mesh.NodeID]budget
	held   map[mesh.NodeID]pathChange // back, for want of budget
}

// budget is how many events a node may still have, and since when it grows.
type budget struct {
	left  int
	since time.Time
}

// spend tells whether a node's change may be told now.
func (t *pathTeller) spend(id mesh.NodeID, now time.Time) bool {
	b, ok := t.budget[id]
	if !ok {
		b = budget{pathBurst, now}
	}
	if more := int(now.Sub(b.since) / pathRest); more > 0 {
		b = budget{min(b.left+more, pathBurst), b.since.Add(time.Duration(more) * pathRest)}
	}
	enough := b.left > 0
	if enough {
		b.left--
	}
	t.budget[id] = b
	return enough
}

// tell returns the events that changes are. Those of nodes that are not known any more are none; nor is that a node is
// reached directly of which nothing was said before.
func (t *pathTeller) tell(changes []pathChange, names map[mesh.NodeID]string, now time.Time) []events.Event {
	fresh := map[mesh.NodeID]bool{}
	for _, c := range changes {
		fresh[c.node] = true
	}
	for id, c := range t.held {
		if !fresh[id] { // else what was held back is out of date
			changes = append(changes, c)
		}
		delete(t.held, id)
	}
	var list []events.Event
	for _, c := range changes {
		name, known := names[c.node]
		before, after := t.h.get(c.node).Path, c.key()
		said := func(t *told) { t.Path = after }
		switch {
		case !known, after == before:
			continue
		case before == "" && c.path == pathDirect:
			t.h.update(c.node, said)
			continue
		case !t.spend(c.node, now):
			t.held[c.node] = c
			continue
		}
		t.h.update(c.node, said)
		list = append(list, events.Event{
			Time: c.at, Kind: events.Path, Node: name, NodeID: c.node.String(), Text: name + " " + c.text(names), Cause: c.why,
		})
	}
	for id := range t.budget {
		if names[id] == "" {
			delete(t.budget, id)
		}
	}
	return gather(list)
}

func (c pathChange) text(names map[mesh.NodeID]string) string {
	switch c.path {
	case pathDirect:
		return fmt.Sprintf("is reached directly at %v", c.addr)
	case pathRelay:
		return "is reached by relay via " + strings.Join(namesOf(c.via, names), ", ")
	}
	if c.kernel != "" {
		return "cannot be reached by udp; packets go on by " + c.kernel
	}
	return "cannot be reached"
}

// namesOf names nodes.
func namesOf(ids []mesh.NodeID, names map[mesh.NodeID]string) []string {
	var list []string
	for _, id := range ids {
		name := names[id]
		if name == "" {
			name = id.String()
		}
		list = append(list, name)
	}
	return list
}

// shownNames names all nodes that are known.
func shownNames(nodes []mesh.Node) map[mesh.NodeID]string {
	names := make(map[mesh.NodeID]string, len(nodes))
	for _, m := range nodes {
		names[m.ID] = shownName(m)
	}
	return names
}

// withoutTheQuiet leaves out that nodes cannot be reached which have said that they stop or leave: it is no news.
func withoutTheQuiet(changes []pathChange, nodes []mesh.Node) []pathChange {
	quiet := map[mesh.NodeID]bool{}
	for _, m := range nodes {
		quiet[m.ID] = m.Status == mesh.Stopped || m.Status == mesh.Left
	}
	return slices.DeleteFunc(changes, func(c pathChange) bool { return c.path == pathNone && quiet[c.node] })
}

// sinceTheLastRun returns the paths by which nodes are reached that are others than an earlier run of this node told last: the router tells
// of changes only, and the way by which it found a node first is none.
func sinceTheLastRun(nodes []mesh.Node, stats []router.PeerStats, h *history) []pathChange {
	ids := make(map[session.PublicKey]mesh.NodeID, len(nodes))
	for _, m := range nodes {
		ids[session.PublicKey(m.PublicKey)] = m.ID
	}
	var list []pathChange
	for _, s := range stats {
		id, known := ids[s.Key]
		c := pathChange{node: id, path: s.Path, addr: s.Endpoint, via: nodeIDs(s.Via), why: s.Why}
		if before := h.get(id).Path; known && s.RTT != 0 && s.Path != pathNone && before != "" && before != c.key() {
			list = append(list, c)
		}
	}
	return list
}

// followPaths tells changes of paths, until ctx ends.
func (n *Node) followPaths(ctx context.Context, e *engines) {
	t := pathTeller{h: n.history, budget: map[mesh.NodeID]budget{}, held: map[mesh.NodeID]pathChange{}}
	settled := time.After(settleTime)
	for {
		var later <-chan time.Time
		if len(t.held) > 0 {
			later = time.After(pathRest)
		}
		select {
		case <-ctx.Done():
			return
		case <-settled:
			for _, c := range sinceTheLastRun(e.mesh.Nodes(), e.plane.PeerStats(), n.history) {
				e.paths.note(c)
			}
		case <-e.paths.raised:
		case <-later:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pathGap):
		}
		nodes := e.mesh.Nodes()
		changes := withoutTheQuiet(e.paths.take(), nodes)
		byKernel := e.kernel.describe(nodes)
		for i, c := range changes {
			if p := byKernel[c.node].Path; c.path == pathNone && p != pathDirect {
				changes[i].kernel = p
			}
		}
		n.history.log.Add(t.tell(changes, shownNames(nodes), time.Now())...)
	}
}
