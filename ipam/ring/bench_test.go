// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"math/rand/v2"
	"testing"
)

// large returns the ring of a mesh of n nodes that share a /12 and have been in use for long: each node has 1 to 16 blocks
// here and there, as granted in halves, some of them taken over, some on their way.
func large(n int, seed uint64) *Ring {
	rng := rand.New(rand.NewPCG(seed, 0))
	owners := make([]Owner, n)
	var whose []Owner // of each block
	for i := range owners {
		owners[i] = Owner(rng.Uint64()>>1 | 1)
		for range 1 + rng.IntN(16) {
			whose = append(whose, owners[i])
		}
	}
	rng.Shuffle(len(whose), func(i, j int) { whose[i], whose[j] = whose[j], whose[i] })
	blocks := []Interval{{0, 1<<20 - 1}}
	for len(blocks) < len(whose) {
		i := rng.IntN(len(blocks))
		if b := blocks[i]; b.Len() > 1 {
			middle := b.First + uint32(b.Len()/2)
			blocks[i].Last = middle - 1
			blocks = append(blocks, Interval{middle, b.Last})
		}
	}
	s := make(slots, 1<<20)
	for i, b := range blocks {
		reg := Register{Version{0, 1 + 2*uint32(rng.IntN(30))}, whose[i], 0}
		if rng.IntN(10) == 0 {
			reg.Version.Epoch = 1 + uint32(rng.IntN(20))
		}
		if from := owners[rng.IntN(n)]; rng.IntN(100) == 0 && from != reg.Owner {
			reg.Version.Count++
			reg.From = from
		}
		for slot := b.First; slot <= b.Last; slot++ {
			s[slot] = reg
		}
	}
	return s.ring()
}

// churned returns a ring in which n nodes were retired one after another, each in favour of the next but one.
func churned(n int) *Ring {
	r := New(1 << 20)
	for i := range n {
		if r.Retire(Retirement{Dead: Owner(1 + i), Heir: Owner(3 + i), By: Owner(2 + i), At: 1.7e9 + int64(i)}) != nil {
			return nil
		}
	}
	return r
}

// What a mesh of 1,000 nodes costs on the wire and in memory.
func TestSizeOfAThousandNodes(t *testing.T) {
	r := large(1000, 1)
	size, memory := len(r.Encode()), 32*cap(r.runs)
	t.Logf("%d runs: %d bytes encoded, %d in memory", len(r.runs), size, memory)
	if size > 64<<10 {
		t.Errorf("a ring of 1,000 nodes in %d blocks is encoded in %d bytes", len(r.runs), size)
	}
	o, err := Decode(r.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if got := 32 * cap(o.runs); got > 1000<<10 {
		t.Errorf("a ring of 1,000 nodes in %d blocks takes %d bytes", len(r.runs), got)
	}
}

// Two nodes that know the same.
func BenchmarkMergeUnchanged(b *testing.B) {
	r, o := large(1000, 1), large(1000, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Merge(o); err != nil {
			b.Fatal(err)
		}
	}
}

// Two nodes that know different things about all slots.
func BenchmarkMergeApart(b *testing.B) {
	r, o := large(1000, 1), large(1000, 2)
	b.ReportAllocs()
	for b.Loop() {
		if news, err := r.Clone().Merge(o); err != nil || len(news.Slots) == 0 {
			b.Fatal(news, err)
		}
	}
}

// A ring and a node's news of a few changes in every hundred.
func BenchmarkMergeNews(b *testing.B) {
	r := large(1000, 1)
	o := r.Clone()
	for n, x := range r.runs {
		if n%50 == 0 && x.reg.From == 0 {
			if err := o.Grant(x.reg.Owner, x.reg.Owner+1, Interval{x.first, r.end(n)}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if news, err := r.Clone().Merge(o); err != nil || len(news.Slots) == 0 {
			b.Fatal(news, err)
		}
	}
}

// A ring and a delta of one block.
func BenchmarkMergeDelta(b *testing.B) {
	r := large(1000, 1)
	o := r.Clone()
	from, to := r.Owners()[500], r.Owners()[501]
	own := r.Where(func(x Register) bool { return x.From == 0 && x.Owner == from })
	if err := o.Grant(from, to, own[0]); err != nil {
		b.Fatal(err)
	}
	d := o.Only(own[:1])
	b.ReportAllocs()
	for b.Loop() {
		if news, err := r.Clone().Merge(d); err != nil || len(news.Slots) == 0 {
			b.Fatal(news, err)
		}
	}
}

func BenchmarkMergeLogs(b *testing.B) {
	r, o := churned(1000), churned(1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Merge(o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	r := large(1000, 1)
	b.ReportAllocs()
	for b.Loop() {
		r.Encode()
	}
	b.ReportMetric(float64(len(r.Encode())), "bytes")
	b.ReportMetric(float64(len(r.runs)), "runs")
}

func BenchmarkEncodeLog(b *testing.B) {
	r := churned(1000)
	b.ReportAllocs()
	for b.Loop() {
		r.Encode()
	}
	b.ReportMetric(float64(len(r.Encode())), "bytes")
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

func BenchmarkDecodeLog(b *testing.B) {
	e := churned(1000).Encode()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGrant(b *testing.B) {
	r := large(1000, 1)
	o := r.At(0).Owner
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Clone().Grant(o, 1, Interval{0, 0}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRetire(b *testing.B) {
	r := churned(1000)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Clone().Retire(Retirement{Dead: 5000, Heir: 5001, By: 5002}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRetired(b *testing.B) {
	r := churned(1000)
	b.ReportAllocs()
	for b.Loop() {
		if r.Retired(999) == nil || r.Retired(5000) != nil {
			b.Fatal("not retired")
		}
	}
}
