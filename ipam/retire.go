// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/ipam/ring"
)

// The proposer's side of single-decree Paxos, for the next entry of the log of retirements. Votes are counted in slots:
// an answer counts with the slots that its sender speaks for. What is not here is that the state of the vote is part of the
// ring, is merged along with it, and thus moves with the slots: see ring.Votes.

const (
	farewellTime = 5 * time.Second // after a node left, before what it still has is taken over without being told
	finishAfter  = 3 * time.Second // before another node's proposal is finished
	rankDelay    = time.Second     // between the nodes that want to do so
)

// missed is since when a node does not answer, or has left.
type missed struct {
	since time.Time
	left  bool
}

// want is a retirement that is wanted.
type want struct {
	dead  ring.Owner
	sure  bool // although it answers
	force bool
	since time.Time
}

// proposal is a proposal of this node's that is not decided.
type proposal struct {
	index    int // of the log's entry
	ballot   ring.Ballot
	dead     ring.Owner // whose retirement is wanted; what is proposed may be another one's, which was proposed before
	promised map[ring.Owner]ring.Set
	accepted map[ring.Owner]ring.Set
	sent     asked // in the current phase
}

// answers returns those to the current phase.
func (p *proposal) answers(votes ring.Votes) map[ring.Owner]ring.Set {
	if votes.Accepted == p.ballot {
		return p.accepted
	}
	return p.promised
}

// counted returns the slots of those answers that count, besides own ones.
func counted(own ring.Set, answers map[ring.Owner]ring.Set, l *ledger, dead ring.Owner) ring.Set {
	if dead == l.self {
		own = nil
	}
	for o, slots := range answers {
		if o != dead {
			own = own.Union(slots)
		}
	}
	return own
}

// onVote follows another node's vote, as far as nothing speaks against it, and says how this node votes and for which
// slots.
func (a *Allocator) onVote(x *edit, from ring.Owner, m *message) {
	a.learn(x, m.ring)
	x.send(from, &message{kind: kindVoted, ring: ring.New(a.size).WithLog(x.ring), slots: x.spoken()})
}

// onVoted counts a vote.
func (a *Allocator) onVoted(x *edit, from ring.Owner, m *message) {
	a.learn(x, m.ring)
	x.after(func() {
		p := a.proposal
		v := m.ring.Votes()
		if p == nil || len(m.ring.Log()) != p.index || v.Promised != p.ballot {
			return
		}
		p.promised[from] = m.slots
		if v.Accepted == p.ballot {
			p.accepted[from] = m.slots
		}
	})
}

// step is what is to be done next about the vote.
type step int

const (
	idle    step = iota
	abandon      // somebody else is further
	begin        // make a proposal
	force        // decide without a majority
	accept       // phase 1 is complete
	decide       // phase 2 is
)

// next returns the next step of the proposal, and the retirement that is wanted, nil if it is only to be finished.
func (a *Allocator) next(l *ledger, now time.Time, v view) (step, *want) {
	votes, log := l.ring.Votes(), l.ring.Log()
	w := a.wanted(l, now, v)
	if p := a.proposal; p != nil {
		accepted := votes.Accepted == p.ballot
		switch {
		case p.index != len(log), votes.Promised != p.ballot:
			return abandon, w
		case accepted && l.majority(counted(l.spoken(), p.accepted, l, votes.Value.Dead)):
			return decide, w
		case votes.Accepted == (ring.Ballot{}) && (w == nil || w.dead != p.dead):
			return abandon, w // it answers again, or nobody wants it any more
		case !accepted && l.majority(counted(l.spoken(), p.promised, l, p.dead)) && votes.Value.Dead != l.self:
			return accept, w
		case a.mayForce(w, now) && (!a.majority(v) || a.canvassed(l, v)):
			return force, w
		}
		return idle, w
	}
	switch {
	case l.retired(l.self), a.leaving:
	case a.mayForce(w, now) && (!a.majority(v) || votes.Value.Dead == l.self):
		// A vote about this node itself, which its own slots are missing for, may never end otherwise.
		return force, w
	case now.Before(a.holdOff), votes.Accepted != (ring.Ballot{}) && votes.Value.Dead == l.self:
	case votes.Promised != (ring.Ballot{}) && votes.Promised.Node != l.self && (votes != a.stalledAt || now.Sub(a.stalled) < finishAfter+a.turn(v, patience)):
		// Somebody else is about it.
	case w != nil:
		return begin, w
	case votes.Accepted != (ring.Ballot{}) && !v.has(votes.Value.Dead) && now.Sub(a.stalled) >= finishAfter+a.turn(v, rankDelay) && a.majority(v):
		return begin, nil
	}
	return idle, w
}

// mayForce reports whether a retirement may be decided without a majority, if there is none: it was asked for, and there was
// time to find one.
func (a *Allocator) mayForce(w *want, now time.Time) bool {
	return w != nil && w.force && !a.hold && now.Sub(w.since) >= 2*silence && now.Sub(a.started) >= 2*silence
}

// canvassed reports whether all who answer at all have voted in the current phase.
func (a *Allocator) canvassed(l *ledger, v view) bool {
	answers := a.proposal.answers(l.ring.Votes())
	return !slices.ContainsFunc(v.alive, func(o ring.Owner) bool { _, ok := answers[o]; return !ok })
}

// wantsStep reports whether propose has something to do.
func (a *Allocator) wantsStep(l *ledger, now time.Time, v view) bool {
	s, _ := a.next(l, now, v)
	return s != idle
}

// propose takes the next step.
func (a *Allocator) propose(x *edit, now time.Time, v view) {
	s, w := a.next(x.ledger, now, v)
	votes, p := x.ring.Votes(), a.proposal
	var err error
	switch s {
	case abandon:
		overtaken := p.index == len(x.ring.Log()) && votes.Promised != p.ballot
		x.after(func() {
			a.proposal = nil
			if overtaken {
				a.duels = min(a.duels+1, 5)
				a.holdOff = now.Add(patience<<a.duels + a.turn(v, patience))
			}
		})
	case begin:
		q := &proposal{
			index: len(x.ring.Log()), ballot: ring.Ballot{Count: votes.Promised.Count + 1, Node: x.self},
			promised: make(map[ring.Owner]ring.Set), accepted: make(map[ring.Owner]ring.Set), sent: make(asked),
		}
		if q.dead = votes.Value.Dead; w != nil {
			q.dead = w.dead
		}
		if q.ballot.Count == 0 {
			err = errors.New("all ballots are used up")
			break
		}
		err = x.edit(func(r *ring.Ring) error { r.Promise(q.ballot); return nil })
		x.after(func() { a.proposal = q })
	case accept:
		value := votes.Value
		if votes.Accepted == (ring.Ballot{}) {
			value = ring.Retirement{Dead: p.dead, Heir: a.heir(x.ledger, p.dead, v), By: x.self, At: now.Unix()}
		}
		err = x.edit(func(r *ring.Ring) error { _, err := r.Accept(p.ballot, value); return err })
		x.after(func() { clear(p.sent) })
	case decide:
		err = x.edit(func(r *ring.Ring) error { return r.Retire(votes.Value) })
		x.after(func() { a.proposal, a.duels = nil, 0 })
	case force:
		e := ring.Retirement{Dead: w.dead, Heir: x.self, By: x.self, At: now.Unix(), Forced: true}
		err = x.edit(func(r *ring.Ring) error { return r.Retire(e) })
		x.after(func() { a.proposal = nil })
	}
	if err != nil {
		a.log.Error("a node cannot be retired", zap.Error(err))
	}
}

// canvass asks those who have not voted to do so. a.mu must be held.
func (a *Allocator) canvass(now time.Time, v view) {
	p, l := a.proposal, a.ledger
	if p == nil || len(l.ring.Log()) != p.index || l.ring.Votes().Promised != p.ballot {
		return
	}
	p.sent.ask(v.alive, p.answers(l.ring.Votes()), now, func() *message {
		return &message{kind: kindVote, ring: ring.New(a.size).WithLog(l.ring)}
	}, &a.out)
}

// turn returns how long this node waits for its turn, if each of those who answer and are before it takes as long as that.
func (a *Allocator) turn(v view, each time.Duration) time.Duration {
	n, _ := slices.BinarySearch(v.alive, a.cfg.Self)
	return time.Duration(n) * each
}

// heir returns who is to have the slots of a node: the one of those that answer, or this one, that owns least, so that
// they spread evenly.
func (a *Allocator) heir(l *ledger, dead ring.Owner, v view) ring.Owner {
	owned := l.ring.Owned()
	best := l.self
	for _, o := range v.alive {
		if _, leaving := a.closed[o]; o != dead && !leaving && !l.retired(o) && owned[o] < owned[best] {
			best = o
		}
	}
	return best
}

// wanted returns the retirement that is next to be decided: what was asked for, or else a node that has left and is still
// named in the ring, or that has been silent for too long.
func (a *Allocator) wanted(l *ledger, now time.Time, v view) *want {
	var first *want
	for _, w := range a.wants {
		ready := w.dead != l.self && !l.retired(w.dead) && (w.sure || !v.has(w.dead))
		if ready && (first == nil || w.force && !first.force) {
			first = w // what is asked for by force does not wait for what may not be to be had otherwise
		}
	}
	if first != nil {
		return first
	}
	if a.leaving || len(a.absent) == 0 {
		return nil
	}
	var best *want
	for o, missed := range a.absent {
		since, patience := missed.since, a.cfg.ReclaimAfter
		switch {
		case l.retired(o), o == l.self, v.has(o):
			continue
		case v.lacks(o):
			patience = farewellTime
		case patience <= 0, o&seedBit != 0:
			continue
		}
		if now.Sub(since) < patience+a.turn(v, rankDelay) && (a.proposal == nil || a.proposal.dead != o) {
			continue
		}
		if best == nil || o < best.dead {
			best = &want{dead: o, since: since}
		}
	}
	return best
}

// miss takes note of who is named in the ring, or has to be asked about what is, and does not answer. a.mu must be held.
func (a *Allocator) miss(now time.Time, v view) {
	r := a.ledger.ring
	named := a.heldBy()
	for o := range a.absent {
		if !named[o] || v.has(o) {
			delete(a.absent, o)
		}
	}
	for o := range named {
		m, ok := a.absent[o]
		if left := v.lacks(o); (!ok || left && !m.left) && o != a.cfg.Self && !v.has(o) && !contains(v.retired, o) {
			a.absent[o] = missed{since: now, left: left}
		}
	}
	if votes := r.Votes(); votes != a.stalledAt {
		a.stalled, a.stalledAt = now, votes
	}
}

// heldBy returns who is named in the ring, or has to be asked about what is. a.mu must be held.
func (a *Allocator) heldBy() map[ring.Owner]bool {
	r := a.ledger.ring
	if a.mentioned.ring == r {
		return a.mentioned.owners
	}
	owners := make(map[ring.Owner]bool)
	for _, o := range r.Owners() {
		owners[o] = true
	}
	for _, o := range a.ledger.witnesses() {
		owners[o] = true
	}
	a.mentioned.ring, a.mentioned.owners = r, owners
	return owners
}
