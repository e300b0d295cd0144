// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

func TestNextTarget(t *testing.T) {
	a := []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"), netip.MustParseAddrPort("[2001:db8::3]:3"),
	}
	elsewhere := netip.MustParseAddrPort("198.51.100.9:9")
	for _, c := range []struct {
		name       string
		candidates []netip.AddrPort
		heard      netip.AddrPort
		want       []netip.AddrPort // one round
	}{
		{"nothing known", nil, netip.AddrPort{}, nil},
		{"candidates only", a, netip.AddrPort{}, a},
		{"heard only", nil, elsewhere, []netip.AddrPort{elsewhere}},
		{"heard elsewhere", a, elsewhere, []netip.AddrPort{elsewhere, a[0], a[1], a[2]}},
		{"heard at the first", a, a[0], []netip.AddrPort{a[0], a[1], a[2]}},
		{"heard at the second", a, a[1], []netip.AddrPort{a[1], a[0], a[2]}},
		{"heard at the last", a, a[2], []netip.AddrPort{a[2], a[0], a[1]}},
	} {
		p := new(peer)
		p.config.Store(&Peer{Endpoints: c.candidates})
		if c.heard.IsValid() {
			p.endpoint.Store(&c.heard)
		}
		for round := range 2 {
			for i, want := range c.want {
				if got, ok := p.nextTarget(); got != want || !ok {
					t.Errorf("%s, round %d: attempt %d goes to %v, want %v", c.name, round, i, got, want)
				}
			}
		}
		if _, ok := p.nextTarget(); ok != (len(c.want) > 0) {
			t.Errorf("%s: there is an address: %v", c.name, ok)
		}
		p.settled()
		if len(c.want) > 0 {
			if got, _ := p.nextTarget(); got != c.want[0] {
				t.Errorf("%s: after a success the next attempt goes to %v, want %v", c.name, got, c.want[0])
			}
		}
	}
}

// A cookie repeats an attempt, once.
func TestStay(t *testing.T) {
	a := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::2]:2")}
	p := new(peer)
	p.config.Store(&Peer{Endpoints: a})
	p.stay() // for a response of ours: there is nothing to repeat
	for round := range 3 {
		for i, want := range []int{0, 0, 1, 1, 0, 0, 1} {
			if got, _ := p.nextTarget(); got != a[want] {
				t.Errorf("round %d, initiation %d goes to %v, want %v", round, i, got, a[want])
			}
			p.stay()
		}
		p.settled()
	}
}

// The queue against a slow one: a slice.
func TestPending(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q pending
		held := false
		var want []queued
		now := time.Unix(1e9, 0)
		for range rapid.IntRange(0, 400).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "ms")) * time.Millisecond)
			switch rapid.SampledFrom([]string{"put", "put", "put", "put", "put", "put", "expire", "hold", "next", "next", "release", "clear"}).Draw(t, "step") {
			case "put":
				b, mark := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "packet"), rapid.Byte().Draw(t, "mark")
				full := len(want) == session.MaxQueued
				if full {
					want = want[1:]
				}
				want = append(want, queued{slices.Clone(b), mark, now})
				if dropped := q.put(b, mark, now); dropped != full {
					t.Fatalf("put reports %v, want %v", dropped, full)
				}
				clear(b) // the queue has a copy
			case "expire":
				n := 0
				for len(want) > 0 && now.Sub(want[0].at) >= pendingLife {
					want, n = want[1:], n+1
				}
				var next time.Time
				if len(want) > 0 {
					next = want[0].at.Add(pendingLife)
				}
				if dropped, at := q.expire(now); dropped != n || at != next {
					t.Fatalf("expire: %d and %v, want %d and %v", dropped, at, n, next)
				}
			case "hold":
				got := q.hold()
				if got != (!held && len(want) > 0) {
					t.Fatalf("hold: %v, with %d packets, held %v", got, len(want), held)
				}
				held = held || got
			case "next":
				if !held {
					break
				}
				got, ok := q.next()
				if ok != (len(want) > 0) {
					t.Fatalf("next: %v, with %d packets", ok, len(want))
				}
				if !ok {
					break
				}
				if string(got.b) != string(want[0].b) || got.mark != want[0].mark || got.at != want[0].at {
					t.Fatalf("the next is %v, want %v", got, want[0])
				}
				if len(want)%2 == 0 { // more has come before it goes back
					for range session.MaxQueued {
						q.put(nil, 0, now)
						want = append(want, queued{nil, 0, now})
					}
					if !q.back(got) {
						t.Fatal("a packet went back to a full queue")
					}
					want = want[len(want)-session.MaxQueued:]
				} else if q.back(got) {
					t.Fatal("a packet did not go back")
				} else if again, _ := q.next(); string(again.b) != string(got.b) || again.mark != got.mark || again.at != got.at {
					t.Fatal("another packet went back")
				} else {
					want = want[1:]
				}
			case "release":
				if !held {
					break
				}
				if more := q.release(); more != (len(want) > 0) {
					t.Fatalf("release: %v, with %d packets", more, len(want))
				}
				held = false
			case "clear":
				q.clear()
				want = nil
			}
			if busy := q.busy.Load(); busy != (held || len(want) > 0) {
				t.Fatalf("busy %v, with %d packets, held %v", busy, len(want), held)
			}
		}
	})
}

func TestLimiter(t *testing.T) {
	l := limiter{rate: 10, burst: 3}
	now := time.Unix(1e9, 0)
	passed := func(n int) (ok int) {
		for range n {
			if l.allow(now) {
				ok++
			}
		}
		return ok
	}
	for _, c := range []struct {
		later time.Duration
		want  int
	}{{0, 3}, {0, 0}, {100 * time.Millisecond, 1}, {time.Hour, 3}, {-time.Hour, 0}, {time.Second, 3}} {
		now = now.Add(c.later)
		if got := passed(10); got != c.want {
			t.Errorf("%v later %d pass, want %d", c.later, got, c.want)
		}
	}
}

func TestInnerMTU(t *testing.T) {
	for _, c := range [][2]int{{1500, 1408}, {9000, 8912}, {1450, 1360}, {1280, 1280}, {0, 1280}, {65536, MaxMTU}} {
		got := InnerMTU(c[0])
		if got != c[1] {
			t.Errorf("InnerMTU(%d) = %d, want %d", c[0], got, c[1])
		}
		padded := (got + session.Padding - 1) / session.Padding * session.Padding
		if got > minMTU && padded+session.Overhead+40+8 > c[0] {
			t.Errorf("InnerMTU(%d) = %d does not fit", c[0], got)
		}
	}
	if MaxMTU+session.Overhead > maxDatagram {
		t.Error("MaxMTU does not fit a receive buffer")
	}
}

func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for r := range reasons {
		name := r.String()
		if name == "" || seen[name] || strings.ContainsAny(name, " _()") {
			t.Errorf("reason %d has the name %q", r, name)
		}
		seen[name] = true
	}
	if reasons.String() != fmt.Sprintf("reason(%d)", len(reasonNames)) {
		t.Error(reasons.String())
	}
	for err, want := range map[error]Reason{
		session.ErrShort: DropShort, session.ErrMAC1: DropMAC1, session.ErrUnknownPeer: DropUnknownPeer, session.ErrReplay: DropReplay,
		session.ErrFlood: DropFlood, session.ErrIndex: DropIndex, session.ErrAuth: DropAuth, session.ErrExpired: DropExpired,
		session.ErrType: DropType, session.ErrSuite: DropSuite, session.ErrUnderLoad: DropUnderLoad, unix.EIO: DropAuth,
	} {
		if got := reasonOf(err); got != want {
			t.Errorf("%v is counted as %v, want %v", err, got, want)
		}
	}
}

// fdQueue and fdConn have nothing but a descriptor.
type (
	fdQueue struct {
		Queue
		fd int
	}
	fdConn struct {
		Conn
		fd int
	}
)

func (q fdQueue) FD() int { return q.fd }
func (c fdConn) FD() int  { return c.fd }

func TestEpoll(t *testing.T) {
	event := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		})
		return fd
	}
	set := func(fd int) {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		if _, err := unix.Write(fd, one[:]); err != nil {
			t.Error(err)
		}
	}
	unset := func(fd int) {
		var b [8]byte
		if _, err := unix.Read(fd, b[:]); err != nil {
			t.Error(err)
		}
	}
	q, c := event(), event()
	p, err := newPoller(fdQueue{fd: q}, fdConn{fd: c})
	if err != nil {
		t.Fatal(err)
	}
	wait := func(want Events, timeout time.Duration, expect Events) {
		t.Helper()
		if got, err := p.Wait(want, timeout); got != expect || err != nil {
			t.Errorf("Wait(%b) = %b, %v, want %b", want, got, err, expect)
		}
	}
	const both = ReadTUN | ReadUDP
	wait(both, 0, 0)
	wait(both, time.Millisecond, 0)
	set(q)
	wait(both, -1, ReadTUN)
	wait(both, -1, ReadTUN) // a level
	wait(ReadUDP, 0, 0)
	set(c)
	wait(both, -1, both)
	wait(ReadUDP|WriteUDP, -1, ReadUDP|WriteUDP)
	unset(c)
	wait(ReadUDP|WriteUDP, -1, WriteUDP)
	wait(ReadUDP, 0, 0)
	unset(q)
	wait(both, 0, 0)
	p.Wake()
	wait(both, -1, 0)
	wait(both, 0, 0) // once
	done := make(chan error)
	go func() {
		_, err := p.Wait(both, -1)
		done <- err
	}()
	p.Wake()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	p.Wake()

	// What has been closed meanwhile, and is watched no more, is no reason to fail: using it tells.
	gone, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = newPoller(fdQueue{fd: q}, fdConn{fd: gone}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(gone); err != nil {
		t.Fatal(err)
	}
	wait(ReadUDP|WriteUDP, time.Millisecond, 0)
	wait(both, time.Millisecond, 0)
	if err := p.Close(); err != nil {
		t.Error(err)
	}

	for _, bad := range []Queue{fdQueue{fd: -1}, nil} {
		conn := fdConn{fd: c}
		if bad == nil {
			conn.fd = -1
		}
		if _, err := newPoller(bad, conn); err == nil {
			t.Error("a bad descriptor was accepted")
		}
	}

	set(c)
	if p, err = newPoller(nil, fdConn{fd: c}); err != nil {
		t.Fatal(err)
	}
	if _, ok := p.(*parked); !ok {
		t.Errorf("without a queue it is a %T", p)
	}
	wait(ReadUDP, -1, ReadUDP)
	wait(0, time.Millisecond, 0)
	wait(ReadUDP, 0, ReadUDP)
	wait(ReadUDP, time.Minute, ReadUDP) // a level
	unset(c)
	wait(ReadUDP, 0, 0)
	wait(ReadUDP, time.Millisecond, 0)
	for _, come := range []struct {
		do   func()
		want Events
	}{{p.Wake, 0}, {func() { set(c) }, ReadUDP}} {
		got := make(chan Events)
		go func() {
			e, err := p.Wait(ReadUDP, -1)
			if err != nil {
				t.Error(err)
			}
			got <- e
		}()
		select {
		case e := <-got:
			t.Errorf("%b at once", e)
		case <-time.After(10 * time.Millisecond):
		}
		come.do()
		if e := <-got; e != come.want {
			t.Errorf("%b, want %b", e, come.want)
		}
	}
	p.Wake()
	wait(0, -1, 0)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	p.Wake()
}

// A peer is where the last of its datagrams came from, also if they are received together.
func TestRoamsWithinABatch(t *testing.T) {
	x := newBench(t, session.Weft, false)
	other := netip.MustParseAddrPort("192.0.2.77:6783")
	x.la.frame = frame4(100, false)
	for _, from := range []netip.AddrPort{underA, other, underA} {
		var all []underlay.Message
		for _, at := range []netip.AddrPort{underA, other, underA, from} {
			x.la.reset()
			x.la.left = 2
			if _, err := x.a.transmit(x.now); err != nil {
				t.Fatal(err)
			}
			m := x.la.sent[0] // a run of two
			all = append(all, underlay.Message{Buf: slices.Clone(m.Buf), Segment: m.Segment, Addr: at})
		}
		before := x.b.r.Stats().RxPackets
		x.lb.incoming = all
		if _, err := x.b.receive(x.now); err != nil {
			t.Fatal(err)
		}
		if got := *x.b.r.current.Load().peers[0].endpoint.Load(); got != from {
			t.Errorf("the peer is at %v, want %v", got, from)
		}
		if n := x.b.r.Stats().RxPackets - before; n != 8 {
			t.Fatalf("%d packets came, want 8", n)
		}
	}
}
