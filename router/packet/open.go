// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// Between two Weft nodes the transport checksum of a packet may stay open: what protects the bytes on the way is the
// AEAD, and the kernel at the far end computes the checksum only if the packet leaves that host. What stands in the field
// then has no meaning. Both ends know by the packet itself where the field is.

// Checksum returns the offset of the packet's transport checksum and whether it may be left open: for TCP and UDP behind an IPv4 header without
// options or an IPv6 header without extension headers, so that the addresses in the pseudo header are those of the IP header,
// and not for fragments. b is the packet as given to Parse.
func (p *Packet) Checksum(b []byte) (field int, ok bool) {
	if p.Fragment || p.HeaderLen != ipv4HeaderLen && b[0]>>4 == 4 || p.HeaderLen != ipv6HeaderLen && b[0]>>4 == 6 {
		return 0, false
	}
	switch n := p.Len - p.HeaderLen; {
	case p.Proto == protoTCP && n >= tcpHeaderLen && int(b[p.HeaderLen+12]>>4)*4 <= n:
		return p.HeaderLen + tcpChecksum, true
	case p.Proto == protoUDP && n >= udpHeaderLen:
		return p.HeaderLen + udpChecksum, true
	}
	return 0, false
}

// CompleteChecksum computes a checksum that was left open. It reports false, and does nothing, where Checksum does not allow that.
// b is a packet without padding.
func CompleteChecksum(b []byte, p *Packet) bool {
	field, ok := p.Checksum(b)
	if !ok {
		return false
	}
	t := b[p.HeaderLen:]
	b[field], b[field+1] = 0, 0
	acc := sum(t, p.pseudo(b, len(t)))
	if p.Proto == protoUDP {
		putChecksumNonZero(b[field:], acc)
	} else {
		putChecksum(b[field:], acc)
	}
	return true
}

// OpenChecksum prepares a packet whose checksum was left open for the kernel, with the offload header that it
// needs, which it stores in the first VNetHdrLen bytes of frame; the packet follows them, without padding. It
// reports false, and does nothing, where Checksum does not allow that.
func OpenChecksum(frame []byte, p *Packet) bool {
	b := frame[VNetHdrLen:]
	if _, ok := p.Checksum(b); !ok {
		return false
	}
	h := VNetHdr{Flags: VNetNeedsCsum, CsumStart: uint16(p.HeaderLen), CsumOffset: openChecksum(b, p.HeaderLen)}
	h.Encode(frame)
	return true
}

// openChecksum stores the sum of the pseudo header, where the kernel expects it, and returns the offset in the transport
// header. b must be a packet that Checksum allows that for, and transport its HeaderLen.
func openChecksum(b []byte, transport int) uint16 {
	p := Packet{Proto: b[9]}
	if b[0]>>4 == 6 {
		p.Proto = b[6]
	}
	field := 16
	if p.Proto == protoUDP {
		field = 6
	}
	binary.NativeEndian.PutUint16(b[transport+field:], fold(p.pseudo(b, len(b)-transport)))
	return uint16(field)
}

// pseudo returns the sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1) for n bytes of transport, with the addresses
// of the IP header at the start of b.
func (p *Packet) pseudo(b []byte, n int) uint64 {
	addresses := b[12:20]
	if b[0]>>4 == 6 {
		addresses = b[8:40]
	}
	return sum(addresses, sumWord(uint16(n), sumWord(uint16(p.Proto), 0)))
}
