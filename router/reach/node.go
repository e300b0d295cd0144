// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"
)

const (
	// maxSeen is how many addresses are asked, besides those of the record, from where a node has been heard, or which it has named itself.
	maxSeen = 8
	// A path takes the place of one of the same kind if it is faster by a tenth and by clearlyFaster; twice that for each time that this has happened within
	// fickleFor, maxFickle times at most.
	clearlyFaster = 2 * time.Millisecond
	fickleFor     = time.Hour
	maxFickle     = 3
	// doubtAfter is after how long without an answer another path that answers is taken, if the answer is not known to take longer.
	doubtAfter = 300 * time.Millisecond
	// reaskAfter is how soon the same address is asked again because something came from there.
	reaskAfter = 200 * time.Millisecond
	// provenFor is how long after an answer an address is not asked again because something came from there.
	provenFor = 30 * time.Second
	// aliveFor is how long a neighbour is taken for alive after a sign of it. Those that have a link to us ping within less than half of that.
	aliveFor = 12 * time.Second
	// verifyGap is how long after an answer the path in use is believed to lead to the node, whatever speaks against it.
	verifyGap = hearWithin / 2
	// perhapsGap is how soon nodes are tried as links again, when one answers that does not know us yet.
	perhapsGap = time.Second
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

// listed returns the addresses of the record that are asked.
func (n *node) listed() []netip.AddrPort { return n.candidates[:min(len(n.candidates), MaxCandidates)] }

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
	due   moment // of the next step; zero: none
	index int32  // in the queue; -1: not in it

	proven   bool  // a pong came back over the path
	roamed   bool  // not proven, but something authentic came over it
	fickle   uint8 // how often the path was left for a faster one, lately
	linked   bool
	round    uint8 // of measuring its paths: how many are done
	patience uint8 // seconds from the last examination in vain to the next

	path  Path
	since moment // that it is the path; zero: a guess that nothing has come of
	heard moment // last pong over it, or anything else that is authentic
	asked moment // last ping over it
	doubt moment // first ping over it that is not answered; zero: none

	attended moment // until then it is in use
	compared moment // when its paths were last measured, or began to be
	retryAt  moment // when to examine it again, if it is in use; zero: as soon as there is a reason
	chose    moment

	cands    []cand // the first of them, as many as the record has, are those of the record
	routes   []routed
	exam     *exam // nil: none going on
	examined moment
	punch    *punch // nil: never

	link link // if linked
}

// measure is what is known of a path by asking.
type measure struct {
	rtt      micros // 0: never answered
	least    micros // of the answers since its paths began to be measured; 0: there was none
	answered moment // last
	asked    moment // last
	silent   moment // since when it is asked in vain; zero: not
}

// micros is a time in microseconds.
type micros uint32

func (x micros) duration() time.Duration { return time.Duration(x) * time.Microsecond }

func (x *measure) ask(now moment) {
	x.asked = now
	if x.silent.IsZero() {
		x.silent = now
	}
}

func (x *measure) answer(rtt time.Duration, now moment) {
	took := micros(min(max(rtt, time.Microsecond), answerWithin) / time.Microsecond)
	if x.rtt == 0 || took < x.rtt {
		x.rtt = took
	} else {
		x.rtt += (took - x.rtt) / 16
	}
	if x.least == 0 || took < x.least {
		x.least = took
	}
	x.answered, x.silent = now, 0
}

// cand is an address where the node may be.
type cand struct {
	measure
	addr  netip.AddrPort
	heard moment // something came from there
}

// last returns when there was a sign from there last.
func (c *cand) last() moment { return later(c.heard, c.answered) }

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
		n.state.relist(0)
	}
	return n.state
}

// relist makes the candidates those of the record, and those which were seen; before is how many of those until now were of the record.
func (s *state) relist(before int) {
	listed := s.n.listed()
	next := make([]cand, 0, len(listed)+2)
	for _, a := range listed {
		c := cand{addr: a}
		if old := s.cand(a); old != nil {
			c = *old
		}
		next = append(next, c)
	}
	for i, c := range s.cands {
		if !slices.Contains(listed, c.addr) && (i >= before || s.path == Direct(c.addr)) {
			next = append(next, c)
		}
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
func (s *state) see(a netip.AddrPort) *cand {
	if c := s.cand(a); c != nil {
		return c
	}
	if len(s.cands) >= MaxCandidates+maxSeen { // that which was heard least lately goes
		oldest := -1
		for i := len(s.n.listed()); i < len(s.cands); i++ {
			if s.path != Direct(s.cands[i].addr) && (oldest < 0 || s.cands[i].last() < s.cands[oldest].last()) {
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
		return x.rtt.duration()
	}
	return 0
}

// direct tells that the path is direct and proven.
func (s *state) direct() bool { return s.proven && !s.path.Relayed() }

// alive tells that the path is direct and proven, and that there was a sign of life lately.
func (s *state) alive(now moment) bool {
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
func (s *state) busy(now moment) bool { return now.Before(s.attended) }

// doubtful tells that the path does not answer as it should.
func (s *state) doubtful(now moment) bool {
	return !s.doubt.IsZero() && now.Sub(s.doubt) >= max(doubtAfter, 2*s.rtt())
}

// wake makes the next step one at that time, at the latest.
func (m *Machine) wake(s *state, at moment) {
	switch {
	case s.index < 0:
		s.due = at
		heap.Push(&m.due, s)
	case at.Before(s.due):
		s.due = at
		heap.Fix(&m.due, int(s.index))
	}
}

// step does what is due for a state, the first in the queue.
func (m *Machine) step(s *state, now moment) {
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
func (m *Machine) use(s *state, p Path, proven bool, now moment) {
	if s.path == p && s.proven == proven {
		return
	}
	from, neighbour := s.path, s.direct()
	if from != p {
		s.since, s.doubt, s.asked = now, 0, 0
	} else if s.since.IsZero() {
		s.since = now // the first one: that it is a path was a guess until now
	}
	s.path, s.proven, s.roamed = p, proven, false
	if proven {
		s.heard, s.doubt = now, 0
	}
	if neighbour && !s.direct() {
		m.unlink(s, now)
		m.cut(s.n.id, now)
	}
	m.out = append(m.out, Action{Kind: Changed, To: s.n.id, From: from, Path: p, Proven: proven, Why: s.why(now)})
	m.wake(s, now)
}

// askPath pings the path in use.
func (m *Machine) askPath(s *state, now moment) {
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
		m.askDirect(s, s.see(s.path.Addr), now)
	}
}

func (m *Machine) askDirect(s *state, c *cand, now moment) {
	c.ask(now)
	m.ask(s.n.id, Direct(c.addr), edge{}, now)
}

func (m *Machine) askRoute(s *state, p Path, now moment) {
	s.route(p).ask(now)
	m.ask(s.n.id, p, edge{}, now)
}

// moved notes that the record of a node has other addresses, or that it was started anew.
func (m *Machine) moved(s *state, before int, reboot bool, now moment) {
	s.relist(before)
	s.retryAt, s.patience = 0, 0
	if reboot {
		s.routes = slices.DeleteFunc(s.routes, func(r routed) bool { return r.path != s.path })
	}
	if !s.path.Valid() || !s.proven && !s.roamed && !s.path.Relayed() && s.cand(s.path.Addr) == nil {
		m.use(s, s.n.guess(), false, now)
	}
	if s.linked && !slices.Contains(s.n.listed(), s.path.Addr) && m.verify(s, 0, now) {
		s.link.again(now)
		m.askAll(s, now, now)
	}
	switch {
	case s.busy(now):
		m.begin(s, s.proven, now)
	case s.proven && (reboot || s.path.Relayed() || !slices.Contains(s.n.listed(), s.path.Addr)) && !s.linked && !s.alive(now):
		m.use(s, s.path, false, now) // whoever wants to reach it asks first
	}
}
