// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	mrand "math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestResponseWithAnyKey: the initiator finds the key that a response was made with, wherever it stands in its list, and a
// response made with none of them leaves the handshake waiting for the right one.
func TestResponseWithAnyKey(t *testing.T) {
	for _, suite := range []Suite{WireGuard, Weft} {
		for at := range MaxPreshared {
			d := newDuo(t, suite, suite)
			var keys []PresharedKey
			for i := range MaxPreshared {
				keys = append(keys, PresharedKey{byte(i + 1)})
			}
			d.ab.SetPreshared(keys, epoch)
			d.ba.SetPreshared([]PresharedKey{{99}}, epoch)
			msg := initiation(t, d.ab, epoch)
			wrong := receive(t, d.b, msg, addrA, epoch)
			if _, err := d.a.Receive(nil, wrong.Reply, addrB, epoch); !errors.Is(err, ErrAuth) {
				t.Fatalf("a response with a key that is not there: %v", err)
			}
			// The same handshake goes on: b answers a later initiation with the right key.
			d.ba.SetPreshared(keys[at:], epoch)
			now := epoch.Add(RekeyTimeout + MaxJitter)
			again, _ := d.ab.Tick(nil, now)
			again = slices.Clone(again)
			r := receive(t, d.b, again, addrA, now)
			if _, err := d.a.Receive(nil, wrong.Reply, addrB, now); err == nil {
				t.Fatal("an old response was accepted")
			}
			r = receive(t, d.a, r.Reply, addrB, now)
			kb := d.b.Keypair(Receiver(r.Reply))
			if _, err := kb.Open(r.Reply, now); err != nil {
				t.Fatal(err)
			}
			d.ba.Received(now, kb, true)
			carry(t, d.ab, d.b, []byte("ping"), now)
			carry(t, d.ba, d.a, []byte("pong"), now)
		}
	}
}

// TestRightResponseAfterWrongOnes: the same initiation is answered wrongly first, and rightly then.
func TestRightResponseAfterWrongOnes(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	d.ab.SetPreshared([]PresharedKey{{1}, {2}}, epoch)
	msg := initiation(t, d.ab, epoch)
	// Two responders with the same identity, of which one has the wrong key.
	liar := newMachine(t, d.keyB)
	addPeer(t, liar, PeerConfig{Public: d.a.Public(), Preshared: PresharedKey{7}, Suite: Weft})
	for range 3 {
		wrong := receive(t, liar, msg, addrA, epoch)
		if _, err := d.a.Receive(nil, wrong.Reply, addrB, epoch); !errors.Is(err, ErrAuth) {
			t.Fatalf("a wrong response: %v", err)
		}
		liar = newMachine(t, d.keyB)
		addPeer(t, liar, PeerConfig{Public: d.a.Public(), Preshared: PresharedKey{7}, Suite: Weft})
	}
	d.ba.SetPreshared([]PresharedKey{{2}}, epoch)
	r := receive(t, d.b, msg, addrA, epoch)
	if r = receive(t, d.a, r.Reply, addrB, epoch); !r.Established {
		t.Fatal("the right response did not establish a key")
	}
}

// TestRevokedSessionEnds: a session whose key was taken away is forgotten when the grace is over, though nobody answers, and a
// key that comes back within the grace saves it.
func TestRevokedSessionEnds(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	ka, _ := d.shake(t, epoch)
	now := epoch.Add(time.Second)
	d.ab.SetPreshared([]PresharedKey{{1}}, now)
	d.ab.SetPreshared([]PresharedKey{{1}, d.psk}, now)
	for n := now; !n.After(now.Add(RevokeGrace)); n = n.Add(time.Second) {
		d.ab.Tick(nil, n)
	}
	if now = now.Add(RevokeGrace); d.ab.Key(now) != ka {
		t.Fatal("the session whose key came back is gone")
	}
	d.ab.SetPreshared([]PresharedKey{{1}}, now)
	var first time.Duration
	for n := now; n.Before(now.Add(RevokeGrace)); n = n.Add(time.Second / 10) {
		if msg, _ := d.ab.Tick(nil, n); len(msg) > 0 && msg[0] == TypeInitiation && first == 0 {
			first = n.Sub(now) + 1
		}
		if d.ab.Key(n) != ka {
			t.Fatalf("the session is gone after %v, before its grace is over", n.Sub(now))
		}
	}
	if first == 0 || first > MaxJitter+time.Second/10 {
		t.Errorf("the first try to renew the session came after %v", first)
	}
	now = now.Add(RevokeGrace)
	for range int(timerCount) {
		d.ab.Tick(nil, now)
	}
	if d.ab.Key(now) != nil {
		t.Fatal("the session outlives its grace")
	}
	if _, err := ka.Seal(nil, nil); !errors.Is(err, ErrExpired) {
		t.Errorf("the key of the revoked session still seals: %v", err)
	}
}

// TestSimRotationLosesNothing: the pre-shared key is rotated again and again under traffic, each side at times of its own, in a
// network that delays and reorders but does not lose: every packet arrives, and in the end no session bears an old key.
func TestSimRotationLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSim(t)
		dice := mrand.New(mrand.NewChaCha8([32]byte{rapid.Uint8().Draw(t, "dice")}))
		delay := time.Duration(rapid.IntRange(0, 300).Draw(t, "delay ms")) * time.Millisecond
		s.fate = func(to int, msg []byte) []flight {
			return []flight{{at: s.now.Add(delay/2 + time.Duration(dice.Int64N(int64(delay/2)+1))), to: to, msg: msg}}
		}
		var ids []uint64
		talk := func(d time.Duration) {
			for end := s.now.Add(d); s.now.Before(end); s.run(s.now.Add(500 * time.Millisecond)) {
				ids = append(ids, s.packet(0), s.packet(1))
			}
		}
		old := PresharedKey{5}
		for round := range rapid.IntRange(1, 2).Draw(t, "rounds") {
			next := PresharedKey{6, byte(round)}
			first := rapid.IntRange(0, 1).Draw(t, "first")
			pause := func(name string) time.Duration {
				return time.Duration(rapid.IntRange(0, 9000).Draw(t, name)) * time.Millisecond
			}
			// Each accepts the new one; once the other's record says so, it answers with it; then the old one goes.
			for _, step := range [][]PresharedKey{{old, next}, {next, old}, {next}} {
				for _, i := range []int{first, 1 - first} {
					s.nodes[i].p.SetPreshared(step, s.now)
					talk(pause("pause"))
				}
			}
			old = next
		}
		talk(RevokeGrace + 2*time.Second)
		s.run(s.now.Add(10 * time.Second))
		for _, id := range ids {
			if s.arrived[id] != 1 {
				t.Fatalf("packet %d of %d from node %d was lost; drops %v and %v", id, len(ids), s.sentBy[id], s.nodes[0].drops, s.nodes[1].drops)
			}
		}
		for i, n := range s.nodes {
			for _, k := range n.p.sessions() {
				if *k.preshared != old {
					t.Fatalf("node %d still has a session that was made with an old key", i)
				}
			}
		}
	})
}
