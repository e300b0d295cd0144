// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"testing"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// checkDelivered fails unless what a router wrote last is a packet from its peer to itself.
func checkDelivered(t *testing.T, l *loop, from, to string) {
	t.Helper()
	var p packet.Packet
	if err := p.Parse(l.written[packet.VNetHdrLen:]); err != nil {
		t.Fatalf("%v: %x", err, l.written)
	}
	if p.Len != len(l.written)-packet.VNetHdrLen {
		t.Errorf("%d bytes were written for a packet of %d", len(l.written)-packet.VNetHdrLen, p.Len)
	}
	if !netip.MustParsePrefix(from).Contains(p.Src) || !netip.MustParsePrefix(to).Contains(p.Dst) {
		t.Errorf("a packet from %v to %v was delivered", p.Src, p.Dst)
	}
}

// FuzzDatagram gives a router datagrams of any kind, alone and as a run, and the same bytes as if a peer had sealed them,
// with any TOS.
func FuzzDatagram(f *testing.F) {
	for _, d := range [][]byte{
		nil,
		{session.TypeData},
		{session.TypeInitiation},
		{ControlType},
		make([]byte, 148), frame4(100, false), frame4(1408, false)[:60],
		append([]byte{0x60, 0, 0, 0, 0, 8, 0, 64}, make([]byte, 60)...),
	} {
		f.Add(d, uint8(len(d)), uint16(0))
		f.Add(d, uint8(packet.CE), uint16(40))
	}
	x := newBench(f, session.Weft, true)
	toB := x.a.r.current.Load().peers[0]
	f.Fuzz(func(t *testing.T, b []byte, tos uint8, segment uint16) {
		b = b[:min(len(b), receiveBuffer-session.Overhead-session.Padding)]
		for _, sealed := range []bool{false, true} {
			d := b
			if sealed {
				var err error
				if d, err = toB.sess.Key(x.now).Seal(nil, b); err != nil {
					t.Fatal(err)
				}
			}
			run := 0
			if !sealed {
				run = int(segment)
			}
			x.lb.incoming = []underlay.Message{{Buf: d, Addr: underA, TOS: tos, Segment: run}}
			before := x.lb.writes
			if _, err := x.b.receive(x.now); err != nil {
				t.Fatal(err)
			}
			if x.lb.writes != before {
				if !sealed {
					t.Fatalf("a forged datagram was delivered: %x", d)
				}
				checkDelivered(t, x.lb, "10.32.1.0/24", "10.32.2.0/24")
			}
		}
		x.lb.replies = nil
	})
}

// FuzzFrame gives a router what a TUN queue with offloads might.
func FuzzFrame(f *testing.F) {
	for _, b := range [][]byte{nil, make([]byte, packet.VNetHdrLen), frame4(20, true), frame4(1408, true), super4(1368)[:4000], super4(1)[:200]} {
		f.Add(b)
	}
	x := newBench(f, session.Weft, true)
	f.Fuzz(func(t *testing.T, b []byte) {
		x.la.frame = b
		before := x.lb.writes
		x.cross(t, 1)
		if x.lb.writes != before {
			checkDelivered(t, x.lb, "10.32.1.0/24", "10.32.2.0/24")
		}
	})
}
