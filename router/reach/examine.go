// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"net/netip"
	"slices"
	"time"
)

// When addresses and routes are asked in an examination, and addresses after a punch.
const (
	directRounds = 4
	routeRounds  = 4
	punchRounds  = 5

	// routesAfter is how long the direct way has before routes are looked for.
	routesAfter = 300 * time.Millisecond
	// examineAtLeast is how long an examination goes on when nothing answers.
	examineAtLeast = 1700 * time.Millisecond
	// judgeAfter is how long routes have to answer, and longer if the first relay is known to be far away, up to answerWithin.
	judgeAfter = 1200 * time.Millisecond
	// punchGap is how often a node is asked to ping us, and repunch when that is repeated once as it may have been lost.
	punchGap = 4 * time.Second
	repunch  = 200 * time.Millisecond
	// punchedGap is how soon we are ready for the next punch by the same node.
	punchedGap = 500 * time.Millisecond
)

func directRound(i int) time.Duration {
	return [directRounds]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond}[i]
}

func routeRound(i int) time.Duration {
	return [routeRounds]time.Duration{0, 150 * time.Millisecond, 400 * time.Millisecond, 700 * time.Millisecond}[i]
}

func punchRound(i int) time.Duration {
	return [punchRounds]time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}[i]
}

// exam is an examination: the search for a path to one node.
type exam struct {
	start  moment
	racing bool // routes are asked at once
	round  int  // of asking addresses: how many are done

	routes  []Path
	batch   moment // when these routes were first asked; zero: none
	asked   int    // how often
	judgeAt moment
	barren  bool // there are no more
}

// punch is pinging at the same time as the other side.
type punch struct {
	start moment // zero: not going on
	round int    // how many are done
	sent  moment // last request to the other side
	again Path   // by which the request is repeated; not valid: it is not
}

// begin begins an examination, unless one goes on.
func (m *Machine) begin(s *state, racing bool, now moment) {
	if s.exam == nil {
		s.exam = &exam{start: now, racing: racing}
		s.examined = now
	}
	m.wake(s, now)
}

// beginAfter begins an examination in which routes are asked at once, in place of one that was begun before the given time: that knows nothing of what
// has happened then.
func (m *Machine) beginAfter(s *state, since, now moment) {
	if s.examined.Before(since) {
		s.exam = nil
		m.begin(s, true, now)
	}
}

// examineOn does what is due for an examination and returns when to look again; zero: none goes on.
func (m *Machine) examineOn(s *state, now moment) moment {
	e := s.exam
	if e == nil {
		return 0
	}
	var next moment
	if e.round < directRounds && !now.Before(e.start.Add(directRound(e.round))) {
		m.askAll(s, e.start, now)
		e.round++
	}
	if e.round < directRounds {
		next = e.start.Add(directRound(e.round))
	}
	if !s.direct() || !s.doubt.IsZero() {
		next = sooner(next, m.examineRoutes(s, e, now))
	}
	end := e.start.Add(examineAtLeast)
	waiting := !e.batch.IsZero() && !s.proven // for routes
	if now.Before(end) {
		return sooner(next, end)
	}
	if waiting && !e.barren {
		return next
	}
	m.finish(s, now)
	return now
}

// askAll pings all addresses of a node that have not answered since then.
func (m *Machine) askAll(s *state, since, now moment) {
	for i := range s.cands {
		if c := &s.cands[i]; c.answered.Before(since) {
			m.askDirect(s, c, now)
		}
	}
}

// examineRoutes does what is due for the routes of an examination and returns when to look again; zero: not.
func (m *Machine) examineRoutes(s *state, e *exam, now moment) moment {
	if begin := e.start.Add(routesAfter); !e.racing && now.Before(begin) {
		return begin
	}
	if e.barren {
		return 0
	}
	if e.batch.IsZero() {
		e.routes = m.routesTo(s.n, s.failing(m.self), now)
		if len(e.routes) == 0 {
			e.barren = true
			return 0
		}
		e.batch, e.asked = now, 0
		wait := judgeAfter
		for _, p := range e.routes {
			if x := m.nodes[p.Relays[0]].state; x != nil {
				wait = max(wait, judgeAfter+time.Duration(p.N+1)*2*x.rtt())
			}
		}
		e.judgeAt = now.Add(min(wait, answerWithin))
	}
	if e.asked < routeRounds && !now.Before(e.batch.Add(routeRound(e.asked))) {
		for _, p := range e.routes {
			if s.route(p).answered.Before(e.batch) {
				m.askRoute(s, p, now)
				if e.asked > 0 {
					m.askHops(p, s.n.id, now)
				}
			}
		}
		e.asked++
	}
	next := e.judgeAt
	if e.asked < routeRounds {
		next = sooner(next, e.batch.Add(routeRound(e.asked)))
	}
	if now.Before(e.judgeAt) {
		return next
	}
	for _, p := range e.routes {
		if s.route(p).answered.Before(e.batch) {
			m.blame(p, s.n.id, e.batch, now)
		}
	}
	if s.proven {
		e.barren = true
		return 0
	}
	e.batch = 0
	return now
}

// failing returns the links of a path that is doubted, which are to be avoided.
func (s *state) failing(self uint64) []edge {
	if s.doubt.IsZero() {
		return nil
	}
	return edgesOf(self, s.path, s.n.id)
}

// finish ends an examination.
func (m *Machine) finish(s *state, now moment) {
	s.exam = nil
	switch {
	case s.direct():
		s.retryAt = 0
	case s.proven:
		s.retryAt = now.Add(m.about(s.waits(directFirst, directMost)))
	default:
		s.retryAt = now.Add(m.about(s.waits(nothingFirst, nothingMost)))
		m.despair(s, now)
	}
	m.wake(s, now)
}

// waits returns how long to wait after an examination in vain: twice as long as before, within the bounds.
func (s *state) waits(first, most time.Duration) time.Duration {
	d := min(max(2*time.Duration(s.patience)*time.Second, first), most)
	s.patience = uint8(d / time.Second)
	return d
}

// despair makes something direct the path on trust: a relay would carry it in vain.
func (m *Machine) despair(s *state, now moment) {
	from := s.path
	if s.path.Relayed() && !s.roamed {
		s.path, s.since = s.n.guess(), now
	}
	m.out = append(m.out, Action{Kind: Changed, To: s.n.id, From: from, Path: s.path, Lost: true, Why: s.why(now)})
}

// hope looks at once for routes to those nodes in use to which there is no path: others have links that they had not, or we have.
func (m *Machine) hope(now moment) {
	for _, s := range slices.Clone(m.due) {
		if s.proven {
			continue
		}
		if s.exam != nil {
			s.exam.barren = false
		} else if s.busy(now) {
			s.retryAt = sooner(s.retryAt, now.Add(routeRound(1)))
		}
		m.wake(s, now)
	}
}

// askPunch asks a node, by the path given, to ping us, and begins to ping it.
func (m *Machine) askPunch(s *state, by Path, now moment) {
	if s.punch != nil && now.Sub(s.punch.sent) < punchGap {
		return
	}
	s.punch = &punch{start: now, sent: now, again: by}
	m.sendPunch(s, by)
	m.wake(s, now)
}

func (m *Machine) sendPunch(s *state, by Path) {
	seen, _ := m.observed.list()
	m.out = append(m.out, Action{Kind: Punch, To: s.n.id, Path: by, Echo: m.nextEcho(), Candidates: seen})
}

// punched is Punched.
func (m *Machine) punched(s *state, candidates []netip.AddrPort, now moment) {
	if s.direct() && s.doubt.IsZero() && s.alive(now) {
		return
	}
	if s.punch == nil {
		s.punch = &punch{}
	}
	if now.Sub(s.punch.start) < punchedGap || !m.punches.take(now) {
		return
	}
	for _, a := range candidates[:min(len(candidates), MaxCandidates)] {
		if a.IsValid() {
			s.see(a)
		}
	}
	s.punch.start, s.punch.round = now, 0
	m.wake(s, now)
}

// punchOn does what is due after a punch and returns when to look again; zero: nothing goes on.
func (m *Machine) punchOn(s *state, now moment) moment {
	u := s.punch
	if u == nil || u.start.IsZero() {
		return 0
	}
	if s.direct() && s.heard.After(u.start) {
		u.start, u.again = 0, Path{}
		return 0
	}
	var next moment
	if u.again.Valid() {
		if next = u.sent.Add(repunch); !now.Before(next) {
			m.sendPunch(s, u.again)
			u.again, next = Path{}, 0
		}
	}
	if u.round < punchRounds && !now.Before(u.start.Add(punchRound(u.round))) {
		m.askAll(s, u.start, now)
		u.round++
	}
	if u.round < punchRounds {
		return sooner(next, u.start.Add(punchRound(u.round)))
	}
	if next.IsZero() {
		u.start = 0
	}
	return next
}
