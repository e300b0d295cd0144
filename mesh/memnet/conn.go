// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// conn is one end of a stream: a net.Pipe (no buffer: a write waits for the read)
// that stalls while its ends cannot reach each other.
type conn struct {
	net.Conn
	net           *Net
	local, remote netip.AddrPort
	once          sync.Once
	closed        chan struct{}

	mu       sync.Mutex
	deadline time.Time     // for writing
	poke     chan struct{} // capacity 1: the deadline has changed
}

func (n *Net) pipe(a, b netip.AddrPort) (near, far *conn) {
	p, q := net.Pipe()
	near = &conn{Conn: p, net: n, local: a, remote: b, closed: make(chan struct{}), poke: make(chan struct{}, 1)}
	far = &conn{Conn: q, net: n, local: b, remote: a, closed: make(chan struct{}), poke: make(chan struct{}, 1)}
	return near, far
}

func (c *conn) Write(b []byte) (int, error) {
	for {
		c.net.mu.RLock()
		ok, changed := c.net.reach("tcp", c.local.Addr(), c.remote.Addr())
		d, tap := c.net.delay(), c.net.tap
		if ok && tap != nil {
			tap("tcp", c.local, c.remote, b)
		}
		var due time.Time
		stop := func() {}
		if ok && d > 0 {
			changed, due, stop = c.net.after(d)
		}
		c.net.mu.RUnlock()
		if !ok || d > 0 {
			err := c.wait(changed, due)
			stop()
			if err != nil {
				return 0, err
			}
		}
		if ok {
			return c.Conn.Write(b)
		}
	}
}

// wait returns nil when closes does, which will be at due if that is not zero.
func (c *conn) wait(closes <-chan struct{}, due time.Time) error {
	for {
		c.mu.Lock()
		deadline := c.deadline
		c.mu.Unlock()
		var late <-chan time.Time
		if !deadline.IsZero() && (due.IsZero() || deadline.Before(due)) {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			late = t.C
		}
		select {
		case <-closes:
			return nil
		case <-late:
			return os.ErrDeadlineExceeded
		case <-c.closed:
			return net.ErrClosed
		case <-c.poke:
		}
	}
}

// Close closes this end. The other end learns of it unless it cannot be reached.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.closed)
		c.net.mu.RLock()
		ok, _ := c.net.reach("tcp", c.local.Addr(), c.remote.Addr())
		c.net.mu.RUnlock()
		if ok {
			err = c.Conn.Close()
			return
		}
		err = c.Conn.SetDeadline(time.Unix(1, 0))
	})
	return err
}

func (c *conn) SetDeadline(t time.Time) error {
	c.noteDeadline(t)
	return c.unlessClosed(c.Conn.SetDeadline(t))
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.noteDeadline(t)
	return c.unlessClosed(c.Conn.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.unlessClosed(c.Conn.SetReadDeadline(t))
}

// unlessClosed drops the error that a net.Pipe has, unlike a socket, for deadlines
// once the other end is closed.
func (c *conn) unlessClosed(err error) error {
	select {
	case <-c.closed:
		return err
	default:
		return nil
	}
}

func (c *conn) noteDeadline(t time.Time) {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }
