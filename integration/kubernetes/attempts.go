// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Namespace is where something can be done: a pod, or a host.
type Namespace interface{ Do(fn func() error) error }

// Attempts are connections and datagrams that one side tries all the time, and how many of them arrive at a pod.
type Attempts struct {
	Name string

	stop    chan struct{}
	ended   sync.WaitGroup
	ln      net.Listener
	pc      net.PacketConn
	sent    atomic.Int64
	arrived atomic.Int64
}

// NewAttempts begins to try to reach a pod, on ports that nothing else has. If from is nil, others are to try.
func NewAttempts(name string, from Namespace, to *Pod) (*Attempts, error) {
	a := &Attempts{Name: name, stop: make(chan struct{})}
	err := to.Do(func() (err error) {
		if a.ln, err = net.Listen("tcp", ":0"); err != nil {
			return err
		}
		// Room for all that comes while the test itself gets no processor: what arrives is counted.
		room := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			ctl := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
			return errors.Join(ctl, err)
		}}
		a.pc, err = room.ListenPacket(context.Background(), "udp", ":0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening in pod %s: %w", to.Name, err)
	}
	a.ended.Go(func() {
		for {
			c, err := a.ln.Accept()
			if err != nil {
				return
			}
			a.arrived.Add(1)
			_ = c.Close()
		}
	})
	a.ended.Go(func() {
		b := make([]byte, 64)
		for {
			if _, _, err := a.pc.ReadFrom(b); err != nil {
				return
			}
			a.arrived.Add(1)
		}
	})
	if from == nil {
		return a, nil
	}
	tcp, udp := at(to, a.ln.Addr()), at(to, a.pc.LocalAddr())
	a.ended.Go(func() { _ = from.Do(func() error { a.dial(tcp); return nil }) })
	a.ended.Go(func() { _ = from.Do(func() error { a.send(udp); return nil }) })
	return a, nil
}

// wait tells whether to go on after a moment.
func (a *Attempts) wait() bool {
	select {
	case <-a.stop:
		return false
	case <-time.After(4 * beat):
		return true
	}
}

func (a *Attempts) dial(to string) {
	for a.wait() {
		a.sent.Add(1)
		// Shorter than the time after which the kernel tries again: each attempt is a packet.
		if c, err := net.DialTimeout("tcp", to, 200*time.Millisecond); err == nil {
			_ = c.Close()
		}
	}
}

// send sends each datagram from a port of its own, so that each is a connection for whoever tracks them.
func (a *Attempts) send(to string) {
	remote, err := netip.ParseAddrPort(to)
	if err != nil {
		return
	}
	for a.wait() {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(remote))
		if err != nil {
			continue
		}
		a.sent.Add(1)
		_, _ = c.Write([]byte("attempt")) // what arrives is counted
		_ = c.Close()
	}
}

// Port is where datagrams are counted.
func (a *Attempts) Port() uint16 { return netip.MustParseAddrPort(a.pc.LocalAddr().String()).Port() }

// Count tells how many were tried and how many arrived since the last call.
func (a *Attempts) Count() (sent, arrived int64) { return a.sent.Swap(0), a.arrived.Swap(0) }

// Stop ends it.
func (a *Attempts) Stop() {
	close(a.stop)
	_, _ = a.ln.Close(), a.pc.Close()
	a.ended.Wait()
}
