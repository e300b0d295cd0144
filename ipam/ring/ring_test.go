// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestMergeIsTheSlotwiseMaximum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := sizes().Draw(t, "size")
		a, b := anySlots(t, size, "a"), anySlots(t, size, "b")
		ra, rb := a.ring(), b.ring()
		before := a.clone()
		changed, conflicts, err := ra.Merge(rb)
		if err != nil {
			t.Fatal(err)
		}
		want, ties := a.merge(b)
		check(t, ra, a)
		check(t, rb, b)
		checkSet(t, changed, want)
		n := 0
		for _, c := range conflicts {
			n += int(c.Interval.Len())
			for s := c.Interval.First; s <= c.Interval.Last; s++ {
				x, y := before[s], b[s]
				if x.Version != c.Version || y.Version != c.Version || min(x.Owner, y.Owner) != c.Dropped || a[s].Owner != c.Kept {
					t.Fatalf("conflict %+v at slot %d of %v and %v", c, s, x, y)
				}
			}
		}
		if n != ties {
			t.Fatalf("%d slots in conflict, want %d", n, ties)
		}
	})
}

// merged returns the merge of clones, leaving the arguments as they are.
func merged(t rapid.TB, rings ...*Ring) *Ring {
	out := New(rings[0].Size())
	for _, r := range rings {
		if _, _, err := out.Merge(r); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// laws checks what makes the ring a CRDT.
func laws(t rapid.TB, a, b, c *Ring) {
	ab := merged(t, a, b)
	switch {
	case !ab.Equal(merged(t, b, a)):
		t.Fatal("not commutative")
	case !merged(t, ab, c).Equal(merged(t, a, merged(t, b, c))):
		t.Fatal("not associative")
	case !merged(t, a, a).Equal(a) || !merged(t, ab, b).Equal(ab):
		t.Fatal("not idempotent")
	}
	for i, reg := range ab.All() {
		for _, s := range []uint32{i.First, i.Last} {
			if reg.compare(a.At(s)) < 0 || reg.compare(b.At(s)) < 0 {
				t.Fatalf("slot %d went back", s)
			}
		}
	}
}

func TestLawsOverArbitraryRings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := sizes().Draw(t, "size")
		laws(t, anySlots(t, size, "a").ring(), anySlots(t, size, "b").ring(), anySlots(t, size, "c").ring())
	})
}

func TestLawsOverReachableRings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			before := slices.Clone(h.replicas)
			for i := range before {
				before[i] = before[i].Clone()
			}
			h.step(t)
			for i, r := range h.replicas {
				if m := merged(t, before[i], r); !m.Equal(r) {
					t.Fatalf("a step took replica %d back", i)
				}
			}
		}
		n := len(h.replicas)
		laws(t, h.replicas[0], h.replicas[n/2], h.replicas[n-1])
		all := merged(t, h.replicas...)
		slices.Reverse(h.replicas)
		if !merged(t, h.replicas...).Equal(all) {
			t.Fatal("the order of merging shows")
		}
		// A slot is owned, in the eyes of its owner, by one node at most.
		owner := make([]Owner, all.Size())
		slices.Reverse(h.replicas)
		for i, r := range h.replicas {
			for _, iv := range r.OwnedBy(Owner(i + 1)) {
				for s := iv.First; s <= iv.Last; s++ {
					if owner[s] != 0 {
						t.Fatalf("slot %d is owned by %d and by %d", s, owner[s], i+1)
					}
					owner[s] = Owner(i + 1)
				}
			}
		}
	})
}

func TestDeltas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := sizes().Draw(t, "size")
		s := anySlots(t, size, "ring")
		keep, marks := anySet(t, size, "keep")
		d := s.ring().Only(keep)
		want, known := make(slots, size), make([]bool, size)
		for i := range want {
			if marks[i] {
				want[i] = s[i]
				known[i] = s[i] != (Register{})
			}
		}
		check(t, d, want)
		checkSet(t, d.Known(), known)
		checkSet(t, d.Same(s.ring()), known)

		// What a merge reports as changed is all that another replica needs in order to catch up.
		o := anySlots(t, size, "other")
		r := s.ring()
		changed, _, err := r.Merge(o.ring())
		if err != nil {
			t.Fatal(err)
		}
		if !merged(t, s.ring(), r.Only(changed)).Equal(r) {
			t.Fatal("the delta does not hold all that changed")
		}
	})
}

func TestQueries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySlots(t, sizes().Draw(t, "size"), "ring")
		r := s.ring()
		count := make(map[Owner]uint64)
		for _, reg := range s {
			count[reg.Owner]++
		}
		var owners []Owner
		for o := Owner(1); o <= 4; o++ {
			marks := make([]bool, len(s))
			for i := range s {
				marks[i] = s[i].Owner == o
			}
			checkSet(t, r.OwnedBy(o), marks)
			if r.Owned()[o] != count[o] {
				t.Fatalf("owner %d has %d, want %d", o, r.Owned()[o], count[o])
			}
			if count[o] > 0 {
				owners = append(owners, o)
			}
		}
		if !slices.Equal(r.Owners(), owners) {
			t.Fatalf("owners %v, want %v", r.Owners(), owners)
		}
	})
}

func TestSeed(t *testing.T) {
	for _, c := range []struct {
		name   string
		size   uint32
		owners []Owner
		firsts []uint32
	}{
		{"founder", 1 << 20, []Owner{7}, []uint32{0}},
		{"two", 1 << 20, []Owner{7, 3}, []uint32{0, 1 << 19}},
		{"three", 1 << 4, []Owner{1, 2, 3}, []uint32{0, 5, 10}},
		{"three, wide", 1 << 20, []Owner{1, 2, 3}, []uint32{0, 5 << 16, 10 << 16}},
		{"as many as slots", 8, []Owner{1, 2, 3, 4, 5, 6, 7, 8}, []uint32{0, 1, 2, 3, 4, 5, 6, 7}},
		{"seven of eight", 8, []Owner{1, 2, 3, 4, 5, 6, 7}, []uint32{0, 1, 2, 3, 4, 5, 6}},
		{"no power of two", 7, []Owner{1, 2}, []uint32{0, 2}},
		{"largest", math.MaxUint32, []Owner{9}, []uint32{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Seed(c.size, c.owners)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.runs) != len(c.firsts) {
				t.Fatalf("%d runs, want %d", len(r.runs), len(c.firsts))
			}
			for i, x := range r.runs {
				if x.first != c.firsts[i] || x.reg != (Register{Version{0, 1}, c.owners[i]}) {
					t.Errorf("run %d is %+v", i, x)
				}
			}
		})
	}
	for name, owners := range map[string][]Owner{"none": nil, "nobody": {1, 0}, "twice": {1, 2, 1}, "too many": {1, 2, 3, 4, 5, 6, 7, 8, 9}} {
		if _, err := Seed(8, owners); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Any two of three seeded nodes have to be a majority, and shares must not cost many routes.
func TestSeedIsEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 100).Draw(t, "owners")
		size := uint32(1) << rapid.IntRange(10, 24).Draw(t, "bits")
		owners := make([]Owner, n)
		for i := range owners {
			owners[i] = Owner(i + 1)
		}
		r, err := Seed(size, owners)
		if err != nil {
			t.Fatal(err)
		}
		lo, hi := uint64(math.MaxUint64), uint64(0)
		for o, slots := range r.Owned() {
			lo, hi = min(lo, slots), max(hi, slots)
			blocks := 0
			for _, i := range r.OwnedBy(o) {
				for range i.Blocks() {
					blocks++
				}
			}
			if blocks > 4 {
				t.Fatalf("owner %d of %d has %d blocks", o, n, blocks)
			}
		}
		if hi*4 > lo*5 {
			t.Fatalf("%d owners: shares from %d to %d", n, lo, hi)
		}
	})
}

func TestGrantRefuses(t *testing.T) {
	r, err := Seed(16, []Owner{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	top := slots{{Version{0, math.MaxUint32}, 1}}.ring()
	for _, c := range []struct {
		name     string
		ring     *Ring
		from, to Owner
		i        Interval
		is       error
	}{
		{"not all owned", r, 1, 3, Interval{7, 8}, ErrNotOwner},
		{"owned by another", r, 1, 3, Interval{8, 15}, ErrNotOwner},
		{"to itself", r, 1, 1, Interval{0, 1}, nil},
		{"to nobody", r, 1, 0, Interval{0, 1}, nil},
		{"behind the end", r, 2, 3, Interval{15, 16}, nil},
		{"backwards", r, 1, 3, Interval{3, 2}, nil},
		{"counted out", top, 1, 2, Interval{0, 0}, nil},
		{"unknown slots", New(4), 1, 2, Interval{0, 0}, ErrNotOwner},
		{"no slots", New(0), 1, 2, Interval{0, 0}, nil},
	} {
		before := c.ring.Clone()
		err := c.ring.Grant(c.from, c.to, c.i)
		if err == nil || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: error %v", c.name, err)
		}
		if !c.ring.Equal(before) {
			t.Errorf("%s: the ring changed", c.name)
		}
	}
}

func TestMergeRefusesAnotherSize(t *testing.T) {
	a, b := New(8), New(16)
	if _, _, err := a.Merge(b); !errors.Is(err, ErrSize) {
		t.Fatalf("error %v", err)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	r, err := Seed(16, []Owner{1})
	if err != nil {
		t.Fatal(err)
	}
	c := r.Clone()
	if err := c.Grant(1, 2, Interval{4, 7}); err != nil {
		t.Fatal(err)
	}
	if r.At(5).Owner != 1 || c.At(5).Owner != 2 || r.Equal(c) {
		t.Fatal("the clone and the original are one")
	}
}
