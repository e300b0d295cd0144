// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// trio is three routers joined by hand, whose shards are called directly: the first and the last have keys for each other, and
// talk through the one in the middle.
type trio struct {
	shards [3]*shard
	loops  [3]*loop
	now    time.Time
}

func (x *trio) at(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 6783)
}

func newTrio(tb testing.TB, suite session.Suite, vnet bool) *trio {
	tb.Helper()
	x := &trio{now: time.Unix(1e9, 0)}
	prefix := func(i int) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.32.%d.0/24", [3]int{1, 3, 2}[i]))}
	}
	private := func(i int) session.PrivateKey { return session.PrivateKey{1: byte(i + 1), 31: 64} }
	for i := range x.shards {
		l := &loop{vnet: vnet, slab: make([]byte, 0, 1<<20), sent: make([]underlay.Message, 0, 1024), written: make([]byte, 0, 1<<16)}
		r, err := New(Config{
			ID: uint64(i + 1), Private: private(i), TUN: []Queue{l}, Conns: []Conn{l}, Now: func() time.Time { return x.now },
			Poll: func(Queue, Conn) (Poller, error) { return nil, nil },
		})
		if err != nil {
			tb.Fatal(err)
		}
		r.SetLocal(Local{Prefixes: prefix(i), MTU: 1408})
		var peers []Peer
		for j := range x.shards {
			if j != i {
				peers = append(peers, Peer{
					Key: private(j).Public(), ID: uint64(j + 1), Name: fmt.Sprint(j + 1), Endpoints: []netip.AddrPort{x.at(j)}, Suite: suite, Prefixes: prefix(j),
				})
			}
		}
		if err := r.SetPeers(peers); err != nil {
			tb.Fatal(err)
		}
		x.shards[i], x.loops[i] = r.shards[0], l
	}
	for _, e := range [][2]int{{0, 1}, {1, 2}, {0, 2}} {
		x.handshake(tb, e[0], e[1])
	}
	x.shards[0].r.SetWay(3, 2)
	x.shards[2].r.SetWay(1, 2)
	return x
}

func (x *trio) peer(of, i int) *peer { return x.shards[of].r.current.Load().byID[uint64(i+1)] }

// handshake makes i begin a session with j.
func (x *trio) handshake(tb testing.TB, i, j int) {
	tb.Helper()
	x.shards[i].initiate(x.peer(i, j), x.now)
	for range 3 {
		for _, e := range [][2]int{{i, j}, {j, i}} {
			for _, m := range x.loops[e[0]].replies {
				x.receive(tb, e[1], []underlay.Message{{Buf: m, Addr: x.at(e[0])}})
			}
			x.loops[e[0]].replies = nil
		}
	}
	if x.peer(i, j).sess.Key(x.now) == nil || x.peer(j, i).sess.Key(x.now) == nil {
		tb.Fatal("no key")
	}
}

// receive makes a host receive messages.
func (x *trio) receive(tb testing.TB, to int, ms []underlay.Message) {
	x.loops[to].incoming = ms
	for len(x.loops[to].incoming) > 0 {
		if _, err := x.shards[to].receive(x.now); err != nil {
			tb.Fatal(err)
		}
	}
}

// read makes the first host read frames from its queue.
func (x *trio) read(tb testing.TB, frames int) {
	x.loops[0].reset()
	for x.loops[0].left = frames; x.loops[0].left > 0; {
		if _, err := x.shards[0].transmit(x.now); err != nil {
			tb.Fatal(err)
		}
	}
}

// pass makes one host receive what another has sent.
func (x *trio) pass(tb testing.TB, from, to int) {
	ms := x.loops[from].sent
	for i := range ms {
		ms[i].Addr = x.at(from)
	}
	x.loops[to].reset()
	x.receive(tb, to, ms)
}

func (x *trio) cross(tb testing.TB, frames int) {
	x.read(tb, frames)
	x.pass(tb, 0, 1)
	x.pass(tb, 1, 2)
}

func TestRelayDoesNotAllocate(t *testing.T) {
	for _, suite := range []session.Suite{session.WireGuard, session.Weft} {
		for _, c := range []struct {
			name         string
			vnet         bool
			frame        []byte
			frames, each int
		}{
			{"single packets", false, frame4(1344, false), 40, 1},
			{"single packets with offload header", true, frame4(1344, true), 40, 1},
			{"superpackets", true, super4(1304), 2, 50},
			{"marked superpackets", true, marked4(super4(1304), packet.ECT0), 2, 50},
		} {
			x := newTrio(t, suite, c.vnet)
			x.loops[0].frame = c.frame
			before := x.loops[2].packets
			x.cross(t, c.frames)
			if got := x.loops[2].packets - before; got != c.frames*c.each {
				t.Fatalf("%v, %s: %d packets arrived of %d; %v %v", suite, c.name, got, c.frames*c.each, x.shards[1].r.Stats(), x.shards[2].r.Stats())
			}
			if c.each > 1 { // what came in runs goes on in runs
				for _, l := range x.loops[:2] {
					if n := len(l.sent); n > 2*c.frames {
						t.Errorf("%v, %s: sent in %d runs", suite, c.name, n)
					}
				}
			}
			if n := testing.AllocsPerRun(20, func() { x.cross(t, c.frames) }); n != 0 {
				t.Errorf("%v, %s: %v allocations", suite, c.name, n)
			}
		}
	}
}

func TestRelayDropsDoNotAllocate(t *testing.T) {
	x := newTrio(t, session.Weft, false)
	key := x.peer(0, 1).sess.Key(x.now)
	message := append([]byte{session.TypeData, 1, 0, 0, 9, 9, 9, 9}, make([]byte, 40)...)
	frame := func(at int, nodes ...uint64) []byte {
		h := relay.Header{N: uint8(len(nodes) - 2), At: uint8(at)}
		copy(h.Nodes[:], nodes)
		b := make([]byte, h.Len())
		h.Put(b, len(message))
		return append(b, message...)
	}
	for name, plain := range map[string][]byte{
		"malformed":        {0x51, 1, 2, 3},
		"of another":       frame(0, 3, 2, 1),
		"to nobody":        frame(0, 1, 2, 99),
		"of no session":    frame(1, 3, 1, 2),
		"to be passed on":  frame(0, 1, 2, 3),
		"a frame in there": frame(1, 3, 1, 2),
	} {
		var ms []underlay.Message
		for range 60 {
			d, err := key.Seal(nil, plain)
			if err != nil {
				t.Fatal(err)
			}
			ms = append(ms, underlay.Message{Buf: d, Addr: x.at(0)})
		}
		x.receive(t, 1, ms[:1]) // which may begin a handshake
		ms = ms[1:]
		if n := testing.AllocsPerRun(50, func() {
			x.loops[1].reset()
			x.receive(t, 1, ms[:1])
			ms = ms[1:]
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkRelay is one direction without the kernel: what the source does of a packet, what the relay does, and what
// the destination does.
func BenchmarkRelay(b *testing.B) {
	for _, suite := range []session.Suite{session.WireGuard, session.Weft} {
		for _, c := range []struct {
			name   string
			frame  []byte
			frames int
			size   int64
		}{
			{"packets", frame4(1344, true), 64, 64 * 1344},
			{"small", frame4(84, true), 64, 64 * 84},
			{"super", super4(1304), 2, 2 * 65000},
		} {
			for part, name := range []string{"source", "relay", "destination"} {
				b.Run(fmt.Sprintf("%v/%s/%s", suite, c.name, name), func(b *testing.B) {
					x := newTrio(b, suite, true)
					x.loops[0].frame = c.frame
					b.SetBytes(c.size)
					b.ResetTimer()
					b.StopTimer()
					for range b.N {
						step := func(i int, f func()) {
							if i == part {
								b.StartTimer()
								defer b.StopTimer()
							}
							f()
						}
						step(0, func() { x.read(b, c.frames) })
						step(1, func() { x.pass(b, 0, 1) })
						step(2, func() { x.pass(b, 1, 2) })
					}
				})
			}
		}
	}
}

// FuzzRelay gives a relay, or a destination, any plaintext as if a member had sealed it, and any message in a frame that is meant for it. What is passed on
// is what came, for the one that it names, once; what is delivered belongs to who sealed it.
func FuzzRelay(f *testing.F) {
	message := append([]byte{session.TypeData, 1, 0, 0, 9, 9, 9, 9}, make([]byte, 40)...)
	for at, nodes := range [][3]uint64{{1, 2, 3}, {3, 1, 2}} {
		h := relay.Header{N: 1, At: uint8(at)}
		copy(h.Nodes[:], nodes[:])
		b := make([]byte, h.Len())
		h.Put(b, len(message))
		f.Add(append(b, message...), uint8(0), false)
		f.Add(message, uint8(packet.CE), true)
	}
	f.Add(frame4(100, false), uint8(0), true)
	x := newTrio(f, session.Weft, true)
	f.Fuzz(func(t *testing.T, b []byte, tos uint8, inside bool) {
		b = b[:min(len(b), 4000)]
		x.now = x.now.Add(time.Microsecond)
		if x.peer(0, 1).sess.Key(x.now) == nil || x.peer(0, 2).sess.Key(x.now) == nil {
			t.Skip("the keys have been used up")
		}
		if inside { // from 1 for 3, by 2: at 3
			inner, err := x.peer(0, 2).sess.Key(x.now).Seal(nil, b)
			if err != nil {
				t.Fatal(err)
			}
			h := relay.Header{N: 1, Nodes: [6]uint64{1, 2, 3}}
			b = make([]byte, h.Len())
			h.Put(b, len(inner))
			b = append(b, inner...)
		}
		d, err := x.peer(0, 1).sess.Key(x.now).Seal(nil, b)
		if err != nil {
			t.Fatal(err)
		}
		relayed, replies := x.shards[1].r.Stats().Relayed.Packets, len(x.loops[1].replies)
		x.loops[1].reset()
		x.receive(t, 1, []underlay.Message{{Buf: d, Addr: x.at(0), TOS: tos}})
		if n := x.shards[1].r.Stats().Relayed.Packets - relayed; n > 1 || int(n) > len(x.loops[1].sent) || len(x.loops[1].sent) > 1 {
			t.Fatalf("%d passed on, %d sent", n, len(x.loops[1].sent))
		}
		if len(x.loops[1].replies) > replies+2 {
			t.Fatalf("%d messages of handshakes", len(x.loops[1].replies)-replies)
		}
		x.loops[1].replies = nil
		before := x.loops[2].writes
		x.loops[2].reset()
		if x.shards[1].r.Stats().Relayed.Packets > relayed {
			x.pass(t, 1, 2)
		}
		if x.loops[2].writes > before {
			checkDelivered(t, x.loops[2], "10.32.1.0/24", "10.32.2.0/24")
		}
		x.loops[2].replies = nil
	})
}
