// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// record is what was ever true of every slot, by anybody's word.
type record struct {
	regs   [][]ring.Register // all that were seen
	newest []ring.Version
	user   []*simNode // who may hand the slot out now
}

func newRecord(size uint32) record {
	return record{regs: make([][]ring.Register, size), newest: make([]ring.Version, size), user: make([]*simNode, size)}
}

// seen is what the last check has seen of a node.
type seen struct {
	saves int
	up    *Allocator
	by    ledger          // what it went by
	regs  []ring.Register // of by.ring
	may   ring.Set        // slots that it may hand out, now or after a crash
	spoke ring.Set
}

// check verifies what must hold after every step. Only what has changed since the last check is looked at.
func (s *sim) check() {
	s.step++
	var changed []*simNode
	for _, n := range s.nodes {
		l := n.ledger()
		if n.up != n.alloc || n.saves != n.store.saves || !same(&n.by, l) {
			changed = append(changed, n)
			s.note(n, l)
		}
	}
	if len(changed) == 0 || s.err != nil {
		return
	}
	for _, n := range changed {
		s.yield(n)
	}
	for _, n := range changed {
		s.occupy(n)
	}
	s.checkNewest()
	s.checkKnowledge()
}

// same reports whether nothing in a ledger is another one's.
func same(x, y *ledger) bool {
	return x.ring == y.ring && slices.Equal(x.effective, y.effective) && slices.Equal(x.outgoing, y.outgoing) && x.adopted == y.adopted
}

// note takes in what a node goes by now.
func (s *sim) note(n *simNode, l *ledger) {
	if n.store.broken != nil {
		s.fail("node %d: %w", n.id, n.store.broken)
	}
	if n.by.ring != l.ring {
		for i, reg := range l.ring.All() {
			for slot := i.First; slot <= i.Last; slot++ {
				if n.regs[slot] == reg {
					continue
				}
				if n.up != nil && n.up == n.alloc && n.regs[slot].Version.Compare(reg.Version) > 0 {
					s.fail("node %d: slot %d goes back from %+v to %+v", n.id, slot, n.regs[slot], reg)
				}
				n.regs[slot] = reg
				s.register(n, slot, reg)
			}
		}
		s.checkLog(n, l.ring.Log())
	}
	n.up, n.saves, n.by, n.spoke = n.alloc, n.store.saves, *l, l.spoken()
	for _, o := range l.outgoing {
		for _, i := range o.grants.Known() {
			for slot := i.First; o.handed && slot <= i.Last; slot++ {
				if v := o.grants.At(slot).Version; v.Compare(s.handed[slot]) > 0 {
					s.handed[slot] = v
				}
			}
		}
	}
}

// register takes note that a register exists: no other one of its version ever does.
func (s *sim) register(n *simNode, slot uint32, reg ring.Register) {
	if reg == (ring.Register{}) {
		return
	}
	for _, x := range slices.Backward(s.record.regs[slot]) {
		if x == reg {
			return
		}
		if x.Version == reg.Version {
			s.fail("node %d: slot %d is %+v, and elsewhere %+v", n.id, slot, reg, x)
			return
		}
	}
	s.record.regs[slot] = append(s.record.regs[slot], reg)
	if reg.Version.Compare(s.record.newest[slot]) > 0 {
		s.record.newest[slot] = reg.Version
	}
}

// inFlight takes in what a packet says.
func (s *sim) inFlight(n *simNode, p packet) {
	var rings []*ring.Ring
	if p.gossip {
		r, err := ring.Decode(p.msg)
		if err != nil {
			s.fail("node %d sends %w", n.id, err)
			return
		}
		rings = append(rings, r)
	} else {
		m, err := decodeMessage(p.msg, uint32(s.universe.Size()))
		if err != nil {
			s.fail("node %d sends %w", n.id, err)
			return
		}
		rings = append(rings, m.ring, m.grants)
	}
	for _, r := range rings {
		if r == nil {
			continue
		}
		s.checkLog(n, r.Log())
		for i, reg := range r.All() {
			for slot := i.First; slot <= i.Last && reg != (ring.Register{}); slot++ {
				s.register(n, slot, reg)
			}
		}
	}
}

// checkLog verifies that no two nodes ever know different histories of retirements.
func (s *sim) checkLog(n *simNode, log []ring.Retirement) {
	for i := range min(len(log), len(s.log)) {
		if log[i] != s.log[i] {
			s.fail("node %d: retirement %d is %+v, and was %+v", n.id, i, log[i], s.log[i])
			return
		}
	}
	for _, e := range log[min(len(log), len(s.log)):] {
		asked := slices.Contains(s.strays, e.Dead)
		for _, o := range s.nodes {
			if e.Dead == o.id || e.Dead == o.seed {
				asked = asked || o.condemned || o.gone || s.reclaim > 0
				o.condemned = !o.gone
			}
		}
		if !asked {
			s.fail("node %d was retired, though nobody asked for that", e.Dead)
		}
		s.log = append(s.log, e)
		s.dead[e.Dead] = true
		for _, o := range s.nodes {
			if s.dead[o.id] {
				s.yield(o)
			}
		}
		s.logf("retired: %+v", e)
	}
}

// yield takes the slots of a node off the list of who may hand out what.
func (s *sim) yield(n *simNode) {
	for _, i := range n.may {
		for slot := i.First; slot <= i.Last; slot++ {
			if s.record.user[slot] == n {
				s.record.user[slot] = nil
			}
		}
	}
	n.may = nil
}

// occupy verifies that what a node may hand out, or has, is nobody else's, and that its ring says the same. What one that
// is retired once had is another's, whether it knows or not: it may be sure that nobody asks it only if it is gone indeed.
func (s *sim) occupy(n *simNode) {
	l := &n.by
	if l.retired(n.id) && (len(l.effective) > 0 || len(l.outgoing) > 0) {
		s.fail("node %d is retired and has addresses to hand out", n.id)
	}
	if s.dead[n.id] {
		return
	}
	may := l.effective.Union(n.store.current().effective)
	if len(l.effective.Subtract(l.ring.Where(func(x ring.Register) bool { return x.Owner == n.id && x.From == 0 }))) > 0 {
		s.fail("node %d: %v is not what its ring says", n.id, l.effective)
	}
	for _, slot := range n.store.allocs {
		if !may.Contains(slot) {
			s.fail("node %d: slot %d is stored as allocated and is not its own", n.id, slot)
		}
	}
	if a := n.alloc; a != nil {
		if len(a.violated) > 0 || len(a.split) > 0 || a.lost > 0 {
			s.fail("node %d met a violation: %s", n.id, a.trouble)
		}
		for _, e := range a.byOwner {
			if e.state == staged {
				continue
			}
			// A release that failed may have reached the disk all the same; whoever asks for the lease again has it
			// written first.
			if slot, ok := n.store.allocs[e.owner]; !l.effective.Contains(e.slot) || (!ok || slot != e.slot) && !a.doubt.owners[e.owner] {
				s.fail("node %d: slot %d of %s is not its own, or not durable", n.id, e.slot, e.owner)
			}
		}
		if a.space.inside > a.space.total {
			s.fail("node %d: %d of %d slots taken", n.id, a.space.inside, a.space.total)
		}
	}
	n.may = may
	for _, i := range may {
		for slot := i.First; slot <= i.Last; slot++ {
			if o := s.record.user[slot]; o != nil {
				s.fail("slot %d is usable on node %d and on node %d", slot, o.id, n.id)
			}
			s.record.user[slot] = n
		}
	}
}

// checkNewest verifies that nobody has written over what another node may hand out.
func (s *sim) checkNewest() {
	for slot, n := range s.record.user {
		if n == nil || n.regs[slot].Version == s.record.newest[slot] || !n.by.effective.Contains(uint32(slot)) {
			continue
		}
		s.fail("slot %d is node %d's at %v, and was written over at %v", slot, n.id, n.regs[slot].Version, s.record.newest[slot])
	}
}

// checkKnowledge verifies what reclaim relies on: that one node at most speaks for a slot, and that of a grant that was
// handed over no majority is ignorant. The retired do not vote; for what is under way nobody does, and whoever gets it
// learns what the last to do so knew.
func (s *sim) checkKnowledge() {
	size := uint32(s.universe.Size())
	speaks := make([]*simNode, size)
	weight := make([]uint32, len(s.nodes))
	for _, n := range s.nodes {
		if s.dead[n.id] {
			continue
		}
		for _, i := range n.spoke {
			weight[n.index] += uint32(i.Len())
			for slot := i.First; slot <= i.Last; slot++ {
				if o := speaks[slot]; o != nil {
					s.fail("nodes %d and %d speak for slot %d", o.id, n.id, slot)
				}
				speaks[slot] = n
			}
		}
	}
	for slot, v := range s.handed {
		ignorant := uint32(0)
		for _, n := range s.nodes {
			if n.regs[slot].Version.Compare(v) < 0 {
				ignorant += weight[n.index]
			}
		}
		if 2*ignorant > size {
			s.fail("slot %d was handed over at %v, of which %d of %d slots do not know", slot, v, ignorant, size)
		}
	}
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

// earlier returns the time that comes first, of those that are set.
func earlier(times ...time.Time) time.Time {
	times = slices.DeleteFunc(times, time.Time.IsZero)
	return slices.MinFunc(times, func(x, y time.Time) int { return cmp.Compare(x.UnixNano(), y.UnixNano()) })
}
