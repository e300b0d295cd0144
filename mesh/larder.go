// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"sync"
	"time"
)

// What members send that is large takes room in the larder from before it is read until it has been taken in, so that
// they cannot fill this node's memory, however many of them send at a time. What is small needs none: connections and
// queues are bounded in number.
const (
	smallFrame    = 64 << 10
	larderSize    = 64 << 20
	larderPerNode = 24 << 20 // the largest frame is smaller
)

// larder counts bytes. The zero value is empty.
type larder struct {
	mu     sync.Mutex
	total  int
	byNode map[NodeID]int
	freed  chan struct{} // closed when room is made; nil: nobody waits
}

// take waits for room for n bytes of what a node sends, and tells whether it was there in time. Whoever got it calls free.
func (l *larder) take(from NodeID, n int, patience time.Duration, closing <-chan struct{}) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	for {
		freed, ok := l.try(from, n)
		if ok {
			return true
		}
		select {
		case <-freed:
		case <-closing:
			return false
		case <-t.C:
			return false
		}
	}
}

// try takes room if there is some; else freed is closed when it is worth another try.
func (l *larder) try(from NodeID, n int) (freed <-chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total+n > larderSize || l.byNode[from]+n > larderPerNode {
		if l.freed == nil {
			l.freed = make(chan struct{})
		}
		return l.freed, false
	}
	if l.byNode == nil {
		l.byNode = make(map[NodeID]int)
	}
	l.total += n
	l.byNode[from] += n
	return nil, true
}

// free gives room back.
func (l *larder) free(from NodeID, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total -= n
	if l.byNode[from] -= n; l.byNode[from] == 0 {
		delete(l.byNode, from)
	}
	if l.freed != nil {
		close(l.freed)
		l.freed = nil
	}
}

// readLarge reads a frame of a node, for which there is room in the larder if it is not small. eaten gives the room back, and is never nil.
func (m *Mesh) readLarge(c *peerConn, from NodeID, limit int) (b []byte, eaten func(), err error) {
	nothing := func() {}
	n, err := c.readLength(limit)
	if err != nil {
		return nil, nothing, err
	}
	if n > smallFrame {
		if !m.larder.take(from, n, m.tuning.StreamTimeout, m.closing) {
			return nil, nothing, fmt.Errorf("no room for a frame of %d bytes: %w", n, ErrQueueFull)
		}
		var once sync.Once
		eaten = func() { once.Do(func() { m.larder.free(from, n) }) }
		// A second more for each MiB, as the sender allows.
		err = c.within(m.tuning.StreamTimeout + time.Duration(n)*time.Second>>20)
	} else {
		eaten = nothing
	}
	if err == nil {
		b, err = c.readRest(n)
	}
	if err != nil {
		eaten()
		return nil, nothing, err
	}
	return b, eaten, nil
}
