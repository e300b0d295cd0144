// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"testing"
	"time"
)

// A handshake in flight is begun anew at once, so many times within RekeyTimeout, and the new one works.
func TestAgain(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	if msg, ok := d.ab.Again(nil, 0, epoch); ok || len(msg) > 0 {
		t.Error("without a handshake in flight there is nothing to begin anew")
	}
	lost := initiation(t, d.ab, epoch)
	now := epoch.Add(time.Second)
	if _, ok := d.ab.Again(nil, 2*time.Second, now); ok {
		t.Error("begun anew though it is too young")
	}
	sent := 0
	var msg []byte
	for range 20 {
		if m, ok := d.ab.Again(nil, 0, now); ok {
			msg = m
			sent++
		}
		now = now.Add(againGap)
	}
	if sent != AgainLimit {
		t.Errorf("%d times within a second, want %d", sent, AgainLimit)
	}
	r := receive(t, d.b, msg, addrA, now)
	if r = receive(t, d.a, r.Reply, addrB, now); !r.Established {
		t.Error("the last one does not work")
	}
	if _, err := d.b.Receive(nil, lost, addrA, now); err == nil {
		t.Error("the first one still works")
	}
	if _, ok := d.ab.Again(nil, 0, now.Add(time.Minute)); ok {
		t.Error("begun anew though there is a key")
	}
}

// What would look like a flood is put off for a moment, and sent by Tick.
func TestAgainIsPutOff(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch)
	if _, ok := d.ab.Again(nil, 0, epoch.Add(time.Millisecond)); ok {
		t.Error("sent at once")
	}
	if got := d.ab.Next().Sub(epoch); got != againGap {
		t.Errorf("next is after %v, want %v", got, againGap)
	}
	msg, _ := d.ab.Tick(nil, epoch.Add(againGap))
	if len(msg) != InitiationSize {
		t.Fatalf("%d bytes", len(msg))
	}
	receive(t, d.b, msg, addrA, epoch.Add(againGap))
}

// Initiations that were delayed and arrive together are all answered: the answer to the last one is of use.
func TestAgainDelayed(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	first := initiation(t, d.ab, epoch)
	second, ok := d.ab.Again(nil, 0, epoch.Add(againGap))
	if !ok {
		t.Fatal("not begun anew")
	}
	now := epoch.Add(time.Second)
	r := receive(t, d.b, first, addrA, now)
	early := append([]byte(nil), r.Reply...)
	r = receive(t, d.b, second, addrA, now)
	if _, err := d.a.Receive(nil, early, addrB, now); !errors.Is(err, ErrIndex) {
		t.Errorf("the answer to the one that was replaced: %v", err)
	}
	if r := receive(t, d.a, r.Reply, addrB, now); !r.Established {
		t.Error("no key")
	}
}

// After RekeyTimeout there are as many again, and a peer that was removed begins nothing.
func TestAgainLater(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	initiation(t, d.ab, epoch)
	now := epoch
	count := func() (n int) {
		for range 20 {
			now = now.Add(againGap)
			if _, ok := d.ab.Again(nil, 0, now); ok {
				n++
			}
		}
		return n
	}
	first := count()
	now = now.Add(RekeyTimeout)
	if second := count(); first != AgainLimit || second != AgainLimit {
		t.Errorf("%d, then %d", first, second)
	}
	d.a.RemovePeer(d.ab)
	if _, ok := d.ab.Again(nil, 0, now.Add(time.Minute)); ok {
		t.Error("a removed peer begins handshakes")
	}
}
