// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
)

// A Packet is what a router has to know of an IP packet. The zero Packet is
// ready for Parse and may be used again and again. It holds no reference to
// the bytes it was parsed from.
type Packet struct {
	// Src and Dst are the addresses of the IP header, IPv4 as 4 bytes. A
	// routing header does not change Dst.
	Src, Dst netip.Addr
	// Len is the total length in bytes that the IP header gives; the slice
	// may be longer by padding.
	Len int
	// HeaderLen is where the transport header begins: after the IPv4 options
	// or IPv6 extension headers. HeaderLen <= Len.
	HeaderLen int
	// FragmentOffset is where the payload of this fragment belongs, in bytes,
	// 0 for a whole packet and for a first fragment. If it is not 0, no
	// transport header stands at HeaderLen.
	FragmentOffset int
	// Proto is the protocol at HeaderLen. For a later IPv6 fragment it is
	// what the fragment header names, which may be an extension header.
	Proto uint8
	// TOS is the IPv4 type of service or the IPv6 traffic class.
	TOS uint8
	// DF tells that no router may fragment the packet: IPv4's don't-fragment
	// bit; always set for IPv6.
	DF bool
	// Fragment tells that the packet is part of a larger one, be it the first
	// part or a later one. An IPv6 atomic fragment (RFC 6946) is not.
	Fragment bool
}

// Parse reads the headers of the IP packet at the start of b, which may be
// followed by padding. It does not verify checksums and does not look at the
// transport header, which may be cut short. On error p is undefined.
//
// IPv4: RFC 791. IPv6 and its extension headers: RFC 8200 §4, RFC 4302 for the
// authentication header, RFC 7045 for the list. An IPv6 header that holds an
// IPv4-mapped address is refused, so that an address of one family never
// passes for one of the other.
func (p *Packet) Parse(b []byte) error {
	if len(b) < ipv4HeaderLen {
		return ErrShort
	}
	switch b[0] >> 4 {
	case 4:
		return p.parse4(b)
	case 6:
		return p.parse6(b)
	}
	return ErrVersion
}

// BareACK reports whether the packet b that p was parsed from is a TCP segment that only acknowledges (RFC 9293 §3.1): it carries no
// data, and neither opens nor closes a connection.
func (p *Packet) BareACK(b []byte) bool {
	if p.Proto != protoTCP || p.Fragment || p.Len > len(b) {
		return false
	}
	tcp := b[p.HeaderLen:p.Len]
	return len(tcp) >= tcpHeaderLen && len(tcp) == int(tcp[12]>>4)*4 && tcp[13]&(tcpFIN|tcpSYN|tcpRST|tcpPSH|tcpACK|tcpURG) == tcpACK
}

func (p *Packet) parse4(b []byte) error {
	header := int(b[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if header < ipv4HeaderLen || total < header {
		return ErrHeader
	}
	if total > len(b) {
		return ErrShort
	}
	fragment := binary.BigEndian.Uint16(b[6:])
	*p = Packet{
		Src:            netip.AddrFrom4([4]byte(b[12:16])),
		Dst:            netip.AddrFrom4([4]byte(b[16:20])),
		Len:            total,
		HeaderLen:      header,
		FragmentOffset: int(fragment&0x1fff) * 8,
		Proto:          b[9],
		TOS:            b[1],
		DF:             fragment&0x4000 != 0,
		Fragment:       fragment&0x3fff != 0, // more fragments, or an offset
	}
	return nil
}

func (p *Packet) parse6(b []byte) error {
	if len(b) < ipv6HeaderLen {
		return ErrShort
	}
	total := ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return ErrShort
	}
	*p = Packet{
		Src: netip.AddrFrom16([16]byte(b[8:24])),
		Dst: netip.AddrFrom16([16]byte(b[24:40])),
		Len: total,
		TOS: b[0]<<4 | b[1]>>4,
		DF:  true,
	}
	if p.Src.Is4In6() || p.Dst.Is4In6() {
		return ErrHeader
	}
	return p.parseExtensions(b[:total], b[6])
}

// parseExtensions walks the extension headers of the packet b, of which the
// first is next, and stops at the first header that is none, or behind the
// fragment header of a later fragment.
func (p *Packet) parseExtensions(b []byte, next uint8) error {
	at := ipv6HeaderLen
	for {
		var size int
		switch next {
		case protoHopByHop, protoRouting, protoDestOpts, protoMobility, protoHIP, protoShim6:
			if at+8 > len(b) {
				return ErrShort
			}
			size = (int(b[at+1]) + 1) * 8
		case protoAH:
			if at+8 > len(b) {
				return ErrShort
			}
			size = (int(b[at+1]) + 2) * 4
		case protoFragment:
			if at+8 > len(b) {
				return ErrShort
			}
			size = 8
			fragment := binary.BigEndian.Uint16(b[at+2:])
			p.FragmentOffset = int(fragment &^ 7)
			p.Fragment = p.Fragment || fragment&^6 != 0
		default:
			p.HeaderLen, p.Proto = at, next
			return nil
		}
		if at+size > len(b) {
			return ErrShort
		}
		next = b[at]
		at += size
		if p.FragmentOffset != 0 {
			p.HeaderLen, p.Proto = at, next
			return nil
		}
	}
}
