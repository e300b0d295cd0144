// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// KeySize is the length of every key in bytes.
const KeySize = 32

// hidden is what a secret prints as.
const hidden = "(hidden)"

// PrivateKey is a Curve25519 scalar. It prints and marshals as "(hidden)" whatever the verb. Two
// things fmt does not let a type prevent: it prints unexported fields without asking them, and so it
// does with all that a pointer with a wrong verb ("%!s(...") points to. In a struct of your own, keep
// secrets behind a pointer.
type PrivateKey [KeySize]byte

// PublicKey is a Curve25519 point. It prints and marshals as base64, as WireGuard tools show it.
type PublicKey [KeySize]byte

// PresharedKey is mixed into the handshake as Noise's psk2. The zero value means none, as in
// WireGuard. It prints as PrivateKey does.
type PresharedKey [KeySize]byte

// NewPrivateKey reads a key from rand, which must be a cryptographic source. The error is that of
// rand.
func NewPrivateKey(rand io.Reader) (PrivateKey, error) {
	var k PrivateKey
	if _, err := io.ReadFull(rand, k[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("make a private key: read randomness: %w", err)
	}
	// RFC 7748 §5: the arithmetic clamps anyway; stored keys look as WireGuard tools expect them.
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k, nil
}

// Public returns the public key that belongs to k.
func (k PrivateKey) Public() PublicKey {
	own, err := newIdentity(k)
	if err != nil {
		return PublicKey{} // only where FIPS 140 is enforced, and there New says so
	}
	return own.public
}

// Format writes "(hidden)" for every verb and flag.
func (k PrivateKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, hidden) }

// String returns "(hidden)".
func (k PrivateKey) String() string { return hidden }

// MarshalText returns "(hidden)": encoders of logs and answers must not see the key.
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Format writes "(hidden)" for every verb and flag.
func (k PresharedKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, hidden) }

// String returns "(hidden)".
func (k PresharedKey) String() string { return hidden }

// MarshalText returns "(hidden)": encoders of logs and answers must not see the key.
func (k PresharedKey) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// ErrKey reports text that is not the base64 form of a key.
var ErrKey = errors.New("not a public key: want 44 characters of base64 for 32 bytes")

// ParsePublicKey reads the form that String writes. It fails with ErrKey.
func ParsePublicKey(s string) (PublicKey, error) {
	var k PublicKey
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != KeySize {
		return PublicKey{}, ErrKey
	}
	copy(k[:], b)
	return k, nil
}

// String returns the key in base64.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText returns the key in base64.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote. It fails with ErrKey and leaves k alone then.
func (k *PublicKey) UnmarshalText(text []byte) error {
	parsed, err := ParsePublicKey(string(text))
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}
