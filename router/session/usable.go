// SPDX-License-Identifier: Apache-2.0

package session

import "crypto/ecdh"

// Usable reports whether a secret can be shared with the owner of the key: a point of low order is
// nobody's, and [Machine.AddPeer] refuses it. It depends on the key alone, and takes as long as a
// handshake's computation.
func (k PublicKey) Usable() bool {
	point, err := ecdh.X25519().NewPublicKey(k[:])
	if err != nil {
		return false
	}
	one, err := ecdh.X25519().NewPrivateKey([]byte{KeySize - 1: 1})
	if err != nil {
		return false
	}
	_, err = one.ECDH(point)
	return err == nil
}
