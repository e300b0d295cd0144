// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/weftnet/weft/ipam/ring"
)

// maxBlocks bounds what one grant is made of: a donor whose free space is in crumbs gives a few of them.
const maxBlocks = 8

// pickBlocks chooses what a donor gives of its free slots, which do not have to be usable: CIDR-aligned blocks that
// hold up to limit usable slots together, as usable counts them, as few as come to three quarters of that, and at most maxBlocks. Nothing is
// returned if limit is 0 or no usable slot is free. near are the slots of the recipient: between equals, the block that
// makes one prefix with some of those is taken, then the one that is farthest up, away from where the donor allocates.
func pickBlocks(free, near ring.Set, limit uint64, usable func(ring.Set) uint64) ring.Set {
	var out []ring.Interval
	given := uint64(0)
	for len(out) < maxBlocks && 4*given < 3*max(limit, 1) {
		best, ok := bestBlock(free, near, limit-given, usable)
		if !ok {
			break
		}
		out = append(out, best.Interval)
		given += best.usable
		free = free.Subtract(ring.Set{best.Interval})
	}
	return ring.NewSet(out...)
}

// block is a candidate for a grant.
type block struct {
	ring.Interval
	usable uint64
	whole  bool // it is not part of a larger free block, which would be cut up
	buddy  bool // it makes a block of twice its length with slots of the recipient
}

func bestBlock(free, near ring.Set, limit uint64, usable func(ring.Set) uint64) (best block, found bool) {
	for _, run := range free {
		for i := range run.Blocks() {
			b := block{Interval: i, usable: usable(ring.Set{i}), whole: true}
			for b.usable > limit && b.Len() > 1 {
				half := uint32(b.Len() / 2)
				upper := ring.Interval{First: b.First + half, Last: b.Last}
				// The upper half, unless what is usable is mostly in the lower one.
				if n := usable(ring.Set{upper}); 3*n >= b.usable {
					b.Interval, b.usable = upper, n
				} else {
					b.Interval = ring.Interval{First: b.First, Last: b.Last - half}
					b.usable -= n
				}
				b.whole = false
			}
			if b.usable == 0 || b.usable > limit {
				continue
			}
			b.buddy = inside(buddy(b.Interval), near)
			if !found || b.better(best) {
				best, found = b, true
			}
		}
	}
	return best, found
}

func (b block) better(o block) bool {
	switch {
	case b.usable != o.usable:
		return b.usable > o.usable
	case b.whole != o.whole:
		return b.whole
	case b.buddy != o.buddy:
		return b.buddy
	case b.Len() != o.Len():
		return b.Len() > o.Len()
	default:
		return b.First > o.First
	}
}

// inside reports whether all of i is in s.
func inside(i ring.Interval, s ring.Set) bool { return len(ring.Set{i}.Subtract(s)) == 0 }

// buddy returns the block of the same length that makes one of twice the length with i.
func buddy(i ring.Interval) ring.Interval {
	n := uint32(i.Len())
	return ring.Interval{First: i.First ^ n, Last: i.Last ^ n}
}

// deal splits the free slots of a leaving node among others, of whom owned says what they have. The poorest get most; but a
// block is cut only where an even share asks for it, and what is small goes to whoever has its neighbours, so that what a
// node has does not turn into crumbs, however many others leave.
func deal(free ring.Set, owned map[ring.Owner]ring.Set) map[ring.Owner]ring.Set {
	hands, even := deals(free.Len(), owned)
	out := make(map[ring.Owner]ring.Set, len(hands))
	if len(hands) == 0 {
		return out
	}
	// No share is worth cutting anything into less than this.
	cell := uint64(1) << (bits.Len64(max(free.Len()/uint64(4*len(hands)), 1)) - 1)
	for lots := lotsOf(free, cell); len(lots) > 0; {
		l := lots[0]
		lots = lots[1:]
		h := slices.MinFunc(hands, func(x, y *hand) int { return x.compare(y, l, even/8) })
		if l.whole && l.n > cell && !h.wants(l) {
			half := uint32(l.n / 2)
			lots = append(lots, whole(l.First, l.Last-half), whole(l.First+half, l.Last))
			slices.SortFunc(lots, lot.compare)
			continue
		}
		h.lacks -= int64(l.n)
		h.has = h.has.Union(l.slots)
		out[h.o] = out[h.o].Union(l.slots)
	}
	return out
}

// lot is what is dealt as one: a whole block, or what is free of one.
type lot struct {
	ring.Interval
	slots ring.Set
	n     uint64 // of them
	whole bool
}

func whole(first, last uint32) lot {
	i := ring.Interval{First: first, Last: last}
	return lot{i, ring.Set{i}, i.Len(), true}
}

// compare puts the largest first.
func (l lot) compare(o lot) int { return cmp.Or(cmp.Compare(o.n, l.n), cmp.Compare(l.First, o.First)) }

// lotsOf returns the free blocks of at least cell slots, a power of two, and what is smaller by the block of that length
// that it is in.
func lotsOf(free ring.Set, cell uint64) []lot {
	var lots []lot
	crumbs := make(map[uint32]ring.Set)
	for _, run := range free {
		for b := range run.Blocks() {
			if b.Len() >= cell {
				lots = append(lots, whole(b.First, b.Last))
				continue
			}
			first := b.First &^ uint32(cell-1)
			crumbs[first] = crumbs[first].Union(ring.Set{b})
		}
	}
	for first, s := range crumbs {
		lots = append(lots, lot{ring.Interval{First: first, Last: first + uint32(cell-1)}, s, s.Len(), false})
	}
	slices.SortFunc(lots, lot.compare)
	return lots
}

// hand is one of those among whom is dealt.
type hand struct {
	o     ring.Owner
	has   ring.Set
	lacks int64 // to be as rich as all who get something could be
}

// deals returns those among whom free slots are dealt, and what each would have if all had the same.
func deals(free uint64, owned map[ring.Owner]ring.Set) (hands []*hand, even uint64) {
	all := free
	for o, s := range owned {
		hands = append(hands, &hand{o: o, has: s, lacks: -int64(s.Len())})
		all += s.Len()
	}
	slices.SortFunc(hands, func(x, y *hand) int { return cmp.Or(cmp.Compare(y.lacks, x.lacks), cmp.Compare(x.o, y.o)) })
	sum, level := int64(free), int64(0)
	for i, h := range hands {
		if i > 0 && -h.lacks >= level {
			break
		}
		sum -= h.lacks
		level = sum / int64(i+1)
	}
	for _, h := range hands {
		h.lacks += level
	}
	return hands, all / max(uint64(len(hands)), 1)
}

// wants reports whether h would have little more than it should with a lot.
func (h *hand) wants(l lot) bool { return 4*h.lacks >= 3*int64(l.n) }

// compare puts first whom a lot should rather go to: the nearest if it is small, and else who lacks as much, can make it one
// block with what it has, and lacks most.
func (h *hand) compare(o *hand, l lot, small uint64) int {
	first := func(x, y bool) int {
		switch {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	}
	x, y := h.far(l), o.far(l)
	near := cmp.Compare(x, y)
	if l.n > small {
		near = cmp.Or(first(h.wants(l), o.wants(l)), first(x == 0, y == 0))
	}
	return cmp.Or(near, cmp.Compare(o.lacks, h.lacks), cmp.Compare(h.o, o.o))
}

// far tells how far the slots of h are from a lot: 0 if both make one block, or else how often the block of the lot has to
// be doubled until some of them are in it, and one more.
func (h *hand) far(l lot) int {
	rest := ring.Set{l.Interval}.Subtract(l.slots)
	if len(rest) == 0 {
		rest = ring.Set{buddy(l.Interval)}
	}
	if len(rest.Subtract(h.has)) == 0 {
		return 0
	}
	k := 1
	for b := l.Interval; k < 32 && len(h.has.Intersect(ring.Set{b})) == 0; k++ {
		n := uint32(b.Len())
		b = ring.Interval{First: b.First &^ n, Last: b.Last | n}
	}
	return k
}
