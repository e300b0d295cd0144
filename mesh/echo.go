// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"hash/maphash"
	"sync"
	"time"
)

// What is gossiped comes a dozen times to each node, byte for byte the same, and all but the first time it is of no effect: changes that were
// merged, and word that a process is alive at an incarnation that is known. So what came a moment ago is dropped before it is decoded, which
// in a mesh of a thousand that comes together is most of what comes in. It is taken again after echoMemory: by then it may be
// news once more, as memberlist forgets the dead after gossipToTheDead.
const (
	echoMemory = 5 * time.Second // to twice as long
	maxEchoes  = 2048            // remembered in that time; of more, the oldest are forgotten sooner
)

// echoes remembers hashes of what came. The zero value is ready.
type echoes struct {
	mu          sync.Mutex
	seed        maphash.Seed // nobody else can make two things the same
	now, before map[uint64]struct{}
	turned      time.Time
}

// note tells whether b came a moment ago, and remembers it.
func (e *echoes) note(b []byte, at time.Time) (again bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now == nil {
		e.seed, e.now, e.turned = maphash.MakeSeed(), make(map[uint64]struct{}), at
	}
	switch age := at.Sub(e.turned); {
	case age >= 2*echoMemory:
		e.before, e.now, e.turned = nil, make(map[uint64]struct{}), at
	case age >= echoMemory, len(e.now) >= maxEchoes:
		e.before, e.now, e.turned = e.now, make(map[uint64]struct{}), at
	}
	sum := maphash.Bytes(e.seed, b)
	if _, again = e.now[sum]; !again {
		_, again = e.before[sum]
	}
	if !again {
		e.now[sum] = struct{}{}
	}
	return again
}

// forget has b taken when it comes again: it was not taken now.
func (e *echoes) forget(b []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now == nil {
		return
	}
	sum := maphash.Bytes(e.seed, b)
	delete(e.now, sum)
	delete(e.before, sum)
}
