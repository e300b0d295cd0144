// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

const (
	// oddAgain is how often it is said of a node that it sends what makes no sense, oddGap how often of all nodes together in the long run, after
	// oddBurst at once, and oddNodes of how many nodes it is remembered.
	oddAgain = 5 * time.Minute
	oddGap   = 10 * time.Second
	oddBurst = 8
	oddNodes = 1024
)

// oddities decides what is said of messages that make no sense, so that nobody fills the log with them. Guarded by Allocator.mu.
type oddities struct {
	said map[ring.Owner]time.Time
	free time.Time // when all of the burst may be used
}

// pass tells whether it is to be said of a node now.
func (o *oddities) pass(from ring.Owner, now time.Time) bool {
	if o.free.Before(now) {
		o.free = now
	}
	if at, ok := o.said[from]; ok && now.Sub(at) < oddAgain || o.free.Sub(now) > (oddBurst-1)*oddGap {
		return false
	}
	if o.said == nil || len(o.said) >= oddNodes {
		o.said = make(map[ring.Owner]time.Time)
	}
	o.said[from], o.free = now, o.free.Add(oddGap)
	return true
}
