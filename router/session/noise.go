// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"

	"github.com/flynn/noise"
)

// Prologues of the two suites. WireGuard's identifier is what Noise calls the prologue
// (whitepaper §5.4.1).
const (
	prologueWireGuard = "WireGuard v1 zx2c4 Jason@zx2c4.com"
	prologueWeft      = "Weft v1"
)

// identity is the local static key in the forms that handshakes need.
type identity struct {
	private []byte
	key     *ecdh.PrivateKey
	public  PublicKey
}

func newIdentity(k PrivateKey) (*identity, error) {
	key, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return nil, fmt.Errorf("use the private key: %w", err)
	}
	return &identity{private: k[:], key: key, public: PublicKey(key.PublicKey().Bytes())}, nil
}

// Format writes the public key, whatever the verb.
func (i *identity) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "identity %s", i.public) }

// agrees reports whether a secret can be shared with the owner of k: not with a point of low order.
func (i *identity) agrees(k PublicKey) bool {
	point, err := ecdh.X25519().NewPublicKey(k[:])
	if err != nil {
		return false
	}
	_, err = i.key.ECDH(point)
	return err == nil
}

// curve is Curve25519 for one handshake. It differs from noise.DH25519 in two ways. It keeps the two
// private keys ready, which halves the work. And a low-order public key yields zeros, as Noise
// §12.1 wants it, not an error: the handshake then fails at the next tag, as it does with any wrong
// key, and flynn/noise rolls its state back, which it does not after an error.
type curve struct {
	own       *identity
	ephemeral *ecdh.PrivateKey
}

func (c *curve) GenerateKeypair(rand io.Reader) (noise.DHKey, error) {
	private := make([]byte, KeySize)
	if _, err := io.ReadFull(rand, private); err != nil {
		return noise.DHKey{}, fmt.Errorf("make an ephemeral key: read randomness: %w", err)
	}
	key, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		return noise.DHKey{}, err
	}
	c.ephemeral = key
	return noise.DHKey{Private: private, Public: key.PublicKey().Bytes()}, nil
}

// DH is called with one of two private keys: that of the identity, or the last one generated.
func (c *curve) DH(private, public []byte) ([]byte, error) {
	key := c.ephemeral
	if &private[0] == &c.own.private[0] {
		key = c.own.key
	}
	point, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	shared, err := key.ECDH(point)
	if err != nil {
		return make([]byte, KeySize), nil
	}
	return shared, nil
}

func (c *curve) DHLen() int     { return KeySize }
func (c *curve) DHName() string { return "25519" }

// newNoise starts Noise_IKpsk2 in the given suite. remote is the responder's key, or nil when this
// side is the responder, which learns the key from the first message.
func newNoise(s Suite, own *identity, remote *PublicKey, rand io.Reader) (*noise.HandshakeState, error) {
	cipher, prologue := noise.CipherChaChaPoly, prologueWireGuard
	if s == Weft {
		cipher, prologue = noise.CipherAESGCM, prologueWeft
	}
	c := noise.Config{
		CipherSuite:           noise.NewCipherSuite(&curve{own: own}, cipher, noise.HashBLAKE2s),
		Random:                rand,
		Pattern:               noise.HandshakeIK,
		Prologue:              []byte(prologue),
		PresharedKeyPlacement: 2,
		StaticKeypair:         noise.DHKey{Private: own.private, Public: own.public[:]},
	}
	if remote != nil {
		c.Initiator, c.PeerStatic = true, remote[:]
	}
	return noise.NewHandshakeState(c)
}

var errNoKeys = errors.New("handshake ended without keys: this is a bug, please report it")

// splitKeys returns the two keys of a finished handshake: the initiator's for sending, and the
// responder's.
func splitKeys(initiator, responder *noise.CipherState) (i, r [KeySize]byte, err error) {
	if initiator == nil || responder == nil {
		return i, r, errNoKeys
	}
	return initiator.UnsafeKey(), responder.UnsafeKey(), nil
}
