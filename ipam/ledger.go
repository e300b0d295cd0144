// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// ledger is what a node knows about ownership, and may conclude from it: the part of the allocator that safety rests on.
// It is a value: the methods below change a copy (see Allocator.change), which becomes current once it is durable. It
// does no I/O.
//
// To speak for a slot is to say what it has recorded. At any time one node at most speaks for a slot:
//
//	effective    This node owns the slot and speaks for it; it may allocate it and grant it on.
//	outgoing     This node has granted the slot to another. It speaks for it until a majority has recorded that, and
//	             then hands it over; from then on until the recipient has it, nobody speaks for it.
//	announced    The ring says that the slot is this node's, but the donor has not handed it over. Nothing may be done
//	             with it.
type ledger struct {
	self      ring.Owner
	ring      *ring.Ring // not modified once it is in a ledger
	effective ring.Set
	outgoing  []*outgoing
	adopted   ring.Owner // the seed name whose share this node has taken over; 0: none
}

// outgoing is a grant that its recipient has not acknowledged. Only the fields of the last group are modified.
type outgoing struct {
	to     ring.Owner
	grants *ring.Ring // the delta that names the recipient
	handed bool       // a majority has recorded it, and this node no longer speaks for the slots

	// Not kept on disk, and guarded by the allocator's mutex.
	acks  ring.Set  // the slots, besides those that this node speaks for, that are known to have recorded it
	asked time.Time // when others were last asked to record it
	tries int       // how often that was
	sent  time.Time // when it was last sent to its recipient
}

// copy returns a copy to change.
func (l *ledger) copy() *ledger {
	c := *l
	return &c
}

// majority reports whether a set of slots is more than half of all.
func (l *ledger) majority(s ring.Set) bool { return 2*s.Len() > uint64(l.ring.Size()) }

// spoken returns the slots that this node speaks for. All of them have recorded whatever is in its ring.
func (l *ledger) spoken() ring.Set {
	s := l.effective
	for _, o := range l.outgoing {
		if !o.handed {
			s = s.Union(l.ring.Same(o.grants))
		}
	}
	return s
}

// merge takes in another node's ring or delta. lost are the slots that were effective here and were taken away: by a
// node that should not have, or by a takeover.
func (l *ledger) merge(o *ring.Ring) (changed, lost ring.Set, conflicts []ring.Conflict, err error) {
	c := l.ring.Clone()
	changed, conflicts, err = c.Merge(o)
	if err != nil || len(changed) == 0 {
		return nil, nil, conflicts, err
	}
	l.ring = c
	if lost = l.effective.Intersect(changed); len(lost) > 0 {
		l.effective = l.effective.Subtract(lost)
	}
	// A grant over which the recipient has written in turn has arrived.
	l.keep(func(o *outgoing) bool { return len(l.ring.Same(o.grants)) > 0 })
	return changed, lost, conflicts, nil
}

// keep drops the outgoing grants that are not wanted. It reports whether there were any.
func (l *ledger) keep(wanted func(*outgoing) bool) bool {
	n := len(l.outgoing)
	l.outgoing = slices.DeleteFunc(slices.Clone(l.outgoing), func(o *outgoing) bool { return !wanted(o) })
	return len(l.outgoing) < n
}

// grant gives blocks, which must be effective and free, to another node.
func (l *ledger) grant(to ring.Owner, blocks ring.Set) (*outgoing, error) {
	if len(blocks.Subtract(l.effective)) > 0 {
		return nil, errors.New("ipam: slots that are not effective cannot be granted")
	}
	c := l.ring.Clone()
	for _, b := range blocks {
		if err := c.Grant(l.self, to, b); err != nil {
			return nil, err
		}
	}
	o := &outgoing{to: to, grants: c.Only(blocks)}
	l.ring = c
	l.effective = l.effective.Subtract(blocks)
	l.outgoing = append(slices.Clone(l.outgoing), o)
	return o, nil
}

// ripe returns the outgoing grants that may be handed over: those that a majority has recorded. They are not if their
// recipient has left, for then nobody would speak for the slots.
func (l *ledger) ripe(left func(ring.Owner) bool) []*outgoing {
	var spoken ring.Set
	var out []*outgoing
	for _, o := range l.outgoing {
		if o.handed || left(o.to) {
			continue
		}
		if spoken == nil {
			spoken = l.spoken()
		}
		if l.majority(spoken.Union(o.acks)) {
			out = append(out, o)
		}
	}
	return out
}

// handOver ends this node's speaking for the slots of the grants that are ripe. It returns these grants.
func (l *ledger) handOver(left func(ring.Owner) bool) []*outgoing {
	ripe := l.ripe(left)
	l.outgoing = slices.Clone(l.outgoing)
	for i, o := range ripe {
		c := *o
		c.handed = true
		l.outgoing[slices.Index(l.outgoing, o)] = &c
		ripe[i] = &c
	}
	return ripe
}

// acknowledge takes note that slots have recorded grants, of which some may be outgoing here.
func (l *ledger) acknowledge(grants *ring.Ring, slots ring.Set) {
	for _, o := range l.outgoing {
		if covers(grants, o.grants) {
			o.acks = o.acks.Union(slots)
		}
	}
}

// receive makes effective what a donor has handed over; the donor's whole ring must have been merged before. It returns
// the slots that this was news for.
func (l *ledger) receive(grants *ring.Ring) ring.Set {
	news := l.ring.Same(grants).Intersect(l.ring.OwnedBy(l.self)).Subtract(l.effective)
	l.effective = l.effective.Union(news)
	return news
}

// received drops the outgoing grants to a node that it says it has.
func (l *ledger) received(from ring.Owner, grants *ring.Ring) {
	l.keep(func(o *outgoing) bool { return o.to != from || !o.handed || !covers(grants, o.grants) })
}

// announced returns the slots that this node owns and may not use yet.
func (l *ledger) announced() ring.Set { return l.ring.OwnedBy(l.self).Subtract(l.effective) }

// adopt takes over the share that was seeded under a name. There is nobody else who may write its slots, so the grant
// needs no majority.
func (l *ledger) adopt(seed ring.Owner, share ring.Set) error {
	c := l.ring.Clone()
	for _, i := range share {
		if err := c.Grant(seed, l.self, i); err != nil {
			return err
		}
	}
	l.ring = c
	l.effective = l.effective.Union(share)
	l.adopted = seed
	return nil
}

// covers reports whether a delta says all that another one says.
func covers(a, b *ring.Ring) bool { return len(b.Known().Subtract(b.Same(a))) == 0 }

// usable returns how many slots of a set may be handed out: all but the first and the last of the universe.
func usable(s ring.Set, size uint32) uint64 {
	n := s.Len()
	if s.Contains(0) {
		n--
	}
	if s.Contains(size - 1) {
		n--
	}
	return n
}

const ledgerFormat = 1

// encode returns the binary form of all but the ring.
func (l *ledger) encode() []byte {
	b := []byte{ledgerFormat}
	b = binary.AppendUvarint(b, uint64(l.adopted))
	b = appendRing(b, l.ring.Only(l.effective))
	b = binary.AppendUvarint(b, uint64(len(l.outgoing)))
	for _, o := range l.outgoing {
		handed := byte(0)
		if o.handed {
			handed = 1
		}
		b = binary.AppendUvarint(b, uint64(o.to))
		b = append(b, handed)
		b = appendRing(b, o.grants)
	}
	return b
}

// decode reads what encode wrote into l, whose ring was read before. What does not fit the ring is left out: the ring
// is at least as new.
func (l *ledger) decode(b []byte) error {
	size := l.ring.Size()
	r := reader{b: b}
	if r.byte() != ledgerFormat {
		return fmt.Errorf("the stored grants of %d bytes are malformed or were written by a later version", len(b))
	}
	l.adopted = ring.Owner(r.number(math.MaxUint64))
	if e := r.ring(size, false); !r.bad {
		l.effective = l.ring.Same(e).Intersect(l.ring.OwnedBy(l.self))
	}
	for range r.number(uint64(len(b))) {
		o := &outgoing{to: ring.Owner(r.number(math.MaxUint64)), handed: r.number(1) == 1, grants: r.ring(size, false)}
		if r.bad {
			break
		}
		if len(l.ring.Same(o.grants)) > 0 {
			l.outgoing = append(l.outgoing, o)
		}
	}
	if !r.done() {
		return fmt.Errorf("the stored grants of %d bytes are malformed", len(b))
	}
	return nil
}
