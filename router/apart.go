// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftnet/weft/router/underlay"
)

const (
	// apartBatch is how many control datagrams, or runs of them, are received at once at most.
	apartBatch = 16
	// What is read of control datagrams, what is opened, and what is opened of one sender, per second and at once. What comes in beyond the first
	// waits in the socket, or is lost there; the rest is dropped unopened. So a storm takes a bounded share of a processor, and not from the shards; and that of one
	// sender, which for IPv6 is a /64, displaces nobody else's.
	readRate, readBurst     = 200_000, 10_000
	openRate, openBurst     = 30_000, 5_000
	senderRate, senderBurst = 5_000, 2_000
	// senders is how many limits there are: two senders may happen to have the same one.
	senders = 1024
)

// apart receives from the socket of control datagrams. All of it belongs to the goroutine in run but for what is marked.
type apart struct {
	r      *Router
	conn   Conn
	poller Poller
	stop   atomic.Bool // written by Run

	handler  controller
	in       []underlay.Message
	failures int // in a row

	read, open limiter
	seed       maphash.Seed
	senders    [senders]limiter // by a hash of the address
}

func newApart(r *Router, c Conn) *apart {
	a := &apart{
		r: r, conn: c, handler: controller{r: r, stats: &r.controlStats}, in: make([]underlay.Message, apartBatch),
		read: limiter{rate: readRate, burst: readBurst}, open: limiter{rate: openRate, burst: openBurst}, seed: maphash.MakeSeed(),
	}
	for i := range a.senders {
		a.senders[i] = limiter{rate: senderRate, burst: senderBurst}
	}
	for i := range a.in {
		a.in[i].Buf = make([]byte, receiveBuffer)
	}
	return a
}

// run returns nil when it is told to stop, and an error when it cannot go on.
func (a *apart) run() error {
	want, timeout := ReadUDP, idleWait
	for {
		_, err := a.poller.Wait(want, timeout)
		switch {
		case a.stop.Load():
			return nil
		case err != nil:
			return fmt.Errorf("router, control datagrams: %w", err)
		}
		pause, err := a.receive(a.r.config.Now())
		if err != nil {
			return fmt.Errorf("router, control datagrams: %w", err)
		}
		if want, timeout = ReadUDP, idleWait; pause > 0 {
			want, timeout = 0, pause
		}
	}
}

// receive handles one batch, and returns how long to leave the rest where it is.
func (a *apart) receive(now time.Time) (pause time.Duration, err error) {
	n, err := a.conn.Recv(a.in)
	if err != nil {
		if errors.Is(err, os.ErrClosed) {
			return 0, err
		}
		a.handler.stats.drop(DropReceive)
		if a.failures++; a.failures >= maxFailures {
			return 0, fmt.Errorf("%d errors in a row, the last: %w", a.failures, err)
		}
		return 0, nil
	}
	if n > 0 {
		a.failures = 0
	}
	for i := range a.in[:n] {
		m := &a.in[i]
		if m.N > len(m.Buf) {
			a.handler.stats.drop(DropLong)
			continue
		}
		for first, rest := underlay.Cut(m.Buf[:m.N], m.Segment); ; first, rest = underlay.Cut(rest, m.Segment) {
			a.datagram(first, m.Addr, m.TOS, now)
			if len(rest) == 0 {
				break
			}
		}
	}
	return a.read.wait(), nil
}

func (a *apart) datagram(b []byte, from netip.AddrPort, tos uint8, now time.Time) {
	a.read.spend(now)
	switch {
	case len(b) == 0:
		a.handler.stats.drop(DropShort)
	case b[0] == ControlType:
		if !a.limitOf(from.Addr()).allow(now) || !a.open.allow(now) {
			a.handler.stats.drop(DropControlStorm)
			return
		}
		a.handler.handle(b, from, now)
	default: // the kernel has joined it to a control datagram of the same sender
		a.r.shards[0].strays.put(b, from, tos, &a.handler.stats.drops[DropStray])
		a.r.shards[0].poller.Wake()
	}
}

// limitOf returns the limit of a sender.
func (a *apart) limitOf(from netip.Addr) *limiter {
	whole := from.As16()
	if from.Is6() {
		clear(whole[8:])
	}
	return &a.senders[maphash.Comparable(a.seed, whole)%senders]
}

// spend takes one token, which may be owed.
func (l *limiter) spend(now time.Time) {
	if !l.allow(now) {
		l.tokens--
	}
}

// wait returns how long it takes until nothing is owed.
func (l *limiter) wait() time.Duration {
	if l.tokens >= 0 {
		return 0
	}
	return time.Duration(-l.tokens / l.rate * float64(time.Second))
}

const (
	maxStrays     = 256
	maxStrayBytes = 256 << 10
)

// strays are datagrams of a shard that came to the socket of control datagrams. It costs nothing while empty. Safe for concurrent use.
type strays struct {
	any atomic.Bool // changed under mu

	mu    sync.Mutex
	all   []underlay.Message
	bytes int
}

// put keeps a copy of b, or counts that there was no room.
func (s *strays) put(b []byte, from netip.AddrPort, tos uint8, lost *atomic.Uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= maxStrays || s.bytes+len(b) > maxStrayBytes {
		lost.Add(1)
		return
	}
	s.all = append(s.all, underlay.Message{Buf: slices.Clone(b), Addr: from, TOS: tos})
	s.bytes += len(b)
	s.any.Store(true)
}

// take returns all.
func (s *strays) take() []underlay.Message {
	if !s.any.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all
	s.all, s.bytes = nil, 0
	s.any.Store(false)
	return all
}
