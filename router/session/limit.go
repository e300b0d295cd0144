// SPDX-License-Identifier: Apache-2.0

package session

import (
	"maps"
	"net/netip"
	"sync"
	"time"
)

// The package golang.zx2c4.com/wireguard/ratelimiter starts a goroutine and reads the clock;
// this one does neither, and its table is bounded.

// Limits on handshake messages.
const (
	// DefaultHandshakeRate is how many handshake messages per second are worked on without asking
	// for cookies: less than a tenth of one core.
	DefaultHandshakeRate = 400

	// Under load, in multiples of that rate: cookies that are handed out to strangers, which cost a tenth of a handshake, and
	// handshakes of those who came back with one.
	cookieShare = 10
	provenShare = 5

	loadBurst    = 2           // seconds' worth of DefaultHandshakeRate that may come at once
	loadLasts    = time.Second // under load for this long after the rate was exceeded
	sourceCost   = time.Second / 20
	sourceBurst  = 5
	sourceFull   = sourceBurst * sourceCost
	maxSources   = 4096
	flood        = time.Second / 50 // time between initiations of one peer
	floodBurst   = 4                // of which so many may come at once: what was sent in proper distance may arrive together
	friendLife   = 10 * time.Minute // without an authentic handshake, a friend is forgotten
	friendTidy   = time.Minute      // least time between two looks for those
	sourcePrefix = 64               // of an IPv6 address: what one host can have without effort
)

// bucket is a token bucket; its level is the time that it took to fill so far.
type bucket struct {
	last  time.Time
	level time.Duration
}

// take reports whether cost could be taken out of a bucket that holds at most full.
func (b *bucket) take(now time.Time, cost, full time.Duration) bool {
	if b.last.IsZero() {
		b.level = full
	} else if d := now.Sub(b.last); d > 0 {
		b.level = min(full, b.level+min(d, full))
	}
	b.last = now
	if b.level < cost {
		return false
	}
	b.level -= cost
	return true
}

// gate decides how much work strangers may cause. Safe for concurrent use.
type gate struct {
	cost time.Duration // of one handshake message

	mu      sync.Mutex
	all     bucket
	loaded  time.Time // when the rate was last exceeded
	cookies bucket    // handed out to strangers
	proven  bucket    // handshakes of strangers with a cookie
	sources map[netip.Addr]*bucket
	swept   time.Time
	friends map[netip.Addr]*friend
	tidied  time.Time // when those were forgotten who are none any more
}

// friend is an address from which a peer's authentic handshake came.
type friend struct {
	cookies bucket // handed out to it
	proven  bucket // its handshakes with a cookie
	last    time.Time
}

func (g *gate) init(rate int) {
	g.cost = max(time.Second/time.Duration(rate), 1)
	g.sources = make(map[netip.Addr]*bucket)
	g.friends = make(map[netip.Addr]*friend)
}

// busy counts one handshake message and reports whether we are under load.
func (g *gate) busy(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.all.take(now, g.cost, loadBurst*time.Second) {
		g.loaded = now
	}
	return !g.loaded.IsZero() && within(now, g.loaded, loadLasts)
}

// sourceOf returns the part of an address that one host can have many of without effort.
func sourceOf(from netip.Addr) netip.Addr {
	from = from.Unmap()
	if from.Is6() {
		if p, err := from.WithZone("").Prefix(sourcePrefix); err == nil {
			return p.Addr()
		}
	}
	return from
}

// befriend notes that a peer's authentic handshake came from an address.
func (g *gate) befriend(from netip.Addr, now time.Time) {
	from = sourceOf(from)
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.friends[from]
	if f == nil {
		if len(g.friends) >= maxSources {
			if within(now, g.tidied, friendTidy) {
				return
			}
			g.tidied = now
			maps.DeleteFunc(g.friends, func(_ netip.Addr, f *friend) bool { return !within(now, f.last, friendLife) })
			if len(g.friends) >= maxSources {
				return
			}
		}
		f = new(friend)
		g.friends[from] = f
	}
	f.last = now
}

// cookie reports whether a sender may be given a cookie. Whoever sends with the addresses of others can use up what
// there is for strangers, but what a friend gets only with that friend's address.
func (g *gate) cookie(from netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.friends[sourceOf(from)]; f != nil && f.cookies.take(now, sourceCost, sourceFull) {
		return true
	}
	return g.cookies.take(now, g.cost/cookieShare, time.Second)
}

// allow reports whether a sender that proved its address may cause one more handshake. Whoever has very many addresses can use up
// what there is for strangers, but not what each friend has.
func (g *gate) allow(from netip.Addr, now time.Time) bool {
	from = sourceOf(from)
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.friends[from]; f != nil {
		return f.proven.take(now, sourceCost, sourceFull)
	}
	b := g.sources[from]
	if b == nil {
		if len(g.sources) >= maxSources && !g.sweep(now) {
			return false
		}
		b = new(bucket)
		g.sources[from] = b
	}
	return b.take(now, sourceCost, sourceFull) && g.proven.take(now, g.cost/provenShare, loadBurst*time.Second)
}

// sweep forgets the buckets that have filled up, which is the state of a new one, and reports
// whether there is room now. It runs once per filling time at most.
func (g *gate) sweep(now time.Time) bool {
	if !g.swept.IsZero() && within(now, g.swept, sourceFull) {
		return false
	}
	g.swept = now
	for a, b := range g.sources {
		if !within(now, b.last, sourceFull) {
			delete(g.sources, a)
		}
	}
	return len(g.sources) < maxSources
}

// within reports whether now is at or after since, and by less than d. A clock that stepped back
// reads as "no": the state that depended on it is made anew.
func within(now, since time.Time, d time.Duration) bool {
	age := now.Sub(since)
	return age >= 0 && age < d
}
