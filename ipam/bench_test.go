// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/weftnet/weft/ipam/ring"
)

// nullStore is a Store that costs nothing, so that what is measured is the allocator.
type nullStore struct{ State }

func (s *nullStore) LoadIPAM() (State, error) { return s.State, nil }
func (s *nullStore) SaveIPAM(Change) error    { return nil }

// benchAllocator is an allocator without a disk: alone in its mesh, or, with a ring, one that has just joined the mesh of it.
func benchAllocator(tb testing.TB, r *ring.Ring) *Allocator {
	tb.Helper()
	l := newLone(tb, "10.32.0.0/12")
	l.cfg.Store, l.cfg.Quarantine = &nullStore{}, -1
	if r != nil {
		l.cfg.Self = 2
	}
	l.restart()
	if r != nil {
		if _, err := l.Merge(r.Encode()); err != nil {
			tb.Fatal(err)
		}
	}
	return l.Allocator
}

// mesh1000 returns the ring of a mesh of a thousand nodes that have joined one after the other.
func mesh1000(tb testing.TB) *ring.Ring {
	tb.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	owners := []ring.Owner{1}
	r, err := ring.Seed(1<<20, owners)
	if err != nil {
		tb.Fatal(err)
	}
	worth := newSpace(1 << 20).usable
	for len(owners) < 1000 {
		id := ring.Owner(rng.Uint64() >> 1)
		rich, most := ring.Owner(0), ring.Set(nil)
		for range 20 {
			if o := owners[rng.IntN(len(owners))]; r.OwnedBy(o).Len() > most.Len() {
				rich, most = o, r.OwnedBy(o)
			}
		}
		for _, i := range pickBlocks(most, nil, most.Len()/2, worth) {
			if err := r.Grant(rich, id, i); err != nil {
				tb.Fatal(err)
			}
			if err := r.Claim(id, i); err != nil {
				tb.Fatal(err)
			}
		}
		owners = append(owners, id)
	}
	return r
}

// heap returns how many bytes are in use after f more than before; f returns what is to be kept until then.
func heap(tb testing.TB, f func() any) int64 {
	tb.Helper()
	var before, after runtime.MemStats
	for range 2 { // the second one frees what the finalizers of the first let go of
		runtime.GC()
	}
	runtime.ReadMemStats(&before)
	keep := f()
	for range 2 {
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(keep)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

// A mesh of a thousand nodes costs each of them a megabyte at most, and 64 KiB when they tell each other all they know.
func TestThousandNodesAreSmall(t *testing.T) {
	r := mesh1000(t)
	enc := r.Encode()
	if n := len(r.Owners()); n != 1000 {
		t.Fatalf("%d nodes", n)
	}
	if len(enc) > 64<<10 {
		t.Errorf("the ring has %d bytes, 64 KiB are allowed", len(enc))
	}
	empty := heap(t, func() any { return benchAllocator(t, nil) })
	full := heap(t, func() any {
		a := benchAllocator(t, r)
		if n := len(a.Owned()); n != 1000 {
			t.Errorf("%d nodes", n)
		}
		a.Usage()
		return a
	})
	perNode := (full - empty) / 1000
	t.Logf("encoded %d bytes, in memory %d bytes for each node", len(enc), perNode)
	if perNode > 1<<10 {
		t.Errorf("%d bytes for each node of the mesh, 1024 are allowed", perNode)
	}
}

func BenchmarkAllocateRelease(b *testing.B) {
	for _, held := range []int{0, 10_000, 200_000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			a := benchAllocator(b, nil)
			for i := range held {
				if _, err := a.Allocate(b.Context(), fmt.Sprint("held-", i)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Allocate(b.Context(), "w"); err != nil {
					b.Fatal(err)
				}
				if err := a.Release("w"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAllocateReleaseParallel(b *testing.B) {
	a := benchAllocator(b, nil)
	var n atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		owner := fmt.Sprint(n.Add(1))
		for pb.Next() {
			if _, err := a.Allocate(b.Context(), owner); err != nil {
				b.Error(err)
			}
			if err := a.Release(owner); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkMerge1000(b *testing.B) {
	r := mesh1000(b)
	for name, change := range map[string]bool{"unchanged": false, "delta": true} {
		b.Run(name, func(b *testing.B) {
			a := benchAllocator(b, r)
			enc := r.Encode()
			b.ReportMetric(float64(len(enc)), "bytes")
			next := r.Clone()
			from, to := r.Owners()[10], r.Owners()[11]
			slots := next.OwnedBy(from)[:1]
			b.ReportAllocs()
			for b.Loop() {
				if change { // the same slots go to and fro
					if err := next.Grant(from, to, slots[0]); err != nil {
						b.Fatal(err)
					}
					from, to = to, from
					enc = next.Only(slots).Encode()
				}
				if _, err := a.Merge(enc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What a mesh of a thousand nodes costs one of them in memory.
func BenchmarkMemory1000(b *testing.B) {
	r := mesh1000(b)
	for b.Loop() {
		empty := heap(b, func() any { return benchAllocator(b, nil) })
		full := heap(b, func() any { a := benchAllocator(b, r); a.Owned(); return a })
		b.ReportMetric(float64(full-empty)/1000, "bytes/node")
	}
}

func BenchmarkEncode1000(b *testing.B) {
	a := benchAllocator(b, mesh1000(b))
	b.ReportAllocs()
	for b.Loop() {
		a.Encode()
	}
}

func BenchmarkOwned1000(b *testing.B) {
	a := benchAllocator(b, mesh1000(b))
	b.ReportAllocs()
	for b.Loop() {
		a.Owned()
	}
}
