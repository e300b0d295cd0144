// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// beat is how often a flow sends.
const beat = 5 * time.Millisecond

// A Flow is a TCP connection between two pods over which numbers go back and forth all the time, and a stream of datagrams beside it.
type Flow struct {
	From, To *Pod

	stop    chan struct{}
	ended   sync.WaitGroup
	tcp     net.Conn
	udp     net.Conn
	closers []io.Closer

	mu       sync.Mutex
	gap      time.Duration // the longest time between two answers over TCP
	err      error         // why the connection broke
	sent     uint64        // datagrams
	answered uint64
}

// NewFlow connects two pods.
func NewFlow(from, to *Pod) (*Flow, error) {
	f := &Flow{From: from, To: to, stop: make(chan struct{})}
	var ln net.Listener
	var pc net.PacketConn
	err := to.Do(func() (err error) {
		if ln, err = net.Listen("tcp", ":0"); err != nil {
			return err
		}
		pc, err = net.ListenPacket("udp", ":0")
		return err
	})
	if err != nil {
		return nil, err
	}
	f.closers = append(f.closers, ln, pc)
	f.ended.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.ended.Go(func() {
				_, _ = io.Copy(c, c) // until the other side is done
				_ = c.Close()
			})
		}
	})
	f.ended.Go(func() {
		b := make([]byte, 64)
		for {
			n, addr, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(b[:n], addr) // what is lost is counted
		}
	})
	err = from.Do(func() (err error) {
		if f.tcp, err = net.DialTimeout("tcp", at(to, ln.Addr()), 5*time.Second); err != nil {
			return err
		}
		f.udp, err = net.Dial("udp", at(to, pc.LocalAddr()))
		return err
	})
	if err != nil {
		for _, c := range f.closers {
			_ = c.Close()
		}
		f.ended.Wait()
		return nil, fmt.Errorf("%s -> %s: %w", from.Node.name, to.Node.name, err)
	}
	f.closers = append(f.closers, f.tcp, f.udp)
	f.ended.Go(f.talk)
	f.ended.Go(f.send)
	f.ended.Go(f.receive)
	return f, nil
}

// at is the pod's address with the port of another one.
func at(p *Pod, a net.Addr) string {
	port, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return netip.AddrPortFrom(p.V4(), port.Port()).String()
}

// talk sends a number, waits for it to come back, and so on.
func (f *Flow) talk() {
	var b, back [8]byte
	last := time.Now()
	for n := uint64(0); ; n++ {
		binary.BigEndian.PutUint64(b[:], n)
		_, err := f.tcp.Write(b[:])
		if err == nil {
			_, err = io.ReadFull(f.tcp, back[:])
		}
		now := time.Now()
		f.mu.Lock()
		if err == nil {
			f.gap = max(f.gap, now.Sub(last))
			if back != b {
				err = errors.New("another number came back")
			}
		}
		select {
		case <-f.stop:
			// The connection may have been waiting until it was closed.
			f.gap = max(f.gap, now.Sub(last))
			f.mu.Unlock()
			return
		default:
		}
		f.err = err
		f.mu.Unlock()
		if err != nil {
			return
		}
		last = now
		time.Sleep(beat)
	}
}

func (f *Flow) send() {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
		_, _ = f.udp.Write([]byte("datagram")) // what is lost is counted
		f.mu.Lock()
		f.sent++
		f.mu.Unlock()
	}
}

func (f *Flow) receive() {
	b := make([]byte, 64)
	for {
		_, err := f.udp.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error: one is lost
		}
		f.mu.Lock()
		f.answered++
		f.mu.Unlock()
	}
}

// Stop ends the flow and tells its longest gap, how many of its datagrams had no answer, and whether the connection broke.
func (f *Flow) Stop() (gap time.Duration, lost uint64, err error) {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	time.Sleep(10 * beat) // the last answers are on their way
	for _, c := range f.closers {
		_ = c.Close()
	}
	f.ended.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answered < f.sent {
		lost = f.sent - f.answered
	}
	return f.gap, lost, f.err
}

// Flows connects each pod with every other one.
func Flows(pods []*Pod) (all []*Flow, err error) {
	for _, a := range pods {
		for _, b := range pods {
			if a == b {
				continue
			}
			f, err := NewFlow(a, b)
			if err != nil {
				return all, err
			}
			all = append(all, f)
		}
	}
	return all, nil
}
