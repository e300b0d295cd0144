// SPDX-License-Identifier: Apache-2.0

package udpstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
)

// packetConn is the socket that QUIC believes to work with.
type packetConn struct {
	send func(b []byte, to Addr) error
	in   chan datagram
	once sync.Once
	stop chan struct{} // closed when reading is to end
}

type datagram struct {
	b    []byte
	from Addr
}

func newPacketConn(send func(b []byte, to Addr) error) *packetConn {
	return &packetConn{send: send, in: make(chan datagram, queue), stop: make(chan struct{})}
}

func (c *packetConn) deliver(b []byte, from Addr) {
	if len(b) > MaxDatagram {
		return
	}
	select {
	case c.in <- datagram{append([]byte(nil), b...), from}:
	default:
	}
}

// ReadFrom returns the next datagram.
func (c *packetConn) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case d := <-c.in:
		return copy(p, d.b), d.from, nil
	case <-c.stop:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo sends a datagram. One that cannot be sent is one that is lost: QUIC would give the connection up
// for an error, while the router may find another path in a moment.
func (c *packetConn) WriteTo(p []byte, a net.Addr) (int, error) {
	to, ok := a.(Addr)
	if !ok {
		return 0, fmt.Errorf("streams over UDP: no datagram goes to a %T", a)
	}
	_ = c.send(p, to)
	return len(p), nil
}

// Close ends reading.
func (c *packetConn) Close() error {
	c.once.Do(func() { close(c.stop) })
	return nil
}

// SetReadDeadline ends reading for good: QUIC does so when it closes, and never else.
func (c *packetConn) SetReadDeadline(t time.Time) error {
	if !t.IsZero() {
		return c.Close()
	}
	return nil
}

func (c *packetConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *packetConn) SetWriteDeadline(time.Time) error { return nil }
func (c *packetConn) LocalAddr() net.Addr              { return Addr{} }

// There is no buffer to set; without these, QUIC complains to the standard logger.
func (c *packetConn) SetReadBuffer(int) error  { return nil }
func (c *packetConn) SetWriteBuffer(int) error { return nil }

// stream is one stream of a connection, with the manners of a TCP connection: Close may come at
// any time, ends both directions, and what was written before still arrives.
type stream struct {
	conn *quic.Conn
	s    *quic.Stream

	closing chan struct{}
	once    sync.Once
	writing sync.Mutex // held while Write runs
}

func newStream(c *quic.Conn, s *quic.Stream) *stream {
	return &stream{conn: c, s: s, closing: make(chan struct{})}
}

func (s *stream) isClosed() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.s.Read(p)
	return n, s.explain(err)
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.isClosed() {
		return 0, net.ErrClosed
	}
	n, err := s.s.Write(p)
	if err != nil && s.isClosed() {
		s.s.CancelWrite(0) // what arrived would look whole
	}
	return n, s.explain(err)
}

func (s *stream) explain(err error) error {
	if err != nil && !errors.Is(err, io.EOF) && s.isClosed() {
		return net.ErrClosed
	}
	return plain(err)
}

// Close implements net.Conn; a second time it does nothing.
func (s *stream) Close() (err error) {
	s.once.Do(func() {
		close(s.closing)
		s.s.CancelRead(0)
		// Ends a Write that waits, which then gives the lock back.
		err = s.s.SetWriteDeadline(time.Unix(1, 0))
		s.writing.Lock()
		defer s.writing.Unlock()
		_ = s.s.Close() // fails only if a Write that was interrupted, or the other side, has cancelled the stream
	})
	return err
}

// RemoteAddr returns an [Addr].
func (s *stream) RemoteAddr() net.Addr              { return s.conn.RemoteAddr() }
func (s *stream) LocalAddr() net.Addr               { return Addr{} }
func (s *stream) SetDeadline(t time.Time) error     { return s.unlessClosed(s.s.SetDeadline(t)) }
func (s *stream) SetReadDeadline(t time.Time) error { return s.unlessClosed(s.s.SetReadDeadline(t)) }

func (s *stream) SetWriteDeadline(t time.Time) error { return s.unlessClosed(s.s.SetWriteDeadline(t)) }

func (s *stream) unlessClosed(err error) error {
	if s.isClosed() {
		return net.ErrClosed
	}
	return err
}

// plain turns QUIC's errors into those that a TCP connection has.
func plain(err error) error {
	var (
		idle      *quic.IdleTimeoutError
		handshake *quic.HandshakeTimeoutError
		reset     *quic.StatelessResetError
		stream    *quic.StreamError
		app       *quic.ApplicationError
		transport *quic.TransportError
	)
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &idle), errors.As(err, &handshake):
		return fmt.Errorf("QUIC: %w", syscall.ETIMEDOUT)
	case errors.As(err, &reset), errors.As(err, &stream), errors.As(err, &app):
		return fmt.Errorf("QUIC: %w", syscall.ECONNRESET)
	case errors.As(err, &transport) && transport.Remote && transport.ErrorCode == quic.ConnectionRefused:
		return fmt.Errorf("QUIC: %w", syscall.ECONNREFUSED)
	case errors.As(err, &transport):
		return fmt.Errorf("QUIC: %w: %w", syscall.ECONNRESET, err)
	}
	return err
}
