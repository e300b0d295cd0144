// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/ecdh"
	"fmt"

	"golang.org/x/crypto/blake2s"
)

// Shared returns a secret that this host and the peer can compute and nobody else: BLAKE2s-256 of the label, keyed with what their two static keys make by
// X25519. It is the same on both sides, and does not change as long as the keys do not; another label makes another one, of
// which none tells anything of the handshakes. It takes a multiplication on the curve, some 50 µs. The error says that the peer's key is of no use, which
// AddPeer has ruled out.
func (p *Peer) Shared(label string) (secret [KeySize]byte, err error) {
	point, err := ecdh.X25519().NewPublicKey(p.public[:])
	if err != nil {
		return secret, fmt.Errorf("sharing a secret with %s: %w", p.public, err)
	}
	shared, err := p.machine.own.key.ECDH(point)
	if err != nil {
		return secret, fmt.Errorf("sharing a secret with %s: %w", p.public, err)
	}
	h, err := blake2s.New256(shared)
	if err != nil {
		return secret, fmt.Errorf("sharing a secret with %s: %w", p.public, err)
	}
	_, _ = h.Write([]byte(label)) // hashes do not fail
	h.Sum(secret[:0])
	return secret, nil
}
