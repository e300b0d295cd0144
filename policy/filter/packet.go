// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
)

// decodePacket reads what a packet is to connect, from as much of it as there is. It is valid iff the addresses are there, and, if the protocol
// has ports, the destination's.
func decodePacket(b []byte) (c policy.Connection, ok bool) {
	if len(b) == 0 {
		return c, false
	}
	switch b[0] >> 4 {
	case 4:
		return decodeV4(b)
	case 6:
		return decodeV6(b)
	}
	return c, false
}

func decodeV4(b []byte) (c policy.Connection, ok bool) {
	const least = 20
	if len(b) < least {
		return c, false
	}
	size := int(b[0]&15) * 4
	c.Src, c.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	c.Protocol = policy.Protocol(b[9])
	if size < least || len(b) < size {
		return c, false
	}
	return withPort(c, b[size:])
}

func decodeV6(b []byte) (c policy.Connection, ok bool) {
	const fixed = 40
	if len(b) < fixed {
		return c, false
	}
	c.Src, c.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[fixed:]
	for {
		var size int
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(rest) < 2 {
				return c, false
			}
			size = 8 * (int(rest[1]) + 1)
		case unix.IPPROTO_FRAGMENT:
			size = 8
		case unix.IPPROTO_AH:
			if len(rest) < 2 {
				return c, false
			}
			size = 4 * (int(rest[1]) + 2)
		default:
			c.Protocol = policy.Protocol(next)
			return withPort(c, rest)
		}
		if len(rest) < size {
			return c, false
		}
		next, rest = rest[0], rest[size:]
	}
}

// withPort adds the port of the destination, if the protocol has such.
func withPort(c policy.Connection, b []byte) (policy.Connection, bool) {
	switch c.Protocol {
	case policy.TCP, policy.UDP, policy.SCTP:
		if len(b) < 4 {
			return c, false
		}
		c.Port = binary.BigEndian.Uint16(b[2:])
	}
	return c, true
}
