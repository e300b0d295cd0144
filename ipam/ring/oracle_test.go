// SPDX-License-Identifier: Apache-2.0

package ring

import "pgregory.net/rapid"

// slots is the ring as anyone would first write it: one register per slot. It is the judge of Ring.
type slots []Register

func (s slots) merge(o slots) (changed []bool, conflicts int) {
	changed = make([]bool, len(s))
	for i := range s {
		x, y := s[i], o[i]
		if x.Version == y.Version && x.Owner != y.Owner {
			conflicts++
		}
		if y.Version.Epoch > x.Version.Epoch ||
			y.Version.Epoch == x.Version.Epoch && y.Version.Count > x.Version.Count ||
			y.Version == x.Version && y.Owner > x.Owner {
			s[i], changed[i] = y, true
		}
	}
	return changed, conflicts
}

func (s slots) grant(from, to Owner, i Interval) bool {
	for n := i.First; n <= i.Last; n++ {
		if s[n].Owner != from {
			return false
		}
	}
	for n := i.First; n <= i.Last; n++ {
		s[n] = Register{Version{s[n].Version.Epoch, s[n].Version.Count + 1}, to}
	}
	return true
}

// ring builds the Ring of the slots.
func (s slots) ring() *Ring {
	var b builder
	for i, reg := range s {
		b.add(uint32(i), reg)
	}
	return &Ring{size: uint32(len(s)), runs: b.runs}
}

func (s slots) clone() slots { return append(slots(nil), s...) }

// slotsOf reads a ring slot by slot.
func slotsOf(r *Ring) slots {
	out := make(slots, r.Size())
	for i := range out {
		out[i] = r.At(uint32(i))
	}
	return out
}

// check verifies what every ring must be, and that it is what the oracle says.
func check(t rapid.TB, r *Ring, want slots) {
	t.Helper()
	if int(r.size) != len(want) {
		t.Fatalf("size %d, want %d", r.size, len(want))
	}
	for i, x := range r.runs {
		if i == 0 && x.first != 0 {
			t.Fatalf("first run begins at %d", x.first)
		}
		if i > 0 && (x.first <= r.runs[i-1].first || x.reg == r.runs[i-1].reg) {
			t.Fatalf("runs %d and %d are out of order or not joined: %v", i-1, i, r.runs)
		}
		if x.first >= r.size {
			t.Fatalf("run %d begins behind the end", i)
		}
	}
	for i, w := range want {
		if got := r.At(uint32(i)); got != w {
			t.Fatalf("slot %d is %v, want %v", i, got, w)
		}
	}
	next := uint32(0)
	for i, reg := range r.All() {
		if i.First != next {
			t.Fatalf("All goes on at %d after %d", i.First, next)
		}
		for s := i.First; s <= i.Last; s++ {
			if reg != want[s] {
				t.Fatalf("All says %v for slot %d, want %v", reg, s, want[s])
			}
		}
		next = i.Last + 1
	}
	if next != r.size {
		t.Fatalf("All ends at %d of %d", next, r.size)
	}
}

func sizes() *rapid.Generator[int] { return rapid.IntRange(1, 48) }

// anySlots draws arbitrary registers, reachable or not, in runs, with many ties.
func anySlots(t *rapid.T, size int, label string) slots {
	s := make(slots, size)
	for at := 0; at < size; {
		n := rapid.IntRange(1, size).Draw(t, label+" run")
		reg := Register{}
		if rapid.IntRange(0, 3).Draw(t, label+" known") > 0 {
			reg.Version = Version{rapid.Uint32Range(0, 2).Draw(t, label+" epoch"), rapid.Uint32Range(1, 3).Draw(t, label+" count")}
			reg.Owner = Owner(rapid.Uint64Range(1, 4).Draw(t, label+" owner"))
		}
		for i := at; i < size && i < at+n; i++ {
			s[i] = reg
		}
		at += n
	}
	return s
}

// history drives replicas through legal writes and merges: node i+1 writes only on replica i, and only what it owns.
type history struct {
	replicas []*Ring
	oracle   []slots
}

func newHistory(t *rapid.T) *history {
	n := rapid.IntRange(1, 4).Draw(t, "nodes")
	owners := make([]Owner, n)
	for i := range owners {
		owners[i] = Owner(i + 1)
	}
	size := rapid.IntRange(n, 48).Draw(t, "size")
	seed, err := Seed(uint32(size), owners)
	if err != nil {
		t.Fatal(err)
	}
	h := &history{}
	for range n {
		h.replicas = append(h.replicas, seed.Clone())
		h.oracle = append(h.oracle, slotsOf(seed))
	}
	return h
}

func (h *history) step(t *rapid.T) {
	n := len(h.replicas)
	i := rapid.IntRange(0, n-1).Draw(t, "at")
	r, s := h.replicas[i], h.oracle[i]
	if rapid.Bool().Draw(t, "merge") {
		j := rapid.IntRange(0, n-1).Draw(t, "with")
		changed, conflicts, err := r.Merge(h.replicas[j])
		if err != nil || len(conflicts) > 0 {
			t.Fatalf("merge of reachable rings: conflicts %v, error %v", conflicts, err)
		}
		want, _ := s.merge(h.oracle[j])
		checkSet(t, changed, want)
	} else {
		first := rapid.IntRange(0, len(s)-1).Draw(t, "first")
		last := rapid.IntRange(first, len(s)-1).Draw(t, "last")
		to := Owner(rapid.IntRange(1, n).Draw(t, "to"))
		if to == Owner(i+1) {
			return
		}
		iv := Interval{uint32(first), uint32(last)}
		if err, ok := r.Grant(Owner(i+1), to, iv), s.grant(Owner(i+1), to, iv); (err == nil) != ok {
			t.Fatalf("grant of %v: error %v, the oracle says %v", iv, err, ok)
		}
	}
	check(t, r, s)
}

// checkSet verifies that set is well formed and has exactly the slots marked in want.
func checkSet(t rapid.TB, set Set, want []bool) {
	t.Helper()
	for i, iv := range set {
		if iv.First > iv.Last || i > 0 && uint64(iv.First) <= uint64(set[i-1].Last)+1 {
			t.Fatalf("set %v is not in order at %d", set, i)
		}
	}
	n := uint64(0)
	for slot, w := range want {
		if set.Contains(uint32(slot)) != w {
			t.Fatalf("set %v: slot %d should be %v", set, slot, w)
		}
		if w {
			n++
		}
	}
	if set.Len() != n {
		t.Fatalf("set %v has length %d, want %d", set, set.Len(), n)
	}
}
