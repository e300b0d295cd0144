// SPDX-License-Identifier: Apache-2.0

//go:build !purego

package aesgcm

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/cpu"
)

const (
	rounds   = 14 // of AES with keys of 256 bits (FIPS 197)
	maxPower = 16 // blocks that are hashed at once
)

// wide is an expanded key. wide_amd64.s knows its layout.
type wide struct {
	schedule [rounds + 1][blockSize]byte
	powers   [maxPower][blockSize]byte // of the hash key, the largest first; see reflected
	sums     [maxPower][blockSize]byte // of the halves of each, in the lower one
}

//go:noescape
func seal(k *wide, dst, src *byte, blocks int, nonce, aad, tag *byte)

//go:noescape
func open(k *wide, dst, src *byte, blocks int, nonce, aad, tag *byte)

// subWord is SubWord of FIPS 197, in constant time.
func subWord(w uint32) uint32

// extended returns register ECX of CPUID, leaf 7.
func extended() (ecx uint32)

// isWide reports whether the processor has all the instructions, and the system keeps their registers.
func isWide() bool {
	const vaes, vpclmulqdq = 1 << 9, 1 << 10
	return cpu.X86.HasAVX2 && cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && extended()&(vaes|vpclmulqdq) == vaes|vpclmulqdq
}

// newWide expands a key. block is the cipher with the same key.
func newWide(key *[KeySize]byte, block cipher.Block) *wide {
	k := &wide{}
	k.expand(key)
	var zero, h [blockSize]byte
	block.Encrypt(h[:], zero[:])
	k.raise(h)
	return k
}

// raise computes the powers of a hash key.
func (k *wide) raise(h [blockSize]byte) {
	for i, power := maxPower-1, element(h); i >= 0; i, power = i-1, power.times(element(h)) {
		k.powers[i] = power.reflected()
		subtle.XORBytes(k.sums[i][:8], k.powers[i][:8], k.powers[i][8:])
	}
}

// expand is KeyExpansion of FIPS 197, 5.2.
func (k *wide) expand(key *[KeySize]byte) {
	const words = KeySize / 4
	var w [4 * (rounds + 1)]uint32
	for i := range words {
		w[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	for i := words; i < len(w); i++ {
		t := w[i-1]
		switch i % words {
		case 0:
			t = subWord(bits.RotateLeft32(t, -8)) ^ 1<<(i/words-1) // words are little-endian here
		case 4:
			t = subWord(t)
		}
		w[i] = w[i-words] ^ t
	}
	for i, word := range w {
		binary.LittleEndian.PutUint32(k.schedule[i/4][4*(i%4):], word)
	}
}

// seal encrypts src, whole blocks, to dst, and returns the tag.
func (k *wide) seal(dst, src, nonce, aad []byte) (tag [TagSize]byte) {
	seal(k, start(dst), start(src), len(src)/blockSize, &nonce[0], &aad[0], &tag[0])
	return tag
}

// open decrypts src, whole blocks, to dst, and reports whether the tag is right.
func (k *wide) open(dst, src, nonce, aad, tag []byte) bool {
	var want [TagSize]byte
	open(k, start(dst), start(src), len(src)/blockSize, &nonce[0], &aad[0], &want[0])
	return subtle.ConstantTimeCompare(want[:], tag) == 1
}

// start returns where a slice begins, nil if it has no bytes.
func start(b []byte) *byte {
	if len(b) == 0 {
		return nil
	}
	return &b[0]
}

// field is an element of GF(2^128) as GCM writes it (NIST SP 800-38D, 6.3), the block as a big-endian number: the coefficient
// of x^0 is the highest bit.
type field struct{ hi, lo uint64 }

func element(b [blockSize]byte) field {
	return field{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
}

// times multiplies in constant time, bit by bit: once for each power of a session's key.
func (f field) times(g field) (product field) {
	const r = 0xe1 << 56 // x^128 is x^7 + x^2 + x + 1
	for i := range 128 {
		word := f.hi
		if i >= 64 {
			word = f.lo
		}
		on := -(word >> (63 - i%64) & 1)
		product.hi ^= g.hi & on
		product.lo ^= g.lo & on
		carry := -(g.lo & 1)
		g.lo = g.lo>>1 | g.hi<<63
		g.hi = g.hi>>1 ^ r&carry
	}
	return product
}

// reflected returns what the assembly multiplies by: the element times x, as a little-endian number. A carry-less product of two
// numbers whose bits are reversed is one bit short, for which the x makes up.
func (f field) reflected() (b [blockSize]byte) {
	carry := -(f.hi >> 63)
	lo := f.lo<<1 ^ 1&carry
	hi := f.hi<<1 | f.lo>>63
	hi ^= 0xc2 << 56 & carry
	binary.LittleEndian.PutUint64(b[:], lo)
	binary.LittleEndian.PutUint64(b[8:], hi)
	return b
}
