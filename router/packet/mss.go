// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// minMSS is the least segment size that ClampMSS writes; Linux raises smaller
// ones to it anyway (TCP_MIN_MSS).
const minMSS = 88

const (
	tcpOptEnd = 0
	tcpOptNop = 1
	tcpOptMSS = 2
)

// ClampMSS lowers the maximum segment size that a TCP SYN announces to what
// fits a path of mtu bytes, IP header included, and corrects the TCP checksum
// (RFC 1624). It reports whether it changed the packet.
//
// b holds the packet that p was parsed from, with a complete TCP checksum: one
// that a TUN device left to be computed goes through Splitter first. Packets
// other than the first of a TCP connection's either direction, SYNs without
// the option, and malformed options stay as they are. A SYN without the
// option announces 536 or 1220 bytes (RFC 9293 §3.7.1), which fit.
//
// The limit is mtu less the fixed IP and TCP headers (RFC 6691), and never
// below 88.
func ClampMSS(b []byte, p *Packet, mtu int) bool {
	if p.Proto != protoTCP || p.FragmentOffset != 0 || p.Len > len(b) {
		return false
	}
	limit := mtu - ipv4HeaderLen - tcpHeaderLen
	if p.Src.Is6() {
		limit = mtu - ipv6HeaderLen - tcpHeaderLen
	}
	limit = max(limit, minMSS)

	tcp := b[p.HeaderLen:p.Len]
	if len(tcp) < tcpHeaderLen || tcp[13]&tcpSYN == 0 {
		return false
	}
	header := int(tcp[12]>>4) * 4
	if header < tcpHeaderLen || header > len(tcp) {
		return false
	}

	changed := false
	for at := tcpHeaderLen; at < header; {
		switch tcp[at] {
		case tcpOptEnd:
			return changed
		case tcpOptNop:
			at++
			continue
		}
		if at+1 >= header {
			return changed
		}
		size := int(tcp[at+1])
		if size < 2 || at+size > header {
			return changed
		}
		// A repeated option counts as often as it stands there: which one a
		// receiver obeys is its own affair.
		if tcp[at] == tcpOptMSS && size == 4 {
			old := binary.BigEndian.Uint16(tcp[at+2:])
			if int(old) > limit {
				replace16(tcp, at+2, uint16(limit))
				changed = true
			}
		}
		at += size
	}
	return changed
}

// replace16 writes the number v at offset at of a TCP header and updates its
// checksum for the change: HC' = ~(~HC + ~m + m') (RFC 1624 §3). At an odd
// offset the number's bytes fall into two words of the sum, where they count
// as they would with their order reversed.
func replace16(tcp []byte, at int, v uint16) {
	old := binary.BigEndian.Uint16(tcp[at:])
	binary.BigEndian.PutUint16(tcp[at:], v)
	if at&1 == 1 {
		old = old>>8 | old<<8
		v = v>>8 | v<<8
	}
	acc := uint64(^binary.NativeEndian.Uint16(tcp[16:]))
	acc = sumWord(^old, acc)
	acc = sumWord(v, acc)
	putChecksum(tcp[16:], acc)
}
