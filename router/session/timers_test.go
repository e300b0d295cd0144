// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// timeline ticks p from now to end, exactly when it asks for it, and tells what it sent when, in
// seconds after epoch rounded down, as "5:initiation".
func timeline(t *testing.T, p *Peer, now, end time.Time) string {
	t.Helper()
	names := map[byte]string{TypeInitiation: "initiation", TypeData: "keepalive"}
	var log []string
	for steps := 0; ; steps++ {
		if steps > 1000 {
			t.Fatalf("does not come to rest: %v", log)
		}
		msg, next := p.Tick(nil, now)
		if len(msg) > 0 {
			log = append(log, fmt.Sprintf("%d:%s", now.Sub(epoch)/time.Second, names[msg[0]]))
			if msg[0] == TypeData && len(msg) != Overhead {
				t.Errorf("keepalive of %d bytes", len(msg))
			}
		}
		if got := p.Next(); !got.Equal(next) && (!got.Before(now) || !next.Equal(now)) {
			t.Fatalf("Tick says next %v, Next says %v", next, got)
		}
		if next.IsZero() || next.After(end) {
			return strings.Join(log, " ")
		}
		if next.Before(now) {
			t.Fatalf("next is %v before now", now.Sub(next))
		}
		now = next
	}
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

// TestRetransmitAndGiveUp: 5 s to 5.333 s apart, for 90 s, then silence until there is a reason.
func TestRetransmitAndGiveUp(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	initiation(t, d.ab, epoch)
	var at []time.Time
	now := epoch
	for {
		msg, next := d.ab.Tick(nil, now)
		if len(msg) > 0 {
			at = append(at, now)
		}
		if next.IsZero() || next.Sub(now) > time.Minute {
			break
		}
		now = next
	}
	last := epoch
	for _, a := range at {
		if gap := a.Sub(last); gap < RekeyTimeout || gap > RekeyTimeout+MaxJitter {
			t.Errorf("tried again after %v", gap)
		}
		last = a
	}
	if last.Sub(epoch) >= RekeyAttemptTime || now.Sub(epoch) < RekeyAttemptTime || len(at) < 16 || len(at) > 17 {
		t.Errorf("%d tries, the last after %v, given up after %v", len(at), last.Sub(epoch), now.Sub(epoch))
	}
	if s := d.ab.Stats(); s.Handshaking || s.Attempts != len(at)+1 {
		t.Errorf("after giving up: %+v", s)
	}
	if d.a.table.used != 0 {
		t.Error("the handshake that was given up still has its index")
	}
	initiation(t, d.ab, now)
}

// TestInitiateProlongs: every packet that waits starts the 90 s anew, and no call makes more messages.
func TestInitiateProlongs(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	initiation(t, d.ab, epoch)
	sent := 0
	for s := range 200 {
		now := epoch.Add(time.Duration(s) * time.Second)
		if s > 0 && s <= 100 {
			if _, ok := d.ab.Initiate(nil, now); ok {
				t.Fatalf("a second handshake at %d s", s)
			}
		}
		if msg, _ := d.ab.Tick(nil, now); len(msg) > 0 {
			sent++
			if s > 190 {
				t.Errorf("still trying %d s after the last reason", s-100)
			}
		}
	}
	if sent < 185/6 {
		t.Errorf("%d tries in 190 s", sent)
	}
}

// TestInitiateTooSoon: what may not be sent yet is sent when it may.
func TestInitiateTooSoon(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch) // the response is lost
	now := epoch.Add(time.Second)
	if _, ok := d.ba.Initiate(nil, now); ok {
		t.Fatal("the responder initiates a second after it answered")
	}
	if next := d.ba.Next(); next.Before(epoch.Add(RekeyTimeout)) || next.After(epoch.Add(RekeyTimeout+MaxJitter)) {
		t.Fatalf("the initiation is planned for %v after the answer", next.Sub(epoch))
	}
	msg, _ := d.ba.Tick(nil, d.ba.Next())
	if len(msg) != InitiationSize {
		t.Fatal("nothing was sent")
	}
	now = epoch.Add(6 * time.Second)
	r := receive(t, d.a, msg, addrB, now)
	receive(t, d.b, r.Reply, addrA, now)
	carry(t, d.ba, d.a, []byte("works"), now)
}

// TestPassiveKeepalive is whitepaper §6.5's first half.
func TestPassiveKeepalive(t *testing.T) {
	at := func(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }
	for _, c := range []struct {
		name string
		do   func(p *Peer, k *Keypair)
		want string
	}{
		{"nothing received", func(*Peer, *Keypair) {}, ""},
		{"keepalive received", func(p *Peer, k *Keypair) { p.Received(at(1), k, true) }, ""},
		{"data received", func(p *Peer, k *Keypair) { p.Received(at(1), k, false) }, "11:keepalive"},
		{"data received twice", func(p *Peer, k *Keypair) {
			p.Received(at(1), k, false)
			p.Received(at(3), k, false)
		}, "11:keepalive 21:keepalive"},
		{"data received and sent", func(p *Peer, k *Keypair) {
			p.Received(at(1), k, false)
			p.Sent(at(2), true)
		}, ""},
		{"sent, then received", func(p *Peer, k *Keypair) {
			p.Sent(at(1), true)
			p.Received(at(2), k, false)
		}, "12:keepalive"},
	} {
		d := newDuo(t, Weft, Weft)
		_, kb := d.shake(t, epoch)
		c.do(d.ba, kb)
		expect(t, c.name, timeline(t, d.ba, at(3), at(100)), c.want)
	}
}

// TestSilence is its second half: 15 s without an answer to data mean a new handshake.
func TestSilence(t *testing.T) {
	at := func(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }
	for _, c := range []struct {
		name string
		do   func(p *Peer, k *Keypair)
		want string
	}{
		{"keepalive sent", func(p *Peer, _ *Keypair) { p.Sent(at(1), true) }, ""},
		{"data sent", func(p *Peer, _ *Keypair) { p.Sent(at(1), false) }, "16:initiation"},
		{"data sent again and again", func(p *Peer, _ *Keypair) {
			p.Sent(at(1), false)
			p.Sent(at(2), false)
		}, "16:initiation"},
		{"answered", func(p *Peer, k *Keypair) {
			p.Sent(at(1), false)
			p.Received(at(2), k, true)
		}, ""},
		{"answered, then sent", func(p *Peer, k *Keypair) {
			p.Sent(at(1), false)
			p.Received(at(2), k, true)
			p.Sent(at(3), false)
		}, "18:initiation"},
	} {
		d := newDuo(t, Weft, Weft)
		ka, _ := d.shake(t, epoch)
		c.do(d.ab, ka)
		expect(t, c.name, timeline(t, d.ab, at(3), at(20)), c.want)
	}
}

// TestRekeyWhenSending: the initiator at 120 s, the responder never (whitepaper §6.2).
func TestRekeyWhenSending(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	d.shake(t, epoch)
	for _, c := range []struct {
		name string
		p    *Peer
		age  time.Duration
		want bool
	}{
		{"initiator", d.ab, RekeyAfterTime - 1, false},
		{"initiator", d.ab, RekeyAfterTime, true},
		{"initiator", d.ab, RejectAfterTime, true},
		{"responder", d.ba, RekeyAfterTime, false},
		{"responder", d.ba, RejectAfterTime, false},
	} {
		for _, keepalive := range []bool{false, true} {
			if got := c.p.Sent(epoch.Add(c.age), keepalive); got != c.want {
				t.Errorf("%s at %v: %v, want %v", c.name, c.age, got, c.want)
			}
		}
	}
}

// TestRekeyWhenReceiving: the initiator at 165 s, once; the responder never.
func TestRekeyWhenReceiving(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	ka, kb := d.shake(t, epoch)
	const age = RejectAfterTime - KeepaliveTimeout - RekeyTimeout
	receive := func(p *Peer, k *Keypair, at time.Duration) bool {
		_, initiate := p.Received(epoch.Add(at), k, false)
		return initiate
	}
	if receive(d.ab, ka, age-1) {
		t.Error("initiator before 165 s")
	}
	if !receive(d.ab, ka, age) {
		t.Error("not initiator at 165 s")
	}
	if receive(d.ab, ka, age+1) {
		t.Error("initiator twice")
	}
	if receive(d.ba, kb, age) {
		t.Error("responder")
	}
	ka, _ = d.shake(t, epoch.Add(170*time.Second))
	if !receive(d.ab, ka, 170*time.Second+age) {
		t.Error("not with the next key")
	}
}

func TestExpiry(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	ka, kb := d.shake(t, epoch)
	for _, c := range []struct {
		p *Peer
		k *Keypair
	}{{d.ab, ka}, {d.ba, kb}} {
		if c.p.Key(epoch.Add(RejectAfterTime-sendMargin-1)) != c.k {
			t.Error("no key just before 179 s")
		}
		if c.p.Key(epoch.Add(RejectAfterTime-sendMargin)) != nil {
			t.Error("a key at 179 s")
		}
	}
}

// TestZeroing: 540 s after the last key was made nothing is left of any.
func TestZeroing(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	d.shake(t, epoch)
	ka, kb := d.shake(t, epoch.Add(time.Minute))
	for _, p := range []*Peer{d.ab, d.ba} {
		expect(t, "until 599 s", timeline(t, p, epoch.Add(time.Minute), epoch.Add(599*time.Second)), "")
		if p.machine.table.used != 2 {
			t.Errorf("%d indices before zeroing, want 2", p.machine.table.used)
		}
		expect(t, "until the end", timeline(t, p, epoch.Add(599*time.Second), epoch.Add(time.Hour)), "")
		if p.machine.table.used != 0 || p.current.Load() != nil || p.Stats().Keyed || !p.Next().IsZero() {
			t.Error("something is left after 540 s")
		}
	}
	for _, k := range []*Keypair{ka, kb} {
		if k.ciphers.Load() != nil {
			t.Error("the key is still there")
		}
	}
	d.shake(t, epoch.Add(time.Hour))
}

// TestZeroingOfUnconfirmed: a responder that never hears again forgets as well.
func TestZeroingOfUnconfirmed(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch)
	expect(t, "responder", timeline(t, d.ba, epoch, epoch.Add(time.Hour)), "")
	if d.b.table.used != 0 || d.ba.pending != nil {
		t.Error("something is left")
	}
}

// TestPersistentKeepalive: starts a handshake by itself, then sends when nothing else was.
func TestPersistentKeepalive(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	d.a.RemovePeer(d.ab)
	d.ab = addPeer(t, d.a, PeerConfig{Public: d.b.Public(), Preshared: d.psk, Suite: Weft, Keepalive: 25 * time.Second})
	if next := d.ab.Next(); next.IsZero() || next.After(epoch) {
		t.Fatalf("first keepalive is due at %v", next)
	}
	msg, next := d.ab.Tick(nil, epoch)
	if len(msg) != InitiationSize || next.Sub(epoch) < RekeyTimeout {
		t.Fatalf("first tick: %d bytes, next %v", len(msg), next.Sub(epoch))
	}
	r := receive(t, d.b, msg, addrA, epoch)
	r = receive(t, d.a, r.Reply, addrB, epoch)
	expect(t, "idle", timeline(t, d.ab, epoch, epoch.Add(80*time.Second)), "25:keepalive 50:keepalive 75:keepalive")
	d.ab.Sent(epoch.Add(80*time.Second), true)
	expect(t, "after sending at 80 s", timeline(t, d.ab, epoch.Add(80*time.Second), epoch.Add(110*time.Second)), "105:keepalive")
	d.ab.Received(epoch.Add(110*time.Second), nil, true)
	expect(t, "after receiving at 110 s", timeline(t, d.ab, epoch.Add(110*time.Second), epoch.Add(140*time.Second)), "135:keepalive")
	if r.Peer == nil {
		t.Fatal("no session")
	}
	// The key expires at 180 s; from then on: tries for 90 s, a pause of one interval, and again.
	log := timeline(t, d.ab, epoch.Add(140*time.Second), epoch.Add(1000*time.Second))
	if !strings.HasPrefix(log, "160:keepalive 185:initiation 190:initiation") || strings.Count(log, "keepalive") != 1 {
		t.Errorf("after expiry: %s", log)
	}
	if n := strings.Count(log, "initiation"); n < 17*815/120 {
		t.Errorf("%d initiations in 815 s", n)
	}
}

// TestClockStandsStill: injected times that do not move or jump do no harm.
func TestClockStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDuo(t, Weft, WireGuard)
		d.shake(t, time.Now())
		carry(t, d.ab, d.b, []byte("in a bubble"), time.Now())
		time.Sleep(RekeyAfterTime)
		if !d.ab.Sent(time.Now(), false) {
			t.Error("not due after 120 s of virtual time")
		}
		d.shake(t, time.Now())
	})
	d := newDuo(t, Weft, Weft)
	d.shake(t, time.Time{}.Add(1))
	d.shake(t, time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC))
	carry(t, d.ba, d.a, []byte("far away"), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC))
}
