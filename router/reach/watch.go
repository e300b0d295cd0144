// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"time"
)

const (
	// usedFor is how long a node is watched after it was used, and examineFor after somebody could not reach it.
	usedFor    = 10 * time.Second
	examineFor = 3 * time.Second
	// hearWithin is after how long without a sign a direct path in use is asked, and relayGap how often one through relays is.
	hearWithin = time.Second
	relayGap   = 500 * time.Millisecond
	// askGap is how often a path is asked that does not answer, and askOften if something comes by it nevertheless.
	askGap, askOften = 250 * time.Millisecond, 140 * time.Millisecond
	// raceAfter is after how long without an answer the search for another path begins, and deadAfter when the path is given up. If the
	// answer is known to take long, it is after two or three times that.
	raceAfter = 400 * time.Millisecond
	deadAfter = time.Second
	// compareGap is how often all paths to a node in use are measured: by compareRounds pings, so far apart, of which the fastest answer counts; and compareLast
	// is how long the last one has for its answer.
	compareGap    = 30 * time.Second
	compareRounds = 5
	compareApart  = 60 * time.Millisecond
	compareLast   = 500 * time.Millisecond
	// staleAfter is after how long without use a path is asked before it is believed again.
	staleAfter = 20 * time.Second
	// Retries of the direct way while there is only a way through relays, and of all while there is none, are so far apart.
	directFirst, directMost = 5 * time.Second, time.Minute
	nothingFirst            = time.Second
	nothingMost             = 30 * time.Second
)

// attend notes that a node is in use for that long.
func (m *Machine) attend(s *state, d time.Duration, now moment) {
	fresh := !s.busy(now)
	if until := now.Add(d); until.After(s.attended) {
		s.attended = until
	}
	if !fresh {
		return
	}
	s.compared, s.round = now, 0
	doubted := !s.doubt.IsZero() // and nobody has waited for the answer
	s.doubt = 0
	switch {
	case !s.proven && !s.roamed:
		s.retryAt = 0
		if s.exam == nil {
			m.begin(s, false, now)
		}
	case doubted, now.Sub(s.heard) > staleAfter:
		m.askPath(s, now)
	default:
		s.heard = later(s.heard, now.Add(-hearWithin/2)) // it has had no reason to say anything
	}
	m.wake(s, now)
}

// watch does what is due for the path of a node in use, and returns when to look again; zero: not.
func (m *Machine) watch(s *state, now moment) moment {
	if !s.busy(now) {
		if s.roamed && !s.proven { // asked, but nobody waits for the answer
			s.roamed = false
		}
		return 0
	}
	if !s.proven && !s.roamed {
		if s.exam != nil {
			return 0
		}
		if now.Before(s.retryAt) {
			return sooner(s.retryAt, m.knock(s, now))
		}
		m.begin(s, false, now)
		return now
	}
	next := m.watchPath(s, now)
	if s.path.Relayed() && s.exam == nil {
		if !now.Before(s.retryAt) {
			m.begin(s, true, now)
			return now
		}
		next = sooner(next, s.retryAt)
	}
	if s.exam != nil {
		return next
	}
	return sooner(next, m.compare(s, now))
}

// watchPath asks the path in use when that is due, and gives it up when it has not answered for too long.
func (m *Machine) watchPath(s *state, now moment) moment {
	rtt := s.rtt()
	if s.doubt.IsZero() {
		next := s.heard.Add(hearWithin)
		if s.path.Relayed() {
			next = later(s.asked, s.since).Add(relayGap)
		}
		if now.Before(next) {
			return next
		}
		m.askPath(s, now)
	}
	dead, race := s.doubt.Add(max(deadAfter, 3*rtt)), s.doubt.Add(max(raceAfter, 2*rtt))
	if !now.Before(dead) {
		m.lose(s, now)
		return now
	}
	if !now.Before(race) {
		race = 0
		m.beginAfter(s, s.doubt, now)
	}
	gap := askGap
	if s.heard.After(s.doubt) { // something comes: that only the answers are lost is to be certain
		gap = askOften
	}
	again := s.asked.Add(max(gap, 3*rtt/2))
	if !now.Before(again) {
		m.askPath(s, now)
		again = s.asked.Add(gap)
	}
	return sooner(sooner(dead, race), again)
}

// lose gives the path in use up, for the best that has answered since it was doubted, or else for what seems likely.
func (m *Machine) lose(s *state, now moment) {
	lost := s.path
	since := s.doubt
	if since.IsZero() {
		since = now.Add(-deadAfter)
	}
	if !lost.Relayed() && now.Sub(s.since) > directMost {
		s.patience = 0 // it was good for a while
	}
	s.doubt = 0
	next, ok := s.answering(lost, since)
	if !ok {
		next = m.likely(s, lost, now)
	}
	m.use(s, next, ok, now)
	s.retryAt = 0
	if !ok || next.Relayed() {
		m.beginAfter(s, since, now)
	}
}

// answering returns the best path but lost that has answered since the given time: direct if there is one.
func (s *state) answering(lost Path, since moment) (best Path, ok bool) {
	var rtt time.Duration
	for _, c := range s.cands {
		if p := Direct(c.addr); p != lost && c.answered.After(since) && (!ok || c.rtt.duration() < rtt) {
			best, rtt, ok = p, c.rtt.duration(), true
		}
	}
	if ok {
		return best, true
	}
	for _, r := range s.routes {
		if r.path != lost && r.answered.After(since) && (!ok || r.rtt.duration() < rtt) {
			best, rtt, ok = r.path, r.rtt.duration(), true
		}
	}
	return best, ok
}

// likely returns a path to use on trust now that lost does not answer: a route, if the direct way does not answer, or that if it is not known not to.
func (m *Machine) likely(s *state, lost Path, now moment) Path {
	var silent *cand
	for i := range s.cands {
		c := &s.cands[i]
		if Direct(c.addr) == lost {
			continue
		}
		if c.silent.IsZero() && c.rtt > 0 {
			return Direct(c.addr)
		}
		if silent == nil {
			silent = c
		}
	}
	for _, p := range m.routesTo(s.n, edgesOf(m.self, lost, s.n.id), now) {
		if p != lost {
			return p
		}
	}
	switch {
	case !lost.Relayed():
		return lost
	case silent != nil:
		return Direct(silent.addr)
	}
	return s.n.guess()
}

// compare measures all paths to a node in use of the kind that is in use, when that is due, and takes the fastest. It returns when to look again.
func (m *Machine) compare(s *state, now moment) moment {
	switch start := s.compared.Add(compareGap); {
	case s.round == 0 && now.Before(start):
		return start
	case s.round == 0:
		s.compared = now
		for i := range s.cands {
			s.cands[i].least = 0
		}
		for i := range s.routes {
			s.routes[i].least = 0
		}
		if len(s.cands) == 1 && !s.path.Relayed() {
			m.verify(s, verifyGap, now) // that something comes from there does not tell that anything arrives there
			return now.Add(compareGap)
		}
	}
	if at := s.compared.Add(time.Duration(s.round) * compareApart); s.round < compareRounds && now.Before(at) {
		return at
	}
	if s.round < compareRounds {
		m.measureAll(s, now)
		s.round++
		return s.compared.Add(time.Duration(s.round) * compareApart)
	}
	if end := s.compared.Add(compareRounds*compareApart + compareLast); now.Before(end) {
		return end
	}
	s.round = 0
	m.takeFastest(s, now)
	return s.compared.Add(compareGap)
}

// measureAll pings by all paths of the kind that is in use.
func (m *Machine) measureAll(s *state, now moment) {
	if s.round == 0 && s.doubt.IsZero() {
		m.askPath(s, now)
	} else {
		m.ask(s.n.id, s.path, edge{}, now)
	}
	if !s.path.Relayed() {
		for i := range s.cands {
			if c := &s.cands[i]; Direct(c.addr) != s.path {
				m.askDirect(s, c, now)
			}
		}
		return
	}
	for _, p := range m.routesTo(s.n, nil, now) {
		if p != s.path {
			m.askRoute(s, p, now)
		}
	}
}

// takeFastest believes what was measured, and makes the fastest path the one in use if it is clearly faster.
func (m *Machine) takeFastest(s *state, now moment) {
	var best *measure
	var by Path
	look := func(x *measure, p Path) {
		if x.least == 0 {
			return
		}
		x.rtt = x.least
		if p != s.path && (best == nil || x.rtt < best.rtt) {
			best, by = x, p
		}
	}
	if s.path.Relayed() {
		for i := range s.routes {
			look(&s.routes[i].measure, s.routes[i].path)
		}
	} else {
		for i := range s.cands {
			look(&s.cands[i].measure, Direct(s.cands[i].addr))
		}
	}
	if best != nil && s.proven && s.faster(best, now) {
		m.prefer(s, by, now)
	}
}
