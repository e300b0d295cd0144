// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A datagram is [PacketSize] bytes: tag, what it is, phase, six zeros, a number.
const (
	tagSize    = 8
	kindAt     = tagSize
	phaseAt    = kindAt + 1
	numberAt   = 16
	numberSize = 8

	datagramProbe = 0
	datagramBeat  = 1 // number: what arrived so far
	datagramLoad  = 2 // number: counts up
)

const (
	// probeTime is how long datagrams may need to get through at the beginning.
	probeTime = 3 * time.Second
	// quiet is how long nothing arrives before it is believed that nothing will.
	quiet = 100 * time.Millisecond
	// clockEvery is after how many packets the sender looks at the clock.
	clockEvery = 16
)

// datagrams is a session's datagram socket.
type datagrams struct {
	s     *session
	conn  PacketConn
	peer  netip.AddrPort
	tag   [tagSize]byte
	heard chan struct{} // capacity 1: something came from the peer

	// Of the phase that is being received; -1: none.
	phase       atomic.Int64
	first, last atomic.Int64 // since origin
	origin      time.Time
}

// newDatagrams exchanges datagrams with the peer by conn, which it takes over.
func (s *session) newDatagrams(conn PacketConn, peer netip.AddrPort) *datagrams {
	d := &datagrams{s: s, conn: conn, peer: peer, tag: s.secret.tag(), heard: make(chan struct{}, 1), origin: time.Now()}
	d.phase.Store(-1)
	s.work.Go(func() {
		if err := d.receive(); s.ctx.Err() == nil {
			s.fail(fmt.Errorf("the datagram socket broke: %w", err))
		}
	})
	return d
}

func (d *datagrams) receive() error {
	buf := make([]byte, PacketSize+1)
	for {
		n, from, err := d.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) || d.s.ctx.Err() != nil {
			return err
		}
		if err != nil { // an error that an ICMP message told, say: the next datagram may be better
			if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
				continue
			}
			return err
		}
		kind, phase, number, ok := decodeDatagram(buf[:n], d.tag)
		if !ok || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != d.peer {
			d.s.strangers.Add(1)
			continue
		}
		d.s.alive.Store(true)
		switch kind {
		case datagramProbe:
			select {
			case d.heard <- struct{}{}:
			default:
			}
		case datagramBeat:
			d.s.theirs.Store(number)
		case datagramLoad:
			if int64(phase) != d.phase.Load() {
				continue
			}
			at := max(int64(time.Since(d.origin)), 1)
			d.first.CompareAndSwap(0, at)
			d.last.Store(at)
			if d.s.taken.Add(1)*PacketSize > d.s.plan[phase].Bytes {
				return errors.New("more datagrams came than were agreed upon")
			}
		}
	}
}

// decodeDatagram is valid iff the size, the tag and the kind are.
func decodeDatagram(b []byte, tag [tagSize]byte) (kind, phase uint8, number int64, ok bool) {
	if len(b) != PacketSize || subtle.ConstantTimeCompare(b[:tagSize], tag[:]) != 1 || b[kindAt] > datagramLoad {
		return 0, 0, 0, false
	}
	number = int64(binary.BigEndian.Uint64(b[numberAt:]))
	return b[kindAt], b[phaseAt], number, number >= 0
}

func encodeDatagram(b *[PacketSize]byte, tag [tagSize]byte, kind, phase uint8, number int64) {
	copy(b[:], tag[:])
	b[kindAt], b[phaseAt] = kind, phase
	binary.BigEndian.PutUint64(b[numberAt:numberAt+numberSize], uint64(number))
}

// send sends one datagram that may get lost.
func (d *datagrams) send(kind uint8, number int64) {
	var b [PacketSize]byte
	encodeDatagram(&b, d.tag, kind, 0, number)
	_, _ = d.conn.WriteToUDPAddrPort(b[:], d.peer)
}

// probe proves that datagrams get through in both directions: each side sends
// until the other has said that it heard one.
func (d *datagrams) probe() error {
	s := d.s
	tick := time.NewTicker(quiet)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(s.ctx, probeTime)
	defer cancel()
	heard, told := false, false
	for !heard || !told {
		d.send(datagramProbe, 0)
		select {
		case <-d.heard:
			if !heard {
				if err := s.tell(note{Type: noteProbed}); err != nil {
					return err
				}
			}
			heard = true
		case n := <-s.notes:
			if n.Type != noteProbed {
				return fmt.Errorf("the other node says %q where %q is due: %w", printable(n.Type), noteProbed, errWire)
			}
			told = true
		case <-tick.C:
		case <-ctx.Done():
			if s.ctx.Err() != nil {
				return context.Cause(s.ctx)
			}
			return fmt.Errorf("TCP gets through between %v and %v, but UDP does not; look for a firewall on the two nodes that drops it",
				s.host.Addr, d.peer.Addr())
		}
	}
	return nil
}

// arm makes the socket count what arrives for a phase.
func (d *datagrams) arm(phase int) {
	d.s.taken.Store(0)
	d.first.Store(0)
	d.last.Store(0)
	d.phase.Store(int64(phase))
}

// settle waits until nothing arrives any more and returns the count and the time
// between the first packet and the last.
func (d *datagrams) settle() (packets int64, elapsed time.Duration) {
	for was := int64(-1); was != d.s.taken.Load() && d.s.ctx.Err() == nil; time.Sleep(quiet) {
		was = d.s.taken.Load()
	}
	d.phase.Store(-1)
	packets = d.s.taken.Load()
	if packets > 0 {
		elapsed = max(time.Duration(d.last.Load()-d.first.Load()), time.Microsecond)
	}
	return packets, elapsed
}

// flood sends packets for the phase's time without holding back, or until its
// bytes are used up, which capped tells.
func (d *datagrams) flood(p Phase, phase int) (sent int64, capped bool, err error) {
	until := time.Now().Add(p.Time)
	var b [PacketSize]byte
	most := p.Bytes / PacketSize
	for i := 0; sent < most; i++ {
		if i%clockEvery == 0 && (d.s.ctx.Err() != nil || !time.Now().Before(until)) {
			return sent, false, nil
		}
		encodeDatagram(&b, d.tag, datagramLoad, uint8(phase), sent)
		switch _, err := d.conn.WriteToUDPAddrPort(b[:], d.peer); {
		case err == nil:
			sent++
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN): // dropped on this host
		default:
			return sent, false, fmt.Errorf("sending broke: %w", err)
		}
	}
	return sent, true, nil
}
