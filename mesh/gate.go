// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// gate decides which of many like events are worth a line in the log: each key
// once in a while, and all keys together no more often than a small bucket
// allows, so that forged sources cannot fill a disk. Its memory is bounded.
type gate struct {
	limit  int           // keys remembered; the one seen longest ago is forgotten
	again  time.Duration // when a key may pass again; 0: never
	burst  int           // passes in a row, over all keys
	refill time.Duration // one more pass each

	mu     sync.Mutex
	keys   map[string]*list.Element
	order  list.List // of *gateKey, seen longest ago first
	spent  int       // passes taken from the bucket
	filled time.Time // when spent was last reduced
}

type gateKey struct {
	key    string
	passed time.Time
	muted  uint64
}

// init sets the mesh's usual bounds.
func (g *gate) init(again time.Duration) {
	g.limit, g.again, g.burst, g.refill = 1024, again, 20, 10*time.Second
}

// pass tells whether the event may be logged now and how many of its key were
// held back since the last that was.
func (g *gate) pass(key string, now time.Time) (ok bool, muted uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys == nil {
		g.keys = make(map[string]*list.Element)
		g.filled = now
	}
	e, known := g.keys[key]
	if !known {
		if len(g.keys) >= g.limit {
			oldest := g.order.Front()
			delete(g.keys, g.order.Remove(oldest).(*gateKey).key)
		}
		e = g.order.PushBack(&gateKey{key: key})
		g.keys[key] = e
	}
	g.order.MoveToBack(e)
	k := e.Value.(*gateKey)
	if !k.passed.IsZero() && (g.again == 0 || now.Sub(k.passed) < g.again) || !g.take(now) {
		k.muted++
		return false, 0
	}
	muted, k.muted, k.passed = k.muted, 0, now
	return true, muted
}

func (g *gate) take(now time.Time) bool {
	if n := int(now.Sub(g.filled) / g.refill); n > 0 {
		g.spent = max(0, g.spent-n)
		g.filled = g.filled.Add(time.Duration(n) * g.refill)
	}
	if g.spent >= g.burst {
		return false
	}
	g.spent++
	return true
}

// sourceKey is the part of an address that a stranger cannot vary at will: the
// v4 address, or the v6 /64.
func sourceKey(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
