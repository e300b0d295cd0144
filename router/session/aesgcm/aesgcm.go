// SPDX-License-Identifier: Apache-2.0

package aesgcm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"errors"
	"unsafe"
)

// Sizes, and the longest plaintext.
const (
	KeySize   = 32 // bytes of a key
	NonceSize = 12 // bytes of a nonce
	TagSize   = 16 // bytes by which what is sealed is longer
	blockSize = aes.BlockSize
	maxBytes  = (1<<32 - 2) * blockSize // of a plaintext (SP 800-38D, 5.2.1.1)
)

var errOpen = errors.New("aesgcm: message authentication failed")

// New returns AES-256-GCM with a key (NIST SP 800-38D), for concurrent use. It does what [cipher.NewGCM] of [aes.NewCipher] does, but that
// who opens may not count on the text of the error.
func New(key *[KeySize]byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	standard, err := cipher.NewGCM(block)
	if err != nil || !isWide() || fips140.Enabled() {
		return standard, err
	}
	return &aead{AEAD: standard, key: newWide(key, block)}, nil
}

// aead leaves to the embedded one what is no data message of whole blocks.
type aead struct {
	cipher.AEAD
	key *wide
}

func (a *aead) Seal(dst, nonce, plaintext, additional []byte) []byte {
	if len(nonce) != NonceSize || len(plaintext)%blockSize != 0 || len(additional) != blockSize || uint64(len(plaintext)) > maxBytes {
		return a.AEAD.Seal(dst, nonce, plaintext, additional)
	}
	whole, out := grow(dst, len(plaintext)+TagSize)
	if overlap(out, plaintext) || anyOverlap(out, additional) {
		panic("aesgcm: what is sealed overlaps where it goes")
	}
	tag := a.key.seal(out, plaintext, nonce, additional)
	copy(out[len(plaintext):], tag[:])
	return whole
}

func (a *aead) Open(dst, nonce, sealed, additional []byte) ([]byte, error) {
	n := len(sealed) - TagSize
	if len(nonce) != NonceSize || n < 0 || n%blockSize != 0 || len(additional) != blockSize || uint64(n) > maxBytes {
		return a.AEAD.Open(dst, nonce, sealed, additional)
	}
	whole, out := grow(dst, n)
	if overlap(out, sealed) || anyOverlap(out, additional) {
		panic("aesgcm: what is opened overlaps where it goes")
	}
	if !a.key.open(out, sealed[:n], nonce, additional, sealed[n:]) {
		clear(out)
		return nil, errOpen
	}
	return whole, nil
}

// grow returns dst with n more bytes, and those.
func grow(dst []byte, n int) (whole, more []byte) {
	total := len(dst) + n
	if cap(dst) >= total {
		whole = dst[:total]
	} else {
		whole = make([]byte, total)
		copy(whole, dst)
	}
	return whole, whole[len(dst):]
}

// overlap reports whether two slices share memory, but do not begin together.
func overlap(a, b []byte) bool {
	return len(a) > 0 && len(b) > 0 && &a[0] != &b[0] && anyOverlap(a, b)
}

func anyOverlap(a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	at, bt := uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&b[0]))
	return at < bt+uintptr(len(b)) && bt < at+uintptr(len(a))
}
