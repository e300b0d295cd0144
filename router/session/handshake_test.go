// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"
)

func TestHandshake(t *testing.T) {
	for _, sa := range suites {
		for _, sb := range suites {
			t.Run(fmt.Sprintf("%s initiates, %s answers", sa, sb), func(t *testing.T) {
				d := newDuo(t, sa, sb)
				ka, kb := d.shake(t, epoch)
				if ka.Suite() != sa || kb.Suite() != sa {
					t.Errorf("suites %s and %s, want the initiator's", ka.Suite(), kb.Suite())
				}
				if ka.Peer() != d.ab || kb.Peer() != d.ba || d.ab.Public() != d.b.Public() {
					t.Error("keys belong to the wrong peers")
				}
				for _, n := range []int{0, 1, 15, 16, 17, 1400, 65535} {
					b := make([]byte, n)
					_, _ = rand.Read(b)
					carry(t, d.ab, d.b, b, epoch)
					carry(t, d.ba, d.a, b, epoch)
				}
				s := d.ab.Stats()
				if !s.LastHandshake.Equal(epoch) || s.Handshakes != 1 || !s.Keyed || s.Suite != sa || !s.Initiator || s.Handshaking || s.Attempts != 0 || s.Sealed != 8 {
					t.Errorf("initiator's stats: %+v", s)
				}
				s = d.ba.Stats()
				if !s.LastHandshake.Equal(epoch) || s.Handshakes != 1 || !s.Keyed || s.Suite != sa || s.Initiator || s.Sealed != 7 {
					t.Errorf("responder's stats: %+v", s)
				}
			})
		}
	}
}

// TestExclusive: a peer that is held to its suite is refused in any other one, and loses nothing by the refusal.
func TestExclusive(t *testing.T) {
	d := newDuo(t, Weft, WireGuard)
	d.b.RemovePeer(d.ba)
	d.ba = addPeer(t, d.b, PeerConfig{Public: d.a.Public(), Preshared: d.psk, Suite: WireGuard, Exclusive: true})
	r, err := d.b.Receive(nil, initiation(t, d.ab, epoch), addrA, epoch)
	if !errors.Is(err, ErrSuite) || len(r.Reply) != 0 || d.ba.Stats().Keyed {
		t.Errorf("another suite: %+v, %v", r, err)
	}
	// In the suite that it is held to it is answered, even with a timestamp as old as that one.
	d.a.RemovePeer(d.ab)
	d.ab = addPeer(t, d.a, PeerConfig{Public: d.b.Public(), Preshared: d.psk, Suite: WireGuard})
	if k, _ := d.shake(t, epoch); k.Suite() != WireGuard {
		t.Errorf("the session is in suite %s", k.Suite())
	}
}

// TestResponderWaits: the responder sends nothing under a key that is not confirmed, and the
// initiator's confirmation may be any datagram.
func TestResponderWaits(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	r := receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch)
	if r.Peer != d.ba || r.Established {
		t.Errorf("initiation: %+v", r)
	}
	if d.ba.Key(epoch) != nil {
		t.Fatal("responder has a key for sending before it was confirmed")
	}
	r = receive(t, d.a, r.Reply, addrB, epoch)
	if r.Peer != d.ab || len(r.Reply) != Overhead || r.Reply[0] != TypeData {
		t.Errorf("response: %+v", r)
	}
	// The confirmation is lost; data confirms as well.
	msg, err := d.ab.Key(epoch).Seal(nil, []byte("data"))
	must(t, err)
	kb := d.b.Keypair(Receiver(msg))
	_, err = kb.Open(msg, epoch)
	must(t, err)
	if established, _ := d.ba.Received(epoch, kb, false); !established || d.ba.Key(epoch) != kb {
		t.Fatal("data did not confirm the key")
	}
	if established, _ := d.ba.Received(epoch, kb, false); established {
		t.Fatal("a key was confirmed twice")
	}
}

// fixMAC1 makes an altered message pass the first check.
func fixMAC1(t *testing.T, msg []byte, to PublicKey) {
	keys := newGuardKeys(to)
	at := len(msg) - 2*macSize
	sum, err := mac(keys.mac1[:], msg[:at])
	must(t, err)
	copy(msg[at:], sum[:])
}

// TestAlteredHandshake flips every bit of both messages, with and without making mac1 right again, and
// requires that nothing but an error comes of it, and that the true message still works.
func TestAlteredHandshake(t *testing.T) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			d := newDuo(t, s, s)
			alter := func(m *Machine, msg []byte) {
				t.Helper()
				for _, fix := range []bool{false, true} {
					for bit := range (len(msg) - macSize) * 8 {
						bad := bytes.Clone(msg)
						bad[bit/8] ^= 1 << (bit % 8)
						if fix {
							if bit/8 >= len(msg)-2*macSize {
								break
							}
							fixMAC1(t, bad, m.Public())
						}
						if fix && bit/8 >= senderAt && bit/8 < senderAt+4 {
							continue // the sender's index is not authenticated by the handshake: see below
						}
						r, err := m.Receive(nil, bad, addrA, epoch)
						// The top bit of a Curve25519 point is ignored, but it is part of the hash.
						if err == nil || r.Peer != nil || r.Established || len(r.Reply) > 0 {
							t.Fatalf("type %d, bit %d, mac1 fixed %v: %+v, %v", msg[0], bit, fix, r, err)
						}
					}
				}
				for n := range len(msg) {
					if _, err := m.Receive(nil, msg[:n], addrA, epoch); err == nil {
						t.Fatalf("type %d cut to %d bytes was accepted", msg[0], n)
					}
				}
			}
			d.b.gate.init(1 << 20) // so many messages are a load
			d.a.gate.init(1 << 20)
			first := initiation(t, d.ab, epoch)
			alter(d.b, first)
			second := receive(t, d.b, first, addrA, epoch).Reply
			alter(d.a, second)

			// A point of low order makes the shared secret zero for everybody.
			bad := bytes.Clone(second)
			clear(bad[responseNoiseAt : responseNoiseAt+KeySize])
			fixMAC1(t, bad, d.a.Public())
			if _, err := d.a.Receive(nil, bad, addrB, epoch); !errors.Is(err, ErrAuth) {
				t.Fatalf("response with a low-order point: %v", err)
			}
			bad = bytes.Clone(first)
			clear(bad[initiationNoiseAt : initiationNoiseAt+KeySize])
			fixMAC1(t, bad, d.b.Public())
			if _, err := d.b.Receive(nil, bad, addrA, epoch); !errors.Is(err, ErrAuth) {
				t.Fatalf("initiation with a low-order point: %v", err)
			}

			r := receive(t, d.a, second, addrB, epoch)
			if !r.Established {
				t.Fatal("the true response no longer works")
			}
			carry(t, d.ab, d.b, []byte("works"), epoch)
		})
	}
}

// TestAlteredSenderIndex: someone on the path can change where answers go, as in WireGuard, and all
// that comes of it is that the handshake fails and the next one works.
func TestAlteredSenderIndex(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	msg := initiation(t, d.ab, epoch)
	msg[senderAt] ^= 1
	fixMAC1(t, msg, d.b.Public())
	r := receive(t, d.b, msg, addrA, epoch)
	if _, err := d.a.Receive(nil, r.Reply, addrB, epoch); !errors.Is(err, ErrIndex) {
		t.Fatalf("answer to another index: %v", err)
	}
	if d.ba.Key(epoch) != nil {
		t.Fatal("a key came into use")
	}
	msg, _ = d.ab.Tick(nil, epoch.Add(RekeyTimeout+MaxJitter))
	r = receive(t, d.b, msg, addrA, epoch.Add(6*time.Second))
	receive(t, d.a, r.Reply, addrB, epoch.Add(6*time.Second))
	carry(t, d.ab, d.b, []byte("works"), epoch.Add(6*time.Second))
}

// TestRefused is the table of handshakes that come to nothing.
func TestRefused(t *testing.T) {
	later := epoch.Add(time.Minute)
	for _, c := range []struct {
		name string
		want error
		do   func(t *testing.T, d *duo) error
	}{
		{"initiation for another node", ErrMAC1, func(t *testing.T, d *duo) error {
			_, err := d.a.Receive(nil, initiation(t, d.ab, epoch), addrA, epoch)
			return err
		}},
		{"initiation from a stranger", ErrUnknownPeer, func(t *testing.T, d *duo) error {
			m := newMachine(t, newKey(t))
			p := addPeer(t, m, PeerConfig{Public: d.b.Public(), Preshared: d.psk})
			_, err := d.b.Receive(nil, initiation(t, p, epoch), addrA, epoch)
			return err
		}},
		{"initiation from a removed peer", ErrUnknownPeer, func(t *testing.T, d *duo) error {
			d.b.RemovePeer(d.ba)
			_, err := d.b.Receive(nil, initiation(t, d.ab, epoch), addrA, epoch)
			return err
		}},
		{"initiation with the public key of another", ErrAuth, func(t *testing.T, d *duo) error {
			thief := newKey(t)
			m := newMachine(t, thief)
			m.own.public = d.a.Public()
			p := addPeer(t, m, PeerConfig{Public: d.b.Public(), Preshared: d.psk})
			_, err := d.b.Receive(nil, initiation(t, p, epoch), addrA, epoch)
			return err
		}},
		{"initiation twice", ErrReplay, func(t *testing.T, d *duo) error {
			msg := initiation(t, d.ab, epoch)
			receive(t, d.b, msg, addrA, epoch)
			_, err := d.b.Receive(nil, msg, addrA, later)
			return err
		}},
		{"initiation overtaken by a later one", ErrReplay, func(t *testing.T, d *duo) error {
			early := initiation(t, d.ab, epoch)
			msg, _ := d.ab.Tick(nil, later)
			receive(t, d.b, msg, addrA, later)
			_, err := d.b.Receive(nil, early, addrA, later.Add(time.Second))
			return err
		}},
		{"more initiations at once than may be delayed", ErrFlood, func(t *testing.T, d *duo) error {
			return initiations(t, d, floodBurst, epoch.Add(flood-1))
		}},
		{"initiations that were delayed", nil, func(t *testing.T, d *duo) error {
			return initiations(t, d, floodBurst-1, epoch)
		}},
		{"many initiations, and one in proper distance", nil, func(t *testing.T, d *duo) error {
			return initiations(t, d, floodBurst, epoch.Add(flood))
		}},
		{"response twice", ErrIndex, func(t *testing.T, d *duo) error {
			r := receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch)
			receive(t, d.a, r.Reply, addrB, epoch)
			_, err := d.a.Receive(nil, r.Reply, addrB, epoch)
			return err
		}},
		{"response to an initiation that was repeated since", ErrIndex, func(t *testing.T, d *duo) error {
			r := receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch)
			d.ab.Tick(nil, later)
			_, err := d.a.Receive(nil, r.Reply, addrB, later)
			return err
		}},
		{"response under another preshared key", ErrAuth, func(t *testing.T, d *duo) error {
			d.ba.preshared[0][3]++
			r := receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch)
			_, err := d.a.Receive(nil, r.Reply, addrB, epoch)
			return err
		}},
		{"response in another suite", ErrSuite, func(t *testing.T, d *duo) error {
			r := receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch)
			r.Reply[1] ^= 1
			fixMAC1(t, r.Reply, d.a.Public())
			_, err := d.a.Receive(nil, r.Reply, addrB, epoch)
			return err
		}},
		{"initiation turned into another suite", ErrAuth, func(t *testing.T, d *duo) error {
			msg := initiation(t, d.ab, epoch)
			msg[1] ^= 1
			fixMAC1(t, msg, d.b.Public())
			_, err := d.b.Receive(nil, msg, addrA, epoch)
			return err
		}},
		{"data message", ErrType, func(t *testing.T, d *duo) error {
			ka, _ := d.shake(t, epoch)
			msg, err := ka.Seal(nil, nil)
			must(t, err)
			_, err = d.b.Receive(nil, msg, addrA, epoch)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.do(t, newDuo(t, Weft, Weft)); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// TestRestart: a peer that forgot everything is answered at once, and what it sent before is not
// accepted again.
func TestRestart(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	old := initiation(t, d.ab, epoch.Add(-time.Minute))
	d.ab.Reset()
	ka, kb := d.shake(t, epoch)
	sealed, err := ka.Seal(nil, []byte("before"))
	must(t, err)

	d.a = newMachine(t, d.keyA)
	d.ab = addPeer(t, d.a, PeerConfig{Public: d.b.Public(), Preshared: d.psk, Suite: WireGuard})
	now := epoch.Add(time.Second)
	d.shake(t, now)
	carry(t, d.ab, d.b, []byte("after"), now)
	carry(t, d.ba, d.a, []byte("after"), now)
	if _, err := kb.Open(bytes.Clone(sealed), now); err != nil {
		t.Errorf("datagram from before the restart that comes late: %v", err)
	}
	if _, err := kb.Open(sealed, now); !errors.Is(err, ErrReplay) && !errors.Is(err, ErrAuth) {
		t.Errorf("the same again: %v", err)
	}
	if _, err := d.b.Receive(nil, old, addrA, now); !errors.Is(err, ErrReplay) {
		t.Errorf("initiation from before the restart: %v", err)
	}
}

// TestClockSteps: within a process the clock may step back; across a restart the peer refuses us, but
// can reach us.
func TestClockSteps(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	d.shake(t, epoch)
	back := epoch.Add(-time.Hour)
	d.ab.Reset()
	d.shake(t, back)
	d.ab.Reset()
	d.shake(t, back.Add(-time.Millisecond))

	d.a = newMachine(t, d.keyA)
	d.ab = addPeer(t, d.a, PeerConfig{Public: d.b.Public(), Preshared: d.psk, Suite: Weft})
	if _, err := d.b.Receive(nil, initiation(t, d.ab, back.Add(time.Second)), addrA, epoch); !errors.Is(err, ErrReplay) {
		t.Fatalf("restarted with the clock set back: %v", err)
	}
	d.ba.Reset()
	r := receive(t, d.a, initiation(t, d.ba, epoch), addrB, back)
	r = receive(t, d.b, r.Reply, addrA, epoch)
	if _, err := d.a.Keypair(Receiver(r.Reply)).Open(r.Reply, back); err != nil {
		t.Fatal(err)
	}
	// Removing and adding forgets.
	d.b.RemovePeer(d.ba)
	d.ba = addPeer(t, d.b, PeerConfig{Public: d.a.Public(), Preshared: d.psk})
	d.ab.Reset()
	d.shake(t, back.Add(time.Minute))
}

func TestAddPeerErrors(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	other := newKey(t).Public()
	for _, c := range []struct {
		name string
		peer PeerConfig
		want string
	}{
		{"own key", PeerConfig{Public: d.a.Public()}, "own key"},
		{"twice", PeerConfig{Public: d.b.Public()}, "remove it first"},
		{"zero key", PeerConfig{}, "not a usable"},
		{"low-order key", PeerConfig{Public: PublicKey{1}}, "not a usable"},
		{"suite", PeerConfig{Public: other, Suite: 2}, "unknown suite(2)"},
		{"negative keepalive", PeerConfig{Public: other, Keepalive: -1}, "keepalive"},
		{"long keepalive", PeerConfig{Public: other, Keepalive: 65536 * time.Second}, "keepalive"},
	} {
		p, err := d.a.AddPeer(c.peer)
		if p != nil || err == nil || !bytes.Contains([]byte(err.Error()), []byte(c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if len(d.a.peers) != 1 {
		t.Errorf("%d peers", len(d.a.peers))
	}
	for _, c := range []Config{{}, {Rand: rand.Reader, HandshakeRate: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("New accepts rate %d, randomness %v", c.HandshakeRate, c.Rand)
		}
	}
}

// flaky is randomness that fails after so many bytes.
type flaky struct{ left int }

func (f *flaky) Read(b []byte) (int, error) {
	if f.left <= 0 {
		return 0, io.ErrNoProgress
	}
	n, err := rand.Read(b[:min(len(b), f.left)])
	f.left -= n
	return n, err
}

// TestNoRandomness: wherever randomness fails, nothing is sent or leaked, and it works afterwards.
func TestNoRandomness(t *testing.T) {
	for n := range 60 {
		d := newDuo(t, Weft, Weft)
		f := &flaky{left: n}
		d.a.rand.r = f
		now := epoch
		msg, ok := d.ab.Initiate(nil, now)
		if ok != (len(msg) == InitiationSize) {
			t.Fatalf("%d bytes of randomness: %d bytes, %v", n, len(msg), ok)
		}
		if !ok {
			if d.a.table.used != 0 {
				t.Fatalf("%d bytes: an index leaked", n)
			}
			f.left = 1 << 20
			now = now.Add(RekeyTimeout + MaxJitter)
			if msg, _ = d.ab.Tick(nil, now); len(msg) != InitiationSize {
				t.Fatalf("%d bytes: not tried again", n)
			}
		}
		f.left = 1 << 20

		g := &flaky{left: n}
		d.b.rand.r = g
		r, err := d.b.Receive(nil, msg, addrA, now)
		if err != nil {
			if !errors.Is(err, io.ErrNoProgress) && !errors.Is(err, io.ErrUnexpectedEOF) || len(r.Reply) > 0 || r.Peer != nil {
				t.Fatalf("%d bytes: %+v, %v", n, r, err)
			}
			if d.b.table.used != 0 {
				t.Fatalf("%d bytes: an index leaked at the responder", n)
			}
			g.left = 1 << 20
			now = now.Add(RekeyTimeout + MaxJitter)
			if msg, _ = d.ab.Tick(nil, now); len(msg) == 0 {
				t.Fatal("not tried again")
			}
			r = receive(t, d.b, msg, addrA, now)
		}
		receive(t, d.a, r.Reply, addrB, now)
		carry(t, d.ab, d.b, []byte("works"), now)
	}
}
