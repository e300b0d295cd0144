// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var (
	addrA = netip.MustParseAddr("10.0.0.1")
	addrB = netip.MustParseAddr("10.0.0.2")
	toB   = netip.AddrPortFrom(addrB, 80)
)

func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.Delay(10*time.Millisecond, 10*time.Millisecond)
		a, b := n.Host(addrA), n.Host(addrB)
		if _, err := a.Dial(t.Context(), toB); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error(err)
		}
		if _, err := a.Dial(t.Context(), netip.MustParseAddrPort("[2001:db8::1]:80")); !errors.Is(err, syscall.ENETUNREACH) {
			t.Error(err)
		}
		l, err := b.Listen(80)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Listen(80); !errors.Is(err, syscall.EADDRINUSE) {
			t.Error(err)
		}
		got := make(chan string)
		go func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			b, err := io.ReadAll(c)
			got <- fmt.Sprint(c.LocalAddr(), " ", string(b), " ", err)
		}()
		begin := time.Now()
		c, err := a.Dial(t.Context(), toB)
		if err != nil || time.Since(begin) != 20*time.Millisecond {
			t.Fatal(err, time.Since(begin))
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		// In a partition a write stalls, until its deadline or the end of the partition.
		n.Partition([]*Host{a})
		if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Error(err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Error(err)
		}
		time.AfterFunc(time.Minute, n.Heal)
		if _, err := c.Write([]byte(" again")); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if s := <-got; s != "10.0.0.2:80 hello again <nil>" {
			t.Error(s)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		// A dial into nothing ends with its context, or goes through when TCP tries again.
		b.Dark(true)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, toB); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		time.AfterFunc(2*time.Second, func() { b.Dark(false) })
		begin = time.Now()
		if _, err := a.Dial(t.Context(), toB); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(begin) < 3*time.Second {
			t.Error(err, time.Since(begin))
		}
	})
}

func TestDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := n.Host(addrA), n.Host(addrB)
		var count atomic.Int64
		from := a.Router(Member{Node: 1, Port: 7}, func([]byte, Addr, time.Time) {})
		to := b.Router(Member{Node: 2, Port: 80}, func(p []byte, from Addr, _ time.Time) {
			if string(p) != "hi" || from != (Addr{1, netip.AddrPortFrom(addrA, 7)}) {
				t.Errorf("%q from %v", p, from)
			}
			count.Add(1)
		})
		send := func(k int) int {
			count.Store(0)
			for range k {
				if err := from.SendControl([]byte("hi"), Addr{Addr: toB}); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(time.Second)
			synctest.Wait()
			return int(count.Load())
		}
		if got := send(100); got != 100 {
			t.Errorf("%d of 100", got)
		}
		n.Faults(0.5, 0)
		if got := send(1000); got < 400 || got > 600 {
			t.Errorf("%d of 1000, half lost", got)
		}
		n.Faults(0, 0.5)
		if got := send(1000); got < 1400 || got > 1600 {
			t.Errorf("%d of 1000, half doubled", got)
		}
		n.Faults(0, 0)
		n.Partition([]*Host{a}, []*Host{b})
		if got := send(10); got != 0 {
			t.Errorf("%d through a partition", got)
		}
		n.Heal()
		if err := from.SendControl(nil, Addr{Addr: netip.MustParseAddrPort("[2001:db8::1]:80")}); err == nil {
			t.Error("v6 from a v4 host")
		}
		for range 2 {
			if err := to.Close(); err != nil {
				t.Error(err)
			}
		}
		if got := send(10); got != 0 {
			t.Errorf("%d to a closed port", got)
		}
		if err := to.SendControl(nil, Addr{Node: 1}); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		n.Name("b", addrB)
		if as, err := a.Lookup(t.Context(), "b"); err != nil || len(as) != 1 || as[0] != addrB {
			t.Error(as, err)
		}
		var dns *net.DNSError
		if _, err := a.Lookup(t.Context(), "c"); !errors.As(err, &dns) || !dns.IsNotFound {
			t.Error(err)
		}
	})
}

// Routers find nodes wherever they are, and relay for each other in a chain.
func TestRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.Delay(10*time.Millisecond, 10*time.Millisecond)
		var hosts []*Host
		var routers []*Router
		got := make(chan string, 10)
		for i := range 5 {
			h := n.Host(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
			m := Member{Node: uint64(i + 1), Port: 7}
			hosts = append(hosts, h)
			routers = append(routers, h.Router(m, func(p []byte, from Addr, _ time.Time) {
				got <- fmt.Sprintf("%d: %s from %d at %v", m.Node, p, from.Node, from.Addr)
			}))
		}
		n.Filter(func(proto string, a, b *Host) bool {
			i, j := int(a.Addr().As4()[3]), int(b.Addr().As4()[3])
			return proto == "udp" && (i-j == 1 || j-i == 1)
		})
		say := func(to Addr, want string) {
			t.Helper()
			if err := routers[0].SendControl([]byte("x"), to); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			s := "nothing"
			select {
			case s = <-got:
			default:
			}
			if s != want {
				t.Errorf("to %v: %s", to, s)
			}
		}
		say(Addr{Node: 5}, "5: x from 1 at invalid AddrPort")
		say(Addr{Node: 2}, "2: x from 1 at 10.0.0.0:7")
		say(Addr{Addr: netip.MustParseAddrPort("10.0.0.4:7")}, "nothing")
		say(Addr{Node: 9}, "nothing")
		routers[2].NoRelay = true
		say(Addr{Node: 5}, "nothing")
		n.Filter(nil)
		say(Addr{Node: 5}, "5: x from 1 at 10.0.0.0:7")
		n.Filter(func(proto string, _, _ *Host) bool { return proto != "tcp" })
		if _, err := hosts[1].Listen(80); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := hosts[0].Dial(ctx, netip.MustParseAddrPort("10.0.0.1:80")); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		stranger := n.Host(netip.MustParseAddr("10.0.1.1")).Router(Member{Node: 8, Port: 7, Secret: [32]byte{1}}, nil)
		if err := stranger.SendControl([]byte("x"), Addr{Addr: netip.MustParseAddrPort("10.0.0.1:7")}); err != nil {
			t.Error(err)
		}
		say(Addr{Node: 2}, "2: x from 1 at 10.0.0.0:7")
	})
}

// With a step all arrives at multiples of it, in the order in which it was sent where the delay is the same, and many at once.
func TestStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const step = 10 * time.Millisecond
		time.Sleep(time.Until(time.Now().Truncate(step).Add(step)))
		n := New(1)
		n.Delay(12*time.Millisecond, 12*time.Millisecond)
		n.Step(step)
		var hosts []*Host
		var mu sync.Mutex
		got := make(map[uint64][]byte) // by who got it
		for i := range 20 {
			h := n.Host(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
			h.Router(Member{Node: uint64(i + 1), Port: 7}, func(p []byte, from Addr, at time.Time) {
				mu.Lock()
				defer mu.Unlock()
				if at.Sub(at.Truncate(step)) != 0 || from != (Addr{1, netip.MustParseAddrPort("10.0.0.0:7")}) {
					t.Errorf("from %v at %v", from, at)
				}
				got[uint64(i+1)] = append(got[uint64(i+1)], p...)
			})
			hosts = append(hosts, h)
		}
		begin := time.Now()
		for i := range 3 {
			for to := range 20 {
				if err := hosts[0].routers[7].SendControl([]byte{'a' + byte(i)}, Addr{Node: uint64(to + 1)}); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		mu.Lock()
		if len(got) != 0 {
			t.Errorf("%d have got something too soon", len(got))
		}
		mu.Unlock()
		time.Sleep(time.Until(begin.Add(step)))
		synctest.Wait()
		for to := range uint64(20) {
			if string(got[to+1]) != "abc" {
				t.Errorf("node %d has got %q", to+1, got[to+1])
			}
		}
		l, err := hosts[1].Listen(80)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		c, err := hosts[0].Dial(t.Context(), netip.AddrPortFrom(hosts[1].Addr(), 80))
		if d := time.Since(begin); err != nil || d != 4*step { // 11 ms and two delays are 35
			t.Fatal(err, d)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.Copy(io.Discard, c)
			}
		}()
		if err := c.SetWriteDeadline(time.Now().Add(step / 2)); err != nil {
			t.Error(err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			t.Error(err)
		}
		if _, err := c.Write([]byte("x")); err != nil || time.Since(begin) != 6*step { // 45 ms and 12 are 57
			t.Error(err, time.Since(begin))
		}
		if err := errors.Join(c.Close(), l.Close()); err != nil {
			t.Error(err)
		}
	})
}
