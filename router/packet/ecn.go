// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// ECNMask are the bits of an IPv4 type of service or an IPv6 traffic class that are the ECN field (RFC 3168 §5);
// the others are the DSCP (RFC 2474 §3).
const ECNMask = 3

// Values of the ECN field.
const (
	NotECT = 0 // the transport does not know congestion marks
	ECT1   = 1
	ECT0   = 2
	CE     = 3 // congestion experienced
)

// TOS returns the type of service or traffic class of the IP packet that begins at b; 0 if b is too short to tell.
func TOS(b []byte) uint8 {
	switch {
	case len(b) < 2:
		return 0
	case b[0]>>4 == 4:
		return b[1]
	}
	return b[0]<<4 | b[1]>>4
}

// Decapsulate combines the ECN field of a packet with the one of the packet that it came in, as the end of a tunnel
// does (RFC 6040 §4.2, figure 4), and writes what comes of it into the packet; the DSCP stays. It reports whether the packet may go on: it
// must not if the network says by CE that it is congested and the packet's transport would not understand. odd tells of
// the combinations that no tunnel and no network makes which follows the RFCs ("!!!" and "!" in the figure): somebody on the way tampers with marks.
//
// b holds the packet that p was parsed from. outer is the other's type of service or traffic class, of which only the ECN field counts. The
// checksum of an IPv4 header is corrected, not computed (RFC 1624): a wrong one stays wrong.
func Decapsulate(b []byte, p *Packet, outer uint8) (ok, odd bool) {
	outer &= ECNMask
	inner := p.TOS & ECNMask
	if outer == inner || outer == NotECT {
		return true, false
	}
	switch inner {
	case NotECT:
		return outer != CE, true
	case CE:
		return true, outer == ECT1
	case ECT1:
		if outer == ECT0 {
			return true, true // the lesser mark does not count
		}
	}
	setECN(b, p, outer)
	return true, false
}

// setECN writes an ECN field.
func setECN(b []byte, p *Packet, ecn uint8) {
	p.TOS = p.TOS&^ECNMask | ecn
	if b[0]>>4 == 6 {
		b[1] = b[1]&^(ECNMask<<4) | ecn<<4
		return
	}
	old := binary.BigEndian.Uint16(b)
	b[1] = p.TOS
	acc := uint64(^binary.NativeEndian.Uint16(b[10:]))
	acc = sumWord(^old, acc)
	acc = sumWord(binary.BigEndian.Uint16(b), acc)
	putChecksum(b[10:], acc)
}
