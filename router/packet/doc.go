// SPDX-License-Identifier: Apache-2.0

// Package packet knows the bytes of the packets that Weft carries: it reads IP
// headers, lowers the segment size that TCP announces, writes the ICMP errors
// that a router owes, cuts the superpackets of an offloading TUN device into
// packets that fit the path, fragments IPv4, and joins packets into superpackets again.
//
// Every function is pure: it works on the caller's buffers, keeps no reference
// to them after the last call that the documentation names, allocates nothing,
// reads no clock and starts nothing. A value is used by one goroutine at a
// time; separate values are independent.
//
// Invariants: no input makes a function panic or touch a byte outside the
// slices it was given; what Parse accepts has its whole IP header, extension
// headers included, within the slice.
//
// Imports the standard library only. Package router and its tests import it.
package packet

import "errors"

// Errors of this package. They are plain values, without detail, because they
// arise once per packet and only ever feed counters.
var (
	// ErrShort means that the bytes end within a header or before the length
	// that the header gives.
	ErrShort = errors.New("packet: truncated")
	// ErrVersion means that the first four bits are neither 4 nor 6.
	ErrVersion = errors.New("packet: not IPv4 or IPv6")
	// ErrHeader means that a header contradicts itself: a header length below
	// the minimum, a total length below the header length, an IPv4-mapped
	// address in an IPv6 header, or headers longer than Weft handles.
	ErrHeader = errors.New("packet: malformed header")
	// ErrOffload means that an offload header asks for something that is not
	// known, or that does not fit the packet that follows it.
	ErrOffload = errors.New("packet: offload header does not fit the packet")
)

// IP protocol numbers and IPv6 next header values (IANA protocol numbers).
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoDestOpts = 60
	protoMobility = 135
	protoHIP      = 139
	protoShim6    = 140
)

// Sizes of fixed headers in bytes.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
	icmpHeaderLen = 8
)
