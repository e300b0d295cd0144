// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"maps"
	"math/bits"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// space keeps which slots are taken, be it by an allocation or because they rest after one, and finds one that is not.
// It is a bitmap in pages that exist only where something is taken, so that it costs what is in use and not what could be.
type space struct {
	size    uint32
	reserve ring.Set // the slots that are handed out by name only; set before anything else is called
	slots   ring.Set // what within was given
	domain  ring.Set // the slots that may be handed out; neither 0 nor size-1 is among them
	common  ring.Set // those of domain that are not in reserve
	inside  uint64   // how many of common are taken
	total   uint64   // how many common has
	pages   map[uint32]*page
	spare   *page     // an empty one, nil if there is none: where few slots are in use pages come and go
	resting []Resting // by Until
	rests   map[uint32]time.Time
	cursor  uint32 // where the search for the next free slot begins
}

const (
	pageBits  = 12
	pageSlots = 1 << pageBits
)

type page struct {
	taken int
	words [pageSlots / 64]uint64
}

func newSpace(size uint32) *space {
	return &space{size: size, pages: make(map[uint32]*page), rests: make(map[uint32]time.Time)}
}

// within sets the slots that may be handed out; the first and the last of the universe are left out of them. What is
// taken stays taken, inside or not.
func (s *space) within(slots ring.Set) {
	if slices.Equal(slots, s.slots) {
		return
	}
	s.slots = slots
	s.domain = slots.Subtract(ring.Set{{First: 0, Last: 0}}).Subtract(ring.Set{{First: s.size - 1, Last: s.size - 1}})
	s.common = s.domain.Subtract(s.reserve)
	s.total = s.common.Len()
	s.inside = s.all().Intersect(s.common).Len()
}

// usable returns how many slots of a set may be handed out unasked: all but the first and the last of the universe, and
// what is in reserve.
func (s *space) usable(slots ring.Set) uint64 {
	n := usable(slots, s.size)
	if len(s.reserve) > 0 {
		n -= slots.Intersect(s.reserve).Len()
	}
	return n
}

// dozing returns how many of the slots that rest may be handed out unasked when they wake.
func (s *space) dozing() (n uint64) {
	if len(s.reserve) == 0 {
		return uint64(len(s.rests))
	}
	for slot := range s.rests {
		if !s.reserve.Contains(slot) {
			n++
		}
	}
	return n
}

// left returns how many slots may be handed out unasked now.
func (s *space) left() uint64 { return s.total - s.inside }

// taken reports whether a slot is in use or resting.
func (s *space) taken(slot uint32) bool {
	p := s.pages[slot>>pageBits]
	return p != nil && p.words[slot%pageSlots/64]&(1<<(slot%64)) != 0
}

// take marks a slot, which must not be taken, as taken.
func (s *space) take(slot uint32) {
	p := s.pages[slot>>pageBits]
	if p == nil {
		if p, s.spare = s.spare, nil; p == nil {
			p = new(page)
		}
		s.pages[slot>>pageBits] = p
	}
	p.words[slot%pageSlots/64] |= 1 << (slot % 64)
	p.taken++
	if s.common.Contains(slot) {
		s.inside++
	}
}

// free marks a slot, which must be taken, as free.
func (s *space) free(slot uint32) {
	p := s.pages[slot>>pageBits]
	p.words[slot%pageSlots/64] &^= 1 << (slot % 64)
	if p.taken--; p.taken == 0 {
		delete(s.pages, slot>>pageBits)
		s.spare = p
	}
	if s.common.Contains(slot) {
		s.inside--
	}
}

// rest lets a slot that is taken rest until a time.
func (s *space) rest(slot uint32, until time.Time) {
	n := len(s.resting)
	for n > 0 && s.resting[n-1].Until.After(until) {
		n--
	}
	s.resting = slices.Insert(s.resting, n, Resting{slot, until})
	s.rests[slot] = until
}

// wake ends the rest of a slot, which stays taken. It reports whether the slot was resting.
func (s *space) wake(slot uint32) bool {
	if _, ok := s.rests[slot]; !ok {
		return false
	}
	delete(s.rests, slot)
	s.resting = slices.DeleteFunc(s.resting, func(r Resting) bool { return r.Slot == slot })
	return true
}

// expire frees the slots that have rested long enough and returns them.
func (s *space) expire(now time.Time) []uint32 {
	n := 0
	for n < len(s.resting) && !s.resting[n].Until.After(now) {
		n++
	}
	if n == 0 {
		return nil
	}
	var out []uint32
	for _, r := range s.resting[:n] {
		delete(s.rests, r.Slot)
		s.free(r.Slot)
		out = append(out, r.Slot)
	}
	s.resting = s.resting[n:]
	return out
}

// next returns a slot that may be handed out unasked: the first behind the one that was returned last, going round at the end,
// so that a slot comes up again as late as possible.
func (s *space) next() (uint32, bool) {
	slot, ok := s.firstFree(s.cursor, s.size-1)
	if !ok && s.cursor > 0 {
		slot, ok = s.firstFree(0, s.cursor-1)
	}
	if ok {
		s.cursor = slot + 1
	}
	return slot, ok
}

func (s *space) firstFree(from, to uint32) (uint32, bool) {
	n, _ := slices.BinarySearchFunc(s.common, from, func(i ring.Interval, from uint32) int {
		if i.Last < from {
			return -1
		}
		return 1
	})
	for _, i := range s.common[n:] {
		if i.First > to {
			break
		}
		if slot, ok := s.scan(max(i.First, from), min(i.Last, to)); ok {
			return slot, true
		}
	}
	return 0, false
}

// scan returns the first slot from lo to hi that is not taken.
func (s *space) scan(lo, hi uint32) (uint32, bool) {
	for at := uint64(lo); at <= uint64(hi); {
		p := s.pages[uint32(at>>pageBits)]
		if p == nil {
			return uint32(at), true
		}
		if p.taken == pageSlots {
			at = (at>>pageBits + 1) << pageBits
			continue
		}
		// The bits below at count as taken; so does nothing above.
		word := ^p.words[at%pageSlots/64] >> (at % 64) << (at % 64)
		if word == 0 {
			at = (at/64 + 1) * 64
			continue
		}
		at = at&^63 + uint64(bits.TrailingZeros64(word))
		return uint32(at), at <= uint64(hi)
	}
	return 0, false
}

// all returns the slots that are taken.
func (s *space) all() ring.Set {
	var out []ring.Interval
	for _, n := range slices.Sorted(maps.Keys(s.pages)) {
		for w, word := range s.pages[n].words {
			for ; word != 0; word &= word - 1 {
				slot := n<<pageBits + uint32(w)*64 + uint32(bits.TrailingZeros64(word))
				if k := len(out); k > 0 && out[k-1].Last+1 == slot {
					out[k-1].Last = slot
				} else {
					out = append(out, ring.Interval{First: slot, Last: slot})
				}
			}
		}
	}
	return out
}
