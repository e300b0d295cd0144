// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// course is the part of a peer that concerns how it is reached, if it is a node of the mesh. Others are where they were last heard from.
type course struct {
	// Written by the reaching, under its mutex, and read for every batch.
	way    atomic.Pointer[way] // how to send; nil: where the peer was last heard from, or else its candidates in turn
	proven atomic.Bool         // a pong came back by it

	// Written by whichever goroutine it happens in.
	heard  atomic.Bool           // something authentic came by way since the timer goroutine has last looked
	frames atomic.Bool           // frames were handed to the peer since then
	stray  atomic.Pointer[stray] // what was last heard by another way
	wanted atomic.Int64          // when somebody last asked for a way while none was proven, in Unix nanoseconds
	hint   atomic.Pointer[stray] // the last control datagram that the reaching was told of

	// Owned by the timer goroutine.
	txSeen, rxSeen uint64 // packets
}

// stray is a way that something came by, and when that was told.
type stray struct {
	by way
	at time.Time
}

// again tells whether the same was told less than d ago.
func (s *stray) again(by way, d time.Duration, now time.Time) bool {
	return s != nil && s.by == by && now.Sub(s.at) < d
}

// relayed returns the way to the peer if that leads through relays, and nil otherwise.
func (p *peer) relayed() *way {
	if w := p.course.way.Load(); w != nil && w.N > 0 {
		return w
	}
	return nil
}

// straight returns the address that a direct way leads to; false if there is none that is known or believed to work.
func (p *peer) straight() (netip.AddrPort, bool) {
	if w := p.course.way.Load(); w != nil && w.N == 0 {
		return w.Addr, true
	}
	return netip.AddrPort{}, false
}
