// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	// PerPeer is how many probes of one source are told in a second at most; a peer sends about 60 when it is unsure of two paths in two families.
	PerPeer = 100
	// InAll is how many probes are told in a second at most.
	InAll = 4000

	sources = 1024 // buckets: those of one share it
)

// limits bound what is told to the caller, who answers it. Safe for concurrent use.
type limits struct {
	seed maphash.Seed

	mu   sync.Mutex
	all  bucket
	from [sources]bucket
}

func newLimits() *limits { return &limits{seed: maphash.MakeSeed()} }

// allow takes a token of a source, and one of all.
func (l *limits) allow(from netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.from[l.index(from)].take(PerPeer, now) && l.all.take(InAll, now)
}

// index returns which bucket is that of a source.
func (l *limits) index(from netip.Addr) uint64 { return maphash.Comparable(l.seed, from) % sources }

// bucket lets no more than the rate pass in any second: it holds half of that, and the other half flows in. The zero value is full.
type bucket struct {
	tokens float64
	last   time.Time
}

func (b *bucket) take(rate float64, now time.Time) bool {
	most := rate / 2
	if b.last.IsZero() {
		b.tokens = most
	} else if d := now.Sub(b.last); d > 0 {
		b.tokens = min(most, b.tokens+most*d.Seconds())
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
