// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"bytes"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// corpus is what both targets begin with.
func corpus(t rapid.TB) [][]byte {
	e := Retirement{Dead: 4, Heir: 2, By: 3, At: 1e9, Forced: true}
	full := (&naive{slots{2: {Version{3, 4}, 1, 2}, 5: {Version{0, 1}, 2, 0}, 7: {}}, []Retirement{e}, Votes{}})
	return [][]byte{
		nil, New(300).Encode(), large(20, 1).Encode(), churned(5).Encode(), full.ring(t).Encode(),
		(&naive{slots{{}}, nil, Votes{Ballot{7, 1}, Ballot{6, 2}, e}}).ring(t).Encode(),
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range corpus(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			return
		}
		sound(t, r)
		if len(r.runs) > len(b) || len(r.log.entries) > len(b) {
			t.Fatalf("%d runs and %d retirements out of %d bytes", len(r.runs), len(r.log.entries), len(b))
		}
		if !bytes.Equal(r.Encode(), b) {
			t.Fatalf("% x is not the form of what it decodes to, % x", b, r.Encode())
		}
		if news, err := r.Clone().Merge(r); err != nil || news.Any() || news.Split != nil || len(news.Conflicts) > 0 {
			t.Fatalf("merging a ring with itself: %+v, %v", news, err)
		}
		for _, i := range r.Known() {
			r.Explain(i.First)
			r.Explain(i.Last)
			for _, e := range r.Log() {
				_ = r.Clone().TakeOver(e.Heir, i)
			}
		}
	})
}

// sound checks what every ring must be.
func sound(t *testing.T, r *Ring) {
	t.Helper()
	for i, x := range r.runs {
		if x.first > r.end(i) || i == 0 && x.first != 0 || i > 0 && (x.first <= r.runs[i-1].first || x.reg == r.runs[i-1].reg) {
			t.Fatalf("run %d of %v", i, r.runs)
		}
	}
	if len(r.log.index) != len(r.log.entries) || r.votes.Accepted.Compare(r.votes.Promised) > 0 {
		t.Fatalf("log %v, votes %v", r.log, r.votes)
	}
	for i, e := range r.log.entries {
		if at, ok := r.RetiredAt()[e.Dead]; !ok || at != i || r.log.index[e.Heir] < i && r.Retired(e.Heir) != nil {
			t.Fatalf("retirement %d, %v, is at %d, %v", i, e, at, ok)
		}
	}
}

// Whatever two nodes have sent, the laws hold for it.
func FuzzMerge(f *testing.F) {
	for _, a := range corpus(f) {
		for _, b := range corpus(f) {
			f.Add(a, b)
		}
	}
	f.Fuzz(func(t *testing.T, x, y []byte) {
		a, err := Decode(x)
		if err != nil {
			return
		}
		b, err := Decode(y)
		if err != nil {
			return
		}
		ab, ba := a.Clone(), b.Clone()
		news, err := ab.Merge(b)
		if (err != nil) != (a.Size() != b.Size()) {
			t.Fatalf("sizes %d and %d: error %v", a.Size(), b.Size(), err)
		}
		if err != nil {
			return
		}
		sound(t, ab)
		if news.Any() == ab.Equal(a) {
			t.Fatalf("news %+v", news)
		}
		if _, err := ba.Merge(a); err != nil || !ab.Equal(ba) {
			t.Fatalf("not commutative, error %v", err)
		}
		for name, o := range map[string]*Ring{"a": a, "b": b} {
			if news, err := ab.Merge(o); err != nil || news.Any() {
				t.Fatalf("%s again: %+v, %v", name, news, err)
			}
			for _, i := range o.Known() {
				if ab.At(i.First).compare(o.At(i.First)) < 0 || ab.At(i.Last).compare(o.At(i.Last)) < 0 {
					t.Fatalf("%s is ahead in %v", name, i)
				}
			}
		}
		if only := ab.Only(news.Slots).WithLog(ab); len(news.Slots) > 0 {
			c := a.Clone()
			if _, err := c.Merge(only); err != nil || !c.Equal(ab) {
				t.Fatalf("the delta does not hold all that changed, error %v", err)
			}
		}
		if r, err := Decode(ab.Encode()); err != nil || !r.Equal(ab) {
			t.Fatalf("the merge does not survive encoding: %v", err)
		}
		_ = ab.Only(Set{{0, math.MaxUint32}})
	})
}
