// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/ipam/ring"
)

// survey is how the heir learns what the others know, before it takes over (see ledger.due). Whoever answers knows of the
// same retirements, and records nothing more for those who know of fewer: so all that a retired node has granted with
// effect is known to somebody who answers.
type survey struct {
	length  int // of the log, for which it is made
	began   time.Time
	answers map[ring.Owner]ring.Set
	sent    asked
}

// heritage returns what this node may take over now: nothing before a majority has answered, and whoever is retired,
// concerned and answers all the same, for it has to know first. After a forced retirement, for which there may be no
// majority, it is all who answer.
func (a *Allocator) heritage(l *ledger, v view) ring.Set {
	s := a.survey
	log := l.ring.Log()
	if s == nil || s.length != len(log) || len(a.ghosts(l, v)) > 0 {
		return nil
	}
	all := !slices.ContainsFunc(v.alive, s.lacks)
	if !l.majority(s.known(l)) && (!log[len(log)-1].Forced || !all || a.cfg.Now().Sub(s.began) < silence) {
		return nil
	}
	take, _ := l.due(s.answers)
	if !all {
		// Whoever has the name of a seeded share may be adopting it before it hears that it is too late.
		take = take.Subtract(l.ring.Where(func(x ring.Register) bool { return x.Owner&seedBit != 0 }))
	}
	return take
}

// ghosts returns the retired nodes whose slots are to be taken over, and which answer, as far as they have not said that they
// know. They are waited for, but not for ever.
func (a *Allocator) ghosts(l *ledger, v view) []ring.Owner {
	if len(v.undead) == 0 || a.survey == nil || a.cfg.Now().Sub(a.survey.began) >= 4*silence {
		return nil
	}
	concerned := l.ring.Only(l.estate()).Owners()
	return slices.DeleteFunc(slices.Clone(v.undead), func(o ring.Owner) bool { return !contains(concerned, o) || !a.survey.lacks(o) })
}

// lacks reports whether a node has not answered.
func (s *survey) lacks(o ring.Owner) bool {
	_, ok := s.answers[o]
	return !ok
}

// known returns the slots of those who have answered, and of this node.
func (s *survey) known(l *ledger) ring.Set {
	known := l.spoken()
	for _, slots := range s.answers {
		known = known.Union(slots)
	}
	return known
}

// inherit takes over what may be taken over.
func (a *Allocator) inherit(x *edit, v view) {
	take := a.heritage(x.ledger, v)
	if len(take) == 0 {
		return
	}
	if err := x.takeOver(take); err != nil {
		a.log.Error("the addresses of nodes that are gone cannot be taken over", zap.Error(err))
		return
	}
	x.delta = x.delta.Union(take)
	a.note(x, News{Kind: TookOver, Slots: take.Len()})
	x.after(func() {
		a.log.Info("took over the addresses of nodes that are gone", zap.Uint64("addresses", take.Len()))
	})
}

// onSurvey takes in what the heir knows, and says what this node knows.
func (a *Allocator) onSurvey(x *edit, from ring.Owner, m *message) {
	a.learn(x, m.ring)
	x.send(from, &message{kind: kindSurveyed, ring: x.ring, slots: x.spoken()})
}

// onSurveyed takes in an answer. It counts if it was given with the log of the question.
func (a *Allocator) onSurveyed(x *edit, from ring.Owner, m *message) {
	a.learn(x, m.ring)
	x.after(func() {
		if s := a.survey; s != nil && len(m.ring.Log()) == s.length {
			s.answers[from] = m.slots
		}
		a.heirSaid.heir, a.heirSaid.length = from, len(m.ring.Log())
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

// inquire makes the survey that this node needs as the heir: it asks those first without whom some slots cannot be taken
// over, then the richest, until a majority has answered.
func (a *Allocator) inquire(now time.Time, v view) {
	l := a.ledger
	log := l.ring.Log()
	if s := a.survey; s != nil && s.length == len(log) && l.majority(s.known(l)) {
		a.surveyed = len(log)
	}
	// Once at least, for there may be more to take over than this node has heard of.
	if len(log) == 0 || log[len(log)-1].Heir != a.cfg.Self || len(l.estate()) == 0 && a.surveyed == len(log) {
		a.survey = nil
		return
	}
	if a.survey == nil || a.survey.length != len(log) {
		a.survey = &survey{length: len(log), began: now, answers: make(map[ring.Owner]ring.Set), sent: make(asked)}
	}
	s := a.survey
	_, list := l.due(s.answers)
	list = append(slices.DeleteFunc(list, func(o ring.Owner) bool { return !v.has(o) }), a.ghosts(l, v)...)
	seeded := slices.ContainsFunc(l.ring.Only(l.estate()).Owners(), func(o ring.Owner) bool { return o&seedBit != 0 })
	if !l.majority(s.known(l)) || seeded || log[len(log)-1].Forced {
		list = append(list, a.richest(v)...)
		list = append(list, v.alive...) // those, too, who own nothing may speak for something
	}
	s.sent.ask(list, s.answers, now, func() *message { return &message{kind: kindSurvey, ring: l.ring} }, &a.out)
}
