// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071). Sums are taken over 64-bit words in the
// byte order of the host: a one's complement sum is the same in either order
// but for the order of the bytes in its result, so only storing has to mind.
// A sum is a uint64 with its carries folded back in; sums of parts add up as
// long as every part but the last has an even length.

// sum adds the bytes of b to acc. An odd last byte counts as if a zero byte
// followed it.
func sum(b []byte, acc uint64) uint64 {
	var carry uint64
	for len(b) >= 64 {
		w := b[:64:64]
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[0:8]), 0)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[8:16]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[16:24]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[24:32]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[32:40]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[40:48]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[48:56]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[56:64]), carry)
		acc += carry // no new carry: acc is at most 2^64-2 after one
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	if len(b) >= 4 {
		acc, carry = bits.Add64(acc, uint64(binary.NativeEndian.Uint32(b)), 0)
		acc += carry
		b = b[4:]
	}
	if len(b) >= 2 {
		acc, carry = bits.Add64(acc, uint64(binary.NativeEndian.Uint16(b)), 0)
		acc += carry
		b = b[2:]
	}
	if len(b) == 1 {
		acc, carry = bits.Add64(acc, uint64(binary.NativeEndian.Uint16([]byte{b[0], 0})), 0)
		acc += carry
	}
	return acc
}

// sumWord adds one 16-bit number, as it would stand in network byte order.
func sumWord(v uint16, acc uint64) uint64 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	acc, carry := bits.Add64(acc, uint64(binary.NativeEndian.Uint16(b[:])), 0)
	return acc + carry
}

// fold brings a sum down to 16 bits, still in the byte order of the host.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	v := uint32(acc)
	v = v>>16 + v&0xffff
	v = v>>16 + v&0xffff
	return uint16(v)
}

// putChecksum stores the complement of acc at b[0:2].
func putChecksum(b []byte, acc uint64) {
	binary.NativeEndian.PutUint16(b, ^fold(acc))
}

// putChecksumNonZero is putChecksum for protocols in which a checksum of zero
// says that there is none (RFC 768): the other zero, all ones, is stored.
func putChecksumNonZero(b []byte, acc uint64) {
	v := ^fold(acc)
	if v == 0 {
		v = 0xffff
	}
	binary.NativeEndian.PutUint16(b, v)
}

// checksumIPv4 computes and stores the header checksum of the IPv4 header h.
func checksumIPv4(h []byte) {
	h[10], h[11] = 0, 0
	putChecksum(h[10:], sum(h, 0))
}
