// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"encoding/binary"
	"net/netip"
)

// MaxCandidates is how many addresses a Punch bears.
const MaxCandidates = 16

const (
	echoSize = 8
	addrSize = 18 // 16 of the address, IPv4 mapped to IPv6, and 2 of the port
	pingSize = echoSize + TagSize
	pongSize = echoSize + addrSize + 8 + TagSize
)

// Ping is the body of KindPing: the echo ID, 8 bytes big endian, and the tag.
type Ping struct {
	Echo uint64 // what the pong repeats
	Tag  Tag
}

// Append appends the body to b.
func (p Ping) Append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint64(b, p.Echo), p.Tag[:]...)
}

// ParsePing decodes a body. It is valid iff it has 24 bytes; the error is ErrBody.
func ParsePing(b []byte) (Ping, error) {
	if len(b) != pingSize {
		return Ping{}, ErrBody
	}
	return Ping{Echo: binary.BigEndian.Uint64(b), Tag: Tag(b[echoSize:])}, nil
}

// Proof is the body of KindProof: the echo of the probe that is answered, and of KindAsk: the echo that is to be answered. 8 bytes big endian.
type Proof struct {
	Echo uint64
}

// Append appends the body to b.
func (p Proof) Append(b []byte) []byte { return binary.BigEndian.AppendUint64(b, p.Echo) }

// ParseProof decodes a body. It is valid iff it has 8 bytes; the error is ErrBody.
func ParseProof(b []byte) (Proof, error) {
	if len(b) != echoSize {
		return Proof{}, ErrBody
	}
	return Proof{Echo: binary.BigEndian.Uint64(b)}, nil
}

// Pong is the body of KindPong: the echo ID, the address, the boot, and the tag, in that order, big endian.
type Pong struct {
	Echo uint64
	// Seen is the address that the ping came from, without a zone; not valid, and zeros on the wire, if relays have brought it.
	Seen netip.AddrPort
	// Boot is the responder's number of this run of its process.
	Boot uint64
	Tag  Tag
}

// Append appends the body to b.
func (p Pong) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, p.Echo)
	b = appendAddr(b, p.Seen)
	b = binary.BigEndian.AppendUint64(b, p.Boot)
	return append(b, p.Tag[:]...)
}

// ParsePong decodes a body. It is valid iff it has 50 bytes, and address and port are both given or both zeros. The error is ErrBody. It does
// not allocate.
func ParsePong(b []byte) (Pong, error) {
	if len(b) != pongSize {
		return Pong{}, ErrBody
	}
	p := Pong{Echo: binary.BigEndian.Uint64(b), Boot: binary.BigEndian.Uint64(b[echoSize+addrSize:]), Tag: Tag(b[pongSize-TagSize:])}
	var ok bool
	if p.Seen, ok = parseAddr(b[echoSize:]); !ok && [addrSize]byte(b[echoSize:]) != [addrSize]byte{} {
		return Pong{}, ErrBody
	}
	return p, nil
}

// Punch is the body of KindPunch: the echo ID, then each address, then the tag.
type Punch struct {
	Echo uint64
	// Candidates are addresses at which the sender may be reached, without zones, 1 to MaxCandidates.
	Candidates []netip.AddrPort
	Tag        Tag
}

// Append appends the body to b. Candidates that are not valid, or beyond MaxCandidates, are left out.
func (p Punch) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, p.Echo)
	n := 0
	for _, a := range p.Candidates {
		if n < MaxCandidates && usable(a) {
			b = appendAddr(b, a)
			n++
		}
	}
	return append(b, p.Tag[:]...)
}

// ParsePunch decodes a body. It is valid iff it has from 1 to MaxCandidates addresses and nothing else, all of which are given. The error is
// ErrBody.
func ParsePunch(b []byte) (Punch, error) {
	n := (len(b) - echoSize - TagSize) / addrSize
	if n < 1 || n > MaxCandidates || len(b) != echoSize+n*addrSize+TagSize {
		return Punch{}, ErrBody
	}
	p := Punch{Echo: binary.BigEndian.Uint64(b), Candidates: make([]netip.AddrPort, n), Tag: Tag(b[len(b)-TagSize:])}
	for i := range p.Candidates {
		var ok bool
		if p.Candidates[i], ok = parseAddr(b[echoSize+i*addrSize:]); !ok {
			return Punch{}, ErrBody
		}
	}
	return p, nil
}

// usable tells whether something can be sent to a.
func usable(a netip.AddrPort) bool {
	return a.IsValid() && !a.Addr().Unmap().IsUnspecified() && a.Port() != 0
}

// appendAddr appends zeros for an address that is not usable.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	var raw [16]byte
	var port uint16
	if usable(a) {
		raw, port = a.Addr().As16(), a.Port()
	}
	b = append(b, raw[:]...)
	return binary.BigEndian.AppendUint16(b, port)
}

// parseAddr reports false for an address that is not usable, and returns the zero value then. b has at least addrSize bytes.
func parseAddr(b []byte) (netip.AddrPort, bool) {
	a := netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), binary.BigEndian.Uint16(b[16:]))
	if !usable(a) {
		return netip.AddrPort{}, false
	}
	return a, true
}
