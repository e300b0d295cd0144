// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// slowConn takes its time for the first deadline.
type slowConn struct {
	net.Conn
	asked bool
}

func (c *slowConn) SetReadDeadline(t time.Time) error {
	if !c.asked {
		c.asked = true
		time.Sleep(time.Second)
	}
	return c.Conn.SetReadDeadline(t)
}

// All streams are read until the phase's time is over, whichever is the first.
func TestStreamsAreTakenToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams, size, every = 3, 1000, 100 * time.Millisecond
		p := Phase{Kind: Streams, Streams: streams, Time: 4 * patience, Bytes: 1 << 40}
		var conns, ends []net.Conn
		for i := range streams {
			ours, theirs := net.Pipe()
			ends = append(ends, theirs)
			if i > 0 {
				ours = &slowConn{Conn: ours}
			}
			conns = append(conns, ours)
		}
		done := make(chan struct{})
		for _, c := range ends {
			go func() {
				defer func() { done <- struct{}{} }()
				for {
					if _, err := c.Write(make([]byte, size)); err != nil {
						return
					}
					time.Sleep(every)
				}
			}()
		}
		s := newSession(t.Context(), newHost(), newSecret(t), quick)
		bytes, elapsed, err := s.takeStreams(p, conns)
		if want := int64(streams * size * (p.Time / every)); err != nil || bytes < want*99/100 || elapsed != p.Time {
			t.Errorf("%d bytes in %v, %v; want %d in %v", bytes, elapsed, err, want, p.Time)
		}
		for _, c := range conns {
			_ = c.Close()
		}
		for range ends {
			<-done
		}
	})
}

// brokenConn fails as a socket does.
type brokenConn struct {
	net.Conn
	err error
}

func (c brokenConn) Read([]byte) (int, error)         { return 0, c.err }
func (c brokenConn) Write([]byte) (int, error)        { return 0, c.err }
func (c brokenConn) SetWriteDeadline(time.Time) error { return nil }

// A host that is gone is silent, whoever notices first: watch, or the kernel.
func TestSilenceHasOneName(t *testing.T) {
	for _, tt := range []struct{ err, want error }{
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", unix.ETIMEDOUT)}, errSilent},
		{&net.OpError{Op: "write", Err: os.ErrDeadlineExceeded}, errSilent},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", unix.ECONNRESET)}, errEnded},
	} {
		s := newSession(t.Context(), newHost(), newSecret(t), quick)
		s.converse(brokenConn{err: tt.err})
		<-s.ctx.Done()
		s.work.Wait()
		if err := s.tell(note{Type: noteBeat}); !errors.Is(context.Cause(s.ctx), tt.want) || !errors.Is(err, tt.want) {
			t.Errorf("%v: %v, %v; want %v", tt.err, context.Cause(s.ctx), err, tt.want)
		}
	}
	// And watch, whose text is the better one, has its turn before anything else gives up.
	l, err := SystemNetwork{}.Listen(t.Context(), loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := SystemNetwork{}.Dial(t.Context(), loopback, addrPort(l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T", c)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var timeout int
	if cerr := raw.Control(func(fd uintptr) { timeout, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if d := time.Duration(timeout) * time.Millisecond; d < Silence*3/2 {
		t.Errorf("the kernel gives up after %v, watch after %v", d, Silence)
	}
}
