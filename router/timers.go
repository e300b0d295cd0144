// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/weftnet/weft/router/session"
)

const (
	// tickAfter is how soon after something happened to a peer its timers are looked
	// at: once for all that happens meanwhile. The shortest of them runs for seconds.
	tickAfter = 200 * time.Millisecond
	// Greetings are greetGap apart, or closer so that all are out within greetSpan.
	greetGap  = 10 * time.Millisecond
	greetSpan = time.Second
	// hurryAfter is tickAfter for what is urgent.
	hurryAfter = 5 * time.Millisecond
)

// timers is how the shards tell the timer goroutine what to look at. Peers to whom nothing happens and for whom
// nothing is due cost nothing.
type timers struct {
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	inbox []*peer    // touched, not yet looked at
	calls []greeting // to begin
	now   bool       // one of the touched is urgent
}

type greeting struct {
	p  *peer
	at time.Time
}

func (t *timers) init() { t.wake = make(chan struct{}, 1) }

// touch asks for the timers of p to be looked at soon. It is one atomic load when that
// has been asked for already.
func (t *timers) touch(p *peer) {
	if p.touched.Load() || p.touched.Swap(true) {
		return
	}
	t.mu.Lock()
	t.inbox = append(t.inbox, p)
	t.mu.Unlock()
	t.nudge()
}

// hurry is touch for what is urgent.
func (t *timers) hurry(p *peer) {
	t.mu.Lock()
	if !p.touched.Swap(true) {
		t.inbox = append(t.inbox, p)
	}
	t.now = true
	t.mu.Unlock()
	t.nudge()
}

// greet asks for a handshake with p at the given time.
func (t *timers) greet(p *peer, at time.Time) {
	t.mu.Lock()
	t.calls = append(t.calls, greeting{p, at})
	t.mu.Unlock()
	t.nudge()
}

func (t *timers) nudge() {
	select {
	case t.wake <- struct{}{}:
	default: // there is one under way
	}
}

// collect empties both lists.
func (t *timers) collect() ([]*peer, []greeting) {
	t.mu.Lock()
	defer t.mu.Unlock()
	touched, calls := t.inbox, t.calls
	t.inbox, t.calls, t.now = nil, nil, false
	return touched, calls
}

// soon returns when to look at what has been asked for: calls when they are due, the rest a little later, for all at once.
func (t *timers) soon(now time.Time) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	soon := now.Add(tickAfter)
	if t.now {
		soon = now.Add(hurryAfter)
	}
	for _, c := range t.calls {
		if c.at.Before(soon) {
			soon = c.at
		}
	}
	return soon
}

// runTimers drives the timers of all sessions until ctx ends.
func (r *Router) runTimers(ctx context.Context) {
	var active []*peer
	buf := make([]byte, 0, session.InitiationSize)
	var due time.Time // of the next scan; zero: none
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			active, due = r.scan(active, buf)
		case <-r.timers.wake:
			if soon := r.soon(r.config.Now()); due.IsZero() || soon.Before(due) {
				due = soon
			}
		}
		if due.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(due.Sub(r.config.Now()), time.Millisecond))
		}
	}
}

// scan does what is due, and returns the peers that remain of interest and the time of the next scan.
func (r *Router) scan(active []*peer, buf []byte) (still []*peer, due time.Time) {
	touched, calls := r.timers.collect()
	for _, p := range touched {
		if !p.active {
			p.active = true
			active = append(active, p)
		}
	}
	for _, c := range calls {
		if !c.p.active {
			c.p.active = true
			active = append(active, c.p)
		}
		c.p.greet = c.at
	}
	now := r.config.Now()
	still = slices.DeleteFunc(active, func(p *peer) bool {
		p.active = !p.removed.Load() && r.tick(p, buf, now)
		return !p.active
	})
	for _, p := range still {
		for _, at := range []time.Time{p.next, p.greet, p.probe} {
			if !at.IsZero() && (due.IsZero() || at.Before(due)) {
				due = at
			}
		}
	}
	if at := r.reaching.tick(now); !at.IsZero() && (due.IsZero() || at.Before(due)) {
		due = at
	}
	return still, due
}

// soon is that of timers, or when the reaching has something to do, if that is sooner.
func (r *Router) soon(now time.Time) time.Time {
	soon := r.timers.soon(now)
	if at := r.reaching.due(); !at.IsZero() && at.Before(soon) {
		soon = at
	}
	return soon
}

// tick does what is due for p and reports whether anything is left for later.
func (r *Router) tick(p *peer, buf []byte, now time.Time) bool {
	touched := p.touched.Swap(false) // before Tick: what happens from here on is for the next scan
	if touched {
		r.reaching.sample(p, now)
	}
	if !p.greet.IsZero() && !now.Before(p.greet) {
		p.greet = time.Time{}
		touched = true
		if p.reachable() {
			if msg, ok := p.sess.Initiate(buf, now); ok {
				r.post(r.shards[0], p, msg)
			}
		}
	}
	if touched || !p.next.IsZero() && !now.Before(p.next) {
		var msg []byte
		if msg, p.next = p.sess.Tick(buf, now); len(msg) > 0 {
			r.post(r.shards[0], p, msg)
		}
	}
	if touched || !p.probe.IsZero() && !now.Before(p.probe) {
		p.probe = r.probe(p, now)
	}
	dropped, stale := p.pending.expire(now)
	r.shards[0].stats.drops[DropStale].Add(uint64(dropped))
	if p.next.IsZero() || !stale.IsZero() && stale.Before(p.next) {
		p.next = stale
	}
	return !p.next.IsZero() || !p.greet.IsZero() || !p.probe.IsZero()
}
