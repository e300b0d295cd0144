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
		a.Receive(7, nil)
		var count atomic.Int64
		b.Receive(80, func(p []byte, from netip.AddrPort, _ time.Time) {
			if string(p) != "hi" || from != netip.AddrPortFrom(addrA, 7) {
				t.Errorf("%q from %v", p, from)
			}
			count.Add(1)
		})
		send := func(k int) int {
			count.Store(0)
			for range k {
				if err := a.SendControl([]byte("hi"), toB); err != nil {
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
		if err := a.SendControl(nil, netip.MustParseAddrPort("[2001:db8::1]:80")); err == nil {
			t.Error("v6 from a v4 host")
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
