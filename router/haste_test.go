// SPDX-License-Identifier: Apache-2.0

package router

import (
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// ack returns an acknowledgement without data from a workload of a to one of b, or a segment with one byte.
func ack(data bool) []byte {
	n := 40
	if data {
		n++
	}
	b := frame4(n, false)
	b[9], b[20+12], b[20+13] = 6, 5<<4, 0x10
	return b
}

// portions is a Queue that has any number of large packets, behind what is in first, and counts them.
type portions struct {
	*loop
	first  []byte
	read   int
	yields int
}

func (q *portions) Read(b []byte) (int, error) {
	if f := q.first; f != nil {
		q.first = nil
		return copy(b, f), nil
	}
	q.read++
	return copy(b, q.frame), nil
}

func (q *portions) Yield() { q.yields++ }

// A shard carries much at a time while only a stream passes, also if it is acknowledged, and little while anything else does and for a while after.
func TestHaste(t *testing.T) {
	x := newBench(t, session.WireGuard, false)
	q := &portions{loop: x.la}
	q.frame = frame4(1400, false)
	x.a.queue, x.a.yields = q, q
	turn := func(first []byte) (read int, yielded bool) {
		q.read, q.yields, q.first = 0, 0, first
		x.la.reset()
		if _, err := x.a.turn(ReadTUN, x.now); err != nil {
			t.Fatal(err)
		}
		return q.read, q.yields > 0
	}
	pass := func(d time.Duration) { // while the stream goes on
		for end := x.now.Add(d); x.now.Before(end); x.now = x.now.Add(min(flowQuiet/5, end.Sub(x.now))) {
			turn(nil)
		}
	}
	turn(nil) // the beginning of a stream is light
	turn(nil)
	const few = (hastyBytes + 1399) / 1400
	for _, c := range []struct {
		name  string
		after time.Duration
		first []byte
		hasty bool
	}{
		{"soon after its beginning", hasteLasts - 1, nil, true},
		{"a stream", 1, nil, false},
		{"an acknowledgement", 0, ack(false), false},
		{"after an acknowledgement", 0, nil, false},
		{"a request, which is noticed when it has passed", 0, ack(true), false},
		{"after a request", 0, nil, true},
		{"soon after a request", hasteLasts - 1, nil, true},
		{"long after a request", 1, nil, false},
	} {
		pass(c.after)
		read, yielded := turn(c.first)
		if few := read <= few; few != c.hasty || yielded != c.hasty || read == 0 {
			t.Errorf("%s: %d packets are read, others preferred: %t; want haste %t", c.name, read, yielded, c.hasty)
		}
	}
}

// So it is with what a shard receives.
func TestHasteInward(t *testing.T) {
	x := newBench(t, session.WireGuard, false)
	carry := func(frame []byte, tos uint8) {
		x.la.reset()
		x.la.frame, x.la.left = frame, 1
		if _, err := x.a.transmit(x.now); err != nil {
			t.Fatal(err)
		}
		x.lb.incoming = []underlay.Message{{Buf: slices.Clone(x.la.sent[0].Buf), Addr: underA, TOS: tos}}
		if _, err := x.b.turn(ReadUDP, x.now); err != nil {
			t.Fatal(err)
		}
	}
	large, request := frame4(1400, false), ack(true)
	for _, c := range []struct {
		name  string
		frame []byte
		tos   uint8
		want  int
	}{
		{"a stream", large, 0, receiveBatch},
		{"an acknowledgement", ack(false), underlay.LightTOS, receiveBatch},
		{"after it", large, 0, receiveBatch},
		{"a request of a host that does not mark them", request, 0, receiveBatch},
		{"after it", large, 0, receiveBatch},
		{"a request", request, underlay.LightTOS, receiveBatch},
		{"after it", large, 0, receiveBatch}, // small datagrams are many
	} {
		carry(c.frame, c.tos)
		if x.b.want != c.want {
			t.Errorf("%s: %d datagrams are received next, want %d", c.name, x.b.want, c.want)
		}
	}
	if !x.b.haste.hasty {
		t.Fatal("after a request there is no haste")
	}
	for _, c := range []struct {
		after time.Duration
		want  int
	}{{0, hastyBatch}, {hasteLasts, calmBatch}} {
		x.now = x.now.Add(c.after)
		x.b.haste.begin(x.now)
		// A run of datagrams as long as can be.
		x.lb.incoming = []underlay.Message{{Buf: make([]byte, receiveBuffer), Segment: 1400, Addr: underA}}
		if _, err := x.b.turn(ReadUDP, x.now); err != nil {
			t.Fatal(err)
		}
		if x.b.want != c.want {
			t.Errorf("%v after the request: %d runs are received next, want %d", c.after, x.b.want, c.want)
		}
	}
}

// A relay hurries as long as it passes on what is light, which may be anything; so does who receives a request by it.
func TestHasteOfRelays(t *testing.T) {
	x := newTrio(t, session.WireGuard, false)
	hasty := func(i int) bool {
		x.shards[i].haste.begin(x.now)
		return x.shards[i].haste.hasty
	}
	carry := func(frame []byte) {
		x.loops[0].frame = frame
		x.cross(t, 1)
		if len(x.loops[1].sent) != 1 {
			t.Fatalf("%d datagrams are passed on", len(x.loops[1].sent))
		}
	}
	stream := frame4(1344, false)
	for range 100 { // until it is heavy
		carry(stream)
	}
	hasty(1)
	hasty(2)
	for _, c := range []struct {
		name           string
		frame          []byte
		relay, request bool
	}{
		{"a stream", stream, false, false},
		{"an acknowledgement", ack(false), true, false},
		{"a request", ack(true), true, true},
	} {
		for range 10 { // while the stream goes on
			x.now = x.now.Add(hasteLasts / 10)
			carry(stream)
		}
		if hasty(1) || hasty(2) {
			t.Fatalf("before %s there is haste", c.name)
		}
		carry(c.frame)
		if relay, request := hasty(1), hasty(2); relay != c.relay || request != c.request {
			t.Errorf("%s: haste at the relay %t, want %t; behind it %t, want %t", c.name, relay, c.relay, request, c.request)
		}
	}
}
