// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	// maxGreeting is how many connections may be about to say who they are.
	maxGreeting = 64
	// greetingTime is how long each of them may take.
	greetingTime = 2 * time.Second
)

// Target is the other end of a session that was asked for: its sockets are open.
type Target struct {
	s      *session
	ln     net.Listener
	pc     PacketConn
	from   netip.Addr
	limit  time.Duration
	cancel context.CancelFunc

	met     atomic.Bool   // control has had its connection
	control chan net.Conn // capacity 1
	streams chan stream
	letIn   chan struct{} // a token for each connection that has not said yet who it is
}

// stream is a connection that has said what it is.
type stream struct {
	conn net.Conn
	greeting
}

// Open opens the sockets of a session whose other end is at the overlay address
// from. Run must be called next, whatever else happens.
func Open(ctx context.Context, h Host, secret Secret, p Params, from netip.Addr) (*Target, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	ln, err := h.Network.Listen(ctx, h.Addr)
	if err != nil {
		return nil, fmt.Errorf("opening a TCP port on %v: %w", h.Addr, err)
	}
	pc, err := h.Network.ListenPacket(ctx, h.Addr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening a UDP port on %v: %w", h.Addr, err), ln.Close())
	}
	t := &Target{
		ln: ln, pc: pc, from: from, limit: p.Limit(),
		control: make(chan net.Conn, 1), streams: make(chan stream), letIn: make(chan struct{}, maxGreeting),
	}
	ctx, t.cancel = context.WithTimeoutCause(ctx, t.limit, fmt.Errorf("the measurement took longer than %v", t.limit))
	t.s = newSession(ctx, h, secret, p)
	t.s.track(ln)
	t.s.track(pc)
	return t, nil
}

// Ports returns where the sockets are.
func (t *Target) Ports() Peer {
	return Peer{TCP: addrPort(t.ln.Addr()), UDP: addrPort(t.pc.LocalAddr())}
}

// Run does the session's other half until its end, which is an error if it is
// not that of the last phase, or until ctx of Open ends. strangers is how many
// connections and datagrams were turned away.
func (t *Target) Run() (strangers int64, err error) {
	defer t.cancel()
	s := t.s
	err = s.run(func() error {
		s.work.Go(t.accept)
		if err := t.meet(); err != nil {
			return err
		}
		for i := range s.plan {
			if err := t.follow(i); err != nil {
				return err
			}
		}
		if _, err := s.hear(noteEnd, 0, patience); err != nil {
			return err
		}
		return s.tell(note{Type: noteEnd, Strangers: s.strangers.Load()})
	})
	return s.strangers.Load(), err
}

// accept takes connections until the listener is closed.
func (t *Target) accept() {
	s := t.s
	for {
		c, err := t.ln.Accept()
		if err != nil {
			if s.ctx.Err() == nil {
				s.fail(fmt.Errorf("the TCP port broke: %w", err))
			}
			return
		}
		if addrPort(c.RemoteAddr()).Addr() != t.from {
			t.turnAway(c)
			continue
		}
		select {
		case t.letIn <- struct{}{}:
		default:
			t.turnAway(c)
			continue
		}
		s.track(c)
		s.work.Go(func() {
			t.welcome(c)
			<-t.letIn
		})
	}
}

func (t *Target) turnAway(c net.Conn) {
	t.s.strangers.Add(1)
	t.s.drop(c)
}

// welcome hands a connection on that knows the secret.
func (t *Target) welcome(c net.Conn) {
	var b [greetingSize]byte
	err := c.SetReadDeadline(time.Now().Add(greetingTime))
	if err == nil {
		_, err = io.ReadFull(c, b[:])
	}
	g, ok := decodeGreeting(b[:], t.s.secret)
	if err != nil || !ok || c.SetReadDeadline(time.Time{}) != nil {
		t.turnAway(c)
		return
	}
	if g.purpose == forControl {
		if t.met.Swap(true) { // there is one
			t.turnAway(c)
			return
		}
		t.control <- c
		return
	}
	select {
	case t.streams <- stream{c, g}:
	case <-t.s.ctx.Done():
	}
}

// meet waits for the asking side.
func (t *Target) meet() error {
	s := t.s
	timeout := time.NewTimer(meetTime)
	defer timeout.Stop()
	select {
	case ctl := <-t.control:
		s.mu.Lock()
		delete(s.conns, ctl) // run closes it, when it has said why
		s.mu.Unlock()
		s.converse(ctl)
	case <-timeout.C:
		return fmt.Errorf("the asking node did not connect within %v", meetTime)
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	hello, err := s.hear(noteHello, 0, meetTime)
	if err != nil {
		return err
	}
	s.udp = s.newDatagrams(t.pc, netip.AddrPortFrom(t.from, hello.Port))
	if err := s.tell(note{Type: noteHello}); err != nil {
		return err
	}
	return s.udp.probe()
}

// follow runs a phase as the asked side.
func (t *Target) follow(i int) error {
	s, p := t.s, t.s.plan[i]
	if _, err := s.hear(notePhase, i, overhead); err != nil {
		return err
	}
	s.reset(i, !p.Back)
	if err := s.tell(note{Type: noteArmed, Phase: i}); err != nil {
		return err
	}
	conns, err := t.gather(i)
	defer func() {
		for _, c := range conns {
			if c != nil {
				s.drop(c)
			}
		}
	}()
	if err != nil {
		return err
	}
	if err := s.tell(note{Type: noteReady, Phase: i}); err != nil {
		return err
	}
	if _, err := s.hear(noteStart, i, patience); err != nil {
		return err
	}
	_, err = s.part(i, false, conns)
	return err
}

// gather takes the phase's connections; those that are not there yet are nil
// where it fails.
func (t *Target) gather(i int) ([]net.Conn, error) {
	s := t.s
	conns := make([]net.Conn, s.plan[i].Streams)
	timeout := time.NewTimer(meetTime)
	defer timeout.Stop()
	for missing := len(conns); missing > 0; {
		select {
		case c := <-t.streams:
			if int(c.phase) != i || int(c.stream) >= len(conns) || conns[c.stream] != nil {
				t.turnAway(c.conn)
				continue
			}
			conns[c.stream] = c.conn
			missing--
		case <-timeout.C:
			return conns, fmt.Errorf("%d of %d streams did not come within %v", missing, len(conns), meetTime)
		case <-s.ctx.Done():
			return conns, context.Cause(s.ctx)
		}
	}
	return conns, nil
}
