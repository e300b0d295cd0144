// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// beatInterval is the time between two signs of life, and between two looks at
// the progress.
const beatInterval = 250 * time.Millisecond

// Host is the node on which one end of a session runs.
type Host struct {
	Network Network
	Addr    netip.Addr   // its own on the overlay
	Usage   func() Usage // safe for concurrent use
}

// session is what both ends of a measurement have in common.
type session struct {
	host   Host
	secret Secret
	plan   []Phase

	ctx  context.Context
	fail context.CancelCauseFunc
	work sync.WaitGroup // all goroutines of the session

	ctl    net.Conn
	saying sync.Mutex // of ctl's writing side
	notes  chan note
	udp    *datagrams

	alive  atomic.Bool  // a sign of life came since the last look
	told   atomic.Bool  // the other said itself that it ended
	flood  atomic.Bool  // datagrams fill the way: signs of life go by datagram, too
	taken  atomic.Int64 // bytes or packets that arrived here in this phase
	theirs atomic.Int64 // and there, as the other said last

	strangers atomic.Int64

	mu    sync.Mutex
	conns map[io.Closer]struct{} // closed when the session ends
	over  bool
}

func newSession(ctx context.Context, h Host, secret Secret, p Params) *session {
	s := &session{host: h, secret: secret, plan: Plan(p), conns: map[io.Closer]struct{}{}}
	s.ctx, s.fail = context.WithCancelCause(ctx)
	return s
}

// track makes the session close c when it ends, which may be at once.
func (s *session) track(c io.Closer) {
	s.mu.Lock()
	over := s.over
	if !over {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if over {
		abort(c)
	}
}

// drop closes c now.
func (s *session) drop(c io.Closer) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	abort(c)
}

// abort closes without sending what is still in a TCP socket's buffer.
func abort(c io.Closer) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// hangUp closes all that is tracked, which makes everything that waits return.
func (s *session) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for c := range s.conns {
		abort(c)
	}
	clear(s.conns)
}

// run runs f, which uses the session, and ends it in order: sockets closed,
// goroutines gone. Whatever f says, the reason for which the session was ended
// from elsewhere comes first.
func (s *session) run(f func() error) error {
	unhook := context.AfterFunc(s.ctx, s.hangUp)
	err := f()
	if err != nil {
		s.fail(err)
		err = context.Cause(s.ctx)
	}
	if s.ctl != nil {
		if err != nil && !s.told.Load() {
			_ = s.say(note{Type: noteFailed, Text: err.Error()}, beatInterval) // the other may be gone
		}
		if errors.Is(err, errSilent) {
			abort(s.ctl)
		}
		_ = s.ctl.Close()
	}
	s.fail(nil)
	unhook()
	s.hangUp()
	s.work.Wait()
	return err
}

// reason is why something broke: what the other side says of it, or err if it
// says nothing.
func (s *session) reason(err error) error {
	select {
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case <-time.After(2 * beatInterval):
		return err
	}
}

// part is this side's half of a phase, over connections that are there.
func (s *session) part(i int, asking bool, conns []net.Conn) (Figures, error) {
	p := s.plan[i]
	f := Figures{Phase: p}
	sends := asking != p.Back
	mine := note{Type: noteDone, Phase: i}
	before := s.host.Usage()
	var err error
	switch {
	case p.Kind == Latency && asking:
		err = s.ask(p, conns[0], &f)
	case p.Kind == Latency:
		err = s.echo(p, conns[0])
	case p.Kind == Streams && sends:
		mine.Capped, err = s.sendStreams(p, conns)
	case p.Kind == Streams:
		f.Bytes, f.Elapsed, err = s.takeStreams(p, conns)
		mine.Bytes, mine.Elapsed = f.Bytes, f.Elapsed
	case sends:
		mine.Packets, mine.Capped, err = s.udp.flood(p, i)
		f.Sent = mine.Packets
	}
	if err != nil {
		return f, s.reason(fmt.Errorf("%s: %w", p, err))
	}
	var other note
	if p.Kind == Packets && !sends { // the sender says first that it has done
		if other, err = s.hear(noteDone, i, p.Time+overhead); err != nil {
			return f, err
		}
		f.Delivered, f.Elapsed = s.udp.settle()
		f.Bytes = f.Delivered * PacketSize
		mine.Packets, mine.Bytes, mine.Elapsed = f.Delivered, f.Bytes, f.Elapsed
	}
	mine.Usage = s.host.Usage().since(before)
	if err := s.tell(mine); err != nil {
		return f, err
	}
	if p.Kind != Packets || sends {
		if other, err = s.hear(noteDone, i, p.Time+overhead); err != nil {
			return f, err
		}
	}
	f.Here, f.There = mine.Usage, other.Usage
	f.Capped = mine.Capped || other.Capped
	switch {
	case p.Kind == Streams && sends:
		f.Bytes, f.Elapsed = other.Bytes, other.Elapsed
	case p.Kind == Packets && sends:
		f.Delivered, f.Bytes, f.Elapsed = other.Packets, other.Bytes, other.Elapsed
	case p.Kind == Packets:
		f.Sent = other.Packets
	}
	return f, nil
}
