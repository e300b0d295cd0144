// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// Commit works out what all changes since the last one mean, and returns what changes by them in the state.
func (c *Compiler) Commit() Delta {
	if !c.dirty.any && c.own != nil {
		return Delta{}
	}
	first := c.own == nil
	c.delta = Delta{}
	changed := c.settlePolicies()
	fresh := c.settleLocals(changed)
	c.settleTables(fresh)
	c.settlePeers()
	c.settleNames()
	c.settleOwn()
	if first {
		for e := range c.world.EachEndpoint() {
			for _, a := range e.Addrs {
				c.identify(a)
				delete(c.dirty.addrs, a)
			}
		}
	}
	for a := range c.dirty.addrs {
		c.identify(a)
	}
	wanted := c.settleSides()
	c.settleCells(wanted)
	c.report()

	c.peers.done()
	c.classes.free = append(c.classes.free, c.classes.freed...)
	c.classes.freed = c.classes.freed[:0]
	for _, p := range changed {
		p.old = nil
	}
	c.clean()
	d := c.delta
	c.delta = Delta{}
	return d
}

// settlePeers finds out what is of peers that have come, and what of those that have gone.
func (c *Compiler) settlePeers() {
	added, removed := c.peers.settle()
	gone := make([]bool, len(c.peers.byID))
	recut := c.again()
	var endpoints, nodes []*peer
	var lessEndpoints, lessNodes bool
	for _, p := range removed {
		gone[p.id] = true
		recut = recut || p.block != nil
		lessNodes = lessNodes || p.nodes != nil
		lessEndpoints = lessEndpoints || p.isEndpoints()
	}
	for _, p := range added {
		switch {
		case p.block != nil:
			recut = true
		case p.nodes != nil:
			nodes = append(nodes, p)
		default:
			endpoints = append(endpoints, p)
		}
	}
	c.settleNodes(nodes, lessNodes, gone)
	c.settleSets(endpoints, lessEndpoints, gone)
	if recut {
		c.recut()
	}
}

// settleNodes brings the nodes' peers up to date.
func (c *Compiler) settleNodes(added []*peer, less bool, gone []bool) {
	if len(added) == 0 && !less && len(c.dirty.nodes) == 0 {
		return
	}
	for _, n := range c.nodes {
		from := added
		if n.fresh {
			n.fresh, n.peers, from = false, nil, nil
			for _, p := range c.peers.byID {
				if p != nil && p.nodes != nil {
					from = append(from, p)
				}
			}
		}
		before := slices.Clone(n.peers)
		n.peers = slices.DeleteFunc(n.peers, func(id uint32) bool { return gone[id] })
		for _, p := range from {
			if p.nodes.Fits(n.labels) {
				n.peers = append(n.peers, p.id)
			}
		}
		slices.Sort(n.peers)
		if !slices.Equal(before, n.peers) {
			for _, a := range n.addrs {
				c.dirty.addrs[a] = struct{}{}
			}
		}
	}
}

// settleSets brings the peers of label sets up to date, and notes the addresses of endpoints that are others now.
func (c *Compiler) settleSets(added []*peer, less bool, gone []bool) {
	moved := false
	update := func(s *labelSet, peers []uint32) {
		if !slices.Equal(s.peers, peers) {
			s.peers, s.moved, moved = slices.Clone(peers), true, true
		}
	}
	for _, s := range c.sets.fresh {
		if s.refs > 0 {
			s.peers = slices.Clone(c.peers.index.match(s, c.scratch.peers[:0]))
		}
	}
	if len(added) > 0 || less || c.dirty.spaces {
		few := newIndex(added)
		c.sets.all(func(s *labelSet) {
			switch {
			case s.fresh:
				return // its endpoints are dirty
			case s.space.stale:
				update(s, c.peers.index.match(s, c.scratch.peers[:0]))
				return
			}
			now := c.scratch.peers[:0]
			for _, id := range s.peers {
				if !less || !gone[id] {
					now = append(now, id)
				}
			}
			switch {
			case len(added) > 8:
				now = few.match(s, now)
			default:
				for _, p := range added {
					if s.fits(p.home, p.namespaces, p.pods) {
						now = append(now, p.id)
					}
				}
			}
			slices.Sort(now)
			c.scratch.peers = now
			update(s, now)
		})
		if moved && c.own != nil {
			for e := range c.world.EachEndpoint() {
				if len(e.Addrs) > 0 && c.sets.of(e).moved {
					for _, a := range e.Addrs {
						c.dirty.addrs[a] = struct{}{}
					}
				}
			}
		}
		c.sets.all(func(s *labelSet) { s.moved = false })
		for _, s := range c.sets.spaces {
			s.stale = false
		}
	}
	for _, s := range c.sets.fresh {
		s.fresh = false
	}
	c.sets.fresh = nil
}

// settleNames notes the addresses of endpoints that have ports of names that have come into use or gone out of it.
func (c *Compiler) settleNames() {
	if len(c.dirty.names) == 0 {
		return
	}
	if c.own == nil {
		return // all are
	}
	for x := range c.world.EachEndpoint() {
		if slices.ContainsFunc(x.Ports, func(p policy.NamedPort) bool { return slices.Contains(c.dirty.names, p.Name) }) {
			for _, a := range x.Addrs {
				c.dirty.addrs[a] = struct{}{}
			}
		}
	}
}

// again notes the addresses that are unsorted, if there is room for more identities, and says whether blocks are.
func (c *Compiler) again() bool {
	if c.classes.sorted >= c.limits.Identities || c.classes.memberships >= c.limits.Memberships {
		return false
	}
	for a := range c.unsorted {
		c.dirty.addrs[a] = struct{}{}
	}
	for _, b := range c.blocks.all {
		if b.class.is(beyond) {
			return true
		}
	}
	return false
}

// settleSides works out the sides of local endpoints, and returns what each table has to know of those that see themselves.
func (c *Compiler) settleSides() map[*table]map[*class]struct{} {
	if len(c.tables)+len(c.sides)+len(c.selves) == 0 {
		return nil // no endpoint has a table, nor had one
	}
	sides := make(map[Side]*table, len(c.sides))
	selves := make(map[netip.Addr]*class, len(c.selves))
	wanted := map[*table]map[*class]struct{}{}
	for n, l := range c.locals {
		if l.tables[0] == nil && l.tables[1] == nil {
			continue
		}
		for _, a := range l.addrs {
			if !c.has(n, a) {
				continue
			}
			// Where none but the Network tier is asked, what reaches itself is allowed in any case.
			var x *class
			if l.tables[0].asksClusters() || l.tables[1].asksClusters() {
				x = c.classAt(a, self)
				selves[a] = x
			}
			for d, t := range l.tables {
				if t == nil {
					continue
				}
				sides[Side{a, policy.Direction(d)}] = t
				if x != nil {
					if wanted[t] == nil {
						wanted[t] = map[*class]struct{}{}
					}
					wanted[t][x] = struct{}{}
				}
			}
		}
	}
	for s, t := range sides {
		if old := c.sides[s]; old == nil || old.id != t.id {
			put(&c.delta.SetSides, s, t.id)
		}
	}
	for s := range c.sides {
		if sides[s] == nil {
			c.delta.DropSides = append(c.delta.DropSides, s)
		}
	}
	for a, x := range selves {
		if old := c.selves[a]; old == nil || old.id != x.id {
			put(&c.delta.SetSelves, a, x.id)
		}
	}
	for a, x := range c.selves {
		if selves[a] == nil {
			c.delta.DropSelves = append(c.delta.DropSelves, a)
		}
		c.drop(x)
	}
	c.sides, c.selves = sides, selves
	return wanted
}
