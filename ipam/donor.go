// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/ipam/ring"
)

// HandleMessage takes in a message that another node's allocator sent. msg is not kept. It may wait for commits of the
// store, so it must not be called where that would hold up other things.
func (a *Allocator) HandleMessage(from ring.Owner, msg []byte) {
	m, err := decodeMessage(msg, a.size)
	if a.odd(from, err) {
		a.log.Warn("ignoring a message about addresses", zap.String("from", a.name(from)), zap.Error(err))
	}
	if err != nil || from == 0 || from == a.cfg.Self {
		return
	}
	v := a.look()
	err = a.change(func(x *edit) {
		x.after(func() { a.hold = a.hold && !complete(m.ring) })
		if x.retired(from) && !m.kind.heedsRetired() {
			// It does not know, or else it would not say that.
			x.send(from, &message{kind: kindNews, ring: ring.New(a.size).WithLog(x.ring)})
			return
		}
		switch m.kind {
		case kindRequest:
			a.onRequest(x, from, m, v)
		case kindGrant:
			a.onGrant(x, from, m)
		case kindDeny:
			a.onDeny(x, from, m)
		case kindReceived:
			x.received(from, m.grants)
		case kindConfirm:
			a.onConfirm(x, from, m)
		case kindAck:
			for _, o := range x.acknowledge(m.grants, m.slots, int(m.length)) {
				a.pace.note(o.begun, a.cfg.Now())
			}
			a.handOver(x, v)
		case kindNews:
			a.learn(x, m.ring)
		case kindVote:
			a.onVote(x, from, m)
		case kindVoted:
			a.onVoted(x, from, m)
		case kindSurvey:
			a.onSurvey(x, from, m)
		case kindSurveyed:
			a.onSurveyed(x, from, m)
		}
	})
	if err != nil {
		// Whoever sent this repeats it.
		a.log.Debug("message about addresses dropped", zap.String("from", a.name(from)), zap.Error(err))
	}
	a.finish()
	a.Wake()
}

// odd reports whether err, about a message of a node, is to be logged.
func (a *Allocator) odd(from ring.Owner, err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return err != nil && a.oddities.pass(from, a.cfg.Now())
}

// learn merges a ring of the right size that came along with a message.
func (a *Allocator) learn(x *edit, o *ring.Ring) {
	if _, err := a.merge(x, o); err != nil {
		a.log.Debug("ring ignored", zap.Error(err))
	}
}

// onRequest answers a node that wants slots with a grant, or with the reason why there is none, at least for now.
func (a *Allocator) onRequest(x *edit, from ring.Owner, m *message, v view) {
	a.expire()
	a.learn(x, m.ring)
	a.greet(from, m)
	if a.repeat(x, from, m) {
		return
	}
	blocks, why := a.choose(x, from, m, v)
	if why == 0 && !a.give(x, from, blocks) {
		why = refusedFull
	}
	if why == 0 && !slices.ContainsFunc(a.handOver(x, v), func(o *outgoing) bool { return o.to == from }) {
		why = refusedUnderway
	}
	if why != 0 {
		a.deny(x, from, m, why)
	}
}

// repeat answers a request with what was granted already, and perhaps got lost, rather than with more.
func (a *Allocator) repeat(x *edit, from ring.Owner, m *message) bool {
	found := false
	for _, o := range x.outgoing {
		if o.to != from || m.exact && o.grants.At(m.slot) == (ring.Register{}) {
			continue
		}
		if o.handed {
			a.sendGrant(x, o)
		} else if !found {
			a.deny(x, from, m, refusedUnderway)
		}
		found = true
	}
	return found
}

// choose returns what to grant to a request, or the reason why nothing.
func (a *Allocator) choose(x *edit, from ring.Owner, m *message, v view) (blocks ring.Set, why refusal) {
	known := x.ring.OwnedBy(from)
	switch {
	case m.last || v.gone(from) || m.boot <= a.closed[from]:
		return nil, refusedClosed
	case len(known.Subtract(x.ring.Same(m.ring))) > 0:
		// A request from before a grant that has reached the asker since, or is about to.
		return nil, refusedStale
	case a.leaving || x.retired(x.self):
		return nil, refusedLeaving
	case !a.majority(v):
		return nil, refusedNoMajority
	case m.exact:
		if !a.space.domain.Contains(m.slot) || a.space.taken(m.slot) {
			return nil, refusedTaken
		}
		return ring.Set{{First: m.slot, Last: m.slot}}, 0
	}
	most := a.generosity(m, known.Len())
	if len(known) == 0 {
		most = min(most, a.fair(from, v))
	}
	blocks = pickBlocks(x.effective.Subtract(a.space.all()), known, most, a.space.usable)
	if len(blocks) == 0 {
		return nil, refusedFull
	}
	return blocks, 0
}

// deny says why nothing is granted, and what this node knows if the asker does not.
func (a *Allocator) deny(x *edit, to ring.Owner, m *message, why refusal) {
	r := &message{kind: kindDeny, urgent: m.urgent, exact: m.exact, slot: m.slot, boot: a.boot(), closed: a.closed[to], reason: why, usage: a.counts()}
	if !x.ring.Equal(m.ring) {
		r.ring = x.ring
	}
	x.send(to, r)
}

// generosity returns how many usable slots to give to a node that owns a number of slots: half of what it would take to be
// as well off as this one. Somebody who waits for an address gets the last one; a reserve is not topped up at the cost of
// this node's. As long as it can be helped nobody gets more than three eighths of the universe: whoever has half of it cannot
// be retired by the others, nor can anything be granted without it; and a node that gave away less than half of all can do
// without its only peer.
func (a *Allocator) generosity(m *message, owned uint64) uint64 {
	left := a.space.left()
	if m.have >= left {
		return 0
	}
	n := (left - m.have + 1) / 2
	if most := uint64(a.size) / 8 * 3; owned < most {
		n = min(n, most-owned)
	}
	if m.urgent {
		return max(n, 1)
	}
	return min(n, (left-m.have)/2, left-min(left, a.reserve()))
}

// fair returns how much of what this node has left is for somebody who owns nothing yet: there may be more of them. Would it give half of it to the
// first, who gives half of that to the next, then each step down would take a majority of those before.
func (a *Allocator) fair(asker ring.Owner, v view) uint64 {
	n := uint64(1)
	for _, o := range v.alive {
		if o != asker && len(a.share()[o]) == 0 {
			n++
		}
	}
	return max(1, (a.space.left()+n)/(n+1))
}

// give grants blocks, and says so to the mesh. It reports whether they could be granted.
func (a *Allocator) give(x *edit, to ring.Owner, blocks ring.Set) bool {
	if _, err := x.grant(to, blocks); err != nil {
		a.log.Error("address blocks not granted", zap.Error(err))
		return false
	}
	x.delta = x.delta.Union(blocks)
	return true
}

// handOver sends the grants that a majority has recorded to their recipients: at once, if this node speaks for one. It
// returns these grants.
func (a *Allocator) handOver(x *edit, v view) []*outgoing {
	handed := x.handOver(v.has)
	for _, o := range handed {
		a.sendGrant(x, o)
		a.note(x, News{Kind: Granted, Node: o.to, Slots: o.grants.Known().Len()})
	}
	return handed
}

// sendGrant sends a grant with all that this node knows: the knowledge moves with the slots.
func (a *Allocator) sendGrant(x *edit, o *outgoing) {
	x.send(o.to, &message{kind: kindGrant, ring: x.ring, grants: o.grants})
	o.sent = a.cfg.Now()
}

// onConfirm records the grants of another node and says which slots have recorded them: those that this node speaks for.
// That counts only between nodes that know of the same retirements, so the log goes along, to and fro.
func (a *Allocator) onConfirm(x *edit, from ring.Owner, m *message) {
	a.learn(x, m.grants)
	if len(m.grants.Log()) < len(x.ring.Log()) || !covers(x.ring, m.grants) {
		x.send(from, &message{kind: kindNews, ring: x.ring.Only(m.grants.Known()).WithLog(x.ring)})
		return
	}
	x.send(from, &message{kind: kindAck, grants: m.grants.WithLog(ring.New(a.size)), slots: x.spoken(), length: uint64(len(x.ring.Log()))})
}

// pursue goes on with the grants that are outgoing: it asks others to record them, and repeats what their recipients
// have not acknowledged. a.mu must be held.
func (a *Allocator) pursue(now time.Time, v view) {
	var due []*outgoing
	for _, o := range a.ledger.open() {
		switch {
		case !o.handed && now.Sub(o.asked) >= a.pace.wait(o.tries):
			due = append(due, o)
		case o.handed && now.Sub(o.sent) >= retry && v.has(o.to):
			a.send(o.to, &message{kind: kindGrant, ring: a.ledger.ring, grants: o.grants})
			o.sent = now
		}
	}
	if len(due) > 0 {
		a.confirm(due, now, v)
	}
}

// confirm asks others to record grants, all at once, so that they also take effect together: at first those who speak for the most, as far as the ring
// tells, as many as make a majority; then those without whom there is none a second time, and as many others as make one without the rest; if that was
// not enough, all who answer, since a node may speak for more than the ring tells.
func (a *Allocator) confirm(due []*outgoing, now time.Time, v view) {
	var slots ring.Set
	have := a.ledger.recorded(due[0]) // for all of them
	tries := due[0].tries
	for _, o := range due {
		slots = slots.Union(o.grants.Known())
		have = have.Intersect(a.ledger.recorded(o))
		tries = max(tries, o.tries)
		if o.tries == 0 {
			o.begun = now
		}
		o.asked, o.tries = now, min(o.tries+1, 6)
	}
	ask := v.alive
	if tries < 2 {
		ask = a.quorum(have, v, tries > 0)
	}
	m := &message{kind: kindConfirm, grants: a.ledger.ring.Only(slots).WithLog(a.ledger.ring)}
	for _, p := range ask {
		a.send(p, m)
	}
}

// quorum returns those who answer of whom the slots that they speak for, along with those in have, are a majority: as few as can be, the richest first.
// Where some of these have been asked in vain, others follow, with whom there is a majority without those, if there can be one.
func (a *Allocator) quorum(have ring.Set, v view, vain bool) []ring.Owner {
	speaking := slotsBy(a.ledger.ring, func(r ring.Register) ring.Owner { return cmp.Or(r.From, r.Owner) })
	rich := a.byWealth(v, speaking)
	enough := func(of []ring.Owner) (int, bool) {
		with := have
		for i, p := range of {
			if a.ledger.majority(with) {
				return i, true
			}
			with = with.Union(speaking[p])
		}
		return len(of), a.ledger.majority(with)
	}
	rich = slices.DeleteFunc(rich, func(p ring.Owner) bool { return len(speaking[p].Subtract(have)) == 0 })
	n, _ := enough(rich)
	if vain {
		if more, ok := enough(rich[n:]); ok {
			n += more
		}
	}
	return rich[:n]
}
