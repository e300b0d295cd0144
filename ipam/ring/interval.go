// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"cmp"
	"fmt"
	"iter"
	"math/bits"
	"slices"
)

// Interval is a range of slots, both ends included. First > Last is no interval and is accepted nowhere.
type Interval struct{ First, Last uint32 }

// Len returns the number of slots, 1 to 2^32.
func (i Interval) Len() uint64 { return uint64(i.Last) - uint64(i.First) + 1 }

// Contains reports whether slot lies in the interval.
func (i Interval) Contains(slot uint32) bool { return i.First <= slot && slot <= i.Last }

// String is "[first,last]".
func (i Interval) String() string { return fmt.Sprintf("[%d,%d]", i.First, i.Last) }

// Blocks yields, in ascending order, the fewest blocks that make up the interval, each with a length that is a power of
// two and a first slot that is a multiple of that length: what becomes one CIDR prefix each.
func (i Interval) Blocks() iter.Seq[Interval] {
	return func(yield func(Interval) bool) {
		for at, left := uint64(i.First), i.Len(); left > 0; {
			size := uint64(1) << (bits.Len64(left) - 1)
			if at != 0 {
				size = min(size, 1<<bits.TrailingZeros64(at))
			}
			if !yield(Interval{uint32(at), uint32(at + size - 1)}) {
				return
			}
			at += size
			left -= size
		}
	}
}

// Set is a set of slots: intervals in ascending order that neither overlap nor touch. The zero value is the empty set.
// No method changes its receiver or its arguments, but results may share memory with them.
type Set []Interval

// NewSet returns the union of the intervals, which may overlap and come in any order.
func NewSet(in ...Interval) Set {
	s := slices.Clone(in)
	slices.SortFunc(s, func(a, b Interval) int { return cmp.Compare(a.First, b.First) })
	out := Set(s[:0])
	for _, i := range s {
		out = out.append(i)
	}
	return out
}

// append adds an interval that begins at or after the last one's beginning.
func (s Set) append(i Interval) Set {
	if n := len(s); n > 0 && uint64(i.First) <= uint64(s[n-1].Last)+1 {
		s[n-1].Last = max(s[n-1].Last, i.Last)
		return s
	}
	return append(s, i)
}

// Len returns the number of slots in the set.
func (s Set) Len() uint64 {
	var n uint64
	for _, i := range s {
		n += i.Len()
	}
	return n
}

// Contains reports whether slot is in the set.
func (s Set) Contains(slot uint32) bool {
	n, found := slices.BinarySearchFunc(s, slot, func(i Interval, slot uint32) int { return cmp.Compare(i.First, slot) })
	return found || n > 0 && s[n-1].Last >= slot
}

// Union returns the slots that are in s or in t.
func (s Set) Union(t Set) Set {
	if len(t) == 0 {
		return s
	}
	out := make(Set, 0, len(s)+len(t))
	for len(s) > 0 || len(t) > 0 {
		if len(t) == 0 || len(s) > 0 && s[0].First <= t[0].First {
			out, s = out.append(s[0]), s[1:]
		} else {
			out, t = out.append(t[0]), t[1:]
		}
	}
	return out
}

// Intersect returns the slots that are in s and in t.
func (s Set) Intersect(t Set) Set {
	var out Set
	for len(s) > 0 && len(t) > 0 {
		first, last := max(s[0].First, t[0].First), min(s[0].Last, t[0].Last)
		if first <= last {
			out = append(out, Interval{first, last})
		}
		if s[0].Last < t[0].Last {
			s = s[1:]
		} else {
			t = t[1:]
		}
	}
	return out
}

// Subtract returns the slots that are in s and not in t.
func (s Set) Subtract(t Set) Set {
	var out Set
	for _, i := range s {
		for len(t) > 0 && t[0].Last < i.First {
			t = t[1:]
		}
		at, rest := uint64(i.First), t
		for len(rest) > 0 && rest[0].First <= i.Last {
			if at < uint64(rest[0].First) {
				out = append(out, Interval{uint32(at), rest[0].First - 1})
			}
			at = uint64(rest[0].Last) + 1
			rest = rest[1:]
		}
		if at <= uint64(i.Last) {
			out = append(out, Interval{uint32(at), i.Last})
		}
	}
	return out
}
