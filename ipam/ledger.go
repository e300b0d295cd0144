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
//	effective    This node has claimed the slot and speaks for it; it may allocate it and grant it on.
//	outgoing     This node has granted the slot to another. It speaks for it until a majority has recorded that, and
//	             then hands it over; from then on until the recipient has claimed it, nobody speaks for it.
//	announced    The ring says that the slot is this node's, but the donor has not handed it over. Nothing may be done
//	             with it.
//
// A node that is retired speaks for nothing.
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
	handed bool       // a majority has recorded it, and nobody speaks for the slots

	// Not kept on disk, and guarded by the allocator's mutex.
	acks  ring.Set  // the slots, besides those that this node speaks for, that are known to have recorded it
	at    int       // the length of the log, of this node's and of those who said so, when they did
	begun time.Time // when others were first asked to record it
	asked time.Time // and last
	tries int       // how often that was
	sent  time.Time // when it was last sent to its recipient
	got   bool      // its recipient has said that it has it; the ring is still to show that
}

// copy returns a copy to change.
func (l *ledger) copy() *ledger {
	c := *l
	return &c
}

// edit replaces the ring by a copy that f has changed, unless that fails.
func (l *ledger) edit(f func(r *ring.Ring) error) error {
	c := l.ring.Clone()
	if err := f(c); err != nil {
		return err
	}
	l.ring = c
	return nil
}

// majority reports whether a set of slots is more than half of all.
func (l *ledger) majority(s ring.Set) bool { return 2*s.Len() > uint64(l.ring.Size()) }

// retired reports whether a node, or this one, was declared gone.
func (l *ledger) retired(o ring.Owner) bool { return l.ring.Retired(o) != nil }

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

// merge takes in another node's ring or delta. lost are the slots that were effective here and were taken away by a
// node that should not have.
func (l *ledger) merge(o *ring.Ring) (news ring.News, lost ring.Set, err error) {
	c := l.ring.Clone()
	news, err = c.Merge(o)
	if err != nil || !news.Any() {
		return news, nil, err
	}
	l.ring = c
	if l.bury() {
		return news, nil, nil
	}
	if lost = l.effective.Intersect(news.Slots); len(lost) > 0 {
		l.effective = l.effective.Subtract(lost)
	}
	l.settle()
	return news, lost, nil
}

// settle drops the outgoing grants that somebody has written over in turn: they have arrived, or are void.
func (l *ledger) settle() {
	l.outgoing = slices.DeleteFunc(slices.Clone(l.outgoing), func(o *outgoing) bool { return len(l.ring.Same(o.grants)) == 0 })
}

// bury ends this node's part if it is retired, and reports that.
func (l *ledger) bury() bool {
	if !l.retired(l.self) {
		return false
	}
	l.effective, l.outgoing = nil, nil
	return true
}

// grant gives blocks, which must be effective and free, to another node.
func (l *ledger) grant(to ring.Owner, blocks ring.Set) (*outgoing, error) {
	if len(blocks.Subtract(l.effective)) > 0 {
		return nil, errors.New("ipam: slots that are not effective cannot be granted")
	}
	if l.retired(to) {
		return nil, errors.New("ipam: nothing is granted to a node that is retired")
	}
	err := l.edit(func(r *ring.Ring) error {
		return each(blocks, func(i ring.Interval) error { return r.Grant(l.self, to, i) })
	})
	if err != nil {
		return nil, err
	}
	o := &outgoing{to: to, grants: l.ring.Only(blocks)}
	l.effective = l.effective.Subtract(blocks)
	l.outgoing = append(slices.Clone(l.outgoing), o)
	return o, nil
}

// each calls f for every interval of a set, until it fails.
func each(s ring.Set, f func(ring.Interval) error) error {
	for _, i := range s {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

// revocable reports whether a grant is to be taken back.
func (l *ledger) revocable(o *outgoing) bool { return !o.handed && l.retired(o.to) }

// revoke takes back what was granted to nodes that are retired and was not handed over, and returns these slots. This
// node has been speaking for them all the time, and never hands them over any more.
func (l *ledger) revoke() (ring.Set, error) {
	var back ring.Set
	for _, o := range l.outgoing {
		if l.revocable(o) {
			back = back.Union(l.ring.Same(o.grants))
		}
	}
	if len(back) == 0 {
		return nil, nil
	}
	if err := l.edit(func(r *ring.Ring) error {
		return each(back, func(i ring.Interval) error { return r.Revoke(l.self, i) })
	}); err != nil {
		return nil, err
	}
	l.effective = l.effective.Union(back)
	l.settle()
	return back, nil
}

// recorded returns the slots that are known to have recorded a grant, all of them with a log of retirements as long as
// this node's: for when a node is retired, those who get its slots do not know all that it has recorded.
func (l *ledger) recorded(o *outgoing) ring.Set {
	if o.at != len(l.ring.Log()) {
		return l.spoken()
	}
	return l.spoken().Union(o.acks)
}

// ripe returns the outgoing grants that may be handed over: those that a majority has recorded. They are not if their
// recipient does not answer, for then nobody would speak for the slots.
func (l *ledger) ripe(answers func(ring.Owner) bool) []*outgoing {
	var out []*outgoing
	for _, o := range l.outgoing {
		if !o.handed && answers(o.to) && !l.retired(o.to) && l.majority(l.recorded(o)) {
			out = append(out, o)
		}
	}
	return out
}

// handOver ends this node's speaking for the slots of the grants that are ripe. It returns these grants.
func (l *ledger) handOver(answers func(ring.Owner) bool) []*outgoing {
	ripe := l.ripe(answers)
	l.outgoing = slices.Clone(l.outgoing)
	for i, o := range ripe {
		c := *o
		c.handed = true
		l.outgoing[slices.Index(l.outgoing, o)] = &c
		ripe[i] = &c
	}
	return ripe
}

// acknowledge takes note that slots have recorded grants, of which some may be outgoing here. length is that of the log
// of whoever speaks for the slots. It returns the grants of which nobody else had said that yet.
func (l *ledger) acknowledge(grants *ring.Ring, slots ring.Set, length int) (first []*outgoing) {
	if length != len(l.ring.Log()) {
		return nil
	}
	for _, o := range l.outgoing {
		if !covers(grants, o.grants) {
			continue
		}
		if o.at != length {
			o.acks, o.at = nil, length
		}
		if len(o.acks) == 0 {
			first = append(first, o)
		}
		o.acks = o.acks.Union(slots)
	}
	return first
}

// receive claims what a donor has handed over; the donor's whole ring must have been merged before. What a retired node
// hands over is refused: whoever takes over from it has been told, or will be, that it is not here. It returns the slots that this was news for.
func (l *ledger) receive(from ring.Owner, grants *ring.Ring) (ring.Set, error) {
	if l.retired(l.self) || l.retired(from) {
		return nil, nil
	}
	mine := l.ring.Where(func(x ring.Register) bool { return x.Owner == l.self && x.From == from })
	news := l.ring.Same(grants).Intersect(mine)
	if len(news) == 0 {
		return nil, nil
	}
	if err := l.edit(func(r *ring.Ring) error { return each(news, func(i ring.Interval) error { return r.Claim(l.self, i) }) }); err != nil {
		return nil, err
	}
	l.effective = l.effective.Union(news)
	return news, nil
}

// received takes note that a node says that it has grants. They stay in the ledger until the ring shows that.
func (l *ledger) received(from ring.Owner, grants *ring.Ring) {
	for _, o := range l.outgoing {
		if o.to == from && o.handed && covers(grants, o.grants) {
			o.got = true
		}
	}
}

// open returns the outgoing grants that this node still has to do something about.
func (l *ledger) open() []*outgoing {
	return slices.DeleteFunc(slices.Clone(l.outgoing), func(o *outgoing) bool { return o.handed && (o.got || l.retired(o.to)) })
}

// announced returns the slots that this node owns and may not use yet.
func (l *ledger) announced() ring.Set { return l.ring.OwnedBy(l.self).Subtract(l.effective) }

// adopt takes over the share that was seeded under a name. There is nobody else who may write its slots, so that needs no
// majority.
func (l *ledger) adopt(seed ring.Owner, share ring.Set) error {
	if l.retired(seed) || l.retired(l.self) {
		return errors.New("ipam: who is retired, or was seeded under a name that is, adopts nothing")
	}
	err := l.edit(func(r *ring.Ring) error {
		return each(share, func(i ring.Interval) error { return r.Adopt(seed, l.self, i) })
	})
	if err != nil {
		return err
	}
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

const ledgerFormat = 2

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
		l.effective = l.ring.Same(e).Intersect(l.ring.Where(func(x ring.Register) bool { return x.Owner == l.self && x.From == 0 }))
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
	l.bury()
	return nil
}
