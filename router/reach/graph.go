// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"slices"
	"time"
)

const (
	// routesAtOnce is how many routes to one node are asked at a time.
	routesAtOnce = 3
	// badFirst is how long a link is passed over of which it was found that it leads nowhere, twice as long when that is found again, up to badMost; and
	// maxBad is how many are kept in mind.
	badFirst, badMost = 5 * time.Second, 30 * time.Second
	maxBad            = 4096
	// knockGap is how often routes are asked, and be it by links that were found to lead nowhere, while a node in use is not reached at all.
	knockGap = time.Second
)

// edge is a link between two nodes, in either direction.
type edge struct{ a, b uint64 }

func edgeOf(a, b uint64) edge { return edge{min(a, b), max(a, b)} }

// verdict is until when it is believed that a link leads nowhere, and how long that is.
type verdict struct {
	until moment
	long  time.Duration
}

// edgesOf returns the links of a path from one node to another through relays; none if it is direct.
func edgesOf(from uint64, p Path, to uint64) []edge {
	if !p.Relayed() {
		return nil
	}
	var all []edge
	at := from
	for _, r := range p.Relays[:p.N] {
		all = append(all, edgeOf(at, r))
		at = r
	}
	return append(all, edgeOf(at, to))
}

// routesTo returns up to routesAtOnce routes to a node that may work, best first: those through the fewest relays, and of these through the nearest
// first one. None has a link in common with another, or with avoid, as long as there are others.
func (m *Machine) routesTo(n *node, avoid []edge, now moment) []Path {
	var all []Path
	for len(all) < routesAtOnce {
		p, ok := m.search(n, avoid, now)
		if !ok {
			break
		}
		all = append(all, p)
		avoid = append(slices.Clip(avoid), edgesOf(m.self, p, n.id)...)
	}
	if len(all) == 0 && len(avoid) > 0 {
		return m.routesTo(n, nil, now)
	}
	return all
}

// knock asks routes to a node that is not reached, be it by links that were found to lead nowhere: they may lead on again. It returns when to do so
// again.
func (m *Machine) knock(s *state, now moment) moment {
	if next := s.asked.Add(knockGap); now.Before(next) {
		return next
	}
	s.asked = now
	bad := m.bad
	m.bad = nil
	routes := m.routesTo(s.n, nil, now)
	m.bad = bad
	for _, p := range routes {
		m.askRoute(s, p, now)
	}
	return now.Add(knockGap)
}

// forgive forgets that links of a node were found to lead nowhere: something about it has changed.
func (m *Machine) forgive(id uint64) {
	for e := range m.bad {
		if e.a == id || e.b == id {
			delete(m.bad, e)
		}
	}
}

// search finds the best route to a node without the links to be avoided, from its end: there are few nodes around it, and the first one that
// is a neighbour of ours is it.
func (m *Machine) search(to *node, avoid []edge, now moment) (Path, bool) {
	type step struct {
		at   *node
		prev int // in steps: nearer to the destination
		hops int // relays up to here
	}
	steps := []step{{at: to, prev: -1}}
	found := map[uint64]bool{to.id: true, m.self: true}
	best, bestRTT := -1, time.Duration(0)
	for i := 0; i < len(steps); i++ {
		s := steps[i]
		if best >= 0 && s.hops >= steps[best].hops || s.hops == MaxRelays {
			break
		}
		around := func(n *node) {
			e := edgeOf(s.at.id, n.id)
			if n.noRelay || found[n.id] || m.isBad(e, now) || slices.Contains(avoid, e) {
				return
			}
			found[n.id] = true
			steps = append(steps, step{n, i, s.hops + 1})
			if rtt, ok := m.neighbour(n, avoid, now); ok && (best < 0 || s.hops+1 == steps[best].hops && rtt < bestRTT) {
				best, bestRTT = len(steps)-1, rtt
			}
		}
		for _, id := range s.at.links {
			if n := m.nodes[id]; n != nil {
				around(n)
			}
		}
		for _, n := range m.back[s.at.id] {
			around(n)
		}
	}
	if best < 0 {
		return Path{}, false
	}
	var p Path
	for i := best; steps[i].prev >= 0; i = steps[i].prev {
		p.Relays[p.N] = steps[i].at.id
		p.N++
	}
	return p, true
}

// neighbour tells whether a node is reached directly, and how long its answers take.
func (m *Machine) neighbour(n *node, avoid []edge, now moment) (time.Duration, bool) {
	s := n.state
	if s == nil || !s.linked && !s.alive(now) {
		return 0, false
	}
	e := edgeOf(m.self, n.id)
	if m.isBad(e, now) || slices.Contains(avoid, e) {
		return 0, false
	}
	return s.rtt(), true
}

// isBad tells whether a link was found to lead nowhere.
func (m *Machine) isBad(e edge, now moment) bool {
	if len(m.bad) == 0 {
		return false
	}
	return now.Before(m.bad[e].until)
}

// leads notes that a link was passed by a ping that was sent then, and answered.
func (m *Machine) leads(e edge, at moment) {
	delete(m.bad, e)
	if len(m.passed) >= maxBad {
		clear(m.passed)
	}
	m.passed[e] = at
}

// leadsBy is leads for all links of a path to a node.
func (m *Machine) leadsBy(p Path, to uint64, at moment) {
	for _, e := range edgesOf(m.self, p, to) {
		delete(m.bad, e)
		if _, ok := m.passed[e]; ok {
			m.passed[e] = at
		}
	}
}

// askHops pings every relay of a path by way of those before it, to learn where it ends.
func (m *Machine) askHops(p Path, to uint64, now moment) {
	if n := m.nodes[p.Relays[0]]; n != nil && n.state != nil && !n.state.path.Relayed() && n.state.path.Valid() {
		m.ask(n.id, n.state.path, edgeOf(m.self, n.id), now)
	}
	for i := 1; i < int(p.N); i++ {
		m.ask(p.Relays[i], Through(p.Relays[:i]...), edgeOf(p.Relays[i-1], p.Relays[i]), now)
	}
}

// blame notes which link of a path, asked since then without an answer, leads nowhere: the first that no ping has passed, or else the last.
func (m *Machine) blame(p Path, to uint64, since, now moment) {
	all := edgesOf(m.self, p, to)
	at := len(all) - 1
	for i, e := range all[:at] {
		if m.passed[e].Before(since) {
			at = i
			break
		}
	}
	if len(m.bad) >= maxBad {
		for e, v := range m.bad {
			if !now.Before(v.until) {
				delete(m.bad, e)
			}
		}
		if len(m.bad) >= maxBad {
			clear(m.bad)
		}
	}
	if old := m.bad[all[at]]; !now.Before(old.until) {
		long := min(max(2*old.long, badFirst), badMost)
		m.bad[all[at]] = verdict{now.Add(long), long}
	}
	if at > 0 {
		return
	}
	// Our own link: it is looked at more closely, and everybody who goes that way learns of it.
	if n := m.nodes[p.Relays[0]]; n != nil && n.state != nil && n.state.linked {
		n.state.link.again(now)
		m.wake(n.state, now)
	}
}
