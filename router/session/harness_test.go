// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"time"

	"pgregory.net/rapid"
)

// epoch is when simulated time starts.
var epoch = time.Date(2030, 5, 17, 12, 0, 0, 0, time.UTC)

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:6783")
	addrB = netip.MustParseAddrPort("[2001:db8::2]:6783")
)

func newKey(t rapid.TB) PrivateKey {
	t.Helper()
	k, err := NewPrivateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newMachine(t rapid.TB, private PrivateKey) *Machine {
	t.Helper()
	m, err := New(Config{Private: private, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func addPeer(t rapid.TB, m *Machine, c PeerConfig) *Peer {
	t.Helper()
	p, err := m.AddPeer(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// duo is two machines that know each other.
type duo struct {
	keyA, keyB PrivateKey
	a, b       *Machine
	ab, ba     *Peer // a's view of b, b's view of a
	psk        PresharedKey
}

func newDuo(t rapid.TB, suiteA, suiteB Suite) *duo {
	t.Helper()
	d := &duo{keyA: newKey(t), keyB: newKey(t), psk: PresharedKey(newKey(t))}
	d.a, d.b = newMachine(t, d.keyA), newMachine(t, d.keyB)
	d.ab = addPeer(t, d.a, PeerConfig{Public: d.b.Public(), Preshared: d.psk, Suite: suiteA})
	d.ba = addPeer(t, d.b, PeerConfig{Public: d.a.Public(), Preshared: d.psk, Suite: suiteB})
	return d
}

// must fails the test if err is set.
func must(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// initiation has p make an initiation.
func initiation(t rapid.TB, p *Peer, now time.Time) []byte {
	t.Helper()
	msg, ok := p.Initiate(nil, now)
	if !ok || len(msg) != InitiationSize {
		t.Fatalf("Initiate: %d bytes, %v", len(msg), ok)
	}
	return msg
}

// initiations has b receive n initiations of a's at epoch and one more at last; it returns the error of that one.
func initiations(t rapid.TB, d *duo, n int, last time.Time) error {
	t.Helper()
	for range n {
		receive(t, d.b, initiation(t, d.ab, epoch), addrA, epoch)
		d.ab.Reset()
	}
	_, err := d.b.Receive(nil, initiation(t, d.ab, epoch), addrA, last)
	return err
}

// receive feeds a handshake message that must be accepted.
func receive(t rapid.TB, m *Machine, msg []byte, from netip.AddrPort, now time.Time) Result {
	t.Helper()
	r, err := m.Receive(nil, msg, from, now)
	if err != nil {
		t.Fatalf("Receive type %d: %v", msg[0], err)
	}
	return r
}

// shake runs a handshake that a initiates, including the confirmation, and returns the keys of a
// and b.
func (d *duo) shake(t rapid.TB, now time.Time) (ka, kb *Keypair) {
	t.Helper()
	r := receive(t, d.b, initiation(t, d.ab, now), addrA, now)
	r = receive(t, d.a, r.Reply, addrB, now)
	if !r.Established {
		t.Fatal("response did not establish a key")
	}
	kb = d.b.Keypair(Receiver(r.Reply))
	if kb == nil {
		t.Fatal("responder does not know its own index")
	}
	if _, err := kb.Open(r.Reply, now); err != nil {
		t.Fatalf("confirmation: %v", err)
	}
	if established, _ := d.ba.Received(now, kb, true); !established {
		t.Fatal("confirmation did not establish the responder's key")
	}
	return d.ab.Key(now), d.ba.Key(now)
}

// carry seals plaintext on one side, opens it on the other, and compares.
func carry(t rapid.TB, from *Peer, to *Machine, plaintext []byte, now time.Time) {
	t.Helper()
	k := from.Key(now)
	if k == nil {
		t.Fatal("no key for sending")
	}
	msg, err := k.Seal(nil, plaintext)
	must(t, err)
	in := to.Keypair(Receiver(msg))
	if in == nil {
		t.Fatal("receiver does not know the index")
	}
	got, err := in.Open(msg, now)
	must(t, err)
	if !bytes.Equal(got, pad(plaintext)) {
		t.Fatalf("plaintext changed on the way: sent %x, got %x", plaintext, got)
	}
}

func pad(b []byte) []byte {
	return append(append([]byte{}, b...), make([]byte, -len(b)&(Padding-1))...)
}

// node drives one machine with one peer as a router does: it queues packets while there is no key,
// seals and opens, and runs the timers. send hands datagrams to the network.
type node struct {
	t     rapid.TB
	m     *Machine
	p     *Peer
	send  func([]byte)
	queue [][]byte
	got   func([]byte) // plaintext that arrived
	drops map[error]int
}

func (n *node) emit(msg []byte) {
	if len(msg) > 0 {
		n.send(append([]byte(nil), msg...))
	}
}

// packet sends a packet of the workload.
func (n *node) packet(now time.Time, b []byte) {
	n.queue = append(n.queue, b)
	n.flush(now)
}

func (n *node) flush(now time.Time) {
	if len(n.queue) == 0 {
		return
	}
	k := n.p.Key(now)
	if k == nil {
		if len(n.queue) > MaxQueued {
			n.queue = n.queue[len(n.queue)-MaxQueued:]
		}
		msg, _ := n.p.Initiate(nil, now)
		n.emit(msg)
		return
	}
	for _, b := range n.queue {
		msg, err := k.Seal(nil, b)
		must(n.t, err)
		n.emit(msg)
	}
	n.queue = nil
	if n.p.Sent(now, false) {
		msg, _ := n.p.Initiate(nil, now)
		n.emit(msg)
	}
}

// datagram handles what came from the network; b may be anything.
func (n *node) datagram(now time.Time, b []byte, from netip.AddrPort) {
	if len(b) == 0 || b[0] != TypeData {
		r, err := n.m.Receive(nil, b, from, now)
		if err != nil {
			n.drops[err]++
		}
		n.emit(r.Reply)
		if r.Established {
			n.flush(now)
		}
		return
	}
	if len(b) < Overhead {
		n.drops[ErrShort]++
		return
	}
	k := n.m.Keypair(Receiver(b))
	if k == nil {
		n.drops[ErrIndex]++
		return
	}
	plaintext, err := k.Open(b, now)
	if err != nil {
		n.drops[err]++
		return
	}
	established, initiate := k.Peer().Received(now, k, len(plaintext) == 0)
	if len(plaintext) > 0 {
		n.got(plaintext)
	}
	if initiate {
		msg, _ := n.p.Initiate(nil, now)
		n.emit(msg)
	}
	if established {
		n.flush(now)
	}
}

// tick runs the timers that are due.
func (n *node) tick(now time.Time) {
	for {
		msg, next := n.p.Tick(nil, now)
		n.emit(msg)
		if next.IsZero() || next.After(now) {
			return
		}
	}
}

// setCounter is for tests of what happens after 2^60 messages.
func setCounter(k *Keypair, n uint64) { k.counter.Store(n) }

// counterOf returns the counter of a data message.
func counterOf(msg []byte) uint64 { return binary.LittleEndian.Uint64(msg[8:]) }
