// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/weftnet/weft/ipam/ring"
)

// nullStore is a Store that costs nothing, so that what is measured is the allocator.
type nullStore struct{ State }

func (s *nullStore) LoadIPAM() (State, error) { return s.State, nil }
func (s *nullStore) SaveIPAM(Change) error    { return nil }

func benchAllocator(b *testing.B, r *ring.Ring, self ring.Owner) *Allocator {
	b.Helper()
	l := newLone(b, "10.32.0.0/12")
	l.cfg.Self, l.cfg.Store, l.cfg.Quarantine = self, &nullStore{}, -1
	if r != nil {
		led := &ledger{self: self, ring: r, effective: r.OwnedBy(self)}
		l.cfg.Store = &nullStore{State{Ring: r.Encode(), Grants: led.encode()}}
	}
	l.restart()
	return l.Allocator
}

// mesh1000 returns the ring of a mesh of a thousand nodes that have joined one after the other.
func mesh1000(b *testing.B) *ring.Ring {
	b.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	owners := []ring.Owner{1}
	r, err := ring.Seed(1<<20, owners)
	if err != nil {
		b.Fatal(err)
	}
	for len(owners) < 1000 {
		id := ring.Owner(rng.Uint64() >> 1)
		rich, most := ring.Owner(0), ring.Set(nil)
		for range 20 {
			if o := owners[rng.IntN(len(owners))]; r.OwnedBy(o).Len() > most.Len() {
				rich, most = o, r.OwnedBy(o)
			}
		}
		for _, i := range pickBlocks(most, nil, most.Len()/2, newSpace(1<<20).usable) {
			if err := r.Grant(rich, id, i); err != nil {
				b.Fatal(err)
			}
		}
		owners = append(owners, id)
	}
	return r
}

func BenchmarkAllocateRelease(b *testing.B) {
	for _, held := range []int{0, 10_000, 200_000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			a := benchAllocator(b, nil, 1)
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
	a := benchAllocator(b, nil, 1)
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
			a := benchAllocator(b, r, 1)
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

func BenchmarkEncode1000(b *testing.B) {
	a := benchAllocator(b, mesh1000(b), 1)
	b.ReportAllocs()
	for b.Loop() {
		a.Encode()
	}
}

func BenchmarkOwned1000(b *testing.B) {
	a := benchAllocator(b, mesh1000(b), 1)
	b.ReportAllocs()
	for b.Loop() {
		a.Owned()
	}
}
