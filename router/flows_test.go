// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// sent returns a packet of a flow, n bytes long, as the shard sees it.
func sent(flow uint16, n int) ([]byte, *packet.Packet) {
	b := frame4(n, false)
	binary.BigEndian.PutUint16(b[20:], flow)
	p := new(packet.Packet)
	if err := p.Parse(b); err != nil {
		panic(err)
	}
	return b, p
}

// What is light: conversations, and the beginning of a stream, which is light again after a pause only.
func TestLightFlows(t *testing.T) {
	for _, c := range []struct {
		name  string
		size  int
		every time.Duration
		light int // of 1000 packets
	}{
		{"a request each second", 1400, time.Second, 1000},
		{"a call", 220, 20 * time.Millisecond, 1000},
		{"short answers without a pause", 60, 100 * time.Microsecond, 1000},
		{"bursts of a superpacket each tenth of a second", 60_000, 100 * time.Millisecond, 1000},
		{"a stream of superpackets", 60_000, 100 * time.Microsecond, 1},
		{"a stream of packets", 1400, 2 * time.Microsecond, 34},
		{"a flood", 64, time.Microsecond, 115},
	} {
		now := time.Unix(1e9, 0)
		f := newFlows(now)
		light := 0
		for i := range 1000 {
			b, p := sent(1, c.size)
			if f.light(b, p, now) {
				if light++; light != i+1 {
					t.Errorf("%s: packet %d is light, an earlier one was not", c.name, i)
					break
				}
			}
			now = now.Add(c.every)
		}
		if light != c.light {
			t.Errorf("%s: %d packets are light, want %d", c.name, light, c.light)
		}
		now = now.Add(flowQuiet)
		if b, p := sent(1, 100); !f.light(b, p, now) {
			t.Errorf("%s: it is heavy after a pause", c.name)
		}
	}
}

// A flow that has become heavy stays so until it has been quiet; and all that is light keeps to the rates, its own and that of all together.
func TestLightFlowsKeepOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1e9, 0)
		f := newFlows(now)
		begin := now
		last, heavy := map[uint16]time.Time{}, map[uint16]bool{}
		sum, all := map[uint16]int64{}, int64(0)
		for range rapid.IntRange(1, 2000).Draw(t, "packets") {
			now = now.Add(rapid.SampledFrom([]time.Duration{0, 0, 0, time.Microsecond, time.Millisecond, flowQuiet - 1, flowQuiet, 200 * time.Second}).Draw(t, "pause"))
			flow := rapid.Uint16Range(0, 3).Draw(t, "flow")
			b, p := sent(flow, rapid.SampledFrom([]int{28, 60, 1400, 9000, 65535}).Draw(t, "size"))
			light := f.light(b, p, now)
			if pause := now.Sub(last[flow]); light && heavy[flow] && pause < flowQuiet {
				t.Fatalf("flow %d is light %v after it was heavy", flow, pause)
			}
			if pause := now.Sub(last[flow]); pause >= flowQuiet {
				sum[flow] = 0
			}
			last[flow], heavy[flow] = now, !light
			if !light {
				continue
			}
			n := int64(len(b)) + flowCost
			sum[flow] += n
			all += n
			passed := now.Sub(begin).Seconds()
			if most := flowBurst + int64(passed*flowRate); sum[flow] > most {
				t.Fatalf("flow %d: %d bytes are light, want at most %d", flow, sum[flow], most)
			}
			if most := lightBurst + int64(passed*lightRate); all > most {
				t.Fatalf("%d bytes of all are light, want at most %d", all, most)
			}
		}
	})
}

// A flood from many ports is heavy, and does not make a conversation heavy that begins when it is over.
func TestLightFlood(t *testing.T) {
	now := time.Unix(1e9, 0)
	f := newFlows(now)
	light := 0
	for i := range 50_000 {
		if b, p := sent(uint16(i), 64); f.light(b, p, now) {
			light++
		}
		now = now.Add(time.Microsecond)
	}
	if most := (lightBurst + lightRate/20) / (64 + flowCost); light > most || light < most/2 {
		t.Errorf("%d packets of the flood are light, want at most %d", light, most)
	}
	for _, pause := range []time.Duration{flowQuiet, time.Second, 200 * time.Second, 24 * 365 * time.Hour} {
		now = now.Add(pause)
		if b, p := sent(7, 64); !f.light(b, p, now) {
			t.Errorf("a flow is heavy %v after the last packet", pause)
		}
	}
}

// Packets of a flow are of one flow, whatever else they are, and few others are taken for it.
func TestFlowHash(t *testing.T) {
	f := newFlows(time.Unix(1e9, 0))
	seen := map[uint64]int{}
	for i := range 4096 {
		b, p := sent(uint16(i), 100)
		h := f.hash(b, p)
		seen[h%flowSlots]++
		longer, q := sent(uint16(i), 1400)
		longer[1], longer[5], longer[8] = 0xb8, 9, 3 // type of service, identification, time to live
		if f.hash(longer, q) != h {
			t.Fatalf("port %d: another flow", i)
		}
	}
	if n := len(seen); n < flowSlots*9/10 {
		t.Errorf("4096 flows share %d slots", n)
	}
	b, p := sent(1, 100)
	whole := f.hash(b, p)
	b[6] = 0x20 // more fragments
	if err := p.Parse(b); err != nil {
		t.Fatal(err)
	}
	first := f.hash(b, p)
	b[6], b[7], b[p.HeaderLen] = 0, 5, 77 // a later one: no ports
	if err := p.Parse(b); err != nil {
		t.Fatal(err)
	}
	if later := f.hash(b, p); later != first || first == whole {
		t.Errorf("a first fragment hashes to %x, a later one to %x, a whole packet to %x", first, later, whole)
	}
	six := make([]byte, 60)
	six[0], six[5], six[6] = 0x60, 20, 17
	for i := 8; i < 40; i++ {
		six[i] = byte(i)
	}
	hash := func() uint64 {
		var p packet.Packet
		if err := p.Parse(six); err != nil {
			t.Fatal(err)
		}
		return f.hash(six, &p)
	}
	before := hash()
	for _, at := range []int{8, 23, 24, 39, 40, 43} {
		six[at] ^= 1
		if hash() == before {
			t.Errorf("IPv6: byte %d makes no difference", at)
		}
		six[at] ^= 1
	}
	if six[44] ^= 1; hash() != before {
		t.Error("IPv6: the payload makes a difference")
	}
}

// twoQueues is a Conn with a queue for light datagrams, and the Queue of the same host.
type twoQueues struct {
	*loop
	light   []underlay.Message
	arrives []underlay.Message // light, while others are received
	err     error              // of RecvLight
	got     []byte             // the last byte of each packet
}

func (q *twoQueues) LightFD() int { return 1 }

func (q *twoQueues) Recv(ms []underlay.Message) (int, error) {
	n, err := q.loop.Recv(ms)
	q.light, q.arrives = append(q.light, q.arrives...), nil
	return n, err
}

func (q *twoQueues) RecvLight(ms []underlay.Message) (int, error) {
	if q.err != nil {
		return 0, q.err
	}
	l := &loop{incoming: q.light}
	n, err := l.Recv(ms)
	q.light = l.incoming
	return n, err
}

func (q *twoQueues) Write(b []byte) error {
	q.got = append(q.got, b[len(b)-1])
	return nil
}

// A light datagram goes before all that wait, and before what has been received when it comes, so that a flow that is heavy now does not overtake itself.
func TestLightGoesFirst(t *testing.T) {
	x := newBench(t, session.WireGuard, false)
	var all []underlay.Message
	for i := range 40 {
		x.la.reset()
		x.la.frame, x.la.left = frame4(100+session.Padding*i, false), 1
		x.la.frame[len(x.la.frame)-1] = byte(i)
		if _, err := x.a.transmit(x.now); err != nil {
			t.Fatal(err)
		}
		m := x.la.sent[0]
		if m.TOS != underlay.LightTOS {
			t.Fatalf("datagram %d is not light: TOS %#x", i, m.TOS)
		}
		all = append(all, underlay.Message{Buf: slices.Clone(m.Buf), Addr: underA})
	}
	q := &twoQueues{loop: x.lb}
	x.b.conn, x.b.queue, x.b.light, x.b.few = q, q, q, make([]underlay.Message, lightBatch)
	buffers(x.b.few)
	x.lb.incoming, q.light, q.arrives = all[:2], all[2:35], all[35:40]
	if _, err := x.b.turn(ReadLight|ReadUDP, x.now); err != nil {
		t.Fatal(err)
	}
	var want []byte
	for i := range 38 {
		want = append(want, byte(i+2))
	}
	if want = append(want, 0, 1); !slices.Equal(q.got, want) {
		t.Errorf("they come as %d, want %d", q.got, want)
	}
	q.err = errors.New("a passing error")
	if _, err := x.b.turn(ReadLight, x.now); err != nil || x.b.r.Stats().Drops[DropReceive] != 1 {
		t.Errorf("%v, drops %v", err, x.b.r.Stats().Drops)
	}
	q.err = os.ErrClosed
	if _, err := x.b.turn(ReadLight, x.now); !errors.Is(err, os.ErrClosed) {
		t.Errorf("when it is closed: %v", err)
	}
}

// The datagram of a light packet is sent before that of a heavy one behind it is made, and at once if there are heavy ones before it.
func TestLightIsSentAtOnce(t *testing.T) {
	x := newBench(t, session.WireGuard, false)
	q := &sequence{loop: x.la}
	x.a.queue, x.a.conn = q, q
	heavy := func() []byte { b, _ := sent(1, 1400); return b }
	light := func() []byte { b, _ := sent(2, 100); return b }
	for range 60 { // until the first is heavy
		q.frames = append(q.frames, heavy())
	}
	for len(q.frames) > 0 {
		if _, err := x.a.transmit(x.now); err != nil {
			t.Fatal(err)
		}
	}
	q.batches = nil
	q.frames = [][]byte{light(), light(), heavy(), heavy(), light(), heavy()}
	if _, err := x.a.transmit(x.now); err != nil {
		t.Fatal(err)
	}
	if want := [][]uint8{{underlay.LightTOS}, {0, underlay.LightTOS}, {0}}; !slices.EqualFunc(q.batches, want, slices.Equal[[]uint8]) {
		t.Errorf("sent are %#x, want %#x", q.batches, want)
	}
}

// sequence is a Queue with some packets, and a Conn that notes the type of service of the runs in each batch.
type sequence struct {
	*loop
	frames  [][]byte
	batches [][]uint8
}

func (q *sequence) Read(b []byte) (int, error) {
	if len(q.frames) == 0 {
		return 0, nil
	}
	n := copy(b, q.frames[0])
	q.frames = q.frames[1:]
	return n, nil
}

func (q *sequence) Send(ms []underlay.Message) (int, error) {
	var tos []uint8
	for _, m := range ms {
		tos = append(tos, m.TOS)
	}
	q.batches = append(q.batches, tos)
	return len(ms), nil
}
