// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"
)

const (
	// seenFor is how long an address is asked that is in no record but from where the node has been heard.
	seenFor = 5 * time.Minute
	// A path takes the place of one of the same kind if it is faster by a tenth and by clearlyFaster; twice that for each time that this has happened within
	// fickleFor, maxFickle times at most.
	clearlyFaster = 2 * time.Millisecond
	fickleFor     = time.Hour
	maxFickle     = 6
	// doubtAfter is after how long without an answer another path that answers is taken, if the answer is not known to take longer.
	doubtAfter = 300 * time.Millisecond
	// reaskAfter is how soon the same address is asked again because something came from there.
	reaskAfter = 200 * time.Millisecond
	// provenFor is how long after an answer an address is not asked again because something came from there.
	provenFor = 30 * time.Second
	// aliveFor is how long a neighbour is taken for alive after a sign of it. Those that have a link to us ping within less than half of that.
	aliveFor = 12 * time.Second
	// maxRoutes is how many routes to one node are kept in mind.
	maxRoutes = 6
)

// node is what is known of another node.
type node struct {
	id         uint64
	boot       uint64
	candidates []netip.AddrPort // not ours to change
	links      []uint64         // the same
	noRelay    bool
	round      uint64 // of SetNodes, when it was there
	state      *state // nil: nothing has been asked
}

// guess returns the path to begin with.
func (n *node) guess() Path {
	if len(n.candidates) == 0 {
		return Path{}
	}
	return Direct(n.candidates[0])
}

// state is how things stand with a node that was asked.
type state struct {
	n     *node
	due   time.Time // of the next step; zero: none
	index int       // in the queue; -1: not in it

	path   Path
	proven bool      // a pong came back over it
	roamed bool      // not proven, but something authentic came over it
	since  time.Time // that it is the path
	heard  time.Time // last pong over it, or anything else that is authentic
	asked  time.Time // last ping over it
	doubt  time.Time // first ping over it that is not answered, nor anything heard since; zero: none

	attended time.Time // until then it is in use
	compared time.Time // its paths, last
	retryAt  time.Time // when to examine it again, if it is in use; zero: as soon as there is a reason
	patience time.Duration
	fickle   int // changes to a faster path
	chose    time.Time

	cands    []cand
	routes   []routed
	exam     *exam // nil: none going on
	examined time.Time
	punch    punch

	linked bool
	link   link
}

// measure is what is known of a path by asking.
type measure struct {
	rtt      time.Duration // 0: never answered
	answered time.Time     // last
	asked    time.Time     // last
	silent   time.Time     // since when it is asked in vain; zero: not
}

func (x *measure) ask(now time.Time) {
	x.asked = now
	if x.silent.IsZero() {
		x.silent = now
	}
}

func (x *measure) answer(rtt time.Duration, now time.Time) {
	rtt = max(rtt, time.Microsecond)
	if x.rtt == 0 || rtt < x.rtt {
		x.rtt = rtt
	} else {
		x.rtt += (rtt - x.rtt) / 16
	}
	x.answered, x.silent = now, time.Time{}
}

// cand is an address where the node may be.
type cand struct {
	measure
	addr   netip.AddrPort
	listed bool      // in its record
	heard  time.Time // something came from there
}

// routed is a path through relays.
type routed struct {
	measure
	path Path
}

// state returns the state of a node, which may be new; nil if the node is not known.
func (m *Machine) state(id uint64) *state {
	n := m.nodes[id]
	if n == nil {
		return nil
	}
	if n.state == nil {
		n.state = &state{n: n, index: -1, path: n.guess()}
		n.state.relist()
	}
	return n.state
}

// relist makes the candidates those of the record, and those which were seen.
func (s *state) relist() {
	var next []cand
	for _, a := range s.n.candidates {
		if len(next) == MaxCandidates {
			break
		}
		c := cand{addr: a}
		if old := s.cand(a); old != nil {
			c = *old
		}
		c.listed = true
		next = append(next, c)
	}
	for _, c := range s.cands {
		if slices.ContainsFunc(next, func(o cand) bool { return o.addr == c.addr }) {
			continue
		}
		if c.listed {
			c.listed = false
			if s.path != Direct(c.addr) {
				continue
			}
		}
		next = append(next, c)
	}
	s.cands = next
}

// cand returns the candidate with that address, nil if there is none.
func (s *state) cand(a netip.AddrPort) *cand {
	for i := range s.cands {
		if s.cands[i].addr == a {
			return &s.cands[i]
		}
	}
	return nil
}

// see returns the candidate with that address, which may be new.
func (s *state) see(a netip.AddrPort, now time.Time) *cand {
	if c := s.cand(a); c != nil {
		return c
	}
	if len(s.cands) >= MaxCandidates {
		s.cands = slices.DeleteFunc(s.cands, func(c cand) bool {
			return !c.listed && s.path != Direct(c.addr) && now.Sub(later(c.heard, c.answered)) > seenFor
		})
	}
	if len(s.cands) >= 2*MaxCandidates { // all of them lately: the oldest of those goes
		oldest := -1
		for i, c := range s.cands {
			if !c.listed && s.path != Direct(c.addr) && (oldest < 0 || c.heard.Before(s.cands[oldest].heard)) {
				oldest = i
			}
		}
		s.cands = slices.Delete(s.cands, oldest, oldest+1)
	}
	s.cands = append(s.cands, cand{addr: a})
	return &s.cands[len(s.cands)-1]
}

// route returns what is known of a path through relays, which may be new.
func (s *state) route(p Path) *routed {
	for i := range s.routes {
		if s.routes[i].path == p {
			return &s.routes[i]
		}
	}
	if len(s.routes) >= maxRoutes {
		oldest := -1
		for i, r := range s.routes {
			if r.path != s.path && (oldest < 0 || r.asked.Before(s.routes[oldest].asked)) {
				oldest = i
			}
		}
		s.routes = slices.Delete(s.routes, oldest, oldest+1)
	}
	s.routes = append(s.routes, routed{path: p})
	return &s.routes[len(s.routes)-1]
}

// measured returns what is known of the path in use; nil if nothing is.
func (s *state) measured() *measure {
	if s.path.Relayed() {
		for i := range s.routes {
			if s.routes[i].path == s.path {
				return &s.routes[i].measure
			}
		}
		return nil
	}
	if c := s.cand(s.path.Addr); c != nil {
		return &c.measure
	}
	return nil
}

// rtt returns how long the answer over the path in use takes; 0 if that is not known.
func (s *state) rtt() time.Duration {
	if x := s.measured(); x != nil {
		return x.rtt
	}
	return 0
}

// direct tells that the path is direct and proven.
func (s *state) direct() bool { return s.proven && !s.path.Relayed() }

// alive tells that the path is direct and proven, and that there was a sign of life lately.
func (s *state) alive(now time.Time) bool {
	if !s.direct() {
		return false
	}
	last := s.heard
	if c := s.cand(s.path.Addr); c != nil {
		last = later(last, c.heard)
	}
	return now.Sub(last) <= aliveFor
}

// busy tells that the node is in use.
func (s *state) busy(now time.Time) bool { return now.Before(s.attended) }

// doubtful tells that the path does not answer as it should.
func (s *state) doubtful(now time.Time) bool {
	return !s.doubt.IsZero() && now.Sub(s.doubt) >= max(doubtAfter, 2*s.rtt())
}

// wake makes the next step one at that time, at the latest.
func (m *Machine) wake(s *state, at time.Time) {
	switch {
	case s.index < 0:
		s.due = at
		heap.Push(&m.due, s)
	case at.Before(s.due):
		s.due = at
		heap.Fix(&m.due, s.index)
	}
}

// step does what is due for a state, the first in the queue.
func (m *Machine) step(s *state, now time.Time) {
	heap.Pop(&m.due)
	next := m.watch(s, now)
	next = sooner(next, m.examineOn(s, now))
	next = sooner(next, m.punchOn(s, now))
	next = sooner(next, m.tend(s, now))
	if next.IsZero() {
		return
	}
	if !next.After(now) {
		next = now.Add(time.Millisecond)
	}
	m.wake(s, next)
}

// use makes p the path. It is proven, or used on trust.
func (m *Machine) use(s *state, p Path, proven bool, now time.Time) {
	if s.path == p && s.proven == proven {
		return
	}
	from, neighbour := s.path, s.direct()
	if from != p {
		s.since, s.doubt, s.asked = now, time.Time{}, time.Time{}
	}
	s.path, s.proven, s.roamed = p, proven, false
	if proven {
		s.heard, s.doubt = now, time.Time{}
	}
	if neighbour && !s.direct() {
		m.unlink(s, now)
		m.cut(s.n.id, now)
	}
	m.out = append(m.out, Action{Kind: Changed, To: s.n.id, From: from, Path: p, Proven: proven, Why: s.why(now)})
	m.wake(s, now)
}

// askPath pings the path in use.
func (m *Machine) askPath(s *state, now time.Time) {
	if !s.path.Valid() {
		return
	}
	if s.doubt.IsZero() {
		s.doubt = now
	}
	s.asked = now
	if s.path.Relayed() {
		m.askRoute(s, s.path, now)
	} else {
		m.askDirect(s, s.see(s.path.Addr, now), now)
	}
}

func (m *Machine) askDirect(s *state, c *cand, now time.Time) {
	c.ask(now)
	m.ask(s.n.id, Direct(c.addr), edge{}, now)
}

func (m *Machine) askRoute(s *state, p Path, now time.Time) {
	s.route(p).ask(now)
	m.ask(s.n.id, p, edge{}, now)
}

// hear is Heard.
func (m *Machine) hear(s *state, by Path, now time.Time) {
	if by == s.path {
		s.heard, s.doubt = now, time.Time{}
		return
	}
	if by.Relayed() {
		if !s.proven && (!s.roamed || s.doubtful(now)) {
			m.roam(s, by, now)
		}
		return
	}
	known := s.cand(by.Addr) != nil
	c := s.see(by.Addr, now)
	c.heard = now
	switch {
	case !s.proven && !s.roamed, !s.path.Relayed() && (!known || s.doubtful(now)):
		m.roam(s, by, now)
	case now.Sub(c.asked) > reaskAfter && (s.path.Relayed() || now.Sub(c.answered) > provenFor):
		m.askDirect(s, c, now)
	}
}

// roam makes p the path on trust, as something authentic came that way.
func (m *Machine) roam(s *state, p Path, now time.Time) {
	m.use(s, p, false, now)
	s.roamed, s.heard = true, now
	m.askPath(s, now)
	m.wake(s, now)
}

// pinged is Pinged.
func (m *Machine) pinged(s *state, by Path, now time.Time) {
	if by.Relayed() {
		if !s.proven && now.Sub(s.route(by).asked) > reaskAfter {
			m.askRoute(s, by, now)
		}
		return
	}
	c := s.see(by.Addr, now)
	c.heard = now
	if now.Sub(c.asked) > reaskAfter && (!s.proven || now.Sub(c.answered) > provenFor || by != s.path && now.Sub(c.asked) > hearWithin) {
		m.askDirect(s, c, now)
	}
}

// answered is Pong, for what was asked of the node.
func (m *Machine) answered(s *state, p ping, now time.Time) {
	same := s.path == p.path
	if same {
		s.heard, s.doubt = now, time.Time{}
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
	c := s.see(p.path.Addr, now)
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
	m.consider(s, now)
}

// follows tells whether c, which answers, should be the path as the node has been heard from there, lately and not from where it was: who does
// not use the path leaves the choice to who does.
func (s *state) follows(c *cand, now time.Time) bool {
	if s.busy(now) {
		return false
	}
	old := s.cand(s.path.Addr)
	return old == nil || c.heard.After(old.heard) && now.Sub(old.heard) > 3*time.Second && now.Sub(s.heard) > 3*time.Second
}

// faster tells whether x is so much faster than the path in use that it should be that.
func (s *state) faster(x *measure, now time.Time) bool {
	old := s.rtt()
	if old == 0 {
		return false
	}
	if now.Sub(s.chose) > fickleFor {
		s.fickle = 0
	}
	better := old - x.rtt
	return better >= clearlyFaster<<s.fickle && better >= old/10<<s.fickle
}

// prefer makes p the path, which is faster than that in use.
func (m *Machine) prefer(s *state, p Path, now time.Time) {
	s.chose = now
	s.fickle = min(s.fickle+1, maxFickle)
	m.use(s, p, true, now)
}

// moved notes that the record of a node has other addresses, or that it was started anew.
func (m *Machine) moved(s *state, reboot bool, now time.Time) {
	s.relist()
	s.retryAt, s.patience = time.Time{}, 0
	if reboot {
		s.routes = slices.DeleteFunc(s.routes, func(r routed) bool { return r.path != s.path })
	}
	if !s.path.Valid() || !s.proven && !s.roamed && !s.path.Relayed() && s.cand(s.path.Addr) == nil {
		m.use(s, s.n.guess(), false, now)
	}
	c := s.cand(s.path.Addr)
	switch {
	case s.busy(now):
		m.begin(s, s.proven, now)
	case s.proven && (reboot || s.path.Relayed() || c == nil || !c.listed) && !s.linked && !s.alive(now):
		m.use(s, s.path, false, now) // whoever wants to reach it asks first
	}
}
