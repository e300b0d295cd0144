// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"errors"
	mrand "math/rand/v2"
	"testing"
	"time"
)

// fuzzDuo is two nodes that are the same in every run: a has an initiation in flight and both have a
// session. It returns the datagrams that are genuine.
func fuzzDuo(t testing.TB, suite Suite) (d *duo, genuine [][]byte) {
	d = &duo{keyA: PrivateKey{8}, keyB: PrivateKey{16}}
	for i, m := range []**Machine{&d.a, &d.b} {
		var err error
		*m, err = New(Config{Private: []PrivateKey{d.keyA, d.keyB}[i], Rand: mrand.NewChaCha8([32]byte{byte(i)})})
		must(t, err)
	}
	d.ab = addPeer(t, d.a, PeerConfig{Public: d.b.Public(), Suite: suite})
	d.ba = addPeer(t, d.b, PeerConfig{Public: d.a.Public(), Suite: suite})
	ka, kb := d.shake(t, epoch)
	for _, k := range []*Keypair{ka, kb} {
		msg, err := k.Seal(nil, []byte("genuine"))
		must(t, err)
		genuine = append(genuine, msg)
	}
	now := epoch.Add(time.Minute)
	i := initiation(t, d.ab, now)
	exhaust(d.b, now)
	cookie, _ := d.b.Receive(nil, i, addrA, now)
	d.b.gate.all, d.b.gate.loaded = bucket{}, time.Time{}
	r := receive(t, d.b, i, addrA, now)
	return d, append(genuine, i, r.Reply, cookie.Reply)
}

func FuzzReceive(f *testing.F) {
	for _, s := range suites {
		_, genuine := fuzzDuo(f, s)
		for _, msg := range genuine {
			f.Add(msg, byte(s), false)
			f.Add(msg, byte(s), true)
		}
	}
	// A node that has refused a message is as it was before; making one takes a hundred times as long.
	type made struct {
		d       *duo
		genuine [][]byte
	}
	var nodes [2]*made
	f.Fuzz(func(t *testing.T, msg []byte, suite byte, fix bool) {
		if nodes[suite%2] == nil {
			d, genuine := fuzzDuo(t, Suite(suite%2))
			nodes[suite%2] = &made{d, genuine}
		}
		d, genuine := nodes[suite%2].d, nodes[suite%2].genuine
		d.a.gate.all, d.a.gate.loaded = bucket{}, time.Time{}
		if fix && len(msg) > 2*macSize {
			msg = bytes.Clone(msg)
			fixMAC1(t, msg, d.a.Public())
		}
		now := epoch.Add(time.Minute)
		before := bytes.Clone(msg)
		r, err := d.a.Receive(nil, msg, addrB, now)
		if err == nil {
			nodes[suite%2] = nil
		}
		if !bytes.Equal(msg, before) {
			t.Error("the message was changed")
		}
		response, cookie := genuine[3], genuine[4]
		same := func(want []byte, upTo int) bool { return len(msg) == len(want) && bytes.Equal(msg[:upTo], want[:upTo]) }
		switch {
		case same(response, len(response)-macSize): // mac2 matters under load only
			if err != nil || r.Peer != d.ab || !r.Established {
				t.Errorf("the genuine response: %+v, %v", r, err)
			}
		case len(msg) > 2 && same(append([]byte{msg[0], msg[1]}, cookie[2:]...), len(cookie)):
			// a cookie's suite does not matter
		case err == nil:
			// The sender's index of a response is guarded by mac1 only, as in WireGuard.
			if fix && len(msg) == len(response) && bytes.Equal(msg[8:responseNoiseEnd], response[8:responseNoiseEnd]) {
				return
			}
			t.Errorf("accepted %x: %+v", msg, r)
		}
		if err != nil && (r.Peer != nil || r.Established || len(r.Reply) > 0) {
			t.Errorf("refused with %v, but %+v", err, r)
		}
	})
}

// unused returns a session as it was before it had received anything.
func unused(k *Keypair) *Keypair {
	u := &Keypair{peer: k.peer, suite: k.suite, initiator: k.initiator, created: k.created, rekeyAfter: k.rekeyAfter, local: k.local, remote: k.remote}
	u.ciphers.Store(k.ciphers.Load())
	return u
}

func FuzzOpen(f *testing.F) {
	for _, s := range suites {
		_, genuine := fuzzDuo(f, s)
		f.Add(genuine[0], byte(s))
		f.Add(genuine[1], byte(s))
	}
	var keys [2]*Keypair
	var all [2][][]byte
	for _, s := range suites {
		d, genuine := fuzzDuo(f, s)
		keys[s], all[s] = d.ba.Key(epoch), genuine
	}
	f.Fuzz(func(t *testing.T, msg []byte, suite byte) {
		k, genuine := unused(keys[suite%2]), all[suite%2]
		whole := bytes.Clone(msg)
		plaintext, err := k.Open(msg, epoch)
		if ok := bytes.Equal(whole, genuine[0]); ok != (err == nil) {
			t.Fatalf("genuine %v, but %v", ok, err)
		}
		if err == nil && !bytes.Equal(plaintext, pad([]byte("genuine"))) {
			t.Fatalf("opened as %x", plaintext)
		}
		if err == nil {
			if _, err := k.Open(whole, epoch); !errors.Is(err, ErrReplay) {
				t.Fatalf("a second time: %v", err)
			}
		} else if _, err := k.Open(bytes.Clone(genuine[0]), epoch); err != nil {
			t.Fatalf("the genuine one after a bad one: %v", err)
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add("")
	f.Add(PublicKey{1, 2, 3}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParsePublicKey(s); err == nil && k.String() != s {
			t.Errorf("%q became %s", s, k)
		}
	})
}
