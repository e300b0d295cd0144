// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"context"
	"sync"
	"time"

	"github.com/weftnet/weft/policy"
)

const (
	// tellAgain is how long the same connection is not told of again: what is denied is tried several times.
	tellAgain = 10 * time.Second
	// tellMost is how many connections that were told of are kept in mind, and waiting how many may wait for who reads them.
	tellMost = 4096
	waiting  = 256
)

// A Denial is a connection that was denied.
type Denial struct {
	policy.Connection
	Time       time.Time        // when the Filter heard of it
	Direction  policy.Direction // at which end: of whose rules
	Suppressed uint64           // how many packets were not told of before it, but for those that the kernel does not report: it reports 100 a second, and 20 of a source
}

// denials hands on what was denied. The zero value is ready.
type denials struct {
	mu     sync.Mutex
	told   map[Denial]time.Time // with the connection and the direction alone
	missed uint64               // since the beginning
	to     map[chan Denial]*uint64
}

// miss notes packets that are not told of.
func (d *denials) miss(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.missed += n
}

// tell tells all who listen, and does not wait for them.
func (d *denials) tell(x Denial) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := Denial{Connection: x.Connection, Direction: x.Direction}
	if at, ok := d.told[key]; ok && x.Time.Sub(at) < tellAgain || !ok && !d.room(x.Time) {
		d.missed++
		return
	}
	d.told[key] = x.Time
	lost := false
	for c, from := range d.to {
		x.Suppressed = d.missed - *from
		select {
		case c <- x:
			*from = d.missed
		default:
			lost = true
		}
	}
	if lost {
		d.missed++
	}
}

// room says whether one more connection can be kept in mind, and forgets old ones.
func (d *denials) room(now time.Time) bool {
	if d.told == nil {
		d.told = map[Denial]time.Time{}
	}
	if len(d.told) >= tellMost {
		for k, at := range d.told {
			if now.Sub(at) >= tellAgain {
				delete(d.told, k)
			}
		}
	}
	return len(d.told) < tellMost
}

// Denials returns what is denied from now on, while [Filter.Run] runs, until ctx ends and the channel is closed. Who does not read misses some, and
// is told how many.
func (f *Filter) Denials(ctx context.Context) <-chan Denial {
	d := &f.denials
	c := make(chan Denial, waiting)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.to == nil {
		d.to = map[chan Denial]*uint64{}
	}
	from := d.missed
	d.to[c] = &from
	context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.to, c)
		close(c)
	})
	return c
}
