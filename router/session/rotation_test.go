// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"testing"
	"time"
)

// TestBothInitiate delivers the messages of two handshakes that cross in every order that the
// network can produce, and with any one of them lost, and requires keys that work both ways.
func TestBothInitiate(t *testing.T) {
	type delivery struct {
		to  int
		msg []byte
	}
	// choose picks which of the messages under way arrives next; it enumerates all choices.
	var path []int
	var limits []int
	step := 0
	choose := func(n int) int {
		if step == len(path) {
			path, limits = append(path, 0), append(limits, n)
		}
		c := path[step]
		step++
		return c
	}
	next := func() bool {
		for i := len(path) - 1; i >= 0; i-- {
			if path[i]++; path[i] < limits[i] {
				path, limits = path[:i+1], limits[:i+1]
				return true
			}
		}
		return false
	}
	cases := 0
	keyA, keyB := newKey(t), newKey(t)
	for {
		step = 0
		cases++
		a, b := newMachine(t, keyA), newMachine(t, keyB)
		ms := [2]*Machine{a, b}
		ps := [2]*Peer{
			addPeer(t, a, PeerConfig{Public: b.Public(), Suite: Weft}),
			addPeer(t, b, PeerConfig{Public: a.Public(), Suite: WireGuard}),
		}
		way := []delivery{{1, initiation(t, ps[0], epoch)}, {0, initiation(t, ps[1], epoch)}}
		lost := choose(7) // which message in order of arrival is lost; 6 = none
		for n := 0; len(way) > 0; n++ {
			i := choose(len(way))
			d := way[i]
			way = append(way[:i:i], way[i+1:]...)
			if n == lost {
				continue
			}
			m, p := ms[d.to], ps[d.to]
			if d.msg[0] == TypeData {
				k := m.Keypair(Receiver(d.msg))
				if k == nil {
					t.Fatalf("%v: a datagram's session is gone", path)
				}
				if _, err := k.Open(d.msg, epoch); err != nil {
					t.Fatalf("%v: %v", path, err)
				}
				p.Received(epoch, k, true)
				continue
			}
			r, err := m.Receive(nil, d.msg, addrA, epoch)
			if err != nil && !errors.Is(err, ErrIndex) {
				t.Fatalf("%v: %v", path, err)
			}
			if len(r.Reply) > 0 {
				way = append(way, delivery{1 - d.to, r.Reply})
			}
		}
		for from := range ps {
			// A side whose key was not confirmed has none; the other side's first datagram brings it.
			if ps[from].Key(epoch) == nil {
				continue
			}
			msg, err := ps[from].Key(epoch).Seal(nil, []byte("x"))
			must(t, err)
			k := ms[1-from].Keypair(Receiver(msg))
			if k == nil {
				t.Fatalf("%v: side %d sends under a key that the other has not", path, from)
			}
			_, err = k.Open(msg, epoch)
			must(t, err)
			ps[1-from].Received(epoch, k, false)
		}
		carry(t, ps[0], b, []byte("there"), epoch)
		carry(t, ps[1], a, []byte("and back"), epoch)
		if !next() {
			break
		}
	}
	if cases < 80 {
		t.Errorf("only %d cases", cases)
	}
	t.Logf("%d cases", cases)
}

// TestCollisionDoesNotRepeat: after both initiated, one of them is due for the next handshake
// before the other.
func TestCollisionDoesNotRepeat(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	ia, ib := initiation(t, d.ab, epoch), initiation(t, d.ba, epoch)
	ra, rb := receive(t, d.b, ia, addrA, epoch), receive(t, d.a, ib, addrB, epoch)
	receive(t, d.a, ra.Reply, addrB, epoch)
	receive(t, d.b, rb.Reply, addrA, epoch)
	due := func(p *Peer, after time.Duration) bool { return p.Sent(epoch.Add(after), false) }
	if due(d.ab, RekeyAfterTime-1) || due(d.ba, RekeyAfterTime-1) {
		t.Error("due before 120 s")
	}
	if a, b := due(d.ab, RekeyAfterTime), due(d.ba, RekeyAfterTime); a == b {
		t.Errorf("at 120 s: %v and %v, want one", a, b)
	}
	if !due(d.ab, RekeyAfterTime+RekeyTimeout) || !due(d.ba, RekeyAfterTime+RekeyTimeout) {
		t.Error("not due after 125 s")
	}
}

// TestRotation: what was sealed under replaced keys still opens, up to three of them back.
func TestRotation(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	now := epoch
	var ka, kb []*Keypair
	for range 6 {
		a, b := d.shake(t, now)
		ka, kb = append(ka, a), append(kb, b)
		now = now.Add(10 * time.Second)
	}
	for i := range ka {
		msg, err := ka[i].Seal(nil, []byte("old"))
		if i < 2 {
			if !errors.Is(err, ErrExpired) {
				t.Errorf("key %d was forgotten, but Seal says %v", i, err)
			}
			if d.a.Keypair(ka[i].local) != nil || d.b.Keypair(kb[i].local) != nil {
				t.Errorf("key %d was forgotten, but its index is there", i)
			}
			continue
		}
		must(t, err)
		if k := d.b.Keypair(Receiver(msg)); k != kb[i] {
			t.Fatalf("key %d is not found", i)
		} else if _, err := k.Open(msg, now); err != nil {
			t.Errorf("key %d: %v", i, err)
		}
	}
	if d.a.table.used != 4 || d.b.table.used != 4 {
		t.Errorf("%d and %d indices in use, want 4", d.a.table.used, d.b.table.used)
	}
}

func TestRemoveAndReset(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	ka, _ := d.shake(t, epoch)
	msg, err := ka.Seal(nil, []byte("x"))
	must(t, err)

	d.ab.Reset()
	if d.ab.Key(epoch) != nil || d.a.Keypair(ka.local) != nil {
		t.Error("reset left a key")
	}
	if next := d.ab.Next(); !next.IsZero() {
		t.Errorf("reset left a timer at %v", next)
	}
	d.shake(t, epoch.Add(flood)) // at once, although 5 s have not passed

	now := epoch.Add(time.Minute)
	r := receive(t, d.b, initiation(t, d.ab, now), addrA, now)
	d.a.RemovePeer(d.ab)
	d.a.RemovePeer(d.ab)
	if _, err := d.a.Receive(nil, r.Reply, addrB, now); !errors.Is(err, ErrIndex) {
		t.Errorf("response for a removed peer: %v", err)
	}
	if _, ok := d.ab.Initiate(nil, now); ok {
		t.Error("a removed peer initiates")
	}
	if out, next := d.ab.Tick(nil, now.Add(time.Hour)); len(out) > 0 || !next.IsZero() {
		t.Error("a removed peer has timers")
	}
	if d.ab.Sent(now.Add(time.Hour), false) || !d.ab.Next().IsZero() {
		t.Error("a removed peer starts timers")
	}
	if established, initiate := d.ab.Received(now, ka, false); established || initiate || !d.ab.Next().IsZero() {
		t.Error("a removed peer receives")
	}
	d.ab.Reset()
	if *d.ab.preshared[0] != (PresharedKey{}) {
		t.Error("the preshared key is still there")
	}
	if d.a.table.used != 0 {
		t.Errorf("%d indices in use", d.a.table.used)
	}
	if _, err := ka.Seal(nil, nil); !errors.Is(err, ErrExpired) {
		t.Errorf("Seal under a forgotten key: %v", err)
	}
	if _, err := ka.Open(make([]byte, Overhead), now); err == nil {
		t.Error("Open under a forgotten key")
	}
	_ = msg
	d.ab = addPeer(t, d.a, PeerConfig{Public: d.b.Public(), Preshared: d.psk, Suite: Weft})
	d.shake(t, now.Add(time.Minute))
}
