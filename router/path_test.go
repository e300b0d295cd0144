// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/tun"
	"github.com/weftnet/weft/router/underlay"
)

// loop is a Queue and a Conn without memory management of their own: what is read is always the same frame,
// what is sent is kept in place.
type loop struct {
	vnet     bool
	frame    []byte // what Read gives, left times
	left     int
	written  []byte
	writes   int
	packets  int                // in them
	sent     []underlay.Message // copies of the last batch
	slab     []byte
	incoming []underlay.Message // what Recv gives, once
	replies  [][]byte
}

func (l *loop) Read(b []byte) (int, error) {
	if l.left == 0 {
		return 0, nil
	}
	l.left--
	return copy(b, l.frame), nil
}

func (l *loop) Write(b []byte) error {
	l.written = append(l.written[:0], b...)
	l.writes++
	var h packet.VNetHdr
	if b = l.written; l.vnet {
		if err := h.Decode(b); err != nil {
			return err
		}
		b = b[packet.VNetHdrLen:]
	}
	if h.GSOType == packet.VNetGSONone {
		l.packets++
		return nil
	}
	l.packets += (len(b) - int(h.HdrLen) + int(h.GSOSize) - 1) / int(h.GSOSize)
	return nil
}

func (l *loop) Offloads() tun.Offloads {
	return tun.Offloads{VNetHdr: l.vnet, TSO: l.vnet, USO: l.vnet}
}

func (l *loop) Recv(ms []underlay.Message) (int, error) {
	n := min(len(ms), len(l.incoming))
	for i := range n {
		ms[i].N = copy(ms[i].Buf, l.incoming[i].Buf)
		ms[i].Addr, ms[i].Segment, ms[i].TOS = l.incoming[i].Addr, l.incoming[i].Segment, l.incoming[i].TOS
	}
	l.incoming = l.incoming[n:]
	return n, nil
}

func (l *loop) Send(ms []underlay.Message) (int, error) {
	for _, m := range ms {
		at := len(l.slab)
		l.slab = append(l.slab, m.Buf...)
		l.sent = append(l.sent, underlay.Message{Buf: l.slab[at:], Segment: m.Segment, Addr: m.Addr, TOS: m.TOS})
	}
	return len(ms), nil
}

func (l *loop) SendTo(b []byte, _ netip.AddrPort, _ uint8) error {
	l.replies = append(l.replies, append([]byte(nil), b...))
	return nil
}

func (l *loop) SendWhole(b []byte, to netip.AddrPort) error { return l.SendTo(b, to, 0) }

func (l *loop) reset() { l.sent, l.slab = l.sent[:0], l.slab[:0] }

// bench is two routers joined by hand, whose shards are called directly.
type bench struct {
	a, b   *shard
	la, lb *loop
	now    time.Time
}

var (
	underA = netip.MustParseAddrPort("192.0.2.1:6783")
	underB = netip.MustParseAddrPort("192.0.2.2:6783")
)

func newBench(tb testing.TB, suite session.Suite, vnet bool) *bench {
	tb.Helper()
	x := &bench{now: time.Unix(1e9, 0)}
	clock := func() time.Time { return x.now }
	one := func(key byte, peerKey byte, own, theirs string, at netip.AddrPort) (*shard, *loop) {
		l := &loop{vnet: vnet, slab: make([]byte, 0, 1<<20), sent: make([]underlay.Message, 0, 1024), written: make([]byte, 0, 1<<16)}
		r, err := New(Config{
			Private: session.PrivateKey{1: key, 31: 64}, TUN: []Queue{l}, Conns: []Conn{l}, Now: clock,
			Poll: func(Queue, Conn) (Poller, error) { return nil, nil },
		})
		if err != nil {
			tb.Fatal(err)
		}
		r.SetLocal(Local{Prefixes: []netip.Prefix{netip.MustParsePrefix(own)}, MTU: 1408})
		if err := r.SetPeers([]Peer{{
			Key: session.PrivateKey{1: peerKey, 31: 64}.Public(), Endpoints: []netip.AddrPort{at}, Suite: suite,
			Prefixes: []netip.Prefix{netip.MustParsePrefix(theirs)},
		}}); err != nil {
			tb.Fatal(err)
		}
		return r.shards[0], l
	}
	x.a, x.la = one(1, 2, "10.32.1.0/24", "10.32.2.0/24", underB)
	x.b, x.lb = one(2, 1, "10.32.2.0/24", "10.32.1.0/24", underA)
	x.handshake(tb)
	return x
}

// handshake makes a begin a session with b.
func (x *bench) handshake(tb testing.TB) {
	tb.Helper()
	x.a.initiate(x.a.r.current.Load().peers[0], x.now)
	for range 3 {
		for _, d := range []struct {
			from *loop
			to   *shard
			at   netip.AddrPort
		}{{x.la, x.b, underA}, {x.lb, x.a, underB}} {
			for _, m := range d.from.replies {
				d.to.conn.(*loop).incoming = []underlay.Message{{Buf: m, Addr: d.at}}
				if _, err := d.to.receive(x.now); err != nil {
					tb.Fatal(err)
				}
			}
			d.from.replies = nil
		}
	}
	for _, s := range []*shard{x.a, x.b} {
		if s.r.current.Load().peers[0].sess.Key(x.now) == nil {
			tb.Fatal("no key")
		}
	}
}

// cross moves what a's queue holds to b's.
func (x *bench) cross(tb testing.TB, frames int) {
	x.la.reset()
	x.la.left = frames
	for x.la.left > 0 {
		if _, err := x.a.transmit(x.now); err != nil {
			tb.Fatal(err)
		}
	}
	x.lb.incoming = x.la.sent
	for i := range x.lb.incoming {
		x.lb.incoming[i].Addr = underA
	}
	for len(x.lb.incoming) > 0 {
		if _, err := x.b.receive(x.now); err != nil {
			tb.Fatal(err)
		}
	}
}

// frame4 is a packet from a workload of a to one of b, of n bytes.
func frame4(n int, vnet bool) []byte {
	p := make([]byte, n)
	p[0], p[6], p[8], p[9] = 0x45, 0x40, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(n))
	copy(p[12:], []byte{10, 32, 1, 9, 10, 32, 2, 9})
	if vnet {
		p = append(make([]byte, packet.VNetHdrLen), p...)
	}
	return p
}

// super4 is a superpacket of TCP with the largest payload that fits.
func super4(segment int) []byte {
	p := frame4(65000, true)
	b := p[packet.VNetHdrLen:]
	b[9] = 6
	b[20+12] = 5 << 4
	h := packet.VNetHdr{Flags: packet.VNetNeedsCsum, GSOType: packet.VNetGSOTCPv4, HdrLen: 40, GSOSize: uint16(segment), CsumStart: 20, CsumOffset: 16}
	h.Encode(p)
	return p
}

// marked4 marks a frame with an offload header.
func marked4(frame []byte, ecn uint8) []byte {
	frame[packet.VNetHdrLen+1] |= ecn
	return frame
}

func TestPacketPathDoesNotAllocate(t *testing.T) {
	for _, suite := range []session.Suite{session.WireGuard, session.Weft} {
		for _, c := range []struct {
			name         string
			vnet         bool
			frame        []byte
			frames, each int
		}{
			{"single packets", false, frame4(1408, false), 40, 1},
			{"single packets with offload header", true, frame4(1408, true), 40, 1},
			{"superpackets", true, super4(1368), 2, 48},
			{"marked superpackets", true, marked4(super4(1368), packet.ECT0), 2, 48},
		} {
			x := newBench(t, suite, c.vnet)
			x.la.frame = c.frame
			before := x.lb.packets
			x.cross(t, c.frames)
			if got := x.lb.packets - before; got != c.frames*c.each {
				t.Fatalf("%v, %s: %d packets arrived of %d; %v %v", suite, c.name, got, c.frames*c.each, x.a.r.Stats(), x.b.r.Stats())
			}
			if n := testing.AllocsPerRun(20, func() { x.cross(t, c.frames) }); n != 0 {
				t.Errorf("%v, %s: %v allocations", suite, c.name, n)
			}
		}
	}
}

func TestDropsDoNotAllocate(t *testing.T) {
	x := newBench(t, session.Weft, false)
	x.la.frame = frame4(100, false)
	x.cross(t, 1)
	replay := append([]byte(nil), x.la.sent[0].Buf...)
	unknown := append([]byte(nil), replay...)
	unknown[4] ^= 1
	for name, d := range map[string][]byte{
		"replay": replay, "unknown index": unknown, "unknown type": {99, 1, 2, 3}, "short": {4}, "nothing": {},
	} {
		in := []underlay.Message{{Buf: d, Addr: netip.MustParseAddrPort("192.0.2.66:1")}}
		if n := testing.AllocsPerRun(50, func() {
			x.lb.incoming = in
			if _, err := x.b.receive(x.now); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	foreign := frame4(100, false)
	foreign[16] = 192
	for name, f := range map[string][]byte{"no route": foreign, "not IP": make([]byte, 60), "multicast": func() []byte {
		b := frame4(60, false)
		b[16] = 224
		return b
	}()} {
		x.la.frame = f
		if n := testing.AllocsPerRun(50, func() {
			x.la.left = 1
			if _, err := x.a.transmit(x.now); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkPath is one direction without the kernel: from a read of the queue to a write of the other.
func BenchmarkPath(b *testing.B) {
	for _, suite := range []session.Suite{session.WireGuard, session.Weft} {
		for _, c := range []struct {
			name   string
			frame  []byte
			frames int
			size   int64
		}{
			{"packets", frame4(1408, true), 64, 64 * 1408},
			{"small", frame4(84, true), 64, 64 * 84},
			{"super", super4(1368), 2, 2 * 65000},
		} {
			b.Run(suite.String()+"/"+c.name, func(b *testing.B) {
				x := newBench(b, suite, true)
				x.la.frame = c.frame
				b.SetBytes(c.size)
				b.ReportAllocs()
				for b.Loop() {
					x.cross(b, c.frames)
				}
			})
		}
	}
}
