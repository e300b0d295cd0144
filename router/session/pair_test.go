// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/ecdh"
	"testing"

	"golang.org/x/crypto/blake2s"
)

// Both sides have the same secret, other pairs and other labels have others.
func TestShared(t *testing.T) {
	machines := map[byte]*Machine{}
	private := map[byte]PrivateKey{}
	for i := byte(1); i <= 3; i++ {
		k, err := NewPrivateKey(bytes.NewReader(bytes.Repeat([]byte{i}, KeySize)))
		if err != nil {
			t.Fatal(err)
		}
		m, err := New(Config{Private: k, Rand: bytes.NewReader(nil)})
		if err != nil {
			t.Fatal(err)
		}
		machines[i], private[i] = m, k
	}
	shared := func(from, to byte, label string) [KeySize]byte {
		p, err := machines[from].AddPeer(PeerConfig{Public: machines[to].Public()})
		if err != nil {
			t.Fatal(err)
		}
		defer machines[from].RemovePeer(p)
		s, err := p.Shared(label)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	one := shared(1, 2, "a")
	if one != shared(2, 1, "a") {
		t.Error("the two sides differ")
	}
	if one == shared(1, 3, "a") || one == shared(1, 2, "b") || one == shared(2, 3, "a") {
		t.Error("a secret is shared with others")
	}
	// What it is, once more by hand.
	k1, k2 := private[1], machines[2].Public()
	key, err := ecdh.X25519().NewPrivateKey(k1[:])
	if err != nil {
		t.Fatal(err)
	}
	point, err := ecdh.X25519().NewPublicKey(k2[:])
	if err != nil {
		t.Fatal(err)
	}
	dh, err := key.ECDH(point)
	if err != nil {
		t.Fatal(err)
	}
	h, err := blake2s.New256(dh)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = h.Write([]byte("a"))
	if !bytes.Equal(h.Sum(nil), one[:]) {
		t.Errorf("%x", one)
	}
}
