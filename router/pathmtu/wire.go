// SPDX-License-Identifier: Apache-2.0

package pathmtu

import "encoding/binary"

// Messages between two routers travel in a session like packets of their hosts do, and are told from these by the four bits in
// which an IP packet has its version:
//
//	byte 0      0x10: not 4 and not 6
//	byte 1      version of this format, 1
//	byte 2      kind
//	byte 3      piece: its number, from 0; else 0
//	bytes 4-5   size, big endian: of a probe with its padding, which an acknowledgement repeats; of the packet that a piece is of
//	bytes 6-7   piece: where in the packet it belongs, big endian; else 0
//	bytes 8-15  ID, big endian: which probe, which packet
//	bytes 16-   probe: padding; piece: its bytes, and maybe padding
//
// Whoever does not know them drops them, as WireGuard does with all that is no IP packet.
const (
	marker  = 0x10
	version = 1

	// HeaderLen is the length of a Message in bytes, without what follows it.
	HeaderLen = 16
)

// Kind is what a Message is.
type Kind uint8

// The kinds.
const (
	Probe Kind = 1 // asks for an acknowledgement
	Ack   Kind = 2 // of a probe
	Piece Kind = 3 // a part of a packet that was too large for the path
)

// Message is one message without its padding or bytes.
type Message struct {
	Kind   Kind
	Index  uint8  // of a piece
	Size   uint16 // of a probe, or of the packet that a piece is of
	Offset uint16 // of a piece in its packet
	ID     uint64
}

// IsMessage tells whether what a peer has sealed is a message to the router and no packet. An unknown one is a message too.
func IsMessage(b []byte) bool { return len(b) > 0 && b[0]&0xf0 == marker }

// Put writes the message to the first HeaderLen bytes of b. What follows is the caller's: zeros up to Size for a probe.
func (m Message) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1], b[2], b[3] = marker, version, byte(m.Kind), m.Index
	binary.BigEndian.PutUint16(b[4:], m.Size)
	binary.BigEndian.PutUint16(b[6:], m.Offset)
	binary.BigEndian.PutUint64(b[8:], m.ID)
}

// Parse decodes the message at the start of b, which a session may have padded. It is valid iff b has a header of this version and a
// known kind; a probe is no shorter than it says; an acknowledgement is nothing but a header; a piece has a byte at least, belongs
// into its packet, and bears a number below MaxPieces; and fields that its kind does not use are 0.
func Parse(b []byte) (m Message, ok bool) {
	if len(b) < HeaderLen || b[0] != marker || b[1] != version {
		return Message{}, false
	}
	m = Message{
		Kind: Kind(b[2]), Index: b[3],
		Size: binary.BigEndian.Uint16(b[4:]), Offset: binary.BigEndian.Uint16(b[6:]),
		ID: binary.BigEndian.Uint64(b[8:]),
	}
	unused := m.Index == 0 && m.Offset == 0
	switch m.Kind {
	case Probe:
		ok = unused && int(m.Size) <= len(b) && m.Size >= HeaderLen
	case Ack:
		ok = unused && len(b) == HeaderLen
	case Piece:
		ok = m.Index < MaxPieces && m.Offset < m.Size && m.Size <= maxPieced && len(b) > HeaderLen
	}
	return m, ok
}
