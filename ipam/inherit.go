// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/ipam/ring"
)

// survey is how the heir of a retired node learns what a majority knows, before it takes over. Whoever answers knows of
// the retirement, and from then on records nothing more for the retired node: so all that it granted with effect is known
// to somebody who answers.
type survey struct {
	length  int // of the log that those who answer know
	began   time.Time
	answers map[ring.Owner]ring.Set
	sent    map[ring.Owner]time.Time
}

// legacyOf returns the estate that this node is to see to. a.mu must be held.
func (a *Allocator) legacyOf(l *ledger) *estate {
	if a.legacy.ledger != l {
		a.legacy.ledger, a.legacy.estate = l, l.estate()
	}
	return a.legacy.estate
}

// inherits reports whether there is an estate, and all is known that has to be.
func (a *Allocator) inherits(l *ledger, v view) bool {
	e := a.legacyOf(l)
	if a.surveyed >= len(l.ring.Log()) {
		return !e.empty()
	}
	return a.surveyComplete(l, e, v)
}

// surveyComplete reports whether enough have answered: a majority, and whoever is retired and answers all the same, for it
// has to know first. After a forced retirement, for which there is no majority, all who answer at all.
func (a *Allocator) surveyComplete(l *ledger, e *estate, v view) bool {
	s := a.survey
	if s == nil || s.length < len(l.ring.Log()) {
		return false
	}
	for _, o := range v.undead {
		if _, ok := s.answers[o]; !ok {
			return false
		}
	}
	known := l.spoken()
	all := a.cfg.Now().Sub(s.began) >= silence
	for _, o := range v.alive {
		slots, ok := s.answers[o]
		known = known.Union(slots)
		all = all && ok
	}
	for _, slots := range s.answers {
		known = known.Union(slots)
	}
	return l.majority(known) || e.forced && all
}

// inherit sees to the estate, if all is known that has to be.
func (a *Allocator) inherit(x *edit, v view) {
	e := x.estate()
	if a.surveyed < len(x.ring.Log()) && !a.surveyComplete(x.ledger, e, v) {
		return
	}
	length := len(x.ring.Log())
	got, err := x.ledger.inherit(e)
	if err != nil {
		a.log.Error("the addresses of nodes that are gone cannot be taken over", zap.Error(err))
		return
	}
	x.delta = x.delta.Union(got)
	x.after(func() {
		a.surveyed, a.survey = length, nil
		if n := got.Len(); n > 0 {
			a.log.Info("took over the addresses of nodes that are gone", zap.Uint64("addresses", n))
		}
	})
}

// onSurvey takes in what an heir knows, and says what this node knows.
func (a *Allocator) onSurvey(x *edit, from ring.Owner, m *message) {
	a.learn(x, m.ring)
	x.send(from, &message{kind: kindSurveyed, ring: x.ring, slots: x.spoken()})
}

// onSurveyed takes in an answer.
func (a *Allocator) onSurveyed(x *edit, from ring.Owner, m *message) {
	a.learn(x, m.ring)
	x.after(func() {
		if s := a.survey; s != nil && len(m.ring.Log()) >= s.length {
			s.answers[from] = s.answers[from].Union(m.slots)
		}
	})
}

// reclaim does what is due about retirements, and returns when there is more to do, 0 if nothing is open. a.mu must be
// held.
func (a *Allocator) reclaim(now time.Time, v view) time.Duration {
	a.miss(now, v)
	a.canvass(now, v)
	a.inquire(now, v)
	switch votes := a.ledger.ring.Votes(); {
	case a.proposal != nil, a.survey != nil, len(a.wants) > 0:
		return patience
	case votes.Accepted != (ring.Ballot{}):
		return retry
	}
	for o := range a.absent {
		if a.cfg.ReclaimAfter > 0 || v.lacks(o) {
			return retry
		}
	}
	return 0
}

// inquire makes the survey that this node needs as an heir.
func (a *Allocator) inquire(now time.Time, v view) {
	l := a.ledger
	length := len(l.ring.Log())
	if length <= a.surveyed || a.ceded <= a.surveyed && a.legacyOf(l).empty() {
		a.survey = nil
		return
	}
	if a.survey == nil || a.survey.length < length {
		a.survey = &survey{length: length, began: now, answers: make(map[ring.Owner]ring.Set), sent: make(map[ring.Owner]time.Time)}
	}
	s := a.survey
	var m *message
	for _, list := range [][]ring.Owner{v.alive, v.undead} {
		for _, o := range list {
			if _, ok := s.answers[o]; ok && now.Sub(s.sent[o]) < abstain || now.Sub(s.sent[o]) < retry {
				continue
			}
			if m == nil {
				m = &message{kind: kindSurvey, ring: l.ring}
			}
			a.send(o, m)
			s.sent[o] = now
		}
	}
}
