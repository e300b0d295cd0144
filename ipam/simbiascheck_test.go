// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"slices"

	"github.com/weftnet/weft/ipam/ring"
)

// What is looked at in a biased run, besides what sim.check does.

// checkRests verifies that what was released is not handed out before its time, but by name.
func (b *biased) checkRests() {
	for slot, r := range b.rests {
		n := r.n
		if !n.clock().Before(r.until) || !n.ledger().effective.Contains(slot) {
			delete(b.rests, slot)
			continue
		}
		if n.alloc == nil {
			continue
		}
		if e := n.alloc.bySlot[slot]; e != nil && e.owner[0] != 'x' {
			b.fail("node %d: slot %d was released, and given to %s too early", n.id, slot, e.owner)
		}
	}
}

// hook has the commits of new nodes looked at.
func (b *biased) hook() {
	for ; b.hooked < len(b.nodes); b.hooked++ {
		n := b.nodes[b.hooked]
		n.store.fault = func(c Change) fault {
			b.commit(n, c)
			return n.fault(c)
		}
	}
}

// commit looks at a commit: what is taken over in it must follow on the last that took effect. Now and then there is a call in the
// midst of it.
func (b *biased) commit(n *simNode, c Change) {
	if n.alloc == nil || c.Ring == nil && c.Grants == nil {
		return
	}
	if c.Ring != nil {
		r, err := ring.Decode(c.Ring)
		if err != nil {
			b.fail("node %d: %w", n.id, err)
			return
		}
		epoch := uint32(len(r.Log()))
		b.takeovers(n, n.alloc.ledger.ring, r, ring.Register{Version: ring.Version{Epoch: epoch, Count: 1}, Owner: n.id})
	}
	if a := n.alloc; b.calls && !b.calm && !a.hold && !a.leaving && !n.knows() && a.space.left() > 0 {
		e, batch, _, err := a.begin(fmt.Sprintf("w%d", b.next), nil)
		b.next++
		if err == nil && batch != nil {
			n.pending = append(n.pending, commitCall{e, batch})
		}
	}
}

func (b *biased) takeovers(n *simNode, before, after *ring.Ring, taken ring.Register) {
	if taken.Version.Epoch == 0 {
		return
	}
	for i, reg := range after.All() {
		for slot := i.First; reg == taken && slot <= i.Last; slot++ {
			last := before.At(slot)
			if last == taken {
				continue
			}
			b.taken++
			b.epoch = max(b.epoch, int(taken.Version.Epoch))
			if last.Version.Compare(b.handed[slot]) < 0 && !b.forced() {
				b.fail("node %d takes over slot %d at %v, which was handed over at %v", n.id, slot, last.Version, b.handed[slot])
			}
		}
	}
}

// forced reports whether anybody was retired by force: then there is no majority that knows.
func (b *biased) forced() bool {
	return slices.ContainsFunc(b.log, func(e ring.Retirement) bool { return e.Forced })
}

// votes returns who has promised, or accepted, a ballot for an entry of the log, or knows what came of it.
func votes(index int, ballot ring.Ballot, of func(ring.Votes) ring.Ballot) func(*simNode) bool {
	return func(n *simNode) bool {
		l := len(n.by.ring.Log())
		return l > index || l == index && of(n.by.ring.Votes()).Compare(ballot) >= 0
	}
}

// checkVotes verifies what Paxos relies on: once a majority has promised something, or accepted it, those have who speak for a
// majority, whoever that is by now. The same goes for the answers to surveys.
func (b *biased) checkVotes() {
	if b.forced() {
		return
	}
	b.checkGrants()
	for _, n := range b.nodes {
		was, ok := b.phase2[n]
		delete(b.phase2, n)
		l := n.ledger()
		votes, log := l.ring.Votes(), l.ring.Log()
		if ok && was.index == b.decided && len(log) > b.decided && n.alloc != nil && n.alloc.proposal == nil {
			b.chosen[was.index] = was.ballot
		}
		if n.alloc == nil || n.alloc.proposal == nil {
			continue
		}
		if p := n.alloc.proposal; p.index == len(log) && votes.Accepted == p.ballot {
			b.phase2[n] = proposed{p.index, p.ballot}
			if p.ballot.Compare(b.promised[p.index]) > 0 {
				b.promised[p.index] = p.ballot
			}
		}
	}
	b.decided = len(b.log)
	if b.epoch > 0 {
		b.checkMajority(func(n *simNode) bool { return len(n.by.ring.Log()) >= b.epoch }, "has answered the survey for epoch %d", b.epoch)
	}
	for index, ballot := range b.promised {
		b.checkMajority(votes(index, ballot, func(v ring.Votes) ring.Ballot { return v.Promised }), "has promised %v for retirement %d", ballot, index)
	}
	for index, ballot := range b.chosen {
		b.checkMajority(votes(index, ballot, func(v ring.Votes) ring.Ballot { return v.Accepted }), "has accepted %v for retirement %d", ballot, index)
	}
}

// listen takes note of who speaks for what.
func (b *biased) listen() {
	for len(b.speaker) < int(b.universe.Size()) {
		b.speaker = append(b.speaker, nil)
	}
	for _, n := range b.nodes {
		if b.dead[n.id] {
			continue
		}
		for _, i := range n.spoke {
			for slot := i.First; slot <= i.Last; slot++ {
				b.speaker[slot] = n
			}
		}
	}
}

// checkGrants verifies that of whatever was handed over a majority knows.
func (b *biased) checkGrants() {
	for slot, v := range b.handed {
		b.checkMajority(func(n *simNode) bool { return n.regs[slot].Version.Compare(v) >= 0 }, "has recorded that slot %d was granted at %v", slot, v)
	}
}

// checkMajority verifies that a majority of the slots knows something: that those do who speak for them, or were the last to
// do so.
func (b *biased) checkMajority(knows func(*simNode) bool, format string, args ...any) {
	does := make(map[*simNode]bool, len(b.nodes))
	for _, n := range b.nodes {
		does[n] = knows(n)
	}
	aware := uint64(0)
	for _, n := range b.speaker {
		if does[n] {
			aware++
		}
	}
	if 2*aware <= b.universe.Size() {
		b.fail("a majority "+format+", and only %d of %d slots know", append(args, aware, b.universe.Size())...)
	}
}
