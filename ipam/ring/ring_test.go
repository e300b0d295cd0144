// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestMergeIsTheMaximum(t *testing.T) {
	often(t, 5, func(t *rapid.T) {
		size := sizes().Draw(t, "size")
		a, b := anyNaive(t, size, "a"), anyNaive(t, size, "b")
		ra, rb := a.ring(t), b.ring(t)
		before := a.clone()
		news, err := ra.Merge(rb)
		if err != nil {
			t.Fatal(err)
		}
		want, ties := a.merge(b.slots)
		log, split := a.mergeLog(b)
		check(t, ra, a)
		check(t, rb, b)
		checkSet(t, news.Slots, want)
		n := 0
		for _, c := range news.Conflicts {
			n += int(c.Interval.Len())
			for s := c.Interval.First; s <= c.Interval.Last; s++ {
				x, y := before.slots[s], b.slots[s]
				if x.Version != c.Version || y.Version != c.Version || min(x.Owner, y.Owner) != c.Dropped || a.slots[s].Owner != c.Kept {
					t.Fatalf("conflict %+v at slot %d of %v and %v", c, s, x, y)
				}
			}
		}
		if n != ties {
			t.Fatalf("%d slots in conflict, want %d", n, ties)
		}
		if news.Log != log || (news.Split != nil) != (split >= 0) {
			t.Fatalf("log changed %v, split %v; want %v, %d", news.Log, news.Split, log, split)
		}
		if s := news.Split; s != nil {
			kept, dropped := before.log[split], b.log[split]
			if compareLogs(before.log, b.log) < 0 {
				kept, dropped = dropped, kept
			}
			if *s != (Split{split, kept, dropped}) {
				t.Fatalf("split %+v of %v and %v", *s, before.log, b.log)
			}
		}
		if news.Any() != (!a.equal(before)) {
			t.Fatalf("news %+v of a merge of %v and %v", news, before, b)
		}
	})
}

func (n *naive) equal(o *naive) bool {
	return slices.Equal(n.slots, o.slots) && slices.Equal(n.log, o.log) && n.votes == o.votes
}

// merged returns the merge of clones, leaving the arguments as they are.
func merged(t rapid.TB, rings ...*Ring) *Ring {
	out := New(rings[0].Size())
	for _, r := range rings {
		if _, err := out.Merge(r); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// laws checks what makes the ring a CRDT.
func laws(t rapid.TB, a, b, c *Ring) {
	was := []*naive{naiveOf(a), naiveOf(b), naiveOf(c)}
	ab := merged(t, a, b)
	switch {
	case !ab.Equal(merged(t, b, a)):
		t.Fatal("not commutative")
	case !merged(t, ab, c).Equal(merged(t, a, merged(t, b, c))):
		t.Fatal("not associative")
	case !merged(t, a, a).Equal(a) || !merged(t, ab, b).Equal(ab) || !merged(t, a, ab).Equal(ab):
		t.Fatal("not idempotent")
	}
	if n := naiveOf(ab); !n.notBehind(was[0]) || !n.notBehind(was[1]) {
		t.Fatalf("the merge of %v and %v went back to %v", was[0], was[1], n)
	}
	for i, r := range []*Ring{a, b, c} {
		check(t, r, was[i])
	}
}

func TestLawsOverArbitraryRings(t *testing.T) {
	often(t, 5, func(t *rapid.T) {
		size := sizes().Draw(t, "size")
		laws(t, anyNaive(t, size, "a").ring(t), anyNaive(t, size, "b").ring(t), anyNaive(t, size, "c").ring(t))
	})
}

func TestLawsOverReachableRings(t *testing.T) {
	often(t, 3, func(t *rapid.T) {
		h := newHistory(t)
		h.run(t)
		n := len(h.replicas)
		laws(t, h.replicas[0], h.replicas[n/2], h.replicas[n-1])
		all := merged(t, h.replicas...)
		turned := slices.Clone(h.replicas)
		slices.Reverse(turned)
		if !merged(t, turned...).Equal(all) {
			t.Fatal("the order of merging shows")
		}
		checkSlots(t, all, h.truth)
		if !slices.Equal(all.Log(), h.decided) {
			t.Fatalf("log %v, decided was %v", all.Log(), h.decided)
		}
		// A slot is claimed, in the eyes of its owner, by one node at most that is not retired.
		owner := make([]Owner, all.Size())
		for i, r := range h.replicas {
			self := Owner(i + 1)
			if h.dead(self) {
				continue
			}
			for _, iv := range r.Where(func(x Register) bool { return x.Owner == self && x.From == 0 }) {
				for s := iv.First; s <= iv.Last; s++ {
					if owner[s] != 0 {
						t.Fatalf("slot %d is owned by %d and by %d", s, owner[s], self)
					}
					owner[s] = self
				}
			}
		}
	})
}

func TestDeltas(t *testing.T) {
	often(t, 5, func(t *rapid.T) {
		size := sizes().Draw(t, "size")
		n := anyNaive(t, size, "ring")
		s, r := n.slots, n.ring(t)
		keep, marks := anySet(t, size+3, "keep") // may reach behind the end
		d := r.Only(keep)
		want, known := make(slots, size), make([]bool, size)
		for i := range want {
			if marks[i] {
				want[i] = s[i]
				known[i] = s[i] != (Register{})
			}
		}
		check(t, d, &naive{slots: want})
		checkSet(t, d.Known(), known)
		checkSet(t, d.Same(r), known)
		check(t, d.WithLog(r), &naive{want, n.log, n.votes})
		check(t, d, &naive{slots: want})

		// What two rings know alike.
		o := anyNaive(t, size, "other")
		same := make([]bool, size)
		for i := range same {
			same[i] = s[i] == o.slots[i] && s[i] != (Register{})
		}
		checkSet(t, r.Same(o.ring(t)), same)

		// What a merge reports as changed is all that another replica needs in order to catch up.
		c := r.Clone()
		news, err := c.Merge(o.ring(t))
		if err != nil {
			t.Fatal(err)
		}
		if !merged(t, r, c.Only(news.Slots).WithLog(c)).Equal(c) {
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
		for o := range Owner(7) {
			owned, pending, named := make([]bool, len(s)), make([]bool, len(s)), false
			for i := range s {
				owned[i], pending[i] = s[i].Owner == o, s[i].From == o
				named = named || o != 0 && (owned[i] || pending[i])
			}
			checkSet(t, r.OwnedBy(o), owned)
			checkSet(t, r.Where(func(x Register) bool { return x.From == o }), pending)
			if r.Owned()[o] != count[o] {
				t.Fatalf("owner %d has %d, want %d", o, r.Owned()[o], count[o])
			}
			if named {
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
				if x.first != c.firsts[i] || x.reg != (Register{Version: Version{0, 1}, Owner: c.owners[i]}) {
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

func TestMergeRefusesAnotherSize(t *testing.T) {
	a, b := New(8), New(16)
	if _, err := a.Merge(b); !errors.Is(err, ErrSize) {
		t.Fatalf("error %v", err)
	}
}

func TestWhatIsWrittenToACloneDoesNotShow(t *testing.T) {
	r, err := Seed(16, []Owner{1})
	if err != nil {
		t.Fatal(err)
	}
	retire := func(r *Ring, dead Owner) {
		t.Helper()
		if err := r.Retire(Retirement{Dead: dead, Heir: 1, By: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for dead := range Owner(9) { // whatever the log's length, and the room behind it
		before := naiveOf(r)
		before.log = slices.Clone(before.log)
		c, d := r.Clone(), r.Clone()
		if err := c.Grant(1, 2, Interval{4, 7}); err != nil {
			t.Fatal(err)
		}
		retire(c, 50)
		retire(d, 60)
		if !d.Promise(Ballot{1, 1}) {
			t.Fatal("no promise")
		}
		check(t, r, before)
		if c.At(5).Owner != 2 || d.At(5).Owner != 1 || c.Retired(60) != nil || d.Retired(50) != nil || c.Votes() != (Votes{}) {
			t.Fatal("clones are one")
		}
		if c.Log()[len(before.log)].Dead != 50 || d.Log()[len(before.log)].Dead != 60 {
			t.Fatal("clones share the entry that they append")
		}
		retire(r, 10+dead)
	}
}
