// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// anySet draws intervals in any order, overlapping, and the slots they cover.
func anySet(t *rapid.T, size int, label string) (Set, []bool) {
	marks := make([]bool, size)
	var in []Interval
	for range rapid.IntRange(0, 5).Draw(t, label+" intervals") {
		first := rapid.IntRange(0, size-1).Draw(t, label+" first")
		last := rapid.IntRange(first, size-1).Draw(t, label+" last")
		in = append(in, Interval{uint32(first), uint32(last)})
		for i := first; i <= last; i++ {
			marks[i] = true
		}
	}
	return NewSet(in...), marks
}

func TestSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := sizes().Draw(t, "size")
		a, ma := anySet(t, size, "a")
		b, mb := anySet(t, size, "b")
		ka, kb := slices.Clone(a), slices.Clone(b)
		checkSet(t, a, ma)
		union, inter, diff := make([]bool, size), make([]bool, size), make([]bool, size)
		for i := range size {
			union[i], inter[i], diff[i] = ma[i] || mb[i], ma[i] && mb[i], ma[i] && !mb[i]
		}
		checkSet(t, a.Union(b), union)
		checkSet(t, a.Intersect(b), inter)
		checkSet(t, a.Subtract(b), diff)
		if !slices.Equal(a, ka) || !slices.Equal(b, kb) {
			t.Fatal("an operand changed")
		}
	})
}

func TestSetsAtTheEndOfTheNumbers(t *testing.T) {
	const top = math.MaxUint32
	all := Set{{0, top}}
	if all.Len() != 1<<32 || !all.Contains(top) {
		t.Fatal("the whole range is not itself")
	}
	if got := all.Subtract(Set{{5, top - 5}}); !slices.Equal(got, Set{{0, 4}, {top - 4, top}}) {
		t.Fatalf("subtract: %v", got)
	}
	if got := NewSet(Interval{top, top}, Interval{0, 0}, Interval{1, top - 1}); !slices.Equal(got, all) {
		t.Fatalf("joined: %v", got)
	}
	if got := slices.Collect(Interval{0, top}.Blocks()); !slices.Equal(got, []Interval{{0, top}}) {
		t.Fatalf("blocks: %v", got)
	}
}

func TestBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint32().Draw(t, "first")
		i := Interval{first, rapid.Uint32Range(first, math.MaxUint32).Draw(t, "last")}
		next, n := uint64(i.First), 0
		for b := range i.Blocks() {
			if uint64(b.First) != next || bits.OnesCount64(b.Len()) != 1 || uint64(b.First)%b.Len() != 0 {
				t.Fatalf("block %v of %v, expected to begin at %d", b, i, next)
			}
			next += b.Len()
			n++
		}
		if next != uint64(i.Last)+1 {
			t.Fatalf("blocks of %v end at %d", i, next)
		}
		if n > 62 {
			t.Fatalf("%d blocks", n)
		}
	})
}

func TestPrefixes(t *testing.T) {
	for _, c := range []struct {
		base string
		in   []Interval
		want []string
	}{
		{"10.32.0.0/12", []Interval{{0, 1<<20 - 1}}, []string{"10.32.0.0/12"}},
		{"10.32.0.0/12", []Interval{{1 << 19, 1<<20 - 1}, {0, 255}}, []string{"10.32.0.0/24", "10.40.0.0/13"}},
		{"10.32.0.0/12", []Interval{{0, 127}, {128, 255}}, []string{"10.32.0.0/24"}},
		{"10.32.0.0/29", []Interval{{1, 6}}, []string{"10.32.0.1/32", "10.32.0.2/31", "10.32.0.4/31", "10.32.0.6/32"}},
		{"fd00::/64", []Interval{{0, 1<<31 - 1}}, []string{"fd00::/97"}},
		{"fd00::/112", []Interval{{256, 511}}, []string{"fd00::100/120"}},
		{"10.32.0.0/12", nil, nil},
	} {
		var got []string
		for _, p := range Prefixes(c.in, netip.MustParsePrefix(c.base)) {
			got = append(got, p.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v of %s: %v, want %v", c.in, c.base, got, c.want)
		}
	}
	if got := Prefixes([]Interval{{0, 1}}, netip.Prefix{}); got != nil {
		t.Errorf("prefixes without a base: %v", got)
	}
}

// The prefixes cover the addresses of the slots, each once, and nothing else.
func TestPrefixesCoverExactly(t *testing.T) {
	bases := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/26"), netip.MustParsePrefix("fd00:1::/122")}
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.SampledFrom(bases).Draw(t, "base")
		set, marks := anySet(t, 64, "slots")
		prefixes := Prefixes(set, base)
		for i, m := range marks {
			n := 0
			for _, p := range prefixes {
				if p != p.Masked() {
					t.Fatalf("%v has host bits", p)
				}
				if p.Contains(Addr(base, uint32(i))) {
					n++
				}
			}
			if m && n != 1 || !m && n != 0 {
				t.Fatalf("slot %d is covered %d times by %v", i, n, prefixes)
			}
		}
	})
}

func TestAddr(t *testing.T) {
	for _, c := range []struct {
		base string
		slot uint32
		want string
	}{
		{"10.32.0.0/12", 0, "10.32.0.0"},
		{"10.32.0.0/12", 1<<20 - 1, "10.47.255.255"},
		{"10.32.0.9/12", 1, "10.32.0.1"},
		{"fd00::/64", 1<<31 - 1, "fd00::7fff:ffff"},
		{"fd00:0:0:1:ffff:ffff::/96", 5, "fd00::1:ffff:ffff:0:5"},
	} {
		if got := Addr(netip.MustParsePrefix(c.base), c.slot); got.String() != c.want {
			t.Errorf("slot %d of %s is %v, want %s", c.slot, c.base, got, c.want)
		}
	}
	if Addr(netip.Prefix{}, 1).IsValid() {
		t.Error("an address without a base")
	}
}
