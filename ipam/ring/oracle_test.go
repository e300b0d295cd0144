// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// naive is the ring as anyone would first write it: one register per slot, and lists that are searched from end to end. It
// is the judge of Ring.
type naive struct {
	slots
	log   []Retirement
	votes Votes
}

type slots []Register

// later says which of two registers wins, spelled out.
func (s slots) later(x, y Register) bool {
	switch {
	case x.Version.Epoch != y.Version.Epoch:
		return x.Version.Epoch > y.Version.Epoch
	case x.Version.Count != y.Version.Count:
		return x.Version.Count > y.Version.Count
	case x.Owner != y.Owner:
		return x.Owner > y.Owner
	default:
		return x.From > y.From
	}
}

func (s slots) merge(o slots) (changed []bool, conflicts int) {
	changed = make([]bool, len(s))
	for i := range s {
		if s[i].Version == o[i].Version && s[i] != o[i] {
			conflicts++
		}
		if s.later(o[i], s[i]) {
			s[i], changed[i] = o[i], true
		}
	}
	return changed, conflicts
}

// write replaces the slots of i by what f makes of them; false if f refuses one, and nothing is changed then.
func (s slots) write(i Interval, f func(Register) (Register, bool)) bool {
	out := slices.Clone(s)
	for n := i.First; n <= i.Last; n++ {
		var ok bool
		if out[n], ok = f(s[n]); !ok {
			return false
		}
	}
	copy(s, out)
	return true
}

func (s slots) grant(from, to Owner, i Interval) bool {
	return s.write(i, func(x Register) (Register, bool) {
		ok := x.Owner == from && x.From == 0 && from != 0 && to != 0 && from != to
		return Register{Version{x.Version.Epoch, x.Version.Count + 1}, to, from}, ok
	})
}

func (s slots) claim(owner Owner, i Interval) bool {
	return s.write(i, func(x Register) (Register, bool) {
		return Register{Version{x.Version.Epoch, x.Version.Count + 1}, owner, 0}, x.Owner == owner && x.From != 0
	})
}

func (s slots) revoke(from Owner, i Interval) bool {
	return s.write(i, func(x Register) (Register, bool) {
		return Register{Version{x.Version.Epoch, x.Version.Count + 1}, from, 0}, x.From == from && from != 0
	})
}

func (s slots) adopt(seed, to Owner, i Interval) bool {
	return s.write(i, func(x Register) (Register, bool) {
		ok := x.Owner == seed && x.From == 0 && seed != 0 && to != 0 && seed != to
		return Register{Version{x.Version.Epoch, x.Version.Count + 1}, to, 0}, ok
	})
}

func (n *naive) takeOver(heir Owner, i Interval) bool {
	return n.write(i, func(x Register) (Register, bool) {
		return Register{Version{uint32(len(n.log)), 1}, heir, 0}, n.heir() == heir && heir != 0 && (n.retired(x.Owner) || n.retired(x.From))
	})
}

// heir is who takes over for all who are retired.
func (n *naive) heir() (last Owner) {
	for _, e := range n.log {
		last = e.Heir
	}
	return last
}

func (n *naive) retired(o Owner) bool {
	return slices.ContainsFunc(n.log, func(e Retirement) bool { return e.Dead == o })
}

func (n *naive) retire(e Retirement) bool {
	if !n.mayRetire(e) {
		return false
	}
	n.log, n.votes = append(slices.Clone(n.log), e), Votes{}
	return true
}

func (n *naive) mayRetire(e Retirement) bool {
	return e.Dead != 0 && e.Heir != 0 && e.By != 0 && e.At >= 0 && e.Dead != e.Heir && !n.retired(e.Dead) && !n.retired(e.Heir)
}

func (n *naive) promise(b Ballot) bool {
	ok := b.Node != 0 && before(n.votes.Promised, b)
	if ok {
		n.votes.Promised = b
	}
	return ok
}

func (n *naive) accept(b Ballot, e Retirement) bool {
	if !n.mayRetire(e) || b.Node == 0 || before(b, n.votes.Promised) || b == n.votes.Accepted && e != n.votes.Value {
		return false
	}
	n.votes = Votes{b, b, e}
	return true
}

func before(b, c Ballot) bool { return b.Count < c.Count || b.Count == c.Count && b.Node < c.Node }

// compareEntries spells out the order of entries.
func compareEntries(x, y Retirement) int {
	number := func(b bool) uint64 {
		if b {
			return 1
		}
		return 0
	}
	return slices.Compare([]uint64{uint64(x.At), uint64(x.Dead), uint64(x.Heir), uint64(x.By), number(x.Forced)},
		[]uint64{uint64(y.At), uint64(y.Dead), uint64(y.Heir), uint64(y.By), number(y.Forced)})
}

func compareLogs(x, y []Retirement) int {
	if len(x) != len(y) {
		return len(x) - len(y)
	}
	return slices.CompareFunc(x, y, compareEntries)
}

// mergeLog says whether anything changed, and from where on the logs contradict each other, -1 if they do not.
func (n *naive) mergeLog(o *naive) (changed bool, split int) {
	split = -1
	for i := range min(len(n.log), len(o.log)) {
		if n.log[i] != o.log[i] {
			split = i
			break
		}
	}
	switch c := compareLogs(n.log, o.log); {
	case c < 0:
		n.log, n.votes = o.log, o.votes
		return true, split
	case c > 0:
		return false, split
	}
	was := n.votes
	if v := o.votes; before(n.votes.Accepted, v.Accepted) ||
		n.votes.Accepted == v.Accepted && compareEntries(n.votes.Value, v.Value) < 0 {
		n.votes.Accepted, n.votes.Value = v.Accepted, v.Value
	}
	if before(n.votes.Promised, o.votes.Promised) {
		n.votes.Promised = o.votes.Promised
	}
	return n.votes != was, split
}

// notBehind reports whether n knows all that o knows.
func (n *naive) notBehind(o *naive) bool {
	for i := range n.slots {
		if n.later(o.slots[i], n.slots[i]) {
			return false
		}
	}
	switch c := compareLogs(n.log, o.log); {
	case c != 0:
		return c > 0
	case before(n.votes.Promised, o.votes.Promised), before(n.votes.Accepted, o.votes.Accepted):
		return false
	default:
		return n.votes.Accepted != o.votes.Accepted || compareEntries(n.votes.Value, o.votes.Value) >= 0
	}
}

func (n *naive) clone() *naive { return &naive{slices.Clone(n.slots), n.log, n.votes} }

// ring builds the Ring of the slots.
func (s slots) ring() *Ring {
	var b builder
	for i, reg := range s {
		b.add(uint32(i), reg)
	}
	return &Ring{size: uint32(len(s)), runs: b.runs}
}

// ring builds the Ring.
func (n *naive) ring(t rapid.TB) *Ring {
	r := n.slots.ring()
	for _, e := range n.log {
		if err := r.Retire(e); err != nil {
			t.Fatal(err)
		}
	}
	r.votes = n.votes
	return r
}

// naiveOf reads a ring slot by slot.
func naiveOf(r *Ring) *naive {
	out := &naive{make(slots, r.Size()), r.Log(), r.Votes()}
	for i := range out.slots {
		out.slots[i] = r.At(uint32(i))
	}
	return out
}

// check verifies what every ring must be, and that it is what the oracle says.
func check(t rapid.TB, r *Ring, want *naive) {
	t.Helper()
	checkSlots(t, r, want.slots)
	if !slices.Equal(r.Log(), want.log) || r.Votes() != want.votes {
		t.Fatalf("log %v and votes %v, want %v and %v", r.Log(), r.Votes(), want.log, want.votes)
	}
	if len(r.RetiredAt()) != len(want.log) {
		t.Fatalf("places %v in a log of %d", r.RetiredAt(), len(want.log))
	}
	for i, e := range want.log {
		if got := r.Retired(e.Dead); got == nil || *got != e {
			t.Fatalf("retirement of %d is %v, want %v", e.Dead, got, e)
		}
		if at, ok := r.RetiredAt()[e.Dead]; !ok || at != i {
			t.Fatalf("retirement of %d is at %d, want %d", e.Dead, at, i)
		}
	}
	for o := range Owner(9) {
		if (r.Retired(o) != nil) != want.retired(o) {
			t.Fatalf("%d is retired or not: %v", o, r.Retired(o))
		}
	}
}

func checkSlots(t rapid.TB, r *Ring, want slots) {
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

// often checks a property as often as rapid does by itself, times n.
func often(t *testing.T, n int, prop func(*rapid.T)) {
	t.Helper()
	for range n {
		rapid.Check(t, prop)
	}
}

func sizes() *rapid.Generator[int] { return rapid.IntRange(1, 48) }

func anyOwner() *rapid.Generator[Owner] {
	return rapid.Map(rapid.Uint64Range(1, 5), func(n uint64) Owner { return Owner(n) })
}

// anySlots draws arbitrary registers, reachable or not, in runs, with many ties.
func anySlots(t *rapid.T, size int, label string) slots {
	s := make(slots, size)
	for at := 0; at < size; {
		n := rapid.IntRange(1, size).Draw(t, label+" run")
		reg := Register{}
		if rapid.IntRange(0, 3).Draw(t, label+" known") > 0 {
			reg.Version = Version{rapid.Uint32Range(0, 2).Draw(t, label+" epoch"), rapid.Uint32Range(1, 3).Draw(t, label+" count")}
			reg.Owner = anyOwner().Draw(t, label+" owner")
			if from := anyOwner().Draw(t, label+" from"); rapid.Bool().Draw(t, label+" pending") && from != reg.Owner {
				reg.From = from
			}
		}
		for i := at; i < size && i < at+n; i++ {
			s[i] = reg
		}
		at += n
	}
	return s
}

func anyRetirement() *rapid.Generator[Retirement] {
	return rapid.Custom(func(t *rapid.T) Retirement {
		return Retirement{
			Dead: anyOwner().Draw(t, "dead"), Heir: anyOwner().Draw(t, "heir"), By: anyOwner().Draw(t, "by"),
			At: rapid.Int64Range(0, 2).Draw(t, "time"), Forced: rapid.Bool().Draw(t, "forced"),
		}
	})
}

func anyBallot() *rapid.Generator[Ballot] {
	return rapid.Custom(func(t *rapid.T) Ballot {
		return Ballot{rapid.Uint32Range(0, 2).Draw(t, "ballot"), anyOwner().Draw(t, "ballot of")}
	})
}

// anyNaive draws arbitrary registers, and a log and votes that contradict those of others as often as not.
func anyNaive(t *rapid.T, size int, label string) *naive {
	n := &naive{slots: anySlots(t, size, label)}
	for range rapid.IntRange(0, 4).Draw(t, label+" log") {
		// Few different entries, so that logs often begin alike.
		e := Retirement{Dead: anyOwner().Draw(t, label+" dead"), Heir: 6, By: 7, Forced: rapid.Bool().Draw(t, label+" forced")}
		if rapid.IntRange(0, 3).Draw(t, label+" odd") == 0 {
			e = anyRetirement().Draw(t, label+" retirement")
		}
		n.retire(e)
	}
	if rapid.Bool().Draw(t, label+" promised") {
		n.promise(anyBallot().Draw(t, label+" promise"))
	}
	if rapid.Bool().Draw(t, label+" accepted") {
		n.accept(anyBallot().Draw(t, label+" accept"), anyRetirement().Draw(t, label+" value"))
	}
	if rapid.Bool().Draw(t, label+" promised again") {
		n.promise(anyBallot().Draw(t, label+" later promise"))
	}
	return n
}
