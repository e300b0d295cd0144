// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"testing"

	"pgregory.net/rapid"
)

// of makes spans of a set of small numbers, the slow way.
func of(in map[uint64]bool) (out spans) {
	for n := uint64(1); n < 100; n++ {
		if in[n] && in[n-1] {
			out[len(out)-1].hi = n
		} else if in[n] {
			out = append(out, span{n, n})
		}
	}
	return out
}

func equalSpans(a, b spans) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestSpans(t *testing.T) {
	numbers := rapid.MapOf(rapid.Uint64Range(1, 40), rapid.Just(true))
	rapid.Check(t, func(t *rapid.T) {
		a, b := numbers.Draw(t, "a"), numbers.Draw(t, "b")
		both, rest := map[uint64]bool{}, map[uint64]bool{}
		for n := uint64(1); n <= 41; n++ {
			both[n], rest[n] = a[n] || b[n], a[n] && !b[n]
			if of(a).has(n) != a[n] {
				t.Fatalf("%v has %d: %v", of(a), n, !a[n])
			}
		}
		var numbers []uint64
		for n := range a { // in any order, and some twice
			numbers = append(numbers, n)
			if b[n] {
				numbers = append(numbers, n)
			}
		}
		if got := spansOf(numbers); !equalSpans(got, of(a)) {
			t.Fatalf("spans of %v: %v", numbers, got)
		}
		if got := of(a).with(of(b)); !equalSpans(got, of(both)) {
			t.Fatalf("%v with %v: %v", of(a), of(b), got)
		}
		if got := of(a).without(of(b)); !equalSpans(got, of(rest)) {
			t.Fatalf("%v without %v: %v", of(a), of(b), got)
		}
	})
}
