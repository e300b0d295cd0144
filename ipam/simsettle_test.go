// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// settle ends all faults and verifies that everything comes to rest: one ring everywhere, nothing under way, nobody who
// waits, and every address to be had from any node.
func (s *sim) settle() {
	s.calm, s.calmAt, s.gossipAt = true, s.now, s.now
	s.logf("calm")
	if len(s.living()) == 0 {
		s.pardon()
	}
	for _, n := range s.nodes {
		switch {
		case n.alloc == nil:
		case n.condemned && !s.dead[n.id]:
			n.down("stopped")
		case n.alloc.leaving:
			n.down("restart") // it changed its mind, which takes one
		}
	}
	s.restart()
	if len(s.living()) == 0 {
		return
	}
	for _, n := range s.nodes {
		if first := s.living()[0]; n.gone && first.parted != nil {
			first.parted[n.index] = true // even if nobody was there when it left
		}
	}
	s.pass(10 * time.Second) // by force is what is done when it is sure that nothing else happens
	for range 2 {
		if !s.bury() {
			return
		}
		s.pass(30 * time.Second)
	}
	s.steady = true
	s.checkRest()
	s.checkCalls()
	if s.err == nil && s.rng.IntN(4) == 0 {
		s.farewell()
	}
	s.drain()
}

// pardon has a node that was declared gone, and retired all others before that was decided, be one of the mesh.
func (s *sim) pardon() {
	for _, n := range s.nodes {
		if !n.gone && !s.dead[n.id] && !s.dead[n.seed] {
			n.condemned = false
			s.logf("node %d: pardoned", n.id)
			return
		}
	}
}

// restart starts whoever belongs to the mesh and is down.
func (s *sim) restart() {
	for _, n := range s.nodes {
		if n.alloc == nil && n.mayStart() {
			n.start()
		}
		if n.alloc != nil && n.seed != 0 && !n.condemned { // a fault may have kept it from doing so
			if err := n.alloc.Adopt(n.seed); err != nil {
				s.fail("node %d does not adopt: %w", n.id, err)
			}
		}
	}
}

// lost reports whether there is no majority any more. That is also so if there is none without a node of which the
// retirement may have been decided: those who may know are gone, so nothing else can be decided, and that node does not
// vote on it.
func (s *sim) lost() bool {
	for _, n := range s.living() {
		dead, votes := n.ledger().ring.Votes().Value.Dead, uint64(0)
		for _, o := range s.living() {
			if o.id != dead {
				votes += o.ledger().spoken().Len()
			}
		}
		if 2*votes <= s.universe.Size() {
			return true
		}
	}
	return false
}

// bury has all forgotten who are gone. With half of the universe gone nothing is decided any more, but by force; not even
// about those that left, of which it is done without being asked for otherwise. It returns false if those who are gone
// have decided more than the others know: with force there are two histories then.
func (s *sim) bury() bool {
	lost, known := s.lost(), 0
	for _, n := range s.living() {
		known = max(known, len(n.ledger().ring.Log()))
	}
	if lost && known < len(s.log) {
		return false
	}
	list := slices.Clone(s.strays)
	for _, n := range s.nodes {
		if n.condemned || n.gone && lost {
			list = append(list, n.names()...)
		}
	}
	for _, o := range list {
		n := s.undertaker(lost)
		if n.start(); !s.dead[o] && n.alloc != nil {
			n.forget([]ring.Owner{o}, true, lost)
		}
	}
	return true
}

// undertaker returns who is to have others forgotten: always the same by force, as two could decide two things; else one
// whose own end is not what is voted on, if there is one, as nobody votes on that himself.
func (s *sim) undertaker(force bool) *simNode {
	living := s.living()
	for _, n := range living {
		if !force && n.alloc != nil && n.ledger().ring.Votes().Value.Dead != n.id {
			return n
		}
	}
	return living[0]
}

// pass lets time go by with all nodes running.
func (s *sim) pass(d time.Duration) {
	end := s.now.Add(d)
	for s.err == nil {
		at := s.gossipAt
		n := s.earliest()
		if n != nil {
			at = earlier(at, n.timer)
		}
		if len(s.wire) > 0 {
			at = earlier(at, s.wire[0].at)
		}
		if at.After(end) {
			s.now = end
			return
		}
		if at.Equal(s.gossipAt) {
			s.gossipAt = s.gossipAt.Add(time.Second)
			s.advance(at.Sub(s.now))
			s.exchange()
		} else {
			s.proceed()
		}
		for _, n := range s.nodes {
			for range len(n.waiting) + len(n.pending) + len(n.forgets) {
				n.progress()
			}
		}
		s.check()
	}
}

// exchange is a round of anti-entropy, and the chance of whoever is down to come up.
func (s *sim) exchange() {
	for _, n := range s.nodes {
		if n.alloc == nil && n.mayStart() {
			n.start()
		}
		o := s.nodes[s.rng.IntN(len(s.nodes))]
		s.gossip(n, o)
		s.gossip(o, n)
	}
}

// checkRest verifies that nothing is under way.
func (s *sim) checkRest() {
	if s.err != nil {
		return
	}
	living := s.living()
	first := living[0].alloc.ledger.ring
	for _, n := range s.nodes {
		if n.alloc == nil {
			continue
		}
		l := n.alloc.ledger
		s.logf("node %d: owns %v, effective %v", n.id, l.ring.OwnedBy(n.id), l.effective)
		for _, o := range l.outgoing {
			s.logf("  outgoing %v to %d, handed over %v, acks %v", o.grants.Known(), o.to, o.handed, o.acks)
		}
		switch own := l.ring.OwnedBy(n.id); {
		case s.dead[n.id] && !n.knows():
			s.fail("nobody has told node %d that it is retired", n.id)
		case !l.ring.Equal(first):
			s.fail("the rings of nodes %d and %d differ", living[0].id, n.id)
		case len(l.outgoing) > 0:
			s.fail("node %d: %d grants outgoing", n.id, len(l.outgoing))
		case !slices.Equal(own, l.effective):
			s.fail("node %d owns %v, of which only %v took effect", n.id, own, l.effective)
		case len(n.waiting)+len(n.forgets) > 0:
			s.fail("node %d: %d calls of Allocate and %d of Forget wait", n.id, len(n.waiting), len(n.forgets))
		}
	}
	owned := make(map[ring.Owner]bool)
	for _, n := range living {
		owned[n.id] = true
		if n.alloc == nil {
			s.fail("node %d does not come up", n.id)
		}
	}
	for i, reg := range first.All() {
		if !owned[reg.Owner] || reg.From != 0 {
			s.fail("%v is %+v's, who is not there, or under way", i, reg)
		}
	}
}

// checkCalls asks for addresses of other nodes by name, each of which is given or refused for a reason that is true.
func (s *sim) checkCalls() {
	calls := 4
	if len(s.nodes) > 12 {
		calls = 1
	}
	for range calls {
		if s.err != nil {
			return
		}
		living := s.living()
		n := living[s.rng.IntN(len(living))]
		slot := uint32(1 + s.rng.IntN(int(s.universe.Size()-2)))
		s.next++
		owner := fmt.Sprintf("w%d", s.next)
		n.ask(owner, &slot)
		s.pass(15 * time.Second)
		if len(n.waiting) > 0 {
			s.fail("node %d has been waiting for slot %d for long", n.id, slot)
		}
	}
}

// farewell has a node leave.
func (s *sim) farewell() {
	living := s.living()
	if len(living) < 2 {
		return
	}
	n := living[s.rng.IntN(len(living))]
	for end := s.now.Add(30 * time.Second); !n.gone && s.err == nil; {
		if s.now.After(end) {
			s.fail("node %d does not come to leave", n.id)
			return
		}
		n.leave()
		s.check()
		s.pass(500 * time.Millisecond)
	}
	for _, o := range s.nodes {
		if o.parted != nil {
			o.parted[n.index] = true
		}
	}
	s.pass(20 * time.Second)
	s.checkRest()
}

// drain releases everything and verifies that all that may be handed out is free then; and that it is to be had from any
// node, be it to the last address, which takes long, or only some.
func (s *sim) drain() {
	for _, n := range s.living() {
		if s.err != nil {
			return
		}
		for _, l := range n.alloc.List() {
			if err := n.alloc.Release(l.Owner); err != nil {
				s.fail("node %d: %w", n.id, err)
			}
		}
	}
	s.check()
	s.pass(max(s.rest, 0) + 2*time.Second)
	total, want, fulls := 0, int(s.universe.Size()-2-s.static.Len()), 0
	if s.rng.IntN(5) > 0 || len(s.nodes) > 12 {
		want = min(want, 6)
	}
	for s.err == nil && fulls <= 5 && total < want {
		living := s.living()
		if s.drainOne(living[s.rng.IntN(len(living))]) {
			fulls = 0
			total++
			continue
		}
		// An address may have been on its way from one node to another, where nobody could see it.
		fulls++
		s.pass(2 * time.Second)
	}
	all, free := s.universe.Size()-2-s.static.Len(), uint64(0)
	for tries := 0; s.err == nil && tries < 6 && free+uint64(total) != all; tries++ {
		s.pass(1300 * time.Millisecond) // what is on its way arrives
		free = 0
		for _, n := range s.living() {
			if n.alloc != nil {
				free += n.alloc.Usage().Free
			}
		}
	}
	if total != want || free+uint64(total) != all {
		s.fail("%d of %d addresses could be had, and %d are free: not %d together", total, want, free, all)
	}
}

// drainOne allocates one address on a node; it reports whether there was one.
func (s *sim) drainOne(n *simNode) bool {
	owner := fmt.Sprintf("w%d", s.next)
	s.next++
	_, b, w, err := n.alloc.begin(owner, nil)
	for tries := 0; w != nil && s.err == nil; tries++ {
		select {
		case <-w.done:
			if err = w.err; err == nil {
				b = w.entry.batch
			}
			w = nil
			continue
		default:
		}
		if tries > 100 {
			s.fail("node %d waits for an address for ever: %s", n.id, n.alloc.text(n.alloc.reason(w, n.alloc.look())))
		}
		s.pass(50 * time.Millisecond)
	}
	var full *ExhaustedError
	if errors.As(err, &full) {
		s.logf("node %d: %v", n.id, n.alloc.named(full))
		return false
	}
	if err == nil && b != nil { // it may have been committed along with something else
		err = n.alloc.commit(b)
	}
	if err != nil {
		s.fail("node %d: %w", n.id, err)
	}
	if e := n.alloc.byOwner[owner]; e == nil || e.state != held || s.static.slots.Contains(e.slot) {
		s.fail("node %d has %+v, which was not asked for by name", n.id, e)
	}
	s.check()
	return true
}
