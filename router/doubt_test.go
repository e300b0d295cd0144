// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/pathmtu"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// link is the socket of a host whose link has become narrow for data, while probes still leave.
type link struct {
	*loop
	refused int
}

func (l *link) Send(ms []underlay.Message) (int, error) {
	for i, m := range ms {
		if first, _ := underlay.Cut(m.Buf, m.Segment); !m.Fragment && len(first) > 1300 {
			l.refused++
			return i, unix.EMSGSIZE
		}
	}
	return l.loop.Send(ms)
}

// confirm makes a probe and returns the acknowledgement.
func (x *bench) confirm(t *testing.T, to *peer) []underlay.Message {
	t.Helper()
	x.la.replies = nil
	x.a.r.probe(to, x.now)
	if len(x.la.replies) == 0 {
		t.Fatal("no probe")
	}
	x.lb.reset()
	for _, m := range x.la.replies {
		x.lb.incoming = append(x.lb.incoming, underlay.Message{Buf: m, Addr: underA})
	}
	if _, err := x.b.receive(x.now); err != nil {
		t.Fatal(err)
	}
	acks := append([]underlay.Message(nil), x.lb.sent...)
	for i := range acks {
		acks[i].Addr = underB
		acks[i].Buf = append([]byte(nil), acks[i].Buf...)
	}
	return acks
}

func (x *bench) receive(t *testing.T, ms []underlay.Message) {
	t.Helper()
	x.la.incoming = ms
	if _, err := x.a.receive(x.now); err != nil {
		t.Fatal(err)
	}
}

// Once a link refuses a size, or the peer is elsewhere, that size is sent whole no more until a probe of it, sent later, has arrived.
func TestDoubtfulPath(t *testing.T) {
	for name, change := range map[string]func(x *bench, l *link, to *peer){
		"link": func(x *bench, l *link, _ *peer) {
			x.a.conn = l
			for range 2 {
				x.la.frame, x.la.left = frame4(1408, false), 40
				if _, err := x.a.transmit(x.now); err != nil {
					t.Fatal(err)
				}
			}
			if l.refused != 1 {
				t.Errorf("a datagram was refused %d times, want once", l.refused)
			}
		},
		"roaming": func(x *bench, _ *link, to *peer) { x.a.roam(to, netip.MustParseAddrPort("198.51.100.1:1"), x.now) },
	} {
		x := newBench(t, session.WireGuard, false)
		to := x.a.r.current.Load().peers[0]
		x.receive(t, x.confirm(t, to))
		if _ = x.a.r.probe(to, x.now); to.path.sizes() != (sizes{whole: 1408, confirmed: true, pieces: true}) {
			t.Fatalf("%s: %+v", name, to.path.sizes())
		}
		x.a.r.explore(to) // a probe is on its way meanwhile
		x.now = x.now.Add(time.Second)
		late := x.confirm(t, to)
		change(x, &link{loop: x.la}, to)
		doubtful := sizes{whole: pathmtu.Floor, pieces: true}
		if got := to.path.sizes(); got != doubtful {
			t.Errorf("%s: at once %+v", name, got)
		}
		x.receive(t, late)
		x.a.r.probe(to, x.now)
		if got := to.path.sizes(); got != doubtful {
			t.Errorf("%s: after a late acknowledgement and the begin of the search: %+v", name, got)
		}
		x.a.r.forgetPath(to) // the late acknowledgement came from where the peer was
		x.now = x.now.Add(time.Second)
		again := x.confirm(t, to)
		for i := range again {
			again[i].Addr, _ = to.target()
		}
		x.receive(t, again)
		x.a.r.probe(to, x.now)
		if got := to.path.sizes(); got.whole != 1408 || !got.confirmed {
			t.Errorf("%s: after another probe %+v", name, got)
		}
	}
}

// The times of probes do not depend on what becomes of the wall clock, and are after what they are due at, by a grain at most.
func TestProbeTimesAreMonotonic(t *testing.T) {
	x := newBench(t, session.WireGuard, false)
	x.now = time.Now()
	x.handshake(t)
	to := x.a.r.current.Load().peers[0]
	at := x.a.r.probe(to, x.now)
	if wait := at.Sub(x.now); wait <= 0 || wait > time.Second {
		t.Errorf("the next look is %v away", wait)
	}
	if at == at.Round(0) {
		t.Errorf("%v has no monotonic reading", at)
	}
	for _, late := range []time.Duration{0, 10 * time.Millisecond, time.Second} { // the machine wants to be asked at once
		x.now = at.Add(late)
		if next := x.a.r.probe(to, x.now); next.Sub(x.now) <= 0 {
			t.Errorf("%v late: the next look is %v away", late, next.Sub(x.now))
		}
	}
}

// answering is a socket through which probes reach the peer so soon that its answer is there before SendWhole returns.
type answering struct {
	*loop
	meanwhile func()
}

func (a *answering) SendWhole(b []byte, to netip.AddrPort) error {
	a.meanwhile()
	return a.loop.SendWhole(b, to)
}

// A shard that has an answer does not wait until the timer goroutine has sent the next probe.
func TestProbesAreSentWithoutLock(t *testing.T) {
	x := newBench(t, session.WireGuard, false)
	to := x.a.r.current.Load().peers[0]
	sent := 0
	x.a.conn = &answering{loop: x.la, meanwhile: func() {
		sent++
		if !to.path.mu.TryLock() {
			t.Error("a probe is sent under the lock")
			return
		}
		to.path.mu.Unlock()
	}}
	x.a.r.probe(to, x.now)
	if sent == 0 {
		t.Error("no probe")
	}
}

func TestWhichPacketsGoWhole(t *testing.T) {
	const other = pathmtu.Floor + 1
	for _, c := range []struct {
		name  string
		l     *pathmtu.Limits // nil: nothing is known
		whole map[int]bool    // by size
	}{
		{"nothing is known", nil, map[int]bool{16: false, pathmtu.Floor: false, other: false, 1408: false}},
		{"no answer yet", &pathmtu.Limits{MTU: 1408}, map[int]bool{16: false, pathmtu.Floor: false, other: false, 1408: false}},
		{"doubtful", &pathmtu.Limits{MTU: 1408, Answers: true}, map[int]bool{16: true, pathmtu.Floor: true, other: false, 1408: false}},
		{"some passes", &pathmtu.Limits{MTU: 1408, Whole: 1200, Answers: true}, map[int]bool{16: true, pathmtu.Floor: true, 1200: true, 1201: false, 1408: false}},
		{"all passes", &pathmtu.Limits{MTU: 1408, Whole: 1408, Answers: true, Confirmed: true}, map[int]bool{16: true, other: true, 1408: true}},
	} {
		var p path
		if c.l != nil {
			p.publish(*c.l, 1408)
		}
		for n, want := range c.whole {
			if got := p.sent(n); got != want {
				t.Errorf("%s: %d bytes go whole: %v, want %v", c.name, n, got, want)
			}
		}
	}
}
