// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
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

// deal splits the free slots of a leaving node among others, in blocks, so that the poorest gets the largest. owned
// says how many slots each of them has.
func deal(free ring.Set, owned map[ring.Owner]uint64) map[ring.Owner]ring.Set {
	var blocks []ring.Interval
	for _, run := range free {
		blocks = slices.AppendSeq(blocks, run.Blocks())
	}
	// Few large blocks could not be dealt evenly.
	for len(blocks) > 0 && len(blocks) < 4*len(owned) {
		largest := 0
		for n, b := range blocks {
			if b.Len() > blocks[largest].Len() {
				largest = n
			}
		}
		b := blocks[largest]
		if b.Len() <= 16 {
			break
		}
		half := uint32(b.Len() / 2)
		blocks[largest].Last -= half
		blocks = append(blocks, ring.Interval{First: b.First + half, Last: b.Last})
	}
	slices.SortFunc(blocks, func(a, b ring.Interval) int {
		if a.Len() != b.Len() {
			return cmp.Compare(b.Len(), a.Len())
		}
		return cmp.Compare(a.First, b.First)
	})
	lists := make(map[ring.Owner][]ring.Interval)
	total := make(map[ring.Owner]uint64, len(owned))
	for o, n := range owned {
		total[o] = n
	}
	for _, b := range blocks {
		poorest := ring.Owner(0)
		for o, n := range total {
			if poorest == 0 || n < total[poorest] || n == total[poorest] && o < poorest {
				poorest = o
			}
		}
		if poorest == 0 {
			break
		}
		lists[poorest] = append(lists[poorest], b)
		total[poorest] += b.Len()
	}
	out := make(map[ring.Owner]ring.Set, len(lists))
	for o, l := range lists {
		out[o] = ring.NewSet(l...)
	}
	return out
}
