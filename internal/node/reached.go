// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
)

// pathInfo is by which path a peer is reached.
type pathInfo struct {
	path  string        // pathDirect, pathRelay or pathNone
	via   []mesh.NodeID // of pathRelay, the nearest one first
	rtt   time.Duration // 0: not measured
	since time.Time     // zero: not known
	why   string
}

// describePath puts into p by which path it is reached. blocked is what the mesh knows not to get through to it.
func describePath(p *api.Peer, s router.PeerStats, names map[mesh.NodeID]string, blocked string) {
	i := pathOf(s)
	p.Path, p.RTT, p.SessionError = i.path, i.rtt.Microseconds(), s.LastError
	p.Reason = cmp.Or(i.why, s.LastError)
	if i.path == pathNone {
		p.RTT = 0                            // of a path that it was once reached by
		p.Reason = cmp.Or(blocked, p.Reason) // it says what to do
	}
	if i.path == pathRelay {
		p.Via = namesOf(i.via, names)
	}
	if !i.since.IsZero() {
		p.PathSince = &i.since
	}
}

// reachStatus tells how the others reach this node, and by which relays it reaches them.
func (n *Node) reachStatus(e *engines, nodes []mesh.Node, stats []router.PeerStats) *api.Reach {
	names := shownNames(nodes)
	r := e.plane.Reach()
	res := &api.Reach{
		Addresses: texts(e.where.endpoints(n.cfg.Port)), Observed: texts(r.observed),
		NAT: natOf(r, e.where.exit().Addrs, n.cfg.Port), Links: append([]string{}, namesOf(r.links, names)...),
	}
	slices.Sort(res.Links)
	res.Blocked = blocked(nodes)
	peers := map[mesh.NodeID]int{}
	for _, s := range stats {
		if i := pathOf(s); i.path == pathRelay {
			for _, id := range i.via {
				peers[id]++
			}
		}
	}
	for id, count := range peers {
		res.Relays = append(res.Relays, api.Relay{Node: namesOf([]mesh.NodeID{id}, names)[0], Peers: count})
	}
	slices.SortFunc(res.Relays, func(a, b api.Relay) int { return cmp.Or(cmp.Compare(b.Peers, a.Peers), cmp.Compare(a.Node, b.Node)) })
	return res
}

// mostBlocked is how many nodes are named of which it is known that something does not get through to them.
const mostBlocked = 8

// blocked says what does not get through to which nodes.
func blocked(nodes []mesh.Node) (lines []string) {
	for _, m := range nodes {
		if m.Blocked != "" {
			lines = append(lines, m.Blocked)
		}
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	if n := len(lines) - mostBlocked; n > 0 {
		lines = append(lines[:mostBlocked], fmt.Sprintf("so it is with %d nodes more", n))
	}
	return lines
}

// natOf tells what is between this node, whose interfaces have the addresses own, and those who see it.
func natOf(r reach, own []netip.Addr, port uint16) api.NAT {
	switch {
	case r.symmetric:
		return api.NATSymmetric
	case len(r.observed) == 0:
		return api.NATUnknown
	}
	for _, a := range r.observed {
		if a.Port() != port || !slices.Contains(own, a.Addr().Unmap()) {
			return api.NATCone
		}
	}
	return api.NATNone
}

func texts(list []netip.AddrPort) []string {
	out := []string{}
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// pathOf reads the path out of what the router tells.
func pathOf(s router.PeerStats) pathInfo {
	return pathInfo{path: cmp.Or(s.Path, pathDirect), via: nodeIDs(s.Via), rtt: s.RTT, since: s.PathSince, why: s.Why}
}

// changeOf makes a change of a path of the router's.
func changeOf(e router.PathEvent) pathChange {
	return pathChange{node: mesh.NodeID(e.Node), path: e.Path, addr: e.Addr, via: nodeIDs(e.Via), why: e.Why, at: e.At}
}

// reachOf translates what the router knows of how this node is reached.
func reachOf(r router.Reach) reach {
	return reach{observed: r.Observed, symmetric: r.Symmetric, links: nodeIDs(r.Links)}
}

// nodeIDs are nodes as the router has them.
func nodeIDs(ids []uint64) []mesh.NodeID {
	var list []mesh.NodeID
	for _, id := range ids {
		list = append(list, mesh.NodeID(id))
	}
	return list
}

// relaying tells what this node passes on for others.
func (n *Node) relaying(s router.Stats) *api.Relaying {
	return &api.Relaying{
		Off: n.cfg.NoRelay, Limit: n.cfg.RelayLimit, Packets: s.Relayed.Packets, Bytes: s.Relayed.Bytes, Control: s.ControlRelayed,
		Dropped: s.Drops[router.DropRelayLimit] + s.Drops[router.DropControlLimit],
	}
}
