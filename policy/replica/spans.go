// SPDX-License-Identifier: Apache-2.0

package replica

import "slices"

// span is a range of numbers, both ends in it.
type span struct{ lo, hi uint64 }

// spans are numbers in ranges: ascending, and none touches the next one. They are never written to once made.
type spans []span

// spansOf returns those of numbers, which it sorts.
func spansOf(numbers []uint64) (s spans) {
	slices.Sort(numbers)
	for _, n := range numbers {
		if last := len(s) - 1; last >= 0 && n <= s[last].hi+1 {
			s[last].hi = n
		} else {
			s = append(s, span{n, n})
		}
	}
	return s
}

// has tells whether n is among them.
func (s spans) has(n uint64) bool {
	i, _ := slices.BinarySearchFunc(s, n, func(r span, n uint64) int {
		if r.hi < n {
			return -1
		}
		return 1
	})
	return i < len(s) && s[i].lo <= n
}

// last is the greatest of them, 0 if there is none.
func (s spans) last() uint64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].hi
}

// with returns those of s and of o.
func (s spans) with(o spans) spans {
	if len(o) == 0 {
		return s
	}
	var out spans
	for len(s) > 0 || len(o) > 0 {
		var r span
		if len(o) == 0 || len(s) > 0 && s[0].lo <= o[0].lo {
			r, s = s[0], s[1:]
		} else {
			r, o = o[0], o[1:]
		}
		if n := len(out) - 1; n >= 0 && r.lo <= out[n].hi+1 {
			out[n].hi = max(out[n].hi, r.hi)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// without returns those of s that are not in o.
func (s spans) without(o spans) spans {
	var out spans
	for _, r := range s {
		for len(o) > 0 && o[0].hi < r.lo {
			o = o[1:]
		}
		rest := o
		for len(rest) > 0 && rest[0].lo <= r.hi {
			if rest[0].lo > r.lo {
				out = append(out, span{r.lo, rest[0].lo - 1})
			}
			if rest[0].hi >= r.hi {
				r.lo = r.hi + 1
				break
			}
			r.lo, rest = rest[0].hi+1, rest[1:]
		}
		if r.lo <= r.hi {
			out = append(out, r)
		}
	}
	return out
}
