// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"fmt"
	"slices"
	"time"
)

// peer is what the machine knows of a peer.
type peer struct {
	id     uint64
	cand   Candidate
	path   Kind
	since  time.Time
	why    string
	active time.Time // when there was traffic last
	trials [Direct + 1]*trial
	life   life
	// doubted is since when the way was silent that has failed last: another one has to have answered since.
	doubted time.Time

	next  time.Time
	index int // in the queue; -1: it is not there
}

const byOrder = "as weft path says"

func (p *peer) busy(now time.Time) bool { return !p.active.IsZero() && now.Sub(p.active) < activeFor }

// adopt makes a way the one that is in use, on trust.
func (p *peer) adopt(k Kind) {
	p.path, p.since, p.why = k, time.Time{}, "found in place at the start"
	if t := p.trials[k]; t != nil && t.state != proven {
		t.state, t.last = trusted, time.Time{}
	}
}

// judge draws the conclusions from what was answered, or was not. It reports true when probes that are under way do not matter any more.
func (p *peer) judge(t *trial, now time.Time, asks bool) bool {
	switch t.state {
	case proving:
		return p.judgeAttempt(t, now)
	case trusted, proven:
		limit := silence
		if t.state == trusted {
			limit = silenceTrust
			if t.streaks() {
				t.prove(now)
				return false
			}
		}
		for i := range t.families {
			f := &t.families[i]
			since, hole, quiet := f.quiet(now, limit)
			if !quiet || asks && p.path == t.way.Kind && !p.alive(since, now) {
				continue
			}
			if p.path == t.way.Kind {
				p.doubted = since
			}
			t.fail(t.silent(f, since, hole), now)
			return true
		}
	}
	return false
}

func (p *peer) judgeAttempt(t *trial, now time.Time) bool {
	age := now.Sub(t.since)
	pending := slices.ContainsFunc(t.families, func(f family) bool { return len(f.full.pending) > 0 })
	switch {
	case t.clean && t.lost(now), t.clean && age >= cleanFor+lostAfter:
		t.fail(t.reason("probes are lost "), now)
		return true
	case t.clean && age >= cleanFor && !pending && t.streaks(), !t.clean && t.streaks():
		t.prove(now)
		return false
	case t.clean:
		return false
	}
	nothing := false
	for i := range t.families {
		nothing = nothing || t.families[i].full.heard.IsZero()
	}
	if age >= giveUp || age >= silence && nothing {
		t.fail(t.reason("too many probes are lost "), now)
		return true
	}
	return false
}

// reason says why an attempt was in vain: what does not arrive at all, or else that some does not.
func (t *trial) reason(some string) string {
	for i := range t.families {
		if f := &t.families[i]; f.full.heard.IsZero() {
			return t.silent(f, t.since, !f.small.heard.IsZero())
		}
	}
	return fmt.Sprintf("%sby %v", some, t.way)
}

// retryAt returns when a resting trial is tried again.
func (p *peer) retryAt(t *trial) time.Time {
	switch {
	case !t.retry.IsZero():
		return t.retry
	case p.active.Add(activeFor).After(t.since):
		return t.since.Add(againActive)
	}
	return t.since.Add(againIdle)
}

// allowed tells whether the user lets a kind be used.
func (p *peer) allowed(k Kind) bool {
	return k == UDP || !p.cand.Want.Forced || p.cand.Want.Kind == k
}

// sure tells whether traffic may go by a kind from now on: it is proven, no answer is overdue, and it has answered since another way failed.
func (p *peer) sure(k Kind, now time.Time) bool {
	t := p.trials[k]
	return t != nil && t.state == proven && !t.doubtful(now) && t.heardSince(p.doubted)
}

// choose returns the switch to another path, if there is to be one.
func (p *peer) choose(now time.Time) (Action, bool) {
	to := UDP
	for _, k := range kernelKinds() {
		if p.allowed(k) && (p.sure(k, now) || k == p.path && p.trials[k].usable()) {
			to = k
			break
		}
	}
	if to == p.path {
		return Action{}, false
	}
	from := p.path
	p.path, p.since, p.why = to, now, p.whySwitch(to)
	return Action{Kind: Switch, ID: p.id, Way: to, From: from, Why: p.why}, true
}

// whySwitch says why the path becomes another one. It is called while p.path is the old one.
func (p *peer) whySwitch(to Kind) string {
	t := p.trials[p.path]
	switch {
	case !p.allowed(p.path):
		if want := p.cand.Want.Kind; want != to {
			return byOrder + ": " + p.whyNot(want)
		}
		return byOrder
	case p.path != UDP && t == nil:
		if why := p.cand.Why[p.path]; why != "" {
			return why
		}
		return fmt.Sprintf("%v is not possible any more", p.path)
	case p.path != UDP && !t.usable():
		return t.why
	}
	t = p.trials[to]
	why := fmt.Sprintf("packets of %d bytes pass by %v", t.way.MTU, t.way)
	if p.cand.Want.Forced {
		return byOrder + ": " + why
	}
	return why
}

// explain says why the path is what it is.
func (p *peer) explain() string {
	want := p.cand.Want
	switch {
	case p.path != UDP:
		return p.why
	case want.Forced && want.Kind == UDP:
		return byOrder
	case want.Forced && p.trials[want.Kind] == nil:
		return byOrder + ": " + p.whyNot(want.Kind)
	case p.trials[Direct] == nil && p.trials[VXLAN] == nil:
		return p.cand.Why[VXLAN]
	case p.why != "":
		return p.why
	case p.trials[VXLAN] != nil:
		return p.whyNot(VXLAN)
	}
	return p.whyNot(Direct)
}

// whyNot says why a kind is not in use, "" if it could be.
func (p *peer) whyNot(k Kind) string {
	t := p.trials[k]
	switch {
	case k == UDP || t != nil && t.state == proven:
		return ""
	case t == nil:
		return p.cand.Why[k]
	case t.why == "":
		return fmt.Sprintf("%v is being proven", t.way)
	}
	return t.why
}

// ask says that a trial is to be probed.
type ask struct {
	peer   *peer
	trial  *trial
	small  bool // by small probes, too
	urgent bool // traffic depends on it
	gap    time.Duration
	rank   time.Time // the first goes first
}

// asks returns which trials are to be probed now.
func (p *peer) asks(now time.Time) (all []ask) {
	for _, t := range p.trials {
		if t == nil {
			continue
		}
		gap, ok := p.gap(t, now)
		if !ok || now.Sub(t.last) < gap {
			continue
		}
		a := ask{peer: p, trial: t, gap: gap, rank: t.last.Add(gap)}
		if t.state == resting {
			a.rank = p.retryAt(t)
		}
		if at, silent := t.first(); silent && now.Sub(at) >= smallAfter {
			a.small = true
		}
		// What traffic depends on goes first, then what goes on; what nobody waits for goes last, but everything has its turn.
		switch {
		case t.usable() && gap <= watchGap:
			a.urgent = true
		case t.state == proving:
		case p.busy(now):
			a.rank = a.rank.Add(time.Second)
		default:
			a.rank = a.rank.Add(5 * time.Second)
		}
		all = append(all, a)
	}
	return all
}

// gap returns how often a trial is probed now; false: not.
func (p *peer) gap(t *trial, now time.Time) (time.Duration, bool) {
	inUse := p.path == t.way.Kind
	switch t.state {
	case resting:
		return 0, !p.retryAt(t).After(now)
	case proving:
		if !t.clean {
			return proveGap, true
		}
		return cleanGap, now.Sub(t.since) < cleanFor
	case trusted:
		return doubtGap, true
	case proven:
		used := p.trials[p.path]
		switch {
		case t.doubtful(now), used.usable() && used.doubtful(now), !t.heardSince(p.doubted):
			return doubtGap, true
		case inUse && p.busy(now):
			return watchGap, true
		case inUse || p.busy(now):
			return idleGap, true
		}
		return restGap, true
	}
	return 0, false
}

// wakeAt returns when to look at a peer again. starved is when there may be probes to spare, if there were none.
func (p *peer) wakeAt(now, starved time.Time) time.Time {
	var next time.Time
	at := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	later := func(t time.Time) { // of what is past nothing is expected any more
		if t.After(now) {
			at(t)
		}
	}
	if len(p.life.pending) > 0 {
		at(p.life.asked.Add(doubtGap))
	}
	if !p.life.since.IsZero() {
		later(p.life.since.Add(aliveFor))
	}
	for _, t := range p.trials {
		if t == nil {
			continue
		}
		if gap, ok := p.gap(t, now); ok {
			if due := t.last.Add(gap); due.After(now) {
				at(due)
			} else {
				at(starved)
			}
		}
		first, silent := t.first()
		switch t.state {
		case resting:
			later(p.retryAt(t))
		case proving:
			for _, d := range []time.Duration{silence, giveUp, cleanFor, cleanFor + lostAfter} {
				later(t.since.Add(d))
			}
			if silent {
				later(first.Add(lostAfter))
			}
		case trusted, proven:
			if silent {
				for _, d := range []time.Duration{doubtAfter, silence, silenceTrust} {
					later(first.Add(d))
				}
			}
		}
	}
	if next.IsZero() {
		return now.Add(restGap)
	}
	return next
}
