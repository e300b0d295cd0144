// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
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
	// controlRate is how many control datagrams are looked at per second, and controlBurst how many at once. What comes in beyond that waits in the
	// socket, or is lost there: a storm of them takes a bounded share of a processor, and not from the shards.
	controlRate  = 50_000
	controlBurst = 5_000
)

// apart receives from the socket of control datagrams. All of it belongs to the goroutine in run but for what is marked.
type apart struct {
	r      *Router
	conn   Conn
	poller Poller
	stop   atomic.Bool // written by Run

	handler  controller
	in       []underlay.Message
	limit    limiter
	failures int // in a row
}

func newApart(r *Router, c Conn) *apart {
	a := &apart{
		r: r, conn: c, handler: controller{r: r, stats: &r.controlStats}, in: make([]underlay.Message, apartBatch),
		limit: limiter{rate: controlRate, burst: controlBurst},
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
	return a.limit.wait(), nil
}

func (a *apart) datagram(b []byte, from netip.AddrPort, tos uint8, now time.Time) {
	a.limit.spend(now)
	switch {
	case len(b) == 0:
		a.handler.stats.drop(DropShort)
	case b[0] == ControlType:
		a.handler.handle(b, from, now)
	default: // the kernel has joined it to a control datagram of the same sender
		a.r.shards[0].strays.put(b, from, tos, &a.handler.stats.drops[DropStray])
		a.r.shards[0].poller.Wake()
	}
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
