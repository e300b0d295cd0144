// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/envelope"
	"github.com/weftnet/weft/router/underlay"
)

// apartOf returns the reader of control datagrams of a member, and what it reads from.
func apartOf(t *testing.T, x *members) (*apart, *loop) {
	t.Helper()
	c := &loop{}
	m := x.all[1]
	a := newApart(m.Router, c)
	return a, c
}

// A storm of one sender is cut off, without a loss for another; storms of many together, too; and what is read is bounded.
func TestStormsAreBounded(t *testing.T) {
	x := newMembers(t, 1, func(*Config) {})
	a, c := apartOf(t, x)
	sealed, err := (&envelope.Keyring{Primary: testKey(t, 1)}).Seal(nil, envelope.Header{Kind: envelope.KindMesh, Source: 9}, []byte("hello"), x.all[1].config.Rand)
	if err != nil {
		t.Fatal(err)
	}
	// send has n datagrams come from an address, in runs, and returns how many were opened, and the longest pause.
	send := func(from netip.AddrPort, n int) (opened int, pause time.Duration) {
		t.Helper()
		before := x.all[1].Stats().ControlRx
		for n > 0 {
			run := min(n, 100)
			n -= run
			c.incoming = []underlay.Message{{Buf: bytes.Repeat(sealed, run), Segment: len(sealed), Addr: from}}
			wait, err := a.receive(x.now)
			if err != nil {
				t.Fatal(err)
			}
			pause = max(pause, wait)
		}
		return int(x.all[1].Stats().ControlRx - before), pause
	}
	v6 := func(net, host byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 7: net, 15: host}), 1)
	}
	x.now = x.now.Add(time.Minute)
	if n, pause := send(memberAt(1), 3000); n != senderBurst || pause != 0 {
		t.Errorf("%d of one sender at once, pause %v", n, pause)
	}
	if n, _ := send(memberAt(2), 1000); n != 1000 {
		t.Errorf("%d of another one beside it", n)
	}
	x.now = x.now.Add(100 * time.Millisecond)
	if n, _ := send(memberAt(1), 1000); n != senderRate/10 {
		t.Errorf("%d of one sender after 100 ms", n)
	}
	x.now = x.now.Add(time.Minute)
	n1, _ := send(v6(1, 1), 1500)
	n2, _ := send(v6(1, 2), 1500)
	n3, _ := send(v6(2, 1), 1500)
	if n1+n2 != senderBurst || n3 != 1500 {
		t.Errorf("%d and %d of one network, %d of another", n1, n2, n3)
	}
	x.now = x.now.Add(time.Minute)
	total := 0
	for i := range byte(9) {
		n, pause := send(memberAt(uint64(10+i)), 1000)
		if total += n; pause != 0 {
			t.Errorf("pause %v after %d datagrams", pause, total)
		}
	}
	if total != openBurst {
		t.Errorf("%d of all at once", total)
	}
	if _, pause := send(memberAt(20), 1000+readRate/10); pause != 100*time.Millisecond {
		t.Errorf("pause of %v for a tenth of a second's worth too many", pause)
	}
	if s := x.all[1].Stats(); s.Drops[DropControlStorm] == 0 || len(x.all[1].heard) != int(s.ControlRx) {
		t.Errorf("stats %+v", s)
	}
}

// What is not for the reader of control datagrams goes to the shard, but not without bound.
func TestStrays(t *testing.T) {
	x := newMembers(t, 1, func(*Config) {})
	a, c := apartOf(t, x)
	shard := x.all[1].shards[0]
	shard.poller = idle{}
	data := make([]byte, 1000)
	data[0] = 4
	c.incoming = []underlay.Message{{Buf: nil, Addr: memberAt(2)}, {Buf: append([]byte{ControlType}, data[1:]...), Addr: memberAt(2)}}
	for range 300 {
		c.incoming = append(c.incoming, underlay.Message{Buf: data, Addr: memberAt(2)})
	}
	for len(c.incoming) > 0 {
		if _, err := a.receive(x.now); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := shard.turn(0, x.now); err != nil {
		t.Fatal(err)
	}
	const held = min(maxStrays, maxStrayBytes/1000)
	x.all[1].wantDrops(t, map[Reason]uint64{DropShort: 1, DropControlForm: 1, DropIndex: held, DropStray: 300 - held})
	if shard.strays.take() != nil {
		t.Error("they are still there")
	}
}

// idle is a Poller that nobody waits for.
type idle struct{ Poller }

func (idle) Wake() {}

// broken is a Conn that has an error to tell.
type broken struct {
	loop
	err error
}

func (b *broken) Recv([]underlay.Message) (int, error) { return 0, b.err }

// turns is a Poller that returns at once.
type turns struct {
	idle
	n atomic.Int64
}

func (p *turns) Wait(Events, time.Duration) (Events, error) {
	p.n.Add(1)
	return ReadUDP, nil
}

func TestApartEnds(t *testing.T) {
	x := newMembers(t, 1, func(*Config) {})
	for _, c := range []struct {
		err   error
		turns int64
		text  string
	}{
		{os.ErrClosed, 1, "router, control datagrams: file already closed"},
		{unix.ENETDOWN, maxFailures, "router, control datagrams: 1000 errors in a row, the last: network is down"},
	} {
		a := newApart(x.all[1].Router, &broken{err: c.err})
		p := &turns{}
		a.poller = p
		if err := a.run(); !errors.Is(err, c.err) || err.Error() != c.text || p.n.Load() != c.turns {
			t.Errorf("after %d turns: %v", p.n.Load(), err)
		}
	}
	a := newApart(x.all[1].Router, &loop{})
	a.poller = &turns{}
	a.stop.Store(true)
	if err := a.run(); err != nil {
		t.Errorf("told to stop: %v", err)
	}
}
