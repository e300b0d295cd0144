// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/mesh/memnet"
)

// countingNetwork notes every look-up.
type countingNetwork struct {
	*memnet.Host
	lookups chan<- time.Time
}

func (n countingNetwork) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	n.lookups <- time.Now()
	return n.Host.Lookup(ctx, host)
}

// cuttingNetwork breaks every nth connection after some writes.
type cuttingNetwork struct {
	*memnet.Host
	dials *atomic.Int64
}

func (n cuttingNetwork) Dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	c, err := n.Host.Dial(ctx, addr)
	if n.dials.Add(1)%4 == 0 && err == nil {
		return &cutConn{Conn: c, writes: 4}, nil
	}
	return c, err
}

type cutConn struct {
	net.Conn
	writes int
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.writes <= 0 {
		_ = c.Conn.Close()
	}
	return c.Conn.Read(b)
}

func (c *cutConn) Write(b []byte) (int, error) {
	c.writes--
	return c.Conn.Write(b)
}

func numbered(n int, from NodeID) (want []received) {
	for i := range n {
		want = append(want, received{from, "ch", fmt.Sprint(i)})
	}
	return want
}

func TestSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 40)
		a := c.node().start()
		b := c.node("n1")
		var dials atomic.Int64
		b.cfg.Network = cuttingNetwork{b.host, &dials}
		b.start()
		c.eventually(5*time.Second, "whole", whole(a, b))
		const n = 100
		buf := make([]byte, 0, 8)
		for i := range n {
			buf = fmt.Appendf(buf[:0], "%d", i)
			if err := b.Send(a.cfg.Identity.ID(), "ch", buf); err != nil { // the buffer is used again
				t.Fatal(err)
			}
		}
		c.eventually(time.Minute, "all arrive", func() bool { return len(a.inbox()) >= n })
		time.Sleep(30 * time.Second)
		if got, want := fmt.Sprint(a.inbox()), fmt.Sprint(numbered(n, b.cfg.Identity.ID())); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		// The worker has retired by now; another one takes over where it ended.
		if err := b.Send(a.cfg.Identity.ID(), "ch", []byte(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
		c.eventually(5*time.Second, "one more arrives", func() bool { return len(a.inbox()) == n+1 })
		// And a restarted sender counts from 1 again.
		b.kill()
		b.start()
		c.eventually(5*time.Second, "whole", whole(a, b))
		if err := b.Send(a.cfg.Identity.ID(), "other", nil); err != nil {
			t.Fatal(err)
		}
		c.eventually(5*time.Second, "the new process is heard", func() bool {
			in := a.inbox()
			return len(in) == n+2 && in[n+1] == received{b.cfg.Identity.ID(), "other", ""}
		})
	})
}

func TestSendRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 41)
		a := c.node()
		m, err := New(a.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Send(2, "ch", nil); !errors.Is(err, ErrNotRunning) {
			t.Error(err)
		}
		if err := m.Stop(context.Background(), false); err != nil {
			t.Error(err)
		}
		if err := m.Run(context.Background()); !errors.Is(err, ErrNotRunning) {
			t.Error(err)
		}
		a.start()
		b := c.node("n1").start()
		c.eventually(5*time.Second, "whole", whole(a, b))
		for want, err := range map[error]error{
			ErrUnknownNode: a.Send(99, "ch", nil),
			ErrSelf:        a.Send(a.id, "ch", nil),
			ErrTooLarge:    a.Send(b.id, "ch", make([]byte, maxPayload+1)),
		} {
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		}
		if err := a.Send(b.id, strings.Repeat("c", 65), nil); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
		if err := a.Send(b.id, "ch", make([]byte, maxPayload)); err != nil {
			t.Error(err)
		}
		c.eventually(5*time.Second, "the largest message arrives", func() bool { return len(b.inbox()) == 1 })
		// A node that nobody reaches: the queue fills and is given up in time.
		b.host.Dark(true)
		var full error
		sent := 0
		for full == nil {
			full = a.Send(b.id, "ch", []byte("x"))
			sent++
		}
		if !errors.Is(full, ErrQueueFull) || sent != maxOutbox+1 {
			t.Errorf("%d messages, then %v", sent, full)
		}
		time.Sleep(20 * time.Minute)
		a.Mesh.mu.Lock()
		o := a.outboxes[b.id]
		left, bytes := len(o.queue), o.bytes
		a.Mesh.mu.Unlock()
		if left != 0 || bytes != 0 {
			t.Errorf("%d messages, %d bytes are left", left, bytes)
		}
		b.host.Dark(false)
		c.eventually(8*time.Second, "whole", whole(a, b))
		if err := a.Send(b.id, "ch", []byte("later")); err != nil {
			t.Error(err)
		}
		c.eventually(5*time.Second, "it arrives", func() bool { return len(b.inbox()) == 2 })
	})
}

// A short outage delays messages and loses none.
func TestSendThroughOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 42)
		c.net.Delay(time.Millisecond, 5*time.Millisecond)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(5*time.Second, "whole", whole(a, b))
		for i := range 60 {
			if err := a.Send(b.id, "ch", []byte(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
			switch i {
			case 20:
				c.net.Partition([]*memnet.Host{b.host})
			case 50:
				c.net.Heal()
			}
			time.Sleep(200 * time.Millisecond)
		}
		c.eventually(10*time.Second, "all arrive", func() bool { return len(b.inbox()) >= 60 })
		if got, want := fmt.Sprint(b.inbox()), fmt.Sprint(numbered(60, a.id)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

// A handler that takes its time holds up its sender only, and nothing arrives twice.
func TestSendSlowHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 43)
		a := c.node()
		inner := a.cfg.OnMessage
		a.cfg.OnMessage = func(from NodeID, channel string, payload []byte) {
			if channel == "slow" {
				time.Sleep(8 * time.Second)
			}
			inner(from, channel, payload)
		}
		a.start()
		b, d := c.node("n1").start(), c.node("n1").start()
		c.eventually(5*time.Second, "whole", whole(a, b, d))
		for _, ch := range []string{"slow", "after"} {
			if err := b.Send(a.id, ch, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if err := d.Send(a.id, "quick", nil); err != nil {
			t.Fatal(err)
		}
		c.eventually(time.Second, "the other sender is heard", func() bool { return len(a.inbox()) == 1 })
		time.Sleep(time.Minute)
		want := []received{{d.id, "quick", ""}, {b.id, "slow", ""}, {b.id, "after", ""}}
		if got := a.inbox(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v", got)
		}
	})
}
