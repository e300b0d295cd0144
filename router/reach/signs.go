// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"time"
)

// What is heard of a node, and what follows for the path to it.

// hear is Heard.
func (m *Machine) hear(s *state, by Path, now moment) {
	if by == s.path {
		s.heard = now // that it leads there, too, only an answer tells
		return
	}
	if by.Relayed() {
		switch {
		case !s.proven && (!s.roamed || s.doubtful(now)):
			m.roam(s, by, now)
		case s.direct() && m.verify(s, verifyGap, now): // the other side has a reason to take a relay
			m.askRoute(s, by, now)
		}
		return
	}
	known := s.cand(by.Addr) != nil
	c := s.see(by.Addr)
	c.heard = now
	switch {
	case !s.proven && !s.roamed, !s.path.Relayed() && (!known || s.doubtful(now)):
		m.roam(s, by, now)
	case now.Sub(c.asked) > reaskAfter && (s.path.Relayed() || now.Sub(c.answered) > provenFor):
		m.askDirect(s, c, now)
	}
}

// verify asks the path in use, as there is a reason to think that nothing gets there, unless it is asked already or has answered for less than gap. It
// reports whether it has.
func (m *Machine) verify(s *state, gap time.Duration, now moment) bool {
	x := s.measured()
	if !s.proven || !s.doubt.IsZero() || x != nil && now.Sub(x.answered) < gap {
		return false
	}
	m.askPath(s, now)
	m.wake(s, now)
	return true
}

// roam makes p the path on trust, as something authentic came that way.
func (m *Machine) roam(s *state, p Path, now moment) {
	m.use(s, p, false, now)
	s.roamed, s.heard = true, now
	m.askPath(s, now)
	m.wake(s, now)
}

// pinged is Pinged.
func (m *Machine) pinged(s *state, by Path, now moment) {
	if by == s.path && s.busy(now) {
		m.verify(s, verifyGap, now) // the other side may have lost our answers, and what else goes there
	}
	if by.Relayed() {
		if !s.proven && now.Sub(s.route(by).asked) > reaskAfter {
			m.askRoute(s, by, now)
		}
		return
	}
	c := s.see(by.Addr)
	if by != s.path && now.Sub(c.last()) > provenFor && s.direct() && m.verify(s, 0, now) && s.linked { // it may have left where it was
		s.link.again(now)
	}
	c.heard = now
	if now.Sub(c.asked) > reaskAfter && (!s.proven || now.Sub(c.answered) > provenFor || by != s.path && now.Sub(c.asked) > hearWithin) {
		m.askDirect(s, c, now)
	}
}

// perhaps is Answered, for a node to which no path is proven.
func (m *Machine) perhaps(s *state, by Path, now moment) {
	s.patience = 0
	if l := &m.links; len(l.all) < MaxLinks && l.tryAt.After(now.Add(perhapsGap)) {
		l.tryAt = now.Add(perhapsGap)
	}
	if by.Relayed() {
		return
	}
	if c := s.cand(by.Addr); c != nil {
		c.heard = now
	}
	if !s.roamed && !s.path.Relayed() && s.path != by {
		if c := s.cand(s.path.Addr); c == nil || c.last().IsZero() {
			m.use(s, by, false, now)
		}
	}
}

// answered is Pong, for what was asked of the node.
func (m *Machine) answered(s *state, p ping, now moment) {
	same := s.path == p.path
	if same {
		s.heard, s.doubt = now, 0
	}
	if p.path.Relayed() {
		r := s.route(p.path)
		r.answer(now.Sub(p.at), now)
		switch {
		case !s.proven, s.path.Relayed() && !same && s.doubtful(now):
			m.use(s, p.path, true, now)
		case s.path.Relayed() && !same && s.faster(&r.measure, now):
			m.prefer(s, p.path, now)
		}
		m.leadsBy(p.path, s.n.id, p.at)
		if !s.direct() && (s.exam != nil || s.busy(now)) {
			m.askPunch(s, p.path, now)
		}
		return
	}
	c := s.see(p.path.Addr)
	c.answer(now.Sub(p.at), now)
	switch {
	case !s.direct(), !same && (s.doubtful(now) || s.follows(c, now)):
		m.use(s, p.path, true, now)
	case !same && s.faster(&c.measure, now):
		m.prefer(s, p.path, now)
	}
	if s.exam != nil {
		m.finish(s, now)
	}
	if s.path == p.path || !s.linked { // an answer from elsewhere keeps no link alive
		m.consider(s, now)
	}
}

// follows tells whether c, which answers, should be the path as the node has been heard from there, lately and not from where it was: who does
// not use the path leaves the choice to who does.
func (s *state) follows(c *cand, now moment) bool {
	if s.busy(now) {
		return false
	}
	old := s.cand(s.path.Addr)
	return old == nil || c.heard.After(old.heard) && now.Sub(old.heard) > 3*time.Second && now.Sub(s.heard) > 3*time.Second
}

// faster tells whether x is so much faster than the path in use that it should be that.
func (s *state) faster(x *measure, now moment) bool {
	old := s.rtt()
	if old == 0 {
		return false
	}
	if now.Sub(s.chose) > fickleFor {
		s.fickle = 0
	}
	better := old - x.rtt.duration()
	return better >= clearlyFaster<<s.fickle && better >= old/10<<s.fickle
}

// prefer makes p the path, which is faster than that in use.
func (m *Machine) prefer(s *state, p Path, now moment) {
	s.chose = now
	s.fickle = min(s.fickle+1, maxFickle)
	m.use(s, p, true, now)
}
