// SPDX-License-Identifier: Apache-2.0

package router

import (
	"sync"
	"time"
)

const (
	// budgetBurst is how much of a budget may be used at once, in time at its rate, and leastBurst the least of that in bytes: a run of
	// datagrams must fit.
	budgetBurst = 100 * time.Millisecond
	leastBurst  = 32 << 10
	// relaySmall is the size in bytes up to which data is as urgent as control datagrams: handshakes, acknowledgements and keepalives shall not be lost
	// among bulk.
	relaySmall = 256
)

// budget bounds what this host passes on for others, in bytes per second. Control datagrams may overdraw it, up to as much as it holds when it is full: so bulk
// never displaces them, and pays for them. Safe for concurrent use.
type budget struct {
	rate, burst float64 // bytes per second, 0: unlimited; bytes

	mu    sync.Mutex
	level float64
	last  time.Time
}

// init sets the rate in bits per second; 0 means no limit.
func (b *budget) init(bits uint64) {
	b.rate = float64(bits) / 8
	b.burst = max(b.rate*budgetBurst.Seconds(), leastBurst)
	b.level = b.burst
}

// wait returns how long it takes until n bytes that are not urgent may be passed on, if nothing else is.
func (b *budget) wait(n int) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Duration(max(float64(n)-b.level, 0) / b.rate * float64(time.Second))
}

// take reports whether n bytes may be passed on, and books them. urgent is for control datagrams.
func (b *budget) take(now time.Time, n int, urgent bool) bool {
	if b.rate == 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := now.Sub(b.last); d > 0 {
		if !b.last.IsZero() {
			b.level = min(b.burst, b.level+b.rate*d.Seconds())
		}
		b.last = now
	}
	least := float64(n)
	if urgent {
		least -= b.burst
	}
	if b.level < least {
		return false
	}
	b.level -= float64(n)
	return true
}
