// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"sync"
	"time"
)

// ticks are the moments at which something is to arrive, see [Net.Step].
type ticks struct {
	mu   sync.Mutex
	at   map[int64]*tick // by nanoseconds since 1970
	pool sync.Pool       // of *tick
}

// tick is what arrives at one moment, by lanes: what is for one host is in the same lane, in the order in which it was sent.
type tick struct {
	lanes  [lanes]lane
	passed chan struct{} // closed then; nil: nobody waits
}

const lanes = 8

// lane is what one goroutine hands over.
type lane struct {
	datagrams []arrival
	bytes     []byte // of all of them
}

// arrival is a datagram on its way.
type arrival struct {
	journey
	from, to int // of the lane's bytes
}

// due returns the moment at which arrives what is sent now and takes d.
func due(d, step time.Duration) int64 {
	now := time.Now().UnixNano()
	at := (now + int64(d) + int64(step)/2) / int64(step) * int64(step)
	if at <= now {
		at += int64(step)
	}
	return at
}

// when returns the tick of a moment to come. Called with mu held.
func (t *ticks) when(at int64) *tick {
	k := t.at[at]
	if k == nil {
		if t.at == nil {
			t.at = make(map[int64]*tick)
		}
		k, _ = t.pool.Get().(*tick)
		if k == nil {
			k = &tick{}
		}
		t.at[at] = k
		time.AfterFunc(time.Duration(at-time.Now().UnixNano()), func() { t.fire(at) })
	}
	return k
}

// send has a datagram arrive after d. b is copied.
func (t *ticks) send(b []byte, j journey, d, step time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := &t.when(due(d, step)).lanes[j.to.host.lane]
	l.datagrams = append(l.datagrams, arrival{j, len(l.bytes), len(l.bytes) + len(b)})
	l.bytes = append(l.bytes, b...)
}

// wait returns a channel that closes after d, and when that is.
func (t *ticks) wait(d, step time.Duration) (<-chan struct{}, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := due(d, step)
	k := t.when(at)
	if k.passed == nil {
		k.passed = make(chan struct{})
	}
	return k.passed, time.Unix(0, at)
}

// fire hands over what arrives now.
func (t *ticks) fire(at int64) {
	t.mu.Lock()
	k := t.at[at]
	delete(t.at, at)
	t.mu.Unlock()
	if k.passed != nil {
		close(k.passed)
		k.passed = nil
	}
	var wg sync.WaitGroup
	for i := range k.lanes {
		if l := &k.lanes[i]; len(l.datagrams) > 0 {
			wg.Go(l.deliver)
		}
	}
	wg.Wait()
	t.pool.Put(k)
}

// deliver empties the lane.
func (l *lane) deliver() {
	for i := range l.datagrams {
		a := &l.datagrams[i]
		a.arrive(l.bytes[a.from:a.to])
	}
	clear(l.datagrams)
	l.datagrams, l.bytes = l.datagrams[:0], l.bytes[:0]
}

// after returns a channel that closes after d, when that is, and what has it never close. Called with mu held, if only for reading.
func (n *Net) after(d time.Duration) (passed <-chan struct{}, at time.Time, stop func()) {
	if n.step > 0 {
		passed, at = n.ticks.wait(d, n.step)
		return passed, at, func() {}
	}
	c := make(chan struct{})
	t := time.AfterFunc(d, func() { close(c) })
	return c, time.Now().Add(d), func() { t.Stop() }
}
