// SPDX-License-Identifier: Apache-2.0

package udpstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// wire joins endpoints by node.
type wire struct {
	t  testing.TB
	mu sync.Mutex

	ends  map[uint64]*Endpoint
	loss  float64
	rng   *mathrand.Rand
	delay time.Duration
	most  int // bytes of the largest datagram seen
}

func newWire(t testing.TB) *wire {
	return &wire{t: t, ends: map[uint64]*Endpoint{}, rng: mathrand.New(mathrand.NewPCG(1, 2)), delay: 5 * time.Millisecond}
}

// end adds an endpoint, whose streams serve serves.
func (w *wire) end(node uint64, serve func(net.Conn)) *Endpoint {
	return w.endWith(node, [32]byte{byte(node)}, serve)
}

func (w *wire) endWith(node uint64, reset [32]byte, serve func(net.Conn)) *Endpoint {
	e := New(Config{
		Accept: serve, ResetKey: reset,
		Send: func(b []byte, to Addr) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.most = max(w.most, len(b))
			if w.rng.Float64() < w.loss {
				return nil
			}
			c := bytes.Clone(b)
			time.AfterFunc(w.delay, func() {
				w.mu.Lock()
				dst := w.ends[to.Node]
				w.mu.Unlock()
				if dst != nil {
					dst.Deliver(c, Addr{Node: node, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(node)}), 1)})
				}
			})
			return nil
		},
	})
	w.mu.Lock()
	w.ends[node] = e
	w.mu.Unlock()
	return e
}

func (w *wire) closeAll() {
	for _, e := range w.ends {
		if err := e.Close(); err != nil {
			w.t.Error(err)
		}
	}
	time.Sleep(time.Minute) // QUIC's last timers
}

func echo(c net.Conn) {
	go func() {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
}

func (w *wire) dial(from, to uint64) net.Conn {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c, err := w.ends[from].Dial(ctx, Addr{Node: to})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func ask(c net.Conn, text string) error {
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q came back as %q", text, got)
	}
	return nil
}

func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		a, b := w.end(1, echo), w.end(2, echo)
		defer w.closeAll()
		if a.Active() || b.Active() {
			t.Error("there is state before any stream")
		}
		c := w.dial(1, 2)
		begin := time.Now()
		if err := ask(c, "hello"); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 20*time.Millisecond {
			t.Error(d)
		}
		if s := c.RemoteAddr().String(); s != "0000000000000002" {
			t.Error(s)
		}
		// A second stream takes the same connection, and so comes at once.
		begin = time.Now()
		d := w.dial(1, 2)
		if time.Since(begin) != 0 {
			t.Error("a second connection")
		}
		if err := ask(d, "again"); err != nil {
			t.Error(err)
		}
		// Nobody answers: the deadline, or the dial's context.
		if err := d.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Error(err)
		}
		if _, err := d.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, Addr{Node: 9}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		for _, c := range []net.Conn{c, d, c} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		// With the last connection goes all state.
		time.Sleep(connIdle + 3*endpointIdle)
		if a.Active() || b.Active() {
			t.Error("state is left")
		}
		if err := ask(w.dial(2, 1), "anew"); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		most := w.most
		w.mu.Unlock()
		if most != MaxDatagram {
			t.Errorf("datagrams of %d bytes", most)
		}
	})
}

// What was written before Close arrives, whatever is lost on the way.
func TestCloseDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.loss = 0.1
		got := make(chan []byte, 1)
		w.end(1, echo)
		w.end(2, func(c net.Conn) {
			go func() {
				b, err := io.ReadAll(c)
				if err != nil {
					t.Error(err)
				}
				got <- b
				_ = c.Close()
			}()
		})
		defer w.closeAll()
		b := make([]byte, 3<<20)
		if _, err := rand.Read(b); err != nil {
			t.Fatal(err)
		}
		c := w.dial(1, 2)
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(<-got, b) {
			t.Error("not what was sent")
		}
	})
}

// Close ends what waits, and the other side sees a broken stream, not a short one.
func TestCloseInterrupts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		broken := make(chan error, 1)
		w.end(1, echo)
		w.end(2, func(c net.Conn) {
			go func() {
				time.Sleep(5 * time.Second)
				_, err := io.ReadAll(c)
				broken <- err
				_ = c.Close()
			}()
		})
		defer w.closeAll()
		c := w.dial(1, 2)
		ended := make(chan error, 2)
		go func() {
			_, err := c.Write(make([]byte, 8<<20))
			ended <- err
		}()
		go func() {
			_, err := c.Read(make([]byte, 1))
			ended <- err
		}()
		time.Sleep(time.Second)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
		if err := <-broken; !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	})
}

// A node that was started anew says so at once, and the next dial goes to it.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.end(1, echo)
		old := w.end(2, echo)
		defer w.closeAll()
		c := w.dial(1, 2)
		if err := ask(c, "x"); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		delete(w.ends, 2) // killed: not a word of it gets out
		w.mu.Unlock()
		if err := old.Close(); err != nil {
			t.Error(err)
		}
		w.end(2, echo)
		begin := time.Now()
		if err := ask(c, strings.Repeat("y", 40)); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if err := ask(w.dial(1, 2), "z"); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 100*time.Millisecond {
			t.Error(d)
		}
	})
}

// A member, even one that claims to be many, cannot have more than so many connections and streams, and others get in.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		var mu sync.Mutex
		var held []net.Conn
		reading := false
		w.end(1, func(c net.Conn) {
			mu.Lock()
			defer mu.Unlock()
			held = append(held, c)
			if reading {
				go func() { _, _ = io.Copy(io.Discard, c) }()
			}
		})
		defer w.closeAll()
		// One after the other, each new endpoint of the same node has forgotten its connections.
		refused := 0
		var ends []*Endpoint
		for i := range MaxPerNode + 3 {
			e := w.endWith(2, [32]byte{9, byte(i)}, echo) // says of none that it has forgotten it
			ends = append(ends, e)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			c, err := e.Dial(ctx, Addr{Node: 1})
			cancel()
			switch {
			case errors.Is(err, syscall.ECONNREFUSED):
				refused++
				continue
			case err != nil:
				t.Fatal(err)
			}
			for i := range MaxStreams + 1 {
				if i > 0 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					c, err = e.Dial(ctx, Addr{Node: 1})
					cancel()
				}
				if i == MaxStreams {
					if !errors.Is(err, errNoStream) {
						t.Errorf("stream %d: %v", i, err)
					}
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write([]byte("x")); err != nil {
					t.Error(err)
				}
			}
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		mu.Lock()
		streams := len(held)
		mu.Unlock()
		if refused != 3 || streams != MaxPerNode*MaxStreams {
			t.Errorf("%d refused, %d streams", refused, streams)
		}
		w.end(3, echo)
		if _, err := w.dial(3, 1).Write([]byte("x")); err != nil {
			t.Error(err)
		}
		for _, e := range ends {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		}
		// Connections that are read from may hold more, within bounds over all of them.
		mu.Lock()
		reading = true
		mu.Unlock()
		w.ends[1].mu.Lock()
		l := w.ends[1].life
		w.ends[1].mu.Unlock()
		for i := range 20 {
			e := w.end(uint64(100+i), echo)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			c, err := e.Dial(ctx, Addr{Node: 1})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = c.Write(make([]byte, 2<<20)) }()
		}
		time.Sleep(time.Second)
		l.mu.Lock()
		spent := l.spent
		l.mu.Unlock()
		if spent == 0 || spent > windowBudget {
			t.Errorf("%d bytes granted", spent)
		}
		mu.Lock()
		for _, c := range held {
			_ = c.Close()
		}
		mu.Unlock()
		for node, e := range w.ends {
			if node != 1 {
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			}
		}
		time.Sleep(time.Minute)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.spent != 0 || len(l.granted) != 0 || l.total != 0 || len(l.incoming) != 0 {
			t.Errorf("%d bytes, %d connections are still counted", l.spent, l.total)
		}
	})
}

func TestClosedEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		a := w.end(1, echo)
		w.end(2, echo)
		c := w.dial(1, 2)
		for range 2 {
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a stream outlived its endpoint")
		}
		if _, err := a.Dial(t.Context(), Addr{Node: 2}); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		a.Deliver([]byte{0xc0}, Addr{Node: 2})
		if a.Active() {
			t.Error("there is state again")
		}
		w.closeAll()
	})
}

// Whatever members send, nothing breaks, and a real stream works beside it.
func FuzzDeliver(f *testing.F) {
	f.Add([]byte{0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0}, uint8(3))
	f.Add(bytes.Repeat([]byte{0x40}, 60), uint8(1))
	f.Add(append([]byte{0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0xb0}, make([]byte, 1180)...), uint8(20))
	f.Fuzz(func(t *testing.T, b []byte, times uint8) {
		synctest.Test(t, func(t *testing.T) {
			w := newWire(t)
			a := w.end(1, echo)
			w.end(2, echo)
			defer w.closeAll()
			for i := range times {
				a.Deliver(b, Addr{Node: uint64(10 + i%4)})
			}
			if err := ask(w.dial(2, 1), "hello"); err != nil {
				t.Error(err)
			}
		})
	})
}
