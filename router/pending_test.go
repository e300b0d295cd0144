// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// crossing is a router with two shards, called by hand, and what it sends to another in the order in which that left.
type crossing struct {
	*bench
	r    *Router // has the shards
	ways [2]*gateway
	out  []underlay.Message
}

// gateway is the socket of a shard.
type gateway struct {
	*loop
	x    *crossing
	full bool
	room int // how many messages pass until it is full; 0: any
}

func (g *gateway) Send(ms []underlay.Message) (n int, err error) {
	for ; n < len(ms) && !g.full; n++ {
		for first, rest := underlay.Cut(ms[n].Buf, ms[n].Segment); ; first, rest = underlay.Cut(rest, ms[n].Segment) {
			g.x.out = append(g.x.out, underlay.Message{Buf: append([]byte(nil), first...), Addr: underA})
			if len(rest) == 0 {
				break
			}
		}
		if g.room--; g.room == 0 {
			g.full = true
		}
	}
	return n, nil
}

func newCrossing(t *testing.T) *crossing {
	t.Helper()
	x := &crossing{bench: newBench(t, session.WireGuard, false)}
	c := Config{
		Private: session.PrivateKey{1: 1, 31: 64}, Now: func() time.Time { return x.now },
		Poll: func(Queue, Conn) (Poller, error) { return nil, nil },
	}
	for i := range x.ways {
		x.ways[i] = &gateway{loop: &loop{}, x: x}
		c.TUN, c.Conns = append(c.TUN, x.ways[i]), append(c.Conns, x.ways[i])
	}
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	x.r = r
	r.SetLocal(Local{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.32.1.0/24")}, MTU: 1408})
	x.setPeers(t, []Peer{{
		Key: session.PrivateKey{1: 2, 31: 64}.Public(), Endpoints: []netip.AddrPort{underB},
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.32.2.0/24")},
	}})
	x.now = x.now.Add(time.Minute) // b takes an initiation from the same key only if it is newer
	return x
}

func (x *crossing) setPeers(t *testing.T, peers []Peer) {
	t.Helper()
	if err := x.r.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
}

func (x *crossing) peer() *peer { return x.r.current.Load().peers[0] }

// turn lets a shard do what the events ask for, as often as it wants.
func (x *crossing) turn(t *testing.T, shard int, got Events) {
	t.Helper()
	for i := 0; ; i++ {
		more, err := x.r.shards[shard].turn(got, x.now)
		if err != nil {
			t.Fatal(err)
		}
		if !more || x.ways[shard].left == 0 && len(x.ways[shard].incoming) == 0 && len(x.r.shards[shard].owed) == 0 {
			return
		}
		if i > 1000 {
			t.Fatalf("shard %d has always more to do", shard)
		}
	}
}

// send makes a shard read packets with these numbers.
func (x *crossing) send(t *testing.T, shard, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		b := frame4(60+session.Padding*(i%8), false) // no runs
		binary.BigEndian.PutUint32(b[40:], uint32(i))
		x.ways[shard].frame, x.ways[shard].left = b, 1
		x.turn(t, shard, ReadTUN)
	}
}

// answer brings the handshake that a has begun to its end; the response comes to a shard.
func (x *crossing) answer(t *testing.T, shard int) {
	t.Helper()
	for _, g := range x.ways {
		for _, m := range g.replies {
			x.lb.incoming = append(x.lb.incoming, underlay.Message{Buf: m, Addr: underA})
		}
		g.replies = nil
	}
	if _, err := x.b.receive(x.now); err != nil {
		t.Fatal(err)
	}
	if len(x.lb.replies) == 0 {
		t.Fatalf("no response; %v", x.b.r.Stats())
	}
	for _, m := range x.lb.replies {
		x.ways[shard].incoming = append(x.ways[shard].incoming, underlay.Message{Buf: m, Addr: underB})
	}
	x.lb.replies = nil
	x.turn(t, shard, ReadUDP)
	if x.peer().sess.Key(x.now) == nil {
		t.Fatal("no key")
	}
}

// arrived returns the numbers of the packets that b has got since the last call, in order.
func (x *crossing) arrived(t *testing.T) (numbers []uint32) {
	t.Helper()
	for _, m := range x.out {
		before := x.lb.packets
		x.lb.incoming = []underlay.Message{m}
		if _, err := x.b.receive(x.now); err != nil {
			t.Fatal(err)
		}
		if x.lb.packets > before {
			numbers = append(numbers, binary.BigEndian.Uint32(x.lb.written[40:]))
		}
	}
	x.out = nil
	return numbers
}

func (x *crossing) want(t *testing.T, from, to int) {
	t.Helper()
	var want []uint32
	for i := from; i <= to; i++ {
		want = append(want, uint32(i))
	}
	if got := x.arrived(t); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("arrived %v, want %v; %v", got, want, x.r.Stats().Drops)
	}
}

// idle checks that nothing holds a packet back any more.
func (x *crossing) idle(t *testing.T) {
	t.Helper()
	if x.peer().pending.busy.Load() {
		t.Error("packets still wait")
	}
	for i, s := range x.r.shards {
		if len(s.holds) > 0 || len(s.owed) > 0 {
			t.Errorf("shard %d holds %d and owes %d", i, len(s.holds), len(s.owed))
		}
	}
}

// What a shard reads while another sends what has waited for a key goes after that, however long it takes.
func TestWaitingPacketsAreNotOvertaken(t *testing.T) {
	for _, room := range []int{0, 1} { // how much of what waited leaves before the socket is full
		x := newCrossing(t)
		x.send(t, 0, 1, 3)
		x.ways[1].full, x.ways[1].room = room == 0, room
		x.answer(t, 1)
		x.send(t, 0, 4, 9)
		early := len(x.arrived(t))
		if early != room {
			t.Fatalf("%d packets arrived through a full socket", early)
		}
		x.ways[1].full = false
		x.turn(t, 1, WriteUDP) // also sends what came meanwhile, though no other packet follows
		x.want(t, early+1, 9)
		x.idle(t)
		x.send(t, 0, 10, 12)
		if x.ways[0].left != 0 || x.peer().pending.busy.Load() {
			t.Error("the flow does not go its own way")
		}
		x.want(t, 10, 12)
	}
}

// A shard whose own packets follow those that it has found waiting takes over from one that owes them.
func TestWaitingPacketsChangeHands(t *testing.T) {
	x := newCrossing(t)
	x.send(t, 0, 1, 3)
	x.ways[1].full = true
	x.answer(t, 1)
	x.send(t, 0, 4, 5)
	x.ways[1].full = false
	s := x.r.shards[1]
	s.out.blocked = false
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	if len(s.owed) != 1 {
		t.Fatalf("owes %d", len(s.owed))
	}
	x.send(t, 0, 6, 7)
	x.turn(t, 1, 0)
	x.want(t, 1, 7)
	x.idle(t)
}

// A key that goes while packets are being sent leaves the rest to the next one.
func TestKeyEndsWhilePacketsWait(t *testing.T) {
	x := newCrossing(t)
	x.send(t, 0, 1, 3)
	x.ways[1].full = true
	x.answer(t, 1)
	x.send(t, 0, 4, 5)
	x.peer().sess.Reset()
	x.ways[1].full = false
	x.turn(t, 1, WriteUDP)
	x.want(t, 1, 3)
	x.now = x.now.Add(session.RekeyTimeout)
	x.send(t, 0, 6, 7)
	x.answer(t, 0)
	x.want(t, 4, 7)
	x.idle(t)
}

// A peer that is removed leaves nothing behind.
func TestPeerEndsWhilePacketsWait(t *testing.T) {
	x := newCrossing(t)
	x.send(t, 0, 1, 3)
	x.ways[1].full = true
	x.answer(t, 1)
	x.send(t, 0, 4, 5)
	p := x.peer()
	x.setPeers(t, nil)
	x.send(t, 0, 6, 7)
	x.ways[1].full = false
	x.turn(t, 1, WriteUDP)
	if n := len(x.out); n < 3 || n > 4 { // a keepalive may be among them
		t.Errorf("%d datagrams were sent, want those that were sealed", n)
	}
	if p.pending.busy.Load() || len(x.r.shards[1].holds) > 0 || len(x.r.shards[1].owed) > 0 {
		t.Error("packets still wait for a peer that is no more")
	}
}

// More than a batch waits, and too much comes meanwhile: the newest are kept, in order.
func TestManyWaitingPackets(t *testing.T) {
	x := newCrossing(t)
	x.send(t, 0, 1, session.MaxQueued)
	x.ways[1].full = true
	x.answer(t, 1)
	x.send(t, 0, session.MaxQueued+1, 3*session.MaxQueued)
	x.ways[1].full = false
	x.turn(t, 1, WriteUDP)
	got := x.arrived(t)
	for i := 1; i < len(got); i++ {
		if got[i] <= got[i-1] {
			t.Fatalf("%d arrived after %d", got[i], got[i-1])
		}
	}
	if lost := int(x.r.Stats().Drops[DropQueue]); len(got) != 3*session.MaxQueued-lost || lost > session.MaxQueued+roomyMessages || got[len(got)-1] != 3*session.MaxQueued {
		t.Errorf("%d arrived, the last was %d; %d were dropped", len(got), got[len(got)-1], lost)
	}
	x.idle(t)
}
