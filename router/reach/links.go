// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"slices"
	"time"
)

const (
	// nearLinks of the links are the nearest nodes that were found, the others are left to chance.
	nearLinks = MaxLinks / 2
	// linkGap is how often a link is asked, missGap how soon again when it does not answer, and maxMisses how often in a row until it is given up.
	linkGap   = 5 * time.Second
	missGap   = 500 * time.Millisecond
	maxMisses = 3
	// While there are too few links one node after the other is tried, burstTries at first and quickly. When all have been tried there is a pause, of at
	// most a second for each node, but not below restLeast; of tryGap without any link.
	tryGap, burstGap    = 500 * time.Millisecond, 50 * time.Millisecond
	burstTries          = 16
	restFirst, restMost = 15 * time.Second, time.Minute
	restLeast           = 5 * time.Second
	// otherGap is how often a node is tried when there are enough, as it may be nearer, or not reached by anybody else; and replaceGap how often a nearer
	// one takes the place of another.
	otherGap, replaceGap = 30 * time.Second, 10 * time.Second
	// tryAddresses is how many addresses of a node are tried.
	tryAddresses = 4
	// The links are published publishFirst after the first was found, once more after publishSoon, and then every publishGap when they have changed; that one
	// has died is published after publishDeath.
	publishFirst, publishSoon = 200 * time.Millisecond, 2 * time.Second
	publishGap, publishDeath  = 10 * time.Second, time.Second
)

// links are those of this node.
type links struct {
	all []*state // in the order in which they were found

	published   []uint64 // ascending
	publishedAt moment
	times       int    // how often
	changed     moment // first change since; zero: none
	died        bool   // one of those published has

	tryAt    moment // zero: at once
	cursor   int    // in Machine.list
	tried    int    // since all were
	passes   int    // how often all were
	tries    int    // ever
	rest     time.Duration
	replaced moment
}

// link is the part of a state that is a link.
type link struct {
	next   moment // ping, or verdict
	near   bool   // it was chosen for being near
	bridge bool   // it was chosen for there being no other way
	misses uint8  // pings since the last answer
}

// again makes the next ping one now.
func (l *link) again(now moment) {
	if l.misses == 0 {
		l.next = now
	}
}

// fresh notes that there is a new node.
func (l *links) fresh(now moment) {
	if len(l.all) < MaxLinks && l.tried == 0 && l.tryAt.After(now.Add(tryGap)) {
		l.tryAt = now.Add(tryGap)
	}
}

// tend does what is due for a state that is a link, and returns when to look again.
func (m *Machine) tend(s *state, now moment) moment {
	if !s.linked {
		return 0
	}
	l := &s.link
	if now.Before(l.next) {
		return l.next
	}
	if l.misses >= maxMisses {
		if s.busy(now) {
			m.lose(s, now)
		} else {
			m.use(s, s.path, false, now)
		}
		return now
	}
	l.misses++
	l.next = now.Add(max(missGap, 2*s.rtt()))
	m.askPath(s, now)
	if l.misses == 2 { // it may be elsewhere
		m.askAll(s, now, now)
	}
	return l.next
}

// consider makes a node that answers directly a link, if it should be one.
func (m *Machine) consider(s *state, now moment) {
	if s.linked {
		s.link.misses = 0
		s.link.next = now.Add(m.about(linkGap))
		return
	}
	if !s.direct() {
		return
	}
	l := &m.links
	if len(l.all) < MaxLinks {
		near := 0
		for _, o := range l.all {
			if o.link.near {
				near++
			}
		}
		m.addLink(s, link{near: near < nearLinks}, now)
		return
	}
	if s.n.noRelay {
		return
	}
	if i := slices.IndexFunc(l.all, func(o *state) bool { return o.n.noRelay }); i >= 0 {
		m.replace(l.all[i], s, link{near: l.all[i].link.near}, now)
		return
	}
	if now.Sub(l.replaced) < replaceGap {
		return
	}
	worst := -1
	for i, o := range l.all {
		if o.link.near && (worst < 0 || o.rtt() > l.all[worst].rtt()) {
			worst = i
		}
	}
	if worst >= 0 {
		if old := l.all[worst].rtt(); old-s.rtt() >= max(clearlyFaster, old/10) {
			m.replace(l.all[worst], s, link{near: true}, now)
			return
		}
	}
	if i := slices.IndexFunc(l.all, func(o *state) bool { return !o.link.near && !o.link.bridge }); i >= 0 && m.apart(s, now) {
		m.replace(l.all[i], s, link{bridge: true}, now)
	}
}

// apart tells that a neighbour is known to others by no link by which a way leads there from here.
func (m *Machine) apart(s *state, now moment) bool {
	if slices.Contains(s.n.links, m.self) {
		return false
	}
	_, ok := m.search(s.n, nil, now)
	return !ok
}

func (m *Machine) addLink(s *state, l link, now moment) {
	s.linked, s.link = true, l
	s.link.next = now.Add(m.about(linkGap))
	m.links.all = append(m.links.all, s)
	m.linksChanged(now)
	m.wake(s, s.link.next)
	m.hope(now)
}

func (m *Machine) replace(old, s *state, l link, now moment) {
	m.links.replaced = now
	m.unlink(old, now)
	m.links.died = false // it lives
	m.addLink(s, l, now)
}

// unlink makes a state no link any more.
func (m *Machine) unlink(s *state, now moment) {
	if !s.linked {
		return
	}
	s.linked, s.link = false, link{}
	l := &m.links
	l.all = slices.DeleteFunc(l.all, func(o *state) bool { return o == s })
	if slices.Contains(l.published, s.n.id) {
		l.died = true
	}
	m.linksChanged(now)
	l.tryAt, l.tried, l.passes, l.rest = now, 0, 0, 0
}

func (m *Machine) linksChanged(now moment) {
	if m.links.changed.IsZero() {
		m.links.changed = now
	}
}

// cut tells all that pass a node which is no neighbour any more.
func (m *Machine) cut(id uint64, now moment) {
	for _, n := range m.list {
		s := n.state
		if s == nil || !s.path.Relayed() || s.path.Relays[0] != id || !s.proven {
			continue
		}
		if s.busy(now) {
			m.lose(s, now)
		} else {
			m.use(s, s.path, false, now)
		}
	}
}

// tendLinks looks for links if there are too few, and publishes them. It returns when to look again.
func (m *Machine) tendLinks(now moment) moment {
	l := &m.links
	if len(m.list) == 0 {
		return m.publish(now)
	}
	if !now.Before(l.tryAt) {
		if len(l.all) >= MaxLinks {
			if !m.tryLonely(now) {
				m.tryNext(now)
			}
			l.tryAt = now.Add(m.about(otherGap))
		} else {
			m.tryAnother(now)
		}
	}
	return sooner(m.publish(now), l.tryAt)
}

// tryAnother tries the next node as there are too few links, and says when to go on.
func (m *Machine) tryAnother(now moment) {
	l := &m.links
	for l.tried < len(m.list) {
		if m.tryNext(now) {
			l.tryAt = now.Add(tryGap)
			if l.tries < burstTries {
				l.tryAt = now.Add(burstGap)
			}
			return
		}
	}
	l.tried = 0
	l.passes++
	l.rest = min(max(2*l.rest, restFirst), restMost, max(restLeast, time.Duration(len(m.list))*time.Second))
	if len(l.all) == 0 {
		l.rest = tryGap
	}
	l.tryAt = now.Add(m.about(l.rest))
}

// tryNext pings the next node in the list, or every other time one to which another has a link: those that many have are met soon. It reports whether
// there was any reason to.
func (m *Machine) tryNext(now moment) bool {
	l := &m.links
	if l.tries++; l.tries%2 == 0 {
		n := m.list[m.random(len(m.list))]
		if len(n.links) > 0 {
			if o := m.nodes[n.links[m.random(len(n.links))]]; o != nil && m.worthTrying(o) {
				m.try(o, now)
				return true
			}
		}
	}
	l.tried++
	l.cursor = (l.cursor + 1) % len(m.list)
	n := m.list[l.cursor]
	if !m.worthTrying(n) {
		return false
	}
	m.try(n, now)
	return true
}

// tryLonely pings, every other time, a node that has no links, as far as is known: it may be one that can answer, but cannot ask. It reports
// whether there was one.
func (m *Machine) tryLonely(now moment) bool {
	if m.random(2) == 0 {
		return false
	}
	first := m.random(len(m.list))
	for i := range m.list {
		if n := m.list[(first+i)%len(m.list)]; len(n.links) == 0 && m.worthTrying(n) && (n.state == nil || !n.state.alive(now)) {
			m.try(n, now)
			return true
		}
	}
	return false
}

// worthTrying tells whether a node may become a link. Those that do not relay come last.
func (m *Machine) worthTrying(n *node) bool {
	return (n.state == nil || !n.state.linked) && (!n.noRelay || m.links.passes > 0 && len(m.links.all) < MaxLinks)
}

func (m *Machine) try(n *node, now moment) {
	if s := n.state; s != nil {
		for i := range s.cands[:min(len(s.cands), tryAddresses)] {
			m.askDirect(s, &s.cands[i], now)
		}
		return
	}
	for _, a := range n.candidates[:min(len(n.candidates), tryAddresses)] {
		m.ask(n.id, Direct(a), edge{}, now)
	}
}

// publish makes the links those that Own returns, when it is time, and returns when it will be.
func (m *Machine) publish(now moment) moment {
	l := &m.links
	if l.changed.IsZero() {
		return 0
	}
	at := later(l.changed.Add(publishFirst), l.publishedAt.Add(publishGap))
	switch {
	case l.times == 0:
		at = l.changed.Add(publishFirst)
	case l.died:
		at = later(l.changed, l.publishedAt.Add(publishDeath))
	case l.times == 1 || len(l.published) == 0:
		at = later(l.changed.Add(publishFirst), l.publishedAt.Add(publishSoon))
	}
	if now.Before(at) {
		return at
	}
	l.changed, l.died = 0, false
	var ids []uint64
	for _, s := range l.all {
		if !s.n.noRelay {
			ids = append(ids, s.n.id)
		}
	}
	slices.Sort(ids)
	if !slices.Equal(ids, l.published) {
		l.published, l.publishedAt = ids, now
		l.times++
		m.renewed()
	}
	return 0
}
