// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
)

// ICMPLen is the greatest length in bytes of the packets that TooBig and
// Unreachable write, and the room that they want: the minimum MTU of IPv6.
const ICMPLen = 1280

const (
	// icmp4Len is the greatest length of an ICMPv4 error (RFC 1812 §4.3.2.3).
	icmp4Len = 576
	// icmpTTL is the hop limit of the errors (RFC 1700).
	icmpTTL = 64
	// icmpTOS is precedence "internetwork control" (RFC 1812 §4.3.2.5).
	icmpTOS = 0xc0

	icmp4DestUnreachable = 3
	icmp4SourceQuench    = 4
	icmp4Redirect        = 5
	icmp4TimeExceeded    = 11
	icmp4ParamProblem    = 12
	icmp4CodeHost        = 1
	icmp4CodeFragNeeded  = 4

	icmp6DestUnreachable = 1
	icmp6PacketTooBig    = 2
	icmp6CodeAddress     = 3
	icmp6FirstInfo       = 128 // types below are errors (RFC 4443 §2.1)
	icmp6Redirect        = 137
)

// TooBig writes to dst the ICMP error that tells the sender of the packet orig
// that the path takes packets of at most mtu bytes: ICMPv4 "fragmentation
// needed" (RFC 1191 §4) or ICMPv6 "packet too big" (RFC 4443 §3.2), a whole IP
// packet from the address from to orig's source. It returns the length written,
// 0 if there must be no error or from is not of orig's family.
//
// No error is sent about an ICMP error or redirect, a fragment other than the
// first, a packet from or to a multicast address or the IPv4 broadcast
// address, or one whose source does not name one host (RFC 1122 §3.2.2,
// RFC 4443 §2.4 (e)). RFC 4443 allows "packet too big" about multicast; an
// overlay without multicast routing has no use for it.
//
// IPv4's don't-fragment bit is not looked at: a sender fragments by itself
// what it sends without the bit once it knows the mtu. A router that would
// rather fragment consults Packet.DF first.
//
// dst has room for ICMPLen bytes and does not overlap orig. The rate of errors
// is for the caller to limit.
func TooBig(dst, orig []byte, from netip.Addr, mtu int) int {
	if mtu < 0 {
		return 0
	}
	var word [4]byte // the second word of the ICMP header
	if from.Is4() {
		binary.BigEndian.PutUint16(word[2:], uint16(min(mtu, 0xffff)))
		return icmp4Error(dst, orig, from, icmp4CodeFragNeeded, word)
	}
	binary.BigEndian.PutUint32(word[:], uint32(min(int64(mtu), 0xffffffff)))
	return icmp6Error(dst, orig, from, icmp6PacketTooBig, 0, word)
}

// Unreachable writes to dst the ICMP error that tells the sender of the packet
// orig that there is no way to its destination now: ICMPv4 "host unreachable"
// (RFC 792) or ICMPv6 "address unreachable" (RFC 4443 §3.1). Arguments, result
// and the packets that get no error are as for TooBig.
func Unreachable(dst, orig []byte, from netip.Addr) int {
	if from.Is4() {
		return icmp4Error(dst, orig, from, icmp4CodeHost, [4]byte{})
	}
	return icmp6Error(dst, orig, from, icmp6DestUnreachable, icmp6CodeAddress, [4]byte{})
}

// icmp4Error writes a "destination unreachable" error.
func icmp4Error(dst, orig []byte, from netip.Addr, code uint8, word [4]byte) int {
	var p Packet
	if p.Parse(orig) != nil || !p.Src.Is4() || !from.Is4() || len(dst) < icmp4Len {
		return 0
	}
	if p.FragmentOffset != 0 || !singleHost(p.Src) || p.Dst.IsMulticast() || p.Dst == broadcast4 {
		return 0
	}
	if p.Proto == protoICMP {
		if p.HeaderLen == p.Len {
			return 0 // no telling what it is
		}
		switch orig[p.HeaderLen] {
		case icmp4DestUnreachable, icmp4SourceQuench, icmp4Redirect, icmp4TimeExceeded, icmp4ParamProblem:
			return 0
		}
	}

	const headers = ipv4HeaderLen + icmpHeaderLen
	total := headers + copy(dst[headers:icmp4Len], orig[:p.Len])
	ip := dst[:ipv4HeaderLen]
	ip[0], ip[1] = 0x45, icmpTOS
	binary.BigEndian.PutUint16(ip[2:], uint16(total))
	ip[4], ip[5] = 0, 0
	ip[6], ip[7] = 0x40, 0 // don't fragment, so no identification (RFC 6864)
	ip[8], ip[9] = icmpTTL, protoICMP
	src, to := from.As4(), p.Src.As4()
	copy(ip[12:], src[:])
	copy(ip[16:], to[:])
	checksumIPv4(ip)

	icmp := dst[ipv4HeaderLen:total]
	icmp[0], icmp[1], icmp[2], icmp[3] = icmp4DestUnreachable, code, 0, 0
	copy(icmp[4:8], word[:])
	putChecksum(icmp[2:], sum(icmp, 0))
	return total
}

func icmp6Error(dst, orig []byte, from netip.Addr, typ, code uint8, word [4]byte) int {
	var p Packet
	if p.Parse(orig) != nil || !p.Src.Is6() || !from.Is6() || from.Is4In6() || len(dst) < ICMPLen {
		return 0
	}
	if p.FragmentOffset != 0 || !singleHost(p.Src) || p.Dst.IsMulticast() {
		return 0
	}
	if p.Proto == protoICMPv6 {
		if p.HeaderLen == p.Len {
			return 0
		}
		if t := orig[p.HeaderLen]; t < icmp6FirstInfo || t == icmp6Redirect {
			return 0
		}
	}

	const headers = ipv6HeaderLen + icmpHeaderLen
	total := headers + copy(dst[headers:ICMPLen], orig[:p.Len])
	ip := dst[:ipv6HeaderLen]
	binary.BigEndian.PutUint32(ip, 6<<28|icmpTOS<<20)
	binary.BigEndian.PutUint16(ip[4:], uint16(total-ipv6HeaderLen))
	ip[6], ip[7] = protoICMPv6, icmpTTL
	src, to := from.As16(), p.Src.As16()
	copy(ip[8:], src[:])
	copy(ip[24:], to[:])

	icmp := dst[ipv6HeaderLen:total]
	icmp[0], icmp[1], icmp[2], icmp[3] = typ, code, 0, 0
	copy(icmp[4:8], word[:])
	acc := sum(ip[8:], 0)
	acc = sumWord(uint16(len(icmp)), acc)
	acc = sumWord(protoICMPv6, acc)
	putChecksum(icmp[2:], sum(icmp, acc))
	return total
}

// broadcast4 is the limited broadcast address; a subnet's own is beyond what
// a router that is not on the subnet can know.
var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// singleHost tells whether an error may be sent to the source address a: not
// if it is unspecified, loopback, multicast, or of IPv4's classes above.
func singleHost(a netip.Addr) bool {
	if a.Is4() && a.As4()[0] >= 224 || a.Is4() && a.As4()[0] == 0 {
		return false
	}
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
}
