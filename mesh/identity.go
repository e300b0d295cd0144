// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Identity is a node's signing key (Ed25519, RFC 8032) and the NodeID that is made of it. What a node says of itself, its record
// and its introductions, bears its signature; as the id is a digest of the key, nobody can speak for a node but
// whoever has that key, though every member has the token.
type Identity struct {
	key ed25519.PrivateKey
	id  NodeID
}

// NewIdentity derives the identity of the node whose secret is given, at least 32 bytes that no other node has, by HKDF-SHA256
// (RFC 5869). The same secret gives the same identity.
func NewIdentity(secret []byte) (Identity, error) {
	if len(secret) < ed25519.SeedSize {
		return Identity{}, fmt.Errorf("derive the node's identity: a secret of %d bytes is too short", len(secret))
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "weft v1 node identity", ed25519.SeedSize)
	if err != nil {
		return Identity{}, fmt.Errorf("derive the node's identity: %w", err)
	}
	i := Identity{key: ed25519.NewKeyFromSeed(seed)}
	i.id = idOf(i.signer())
	if !i.id.Valid() { // once in 2^63 times
		return Identity{}, errors.New("derive the node's identity: the secret gives no id; draw another")
	}
	return i, nil
}

// ID returns the node's id; 0 for the zero Identity.
func (i Identity) ID() NodeID { return i.id }

// String returns the id.
func (i Identity) String() string { return i.id.String() }

// GoString hides the key.
func (i Identity) GoString() string { return "mesh.Identity(" + i.id.String() + ")" }

func (i Identity) signer() (s [ed25519.PublicKeySize]byte) {
	if i.id == 0 && i.key == nil {
		return s
	}
	copy(s[:], i.key[ed25519.SeedSize:])
	return s
}

// idOf is the id of the node that signs with the given key: 63 bits of its digest.
func idOf(signer [ed25519.PublicKeySize]byte) NodeID {
	h := sha256.Sum256(append([]byte("weft v1 node id "), signer[:]...))
	return NodeID(binary.BigEndian.Uint64(h[:]) &^ (1 << 63))
}

// A signed thing travels as signer (32 bytes), signature (64), body. The signature covers a label that tells what it is, what it belongs
// to, and the body.
const signedHead = ed25519.PublicKeySize + ed25519.SignatureSize

const recordLabel = "weft v1 node record\x00"

// errSignature marks what its alleged sender has not signed.
var errSignature = errors.New("the signature is wrong")

func (i Identity) sign(label string, context, body []byte) []byte {
	signer := i.signer()
	b := append(make([]byte, 0, signedHead+len(body)), signer[:]...)
	b = append(b, ed25519.Sign(i.key, signedText(label, context, body))...)
	return append(b, body...)
}

func signedText(label string, context, body []byte) []byte {
	return bytes.Join([][]byte{[]byte(label), context, body}, nil)
}

// bodyOf returns the body of something signed and who it claims has signed it.
func bodyOf(b []byte) (id NodeID, body []byte, err error) {
	if len(b) < signedHead {
		return 0, nil, fmt.Errorf("%d bytes, less than a signature: %w", len(b), errWire)
	}
	return idOf([ed25519.PublicKeySize]byte(b[:ed25519.PublicKeySize])), b[signedHead:], nil
}

// verify tells whether b, which is long enough, bears the signature of its signer. It takes some 50 µs.
func verify(label string, context, b []byte) bool {
	signer, signature := b[:ed25519.PublicKeySize], b[ed25519.PublicKeySize:signedHead]
	return ed25519.Verify(signer, signedText(label, context, b[signedHead:]), signature)
}
