// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// check verifies that no slot is, or could be, in use on two nodes, and that everybody tells the same about who is gone.
func (s *sim) check() error {
	owner := make(map[uint32]ring.Owner)
	for _, n := range s.nodes {
		if n.store.broken != nil {
			return fmt.Errorf("node %d: %w", n.id, n.store.broken)
		}
		if n.store.saves != n.saves || n.keptAt == nil {
			l, err := n.store.ledger(n.id)
			if err != nil {
				return err
			}
			n.saves, n.kept, n.stored = n.store.saves, l.effective, l
			n.keptAt = make(map[uint32]bool)
			for _, slot := range n.store.allocs {
				n.keptAt[slot] = true
			}
		}
		for _, l := range n.ledgers() {
			if err := s.checkLog(n, l.ring.Log()); err != nil {
				return err
			}
		}
	}
	for _, n := range s.nodes {
		if s.retired(n) {
			if n.alloc != nil && len(n.alloc.ledger.effective) > 0 {
				return fmt.Errorf("node %d is retired and has addresses to hand out", n.id)
			}
			continue // what it once had is another's
		}
		may := n.kept
		if a := n.alloc; a != nil {
			may = may.Union(a.ledger.effective)
			if len(a.violated) > 0 || len(a.split) > 0 || a.lost > 0 {
				return fmt.Errorf("node %d met a violation: %s", n.id, a.trouble)
			}
			for _, l := range a.List() {
				// A release that failed may have reached the disk all the same; whoever asks for the lease again has it
				// written first.
				if !a.ledger.effective.Contains(l.Slot) || !n.keptAt[l.Slot] && !a.doubt.owners[l.Owner] {
					return fmt.Errorf("node %d: slot %d of %s is not its own, or not durable", n.id, l.Slot, l.Owner)
				}
			}
			if a.space.inside > a.space.total {
				return fmt.Errorf("node %d: %d of %d slots taken", n.id, a.space.inside, a.space.total)
			}
		}
		for slot := range n.keptAt {
			if !may.Contains(slot) {
				return fmt.Errorf("node %d: slot %d is stored as allocated and is not its own", n.id, slot)
			}
		}
		for _, i := range may {
			for slot := i.First; slot <= i.Last; slot++ {
				if owner[slot] != 0 {
					return fmt.Errorf("slot %d is usable on node %d and on node %d", slot, owner[slot], n.id)
				}
				owner[slot] = n.id
			}
		}
	}
	if s.step%4 == 0 {
		return s.checkKnowledge()
	}
	return nil
}

// checkLog verifies that no two nodes ever know different histories of retirements.
func (s *sim) checkLog(n *simNode, log []ring.Retirement) error {
	for i := range min(len(log), len(s.log)) {
		if log[i] != s.log[i] {
			return fmt.Errorf("node %d: retirement %d is %+v, and was %+v", n.id, i, log[i], s.log[i])
		}
	}
	for _, e := range log[min(len(log), len(s.log)):] {
		asked := func(n *simNode) bool { return (e.Dead == n.id || e.Dead == n.seed) && (n.condemned || n.gone) }
		if !slices.ContainsFunc(s.nodes, asked) {
			return fmt.Errorf("node %d was retired, though nobody asked for that", e.Dead)
		}
		s.log = append(s.log, e)
		s.logf("retired: %+v", e)
	}
	return nil
}

// retired reports whether it was decided anywhere that a node is gone.
func (s *sim) retired(n *simNode) bool {
	return slices.ContainsFunc(s.log, func(e ring.Retirement) bool { return e.Dead == n.id })
}

// checkKnowledge verifies what reclaim relies on: that one node at most speaks for a slot, and that of every grant that
// took effect slots know that are more than half of the universe, whoever speaks for them by now.
func (s *sim) checkKnowledge() error {
	size := uint32(s.universe.Size())
	ledgers := make([]*ledger, len(s.nodes))
	speaker := make(map[uint32]int)
	for i, n := range s.nodes {
		ledgers[i] = n.stored
		if n.alloc != nil {
			ledgers[i] = n.alloc.ledger
		}
		if s.retired(n) {
			continue
		}
		for _, iv := range ledgers[i].spoken() {
			for slot := iv.First; slot <= iv.Last; slot++ {
				if j, ok := speaker[slot]; ok {
					return fmt.Errorf("nodes %d and %d speak for slot %d", s.nodes[j].id, n.id, slot)
				}
				speaker[slot] = i
			}
		}
	}
	// Of slots that are handed over and have not arrived, the last donor's knowledge will. What the retired have said is
	// in what their heirs will know.
	type latest struct{ version ring.Version }
	transit := make(map[uint32]latest)
	carry := func(i int, slot uint32, v ring.Version) {
		if _, ok := speaker[slot]; ok && transit[slot] == (latest{}) || v.Compare(transit[slot].version) <= 0 {
			return
		}
		speaker[slot], transit[slot] = i, latest{v}
	}
	for i, l := range ledgers {
		for _, o := range l.outgoing {
			for slot := range size {
				reg := o.grants.At(slot)
				if !o.handed || reg == (ring.Register{}) {
					continue
				}
				carry(i, slot, reg.Version)
				if reg.Version.Compare(s.handed[slot]) > 0 {
					s.handed[slot] = reg.Version
				}
			}
		}
	}
	for i, n := range s.nodes {
		if s.retired(n) {
			for _, iv := range n.stored.spoken() {
				for slot := iv.First; slot <= iv.Last; slot++ {
					carry(i, slot, n.stored.ring.At(slot).Version)
				}
			}
		}
	}
	weight := make([]uint32, len(ledgers))
	for _, j := range speaker {
		weight[j]++
	}
	for slot, v := range s.handed {
		n := uint32(0)
		for j, o := range ledgers {
			if o.ring.At(slot).Version.Compare(v) >= 0 {
				n += weight[j]
			}
		}
		if 2*n <= size {
			return fmt.Errorf("slot %d was handed over at %v, of which %d of %d slots know", slot, v, n, size)
		}
	}
	return nil
}

// settle ends all faults and verifies that everything comes to rest: one ring everywhere, nothing under way, and every
// address to be had from any node.
func (s *sim) settle() error {
	s.calm = true
	s.logf("calm")
	for _, n := range s.nodes {
		if n.alloc == nil && n.mayStart() {
			if err := n.start(); err != nil {
				return err
			}
		}
	}
	for _, n := range s.living() {
		if n.alloc != nil {
			if n.alloc.leaving { // it changed its mind: that takes a restart
				n.down("restart")
				if err := n.start(); err != nil {
					return err
				}
			}
			if n.seed != 0 { // a fault may have kept it from doing so
				if err := n.alloc.Adopt(n.seed); err != nil {
					return err
				}
			}
		}
	}
	for range 2 {
		if err := s.bury(); err != nil {
			return err
		}
		if err := s.pass(30 * time.Second); err != nil {
			return err
		}
	}
	var first *simNode
	for _, n := range s.living() {
		l := n.alloc.ledger
		if first == nil {
			first = n
			s.logf("owned %v", l.ring.Owned())
		}
		s.logf("node %d: owns %v, effective %v", n.id, l.ring.OwnedBy(n.id), l.effective)
		for _, o := range l.outgoing {
			s.logf("  outgoing %v to %d, handed over %v, acks %v", o.grants.Known(), o.to, o.handed, o.acks)
		}
	}
	for _, n := range s.living() {
		l := n.alloc.ledger
		switch own := l.ring.OwnedBy(n.id); {
		case !l.ring.Equal(first.alloc.ledger.ring):
			return fmt.Errorf("rings of nodes %d and %d differ", first.id, n.id)
		case len(l.outgoing) > 0:
			return fmt.Errorf("node %d: %d grants outgoing", n.id, len(l.outgoing))
		case !slices.Equal(own, l.effective):
			return fmt.Errorf("node %d owns %v, of which only %v took effect", n.id, own, l.effective)
		case len(n.waiting) > 0:
			return fmt.Errorf("node %d: %d calls wait", n.id, len(n.waiting))
		}
	}
	for _, n := range s.nodes {
		own := first.alloc.ledger.ring.OwnedBy(n.id)
		if n.condemned && !s.retired(n) || len(own) > 0 && (n.gone || s.retired(n)) {
			return fmt.Errorf("node %d is gone, retired %v and owns %v", n.id, s.retired(n), own)
		}
	}
	return s.drain()
}

// bury has all nodes forgotten that were declared gone. With half of the universe gone nothing is decided any more, but by
// force; not even about those that left, of which it is done without being asked for otherwise.
func (s *sim) bury() error {
	lost := 2*s.spoken() <= s.universe.Size()
	for _, n := range s.nodes {
		for _, o := range n.names() {
			done := slices.ContainsFunc(s.log, func(e ring.Retirement) bool { return e.Dead == o })
			if done || !n.condemned && (!n.gone || !lost) {
				continue
			}
			if o == n.id && n.alloc != nil {
				n.down("condemned")
			}
			if _, err := s.living()[0].alloc.want(ForgetRequest{Dead: []ring.Owner{o}, Sure: true, Force: lost}); err != nil {
				return err
			}
		}
	}
	return nil
}

// spoken returns for how many slots somebody speaks who belongs to the mesh.
func (s *sim) spoken() uint64 {
	n := uint64(0)
	for _, o := range s.living() {
		if o.alloc != nil {
			n += o.alloc.ledger.spoken().Len()
		}
	}
	return n
}

// living returns the nodes that belong to the mesh.
func (s *sim) living() []*simNode {
	var out []*simNode
	for _, n := range s.nodes {
		if !n.gone && !n.condemned {
			out = append(out, n)
		}
	}
	return out
}

// pass lets time go by with all nodes running.
func (s *sim) pass(d time.Duration) error {
	for end := s.now.Add(d); s.now.Before(end); {
		s.advance(100 * time.Millisecond)
		for len(s.wire) > 0 && !s.wire[0].at.After(s.now) {
			if err := s.deliver(); err != nil {
				return err
			}
		}
		for _, n := range s.nodes {
			if n.alloc == nil {
				continue
			}
			n.alloc.finish()
			for range len(n.waiting) + len(n.pending) {
				n.progress()
			}
		}
		a, b := s.nodes[s.rng.IntN(len(s.nodes))], s.nodes[s.rng.IntN(len(s.nodes))]
		if err := s.gossip(a, b); err != nil {
			return err
		}
		if err := s.check(); err != nil {
			return err
		}
	}
	return nil
}

// drain releases everything and then allocates on random nodes until no address is left, which must be all of them.
func (s *sim) drain() error {
	for _, n := range s.living() {
		for _, l := range n.alloc.List() {
			if err := n.alloc.Release(l.Owner); err != nil {
				return err
			}
		}
	}
	if err := s.pass(DefaultQuarantine + 2*time.Second); err != nil {
		return err
	}
	total, want, fulls := 0, int(s.universe.Size()-2), 0
	for {
		living := s.living()
		n := living[s.rng.IntN(len(living))]
		full, err := s.drainOne(n)
		if err != nil {
			return err
		}
		if full {
			// An address may have been on its way from one node to another, where nobody could see it.
			if fulls++; fulls > 5 {
				break
			}
			if err := s.pass(2 * time.Second); err != nil {
				return err
			}
			continue
		}
		fulls = 0
		if total++; total > want {
			return errors.New("more addresses than there are")
		}
	}
	if total != want {
		free := make(map[ring.Owner]uint64)
		for _, n := range s.nodes {
			if n.alloc != nil {
				free[n.id] = n.alloc.space.left()
			}
		}
		return fmt.Errorf("%d of %d addresses could be had; free: %v", total, want, free)
	}
	return nil
}

// drainOne allocates one address on a node; full means that there is none.
func (s *sim) drainOne(n *simNode) (full bool, err error) {
	owner := fmt.Sprintf("w%d", s.next)
	s.next++
	_, b, w, err := n.alloc.begin(owner, nil)
	if err != nil {
		return false, err
	}
	for tries := 0; w != nil; tries++ {
		select {
		case <-w.done:
			var e *ExhaustedError
			if errors.As(w.err, &e) {
				s.logf("node %d: %v", n.id, n.alloc.named(e))
				return true, nil
			}
			if w.err != nil {
				return false, w.err
			}
			b, w = w.entry.batch, nil
			continue
		default:
		}
		if tries > 100 {
			return false, fmt.Errorf("node %d waits for an address for ever: %s", n.id, n.alloc.text(n.alloc.reason(w, n.alloc.look())))
		}
		if err := s.pass(50 * time.Millisecond); err != nil {
			return false, err
		}
	}
	if b == nil {
		return false, nil // committed along with something else
	}
	return false, n.alloc.commit(b)
}
