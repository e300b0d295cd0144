// SPDX-License-Identifier: Apache-2.0

package relay

import "encoding/binary"

// A frame is laid out so:
//
//	byte 0    0x51: the four bits in which an IP packet has its version are 5; then the version of this format, 1
//	byte 1    bit 7: whole; bits 4-6: n, the number of relays, 1 to 4; bit 3: urgent; bits 0-2: at, which of relays and destination it goes to, from 0
//	byte 2    type of service
//	byte 3    bytes of padding behind the message, 0 to 15
//	bytes 4-  NodeIDs, 8 bytes each, big endian: source, n relays, destination
//	then      the message, and the padding
//
// Relays change at and the type of service, and nothing else.
const (
	marker     = 0x50
	markerMask = 0xf0
	version    = 1

	wholeBit  = 0x80
	nShift    = 4
	nMask     = 7
	urgentBit = 0x08
	atMask    = 7

	fixedLen = 4
	idLen    = 8

	// MaxRelays is how many nodes pass a frame on at most.
	MaxRelays = 4
	// MaxHeader is the length of the longest header in bytes.
	MaxHeader = fixedLen + idLen*(MaxRelays+2)

	// padding is the multiple of bytes that sessions pad to.
	padding = 16
)

// Header is what a frame says of itself. It is comparable.
type Header struct {
	// Nodes are the NodeIDs of source, relays and destination: N+2 of them, none of which is 0 and no two of which are the same.
	Nodes [MaxRelays + 2]uint64
	// N is the number of relays, 1 to MaxRelays.
	N uint8
	// At tells who the frame is for: Nodes[At+1]; 0 to N.
	At uint8
	// TOS is the type of service of the datagrams that carry the frame.
	TOS uint8
	// Whole tells that these datagrams must not be fragmented.
	Whole bool
	// Urgent asks relays that have to drop frames to drop others first: it is a probe, of which the loss would be misread. Many of them are no better off.
	Urgent bool
	// Padding is how many bytes behind the message do not belong to it; Put sets it by itself.
	Padding uint8
}

// Source is who has sealed the message, if nobody on the way lies.
func (h *Header) Source() uint64 { return h.Nodes[0] }

// Destination is who can open the message.
func (h *Header) Destination() uint64 { return h.Nodes[h.N+1] }

// From is who sends the frame on this stretch.
func (h *Header) From() uint64 { return h.Nodes[h.At] }

// To is who receives the frame on this stretch.
func (h *Header) To() uint64 { return h.Nodes[h.At+1] }

// Next is who is to get the frame next; 0 if it is at its destination.
func (h *Header) Next() uint64 {
	if h.At >= h.N {
		return 0
	}
	return h.Nodes[h.At+2]
}

// Len is the length of the header in bytes.
func (h *Header) Len() int { return HeaderLen(int(h.N)) }

// HeaderLen is the length in bytes of the header of a frame that passes n relays.
func HeaderLen(n int) int { return fixedLen + idLen*(n+2) }

// IsFrame tells whether what a peer has sealed is a frame, and no packet or message to the router. One of an unknown version is a frame too.
func IsFrame(b []byte) bool { return len(b) > 0 && b[0]&markerMask == marker }

// Put writes the header of a frame for a message of the given length in bytes to the first Len bytes of b. Nodes, N and At must be valid.
func (h *Header) Put(b []byte, message int) {
	n := h.Len()
	_ = b[n-1]
	b[0] = marker | version
	b[1] = h.N<<nShift | h.At
	if h.Whole {
		b[1] |= wholeBit
	}
	if h.Urgent {
		b[1] |= urgentBit
	}
	b[2] = h.TOS
	b[3] = byte(-(n + message) & (padding - 1))
	for i, id := range h.Nodes[:h.N+2] {
		binary.BigEndian.PutUint64(b[fixedLen+idLen*i:], id)
	}
}

// Parse decodes the header of a frame that a session has opened, with its padding. It is valid iff b has a whole header of this version; n is
// from 1 to MaxRelays and at from 0 to n; no NodeID is 0 or named twice; the frame is as long as a session makes it, and has a message of one byte at least.
func (h *Header) Parse(b []byte) bool {
	if len(b) < fixedLen || len(b)%padding != 0 || b[0] != marker|version {
		return false
	}
	h.N, h.At, h.Whole = b[1]>>nShift&nMask, b[1]&atMask, b[1]&wholeBit != 0
	h.Urgent, h.TOS, h.Padding = b[1]&urgentBit != 0, b[2], b[3]
	if h.N < 1 || h.N > MaxRelays || h.At > h.N || h.Padding >= padding || len(b) <= h.Len()+int(h.Padding) {
		return false
	}
	h.Nodes = [MaxRelays + 2]uint64{}
	for i := range h.Nodes[:h.N+2] {
		id := binary.BigEndian.Uint64(b[fixedLen+idLen*i:])
		if id == 0 {
			return false
		}
		for _, other := range h.Nodes[:i] {
			if id == other {
				return false
			}
		}
		h.Nodes[i] = id
	}
	return true
}

// Message returns the message in the frame b, of which h was parsed.
func (h *Header) Message(b []byte) []byte {
	end := len(b) - int(h.Padding)
	return b[h.Len():end:end]
}

// Pass makes h, which is at a relay, and the header in b, of which h was parsed, those of the next stretch, with that type of service.
func (h *Header) Pass(b []byte, tos uint8) {
	h.At++
	h.TOS = tos
	b[1]++
	b[2] = tos
}

// Tos returns the type of service in the header of a frame, and whether it must not be fragmented. b must be a frame that Parse accepts.
func Tos(b []byte) (tos uint8, whole bool) { return b[2], b[1]&wholeBit != 0 }

// MTU returns the largest packet in bytes whose message, in a frame that passes n relays, fits where a plaintext of
// frame bytes does. overhead is what a session adds to the padded packet.
func MTU(frame, n, overhead int) int {
	return max(0, frame&^(padding-1)-HeaderLen(n)-overhead) &^ (padding - 1)
}

const (
	ecnMask = 3
	ect1    = 1
	ect0    = 2
	ce      = 3
)

// Carry returns the type of service of a frame whose type of service was tos, after a stretch on which the datagram had the type of
// service outer at its end: by the table of RFC 6040 §4.2, but that a mark on what does not understand marks is carried on, for the destination to
// drop the packet if there is one: what relays pass on are also messages of sessions, which are not to be lost for that. The DSCP stays as it was.
func Carry(tos, outer uint8) uint8 {
	inner, outer := tos&ecnMask, outer&ecnMask
	if outer == ce || outer == ect1 && inner == ect0 {
		return tos&^ecnMask | outer
	}
	return tos
}
