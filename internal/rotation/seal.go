// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/weftnet/weft/internal/token"
)

// The message that gives the new token to one node:
//
//	4 bytes   length of the register
//	          the register
//	          the token, sealed to the node's X25519 key by HPKE (RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM)
//
// It travels within the mesh's own encryption under the old token besides. The info of HPKE binds it to the receiver and to the token's name.
const (
	sealLabel = "weft rotation 1"
	maxSealed = 512
)

// ErrSealed says that a token was not sealed to this node, or that it was altered.
var ErrSealed = errors.New("a new token that was sent to this node does not open")

func sealInfo(to uint64, key token.ID) []byte {
	b := binary.BigEndian.AppendUint64([]byte(sealLabel), to)
	return binary.BigEndian.AppendUint32(b, uint32(key))
}

// Give returns the message that gives the new token of s to a node. It fails with ErrNoToken, or if the node's key is none.
func (s State) Give(to Node) ([]byte, error) {
	k, ok := s.New()
	if !ok {
		return nil, ErrNoToken
	}
	point, err := ecdh.X25519().NewPublicKey(to.Public[:])
	if err != nil {
		return nil, fmt.Errorf("sealing the new token: %w", err)
	}
	public, err := hpke.NewDHKEMPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("sealing the new token: %w", err)
	}
	sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), sealInfo(to.ID, k.ID), []byte(k.Token.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("sealing the new token: %w", err)
	}
	register := s.Register.Encode()
	b := binary.BigEndian.AppendUint32(nil, uint32(len(register)))
	return append(append(b, register...), sealed...), nil
}

// Open opens a message that Give made for the node self with the given X25519 key. It fails with ErrMalformed or ErrSealed. It does not
// keep msg. Whether the token counts is told by [State.Take].
func Open(msg []byte, self uint64, private [32]byte) (Key, Register, error) {
	if len(msg) < 4 || len(msg) > 4+maxRegister+maxSealed {
		return Key{}, Register{}, ErrMalformed
	}
	n, rest := binary.BigEndian.Uint32(msg), msg[4:]
	if int64(n) > int64(len(rest)) {
		return Key{}, Register{}, ErrMalformed
	}
	r, err := Decode(rest[:n])
	if err != nil || r.Phase == None {
		return Key{}, Register{}, ErrMalformed
	}
	key, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return Key{}, Register{}, fmt.Errorf("opening the new token: %w", err)
	}
	secret, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return Key{}, Register{}, fmt.Errorf("opening the new token: %w", err)
	}
	plain, err := hpke.Open(secret, hpke.HKDFSHA256(), hpke.AES256GCM(), sealInfo(self, r.Key), rest[n:])
	if err != nil {
		return Key{}, Register{}, ErrSealed
	}
	t, err := token.Parse(string(plain))
	if err != nil {
		return Key{}, Register{}, ErrSealed
	}
	k, err := NewKey(t)
	return k, r, err
}
