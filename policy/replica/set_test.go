// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func roomy() Limits { return Limits{Items: 1000, Value: 1000, Bytes: 100_000, Writers: 100} }

// crowd is nodes that write apart and tell each other now and then. sent are deltas on their way: any may be lost, or come twice, at any time.
type crowd struct {
	t    *rapid.T
	sets []*Set
	sent [][]byte
}

func newCrowd(t *rapid.T, n int) *crowd {
	c := &crowd{t: t}
	for i := range n {
		c.sets = append(c.sets, New(uint64(i+1), 1, roomy()))
	}
	return c
}

func (c *crowd) any() *Set {
	return c.sets[rapid.IntRange(0, len(c.sets)-1).Draw(c.t, "node")]
}

// step does something somewhere.
func (c *crowd) step() {
	s := c.any()
	key := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(c.t, "key")
	switch rapid.IntRange(0, 5).Draw(c.t, "what") {
	case 0, 1:
		c.write(s, Change{key, []byte(rapid.SampledFrom([]string{"", "x", "y"}).Draw(c.t, "value"))})
	case 2:
		c.write(s, Change{key, nil})
	case 3: // a whole state
		c.merge(s, c.any().Encode())
	default:
		if len(c.sent) > 0 {
			c.merge(s, rapid.SampledFrom(c.sent).Draw(c.t, "delta"))
		}
	}
}

func (c *crowd) write(s *Set, changes ...Change) {
	delta, _, err := s.Write(changes)
	if err != nil {
		c.t.Fatal(err)
	}
	if delta != nil {
		c.sent = append(c.sent, delta)
	}
}

func (c *crowd) merge(s *Set, b []byte) {
	before := s.Encode()
	delta, changed, err := s.Merge(b, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if (delta != nil) != !bytes.Equal(before, s.Encode()) {
		c.t.Fatalf("something was new: %v, keys %q", delta != nil, changed)
	}
	if delta != nil {
		c.sent = append(c.sent, delta)
	}
	// What it returned brings whoever had the same to the same.
	other := from(c.t, before)
	if _, _, err := other.Merge(delta, nil); err != nil || !bytes.Equal(other.Encode(), s.Encode()) {
		c.t.Fatalf("the delta brings another state: %v", err)
	}
}

func from(t interface{ Fatal(...any) }, encoded ...[]byte) *Set {
	s := New(99, 1, roomy())
	for _, b := range encoded {
		if _, _, err := s.Merge(b, nil); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// consistent compares what is kept along with what it is of.
func consistent(t interface{ Fatalf(string, ...any) }, s *Set) {
	again := New(s.self, s.floor, s.limits)
	if _, _, err := again.Merge(s.Encode(), nil); err != nil {
		t.Fatalf("%v", err)
	}
	if again.Digest() != s.Digest() || again.bytes != s.bytes || !slices.Equal(again.Keys(), s.Keys()) || !bytes.Equal(again.Encode(), s.Encode()) {
		t.Fatalf("a copy differs: digest %x and %x, %d and %d bytes", again.Digest(), s.Digest(), again.bytes, s.bytes)
	}
}

func TestMergeIsAJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCrowd(t, 3)
		for range rapid.IntRange(0, 25).Draw(t, "steps") {
			c.step()
		}
		a, b, d := c.sets[0].Encode(), c.sets[1].Encode(), c.sets[2].Encode()
		if len(c.sent) > 0 && rapid.Bool().Draw(t, "of a delta") {
			d = rapid.SampledFrom(c.sent).Draw(t, "delta")
		}
		want := from(t, a, b, d).Encode()
		for _, order := range [][][]byte{{a, d, b}, {b, a, d}, {b, d, a}, {d, a, b}, {d, b, a}, {a, b, d, b, a, d}, {from(t, b, d).Encode(), a}, {from(t, a, b).Encode(), d}} {
			if got := from(t, order...).Encode(); !bytes.Equal(got, want) {
				t.Fatalf("in another order it is another state:\n%x\n%x", got, want)
			}
		}
		for _, s := range c.sets {
			consistent(t, s)
		}
	})
}

// Whatever was lost, once every two have exchanged their states all are equal; and all have of each key what somebody wrote last.
func TestConvergence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCrowd(t, 4)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			c.step()
		}
		for range 2 {
			for _, s := range c.sets {
				for _, o := range c.sets {
					c.merge(s, o.Encode())
				}
			}
		}
		for _, s := range c.sets[1:] {
			if !bytes.Equal(s.Encode(), c.sets[0].Encode()) || s.Digest() != c.sets[0].Digest() {
				t.Fatal("two nodes differ that have heard all")
			}
		}
		// What anybody does now, knowing all, holds.
		s := c.any()
		c.write(s, Change{"a", nil}, Change{"b", []byte("last")})
		for _, o := range c.sets {
			c.merge(o, s.Encode())
			if _, ok := o.Get("a"); ok {
				t.Fatal("a is still there")
			}
			if i, ok := o.Get("b"); !ok || string(i.Value) != "last" {
				t.Fatalf("b is %q", i.Value)
			}
		}
	})
}

// A node that was away while any number of things came and went brings none of them back, and what is kept for that does not grow.
func TestNothingComesBack(t *testing.T) {
	here, away := New(1, 1, roomy()), New(2, 1, roomy())
	put := func(s *Set, key, value string) {
		t.Helper()
		if _, _, err := s.Write([]Change{{key, []byte(value)}}); err != nil {
			t.Fatal(err)
		}
	}
	merge := func(s, o *Set) {
		t.Helper()
		if _, _, err := s.Merge(o.Encode(), nil); err != nil {
			t.Fatal(err)
		}
	}
	put(here, "old", "1")
	merge(away, here)
	put(away, "apart", "1") // nobody here knows of it
	for n := range 10_000 {
		key := fmt.Sprint("short-lived ", n%7)
		put(here, key, fmt.Sprint(n))
		if _, changed, err := here.Write([]Change{{key, nil}, {"old", nil}}); err != nil || len(changed) == 0 {
			t.Fatal(changed, err)
		}
	}
	if n := len(here.Encode()); n > 20 {
		t.Errorf("nothing takes %d bytes", n)
	}
	merge(here, away)
	merge(away, here)
	for _, s := range []*Set{here, away} {
		if keys := s.Keys(); !slices.Equal(keys, []string{"apart"}) {
			t.Errorf("there is %q", keys)
		}
	}
	if n := len(here.Encode()); n > 60 {
		t.Errorf("an item takes %d bytes", n)
	}
}

func TestLastWriterWins(t *testing.T) {
	a, b := New(1, 1, roomy()), New(2, 1, roomy())
	for _, w := range []struct {
		s *Set
		v string
	}{{a, "a1"}, {b, "b1"}, {a, "a2"}} {
		if _, _, err := w.s.Write([]Change{{"k", []byte(w.v)}}); err != nil {
			t.Fatal(err)
		}
	}
	all := from(t, b.Encode(), a.Encode())
	if i, _ := all.Get("k"); string(i.Value) != "a2" { // written knowing of a1
		t.Errorf("the one with the lower version counts: %q", i.Value)
	}
	if _, _, err := b.Write([]Change{{"k", []byte("b2")}}); err != nil {
		t.Fatal(err)
	}
	all = from(t, b.Encode(), a.Encode())
	if i, _ := all.Get("k"); string(i.Value) != "b2" || len(all.Items()) != 2 { // of equal versions that of the greater writer
		t.Errorf("%q of %d", i.Value, len(all.Items()))
	}
	// The next write knows of both and replaces both.
	if _, changed, err := all.Write([]Change{{"k", []byte("both")}}); err != nil || !slices.Equal(changed, []string{"k"}) || len(all.Items()) != 1 {
		t.Errorf("%q, %v, %d items", changed, err, len(all.Items()))
	}
	if delta, changed, err := all.Write([]Change{{"k", []byte("both")}, {"none", nil}}); delta != nil || changed != nil || err != nil {
		t.Errorf("a write that changes nothing says %x, %q, %v", delta, changed, err)
	}
}

func TestOwn(t *testing.T) {
	a, b := New(1, 10, roomy()), New(2, 1, roomy())
	own := func(s *Set, values map[string][]byte) []byte {
		t.Helper()
		delta, _, err := s.Own(values)
		if err != nil {
			t.Fatal(err)
		}
		return delta
	}
	own(b, map[string][]byte{"x": []byte("of b")})
	both := map[string][]byte{"x": []byte("1"), "y": []byte("2")}
	if _, _, err := b.Merge(own(a, both), nil); err != nil {
		t.Fatal(err)
	}
	if delta := own(a, both); delta != nil {
		t.Errorf("again the same: %x", delta)
	}
	if n := len(b.Items()); n != 3 {
		t.Fatalf("%d items: the other's are no business of Own", n)
	}
	// The daemon starts anew with what its disk had of an earlier time: what it says then holds, and comes as one.
	a = New(1, 1000, roomy())
	if _, _, err := a.Merge(b.Encode(), nil); err != nil {
		t.Fatal(err)
	}
	delta := own(a, map[string][]byte{"y": []byte("2")})
	_, changed, err := b.Merge(delta, nil)
	if err != nil || !slices.Equal(changed, []string{"x", "y"}) || len(b.Items()) != 2 || b.Digest() == 0 {
		t.Errorf("%q, %v, %v", changed, err, b.Items())
	}
	if got := b.seen[1]; !equalSpans(got, spans{{1, 1000}}) {
		t.Errorf("the numbers that were skipped stay a gap: %v", got)
	}
	if _, _, err := a.Merge(b.Encode(), nil); err != nil || a.Digest() != b.Digest() {
		t.Error("they differ", err)
	}
	// An earlier disk and a clock that was put back: the same numbers again, for other things.
	c := New(1, 1, roomy())
	own(c, map[string][]byte{"z": []byte("3")})
	for range 3 {
		if _, _, err := c.Merge(b.Encode(), nil); err != nil {
			t.Fatal(err)
		}
		own(c, map[string][]byte{"z": []byte("3")})
		if _, _, err := b.Merge(c.Encode(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if b.Digest() != c.Digest() || !slices.Equal(b.Keys(), []string{"x", "z"}) {
		t.Errorf("%q and %q", b.Keys(), c.Keys())
	}
}

// Two items of one dot, as of a disk that was put back, are one everywhere in the end.
func TestDotUsedTwice(t *testing.T) {
	a, b := New(1, 5, roomy()), New(1, 5, roomy())
	_, _, errA := a.Write([]Change{{"k", []byte("one")}})
	_, _, errB := b.Write([]Change{{"l", []byte("other")}})
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	x, y := from(t, a.Encode(), b.Encode()), from(t, b.Encode(), a.Encode())
	if !bytes.Equal(x.Encode(), y.Encode()) || !slices.Equal(x.Keys(), []string{"l"}) {
		t.Errorf("%q and %q", x.Keys(), y.Keys())
	}
	consistent(t, x)
}

func TestPrune(t *testing.T) {
	a, b := New(1, 1, roomy()), New(2, 1, roomy())
	if _, _, err := a.Write([]Change{{"a", []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Write([]Change{{"b", []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	gone := func(w uint64) bool { return w == 2 }
	all := from(t, a.Encode(), b.Encode())
	if changed := all.Prune(gone); !slices.Equal(changed, []string{"b"}) || !bytes.Equal(all.Encode(), a.Encode()) || all.Digest() != a.Digest() {
		t.Errorf("%q, %x", changed, all.Encode())
	}
	if delta, _, err := all.Merge(b.Encode(), gone); delta != nil || err != nil || !bytes.Equal(all.Encode(), a.Encode()) {
		t.Errorf("it came back: %x, %v", delta, err)
	}
	consistent(t, all)
}

func TestLimits(t *testing.T) {
	small := Limits{Items: 2, Value: 4, Bytes: 10, Writers: 1}
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	for _, c := range []struct {
		changes []Change
		want    string
	}{
		{[]Change{{"a", []byte("1234")}, {"b", []byte("1234")}}, ""},
		{[]Change{{"a", []byte("12345")}}, `"a" has 5 bytes, and at most 4 fit: it would be more than fits`},
		{[]Change{{"", []byte("1")}}, `"" has 1 bytes, and at most 4 fit: it would be more than fits`},
		{[]Change{{"a", nil}, {"a", []byte("1")}, {"b", []byte("1")}, {"c", []byte("1")}}, "3 objects, and at most 2 fit: it would be more than fits"},
		{[]Change{{"longer", []byte("1234")}, {"b", []byte("1")}}, "12 bytes, and at most 10 fit: it would be more than fits"},
	} {
		s := New(1, 1, small)
		delta, _, err := s.Write(c.changes)
		if text(err) != c.want {
			t.Errorf("%v: %v, want %s", c.changes, err, c.want)
		}
		if err != nil && (!errors.Is(err, ErrTooMuch) || delta != nil || s.Digest() != 0) {
			t.Errorf("%v: something was done: %x", c.changes, s.Encode())
		}
	}
	// Two parts of a mesh may bring twice as much together, of which nothing is lost, and it can become less.
	a := New(1, 1, small)
	if _, _, err := a.Write([]Change{{"a", []byte("1234")}, {"b", []byte("1234")}}); err != nil {
		t.Fatal(err)
	}
	b := New(2, 1, small)
	if _, _, err := b.Write([]Change{{"c", []byte("1234")}, {"d", []byte("1234")}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Merge(b.Encode(), nil); err != nil || len(a.Keys()) != 4 {
		t.Errorf("%q, %v", a.Keys(), err)
	}
	if _, _, err := a.Write([]Change{{"e", []byte("1")}}); !errors.Is(err, ErrTooMuch) {
		t.Error(err)
	}
	if _, _, err := a.Write([]Change{{"d", nil}}); err != nil {
		t.Error(err)
	}
	third := New(3, 1, small)
	if _, _, err := third.Write([]Change{{"x", []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Merge(third.Encode(), nil); text(err) != "3 nodes have written, and at most 2 may: it would be more than fits" {
		t.Error(err)
	}
	// The last number.
	end := New(1, maxNumber, roomy())
	if _, _, err := end.Write([]Change{{"a", nil}, {"b", []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := end.Write([]Change{{"c", []byte("1")}}); text(err) != `no number is left for "c": it would be more than fits` {
		t.Error(err)
	}
	// Gaps: from every other delta of a node no more is taken than there is room for.
	w, r := New(1, 1, roomy()), New(2, 1, roomy())
	refused := 0
	for n := range 4 * maxSpans {
		delta, _, err := w.Write([]Change{{"k", fmt.Append(nil, n)}})
		if err != nil {
			t.Fatal(err)
		}
		if n%3 == 2 { // every third one
			if _, _, err := r.Merge(delta, nil); err != nil {
				refused++
			}
		}
		if len(r.seen[1]) > maxSpans {
			t.Fatalf("%d gaps", len(r.seen[1]))
		}
	}
	if _, _, err := r.Merge(w.Encode(), nil); err != nil || r.Digest() != w.Digest() || refused == 0 {
		t.Errorf("after %d were refused: %v", refused, err)
	}
}

// What decodes is what is encoded, byte for byte, and whatever comes does no harm.
func FuzzMerge(f *testing.F) {
	a, b := New(1, 1, roomy()), New(2, 7, roomy())
	for n := range 5 {
		d, _, err := a.Write([]Change{{fmt.Sprint("k", n%3), fmt.Append(nil, n)}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(d)
	}
	if _, _, err := b.Own(map[string][]byte{"x": []byte("1"), "y": nil}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Encode())
	f.Add(from(f, a.Encode(), b.Encode()).Encode())
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		s := New(3, 1, roomy())
		delta, changed, err := s.Merge(in, nil)
		if err != nil {
			if delta != nil || changed != nil || s.Digest() != 0 || !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooMuch) {
				t.Fatalf("%v, and %x is there", err, s.Encode())
			}
			return
		}
		out := s.Encode()
		if some := len(s.seen) > 0; some && (!bytes.Equal(out, in) || !bytes.Equal(delta, out)) || !some && delta != nil {
			t.Fatalf("%x became %x, the delta %x", in, out, delta)
		}
		consistent(t, s)
		c := from(t, a.Encode())
		if _, _, err := c.Merge(in, nil); err == nil {
			consistent(t, c)
			d := from(t, in)
			if _, _, err := d.Merge(a.Encode(), nil); err != nil || !bytes.Equal(c.Encode(), d.Encode()) {
				t.Fatalf("the order matters: %v", err)
			}
		}
	})
}

// To take in that many items are gone costs each of them the same, in whatever order they go.
func TestManyAreDropped(t *testing.T) {
	for _, n := range []int{500, 5000} {
		l := Limits{Items: 10_000, Value: 100, Bytes: 1 << 20, Writers: 10}
		a, b := New(1, 1, l), New(2, 1, l)
		var come, gone []Change
		for i := range n {
			come = append(come, Change{Key: fmt.Sprint("key", i), Value: []byte("value")})
			gone = append(gone, Change{Key: fmt.Sprint("key", i)})
		}
		added, _, err := a.Write(come)
		if err != nil {
			t.Fatal(err)
		}
		dropped, _, err := a.Write(gone)
		if err != nil {
			t.Fatal(err)
		}
		allocs := testing.AllocsPerRun(1, func() {
			c := b.Clone()
			for _, delta := range [][]byte{added, dropped} {
				if _, changed, err := c.Merge(delta, nil); err != nil || len(changed) != n {
					t.Fatalf("%d have changed, %v", len(changed), err)
				}
			}
			if len(c.Keys()) != 0 || !bytes.Equal(c.Encode(), a.Encode()) {
				t.Fatal("not all are gone")
			}
		})
		if most := 10.0 * float64(n); allocs > most {
			t.Errorf("%d items come and go with %.0f allocations, more than %.0f", n, allocs, most)
		}
	}
}
