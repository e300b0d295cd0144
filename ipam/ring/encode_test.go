// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

func TestEncodeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySlots(t, sizes().Draw(t, "size"), "ring")
		b := s.ring().Encode()
		r, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		check(t, r, s)
		if !bytes.Equal(r.Encode(), b) {
			t.Fatal("the same ring has two forms")
		}
		if cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut"); cut < len(b) {
			if _, err := Decode(b[:cut]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("cut at %d of %d: error %v", cut, len(b), err)
			}
		}
		if _, err := Decode(append(b, 0)); !errors.Is(err, ErrMalformed) {
			t.Fatalf("a byte too many: error %v", err)
		}
	})
}

// The form on the wire is a promise to other builds: these bytes must stay readable.
func TestEncodeForm(t *testing.T) {
	r, err := Seed(1<<20, []Owner{0x1122334455667788, 0x0102030405060708})
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{
		1, 0x80, 0x80, 0x40,
		2, 8, 7, 6, 5, 4, 3, 2, 1, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
		2, 0, 0xff, 0xff, 0x1f, 2, 1, 0, 0xff, 0xff, 0x1f, 0, 1,
	}
	if got := r.Encode(); !bytes.Equal(got, want) {
		t.Errorf("ring: % x, want % x", got, want)
	}
	delta := slots{9: {Version{3, 4}, 1}, 11: {}}.ring()
	want = []byte{1, 12, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 1, 3, 4}
	if got := delta.Encode(); !bytes.Equal(got, want) {
		t.Errorf("delta: % x, want % x", got, want)
	}
	if got := New(300).Encode(); !bytes.Equal(got, []byte{1, 0xac, 2, 0, 0}) {
		t.Errorf("nothing: % x", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	owner := []byte{5, 0, 0, 0, 0, 0, 0, 0}
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, b := range map[string][]byte{
		"nothing":                nil,
		"no slots":               {1, 0, 0, 0},
		"size over 32 bits":      {1, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0},
		"endless number":         {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"more owners than bytes": {1, 8, 0xff, 0xff, 3},
		"more runs than bytes":   {1, 8, 0, 0xff, 0xff, 3},
		"owner nobody":           {1, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"owner twice":            cat([]byte{1, 8, 2}, owner, owner, []byte{0}),
		"owner out of table":     cat([]byte{1, 8, 1}, owner, []byte{1, 0, 0, 2, 1}),
		"run behind the end":     cat([]byte{1, 8, 1}, owner, []byte{1, 0, 8, 0, 1}),
		"gap behind the end":     cat([]byte{1, 8, 1}, owner, []byte{1, 8, 0, 0, 1}),
		"no version":             cat([]byte{1, 8, 1}, owner, []byte{1, 0, 7, 0, 0}),
		"run cut off":            cat([]byte{1, 8, 1}, owner, []byte{1, 0, 7, 0}),
	} {
		if r, err := Decode(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: ring %v, error %v", name, r, err)
		}
	}
	if _, err := Decode([]byte{2, 1, 2, 3}); !errors.Is(err, ErrFormat) {
		t.Errorf("a later format: error %v", err)
	}
	if r, err := Decode(cat([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xf, 1}, owner, []byte{1, 0xfe, 0xff, 0xff, 0xff, 0xf, 0, 0, 1})); err != nil {
		t.Errorf("the last slot there can be: %v", err)
	} else if r.At(math.MaxUint32-1).Owner != 5 {
		t.Error("the last slot there can be is lost")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0xac, 2, 0, 0})
	f.Add(large(20, 1).Encode())
	f.Add(slots{9: {Version{3, 4}, 1}, 11: {}}.ring().Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			return
		}
		if len(r.runs) > len(b) {
			t.Fatalf("%d runs out of %d bytes", len(r.runs), len(b))
		}
		o, err := Decode(r.Encode())
		if err != nil || !o.Equal(r) {
			t.Fatalf("what was decoded does not survive encoding: %v", err)
		}
		if changed, conflicts, err := o.Merge(r); err != nil || len(changed)+len(conflicts) != 0 {
			t.Fatalf("merging a ring with itself: %v %v %v", changed, conflicts, err)
		}
		for i, x := range r.runs {
			if x.first > r.end(i) || i > 0 && x.reg == r.runs[i-1].reg {
				t.Fatalf("run %d of %v", i, r.runs)
			}
		}
	})
}

// large returns a ring of a /12 shared by n nodes after some granting to and fro.
func large(n int, seed uint64) *Ring {
	rng := rand.New(rand.NewPCG(seed, 0))
	r, err := Seed(1<<20, []Owner{Owner(rng.Uint64() >> 1)})
	if err != nil {
		return nil
	}
	owners := r.Owners()
	for range 2 * n {
		if len(owners) < n {
			owners = append(owners, Owner(rng.Uint64()>>1))
		}
		from := owners[rng.IntN(len(owners))]
		to := owners[len(owners)-1]
		if own := r.OwnedBy(from); len(own) > 0 && to != from {
			i := own[rng.IntN(len(own))]
			if i.Len() > 1 {
				i.First += uint32(i.Len() / 2)
			}
			if r.Grant(from, to, i) != nil {
				return nil
			}
		}
	}
	return r
}

func BenchmarkMergeUnchanged(b *testing.B) {
	r, o := large(1000, 1), large(1000, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := r.Merge(o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMergeDelta(b *testing.B) {
	r := large(1000, 1)
	o := r.Clone()
	own := r.OwnedBy(r.Owners()[500])
	if err := o.Grant(r.Owners()[500], r.Owners()[501], own[0]); err != nil {
		b.Fatal(err)
	}
	d := o.Only(own[:1])
	b.ReportAllocs()
	for b.Loop() {
		c := *r
		if changed, _, err := c.Merge(d); err != nil || len(changed) == 0 {
			b.Fatal(changed, err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	r := large(1000, 1)
	b.ReportAllocs()
	b.ReportMetric(float64(len(r.Encode())), "bytes")
	b.ReportMetric(float64(len(r.runs)), "runs")
	for b.Loop() {
		r.Encode()
	}
}

func BenchmarkDecode(b *testing.B) {
	e := large(1000, 1).Encode()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(e); err != nil {
			b.Fatal(err)
		}
	}
}
