// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"encoding/binary"
	"errors"
)

// Type is the first byte of every control datagram.
const Type = 16

const (
	version = 1

	// MaxRelays is how many relays a datagram may name.
	MaxRelays = 4
	// MaxBody is the longest body in bytes: with any number of relays it fits an Ethernet frame by IPv6, and has room for the
	// 1200 bytes that QUIC needs. Of bodies of up to 1168 bytes without relays, 8 less for each, the packet has at most 1280 bytes, which
	// every IPv6 link carries.
	MaxBody = 1280
	// MinSize is the length in bytes of a datagram without relays and body, the shortest.
	MinSize = fixedSize + nonceSize + tagSize
	// MaxSize is the longest datagram in bytes.
	MaxSize = MinSize + MaxRelays*relaySize + MaxBody

	// KeyOffset is where in a datagram the key ID is, 4 bytes big endian.
	KeyOffset = 4

	fixedSize = 24 // of a header without relays
	relaySize = 8
	nonceSize = 24
	tagSize   = 16
)

// Kind is what a control datagram is for.
type Kind uint8

// The kinds.
const (
	KindMesh  Kind = 1 // gossip, which is nothing to the router
	KindPing  Kind = 2 // asks for a pong by the way that it came
	KindPong  Kind = 3 // answers a ping
	KindPunch Kind = 4 // asks for pings to the sender's addresses now
	KindProof Kind = 5 // answers a probe that came by a kernel path, or a KindAsk
	KindAsk   Kind = 6 // asks, without a kernel path, for a KindProof: whether there is anybody who answers probes
)

// What can be wrong with a datagram or a body. Each is returned as it is and costs no allocation.
var (
	ErrSize    = errors.New("control datagram is too short or too long: dropped")
	ErrVersion = errors.New("control datagram is of an unknown version or kind: dropped")
	ErrRoute   = errors.New("control datagram has a route that cannot be: dropped")
	ErrKey     = errors.New("control datagram is sealed with a key that this node does not have: dropped")
	ErrAuth    = errors.New("control datagram does not authenticate: dropped")
	ErrBody    = errors.New("control datagram has a body that its kind cannot have: dropped")
)

// Header is what a control datagram bears in the open.
type Header struct {
	Kind Kind
	// N is the number of Relays that are used, at most MaxRelays, and At the index of the next hop: a relay, or N for the destination.
	N, At uint8
	// Key is the ID of the key of the seal. Seal sets it.
	Key uint32
	// Source is the ID of the node that sealed it, never 0. Destination is that of the node it is for, 0 if that is not known, and then
	// there are no relays.
	Source, Destination uint64
	// Relays are the IDs of the nodes that pass it on, in the order in which they do. Those that are not used are 0.
	Relays [MaxRelays]uint64
}

// Next returns the ID of the next hop, which is Destination behind the last relay.
func (h *Header) Next() uint64 {
	if h.At < h.N && h.N <= MaxRelays {
		return h.Relays[h.At]
	}
	return h.Destination
}

// Final tells whether there is no relay any more on the way.
func (h *Header) Final() bool { return h.At >= h.N }

// Reversed returns the relays as an answer has to name them.
func (h *Header) Reversed() (back [MaxRelays]uint64) {
	n := min(h.N, MaxRelays)
	for i := range n {
		back[i] = h.Relays[n-1-i]
	}
	return back
}

// size returns the length of the header in bytes.
func (h *Header) size() int { return fixedSize + int(h.N)*relaySize }

// check returns ErrVersion or ErrRoute for a header that no datagram may have.
func (h *Header) check() error {
	if h.Kind < KindMesh || h.Kind > KindAsk {
		return ErrVersion
	}
	if h.N > MaxRelays || h.At > h.N || h.Source == 0 || h.Source == h.Destination || h.N > 0 && h.Destination == 0 {
		return ErrRoute
	}
	for i, id := range h.Relays {
		if i >= int(h.N) {
			if id != 0 {
				return ErrRoute
			}
			continue
		}
		if id == 0 || id == h.Source || id == h.Destination {
			return ErrRoute
		}
		for _, other := range h.Relays[:i] {
			if id == other {
				return ErrRoute
			}
		}
	}
	return nil
}

// Parse reads the header of a datagram without opening it: nothing in it can be believed. It is valid iff b has from MinSize, and room for
// its relays, to MaxSize bytes; type, version and kind are known; no more than MaxRelays relays, and the next hop is one of them or the
// destination; source and relays are not 0; the destination is not if there are relays; and no node is on the way twice. The error is
// ErrSize, ErrVersion or ErrRoute. It does not allocate.
func Parse(b []byte) (Header, error) {
	if len(b) < MinSize || len(b) > MaxSize {
		return Header{}, ErrSize
	}
	if b[0] != Type || b[1]>>4 != version {
		return Header{}, ErrVersion
	}
	h := Header{
		Kind: Kind(b[1] & 0x0f), N: b[2], At: b[3],
		Key:    binary.BigEndian.Uint32(b[KeyOffset:]),
		Source: binary.BigEndian.Uint64(b[8:]), Destination: binary.BigEndian.Uint64(b[16:]),
	}
	if h.N > MaxRelays {
		return Header{}, ErrRoute
	}
	if n := len(b) - h.size() - nonceSize - tagSize; n < 0 || n > MaxBody {
		return Header{}, ErrSize
	}
	for i := range int(h.N) {
		h.Relays[i] = binary.BigEndian.Uint64(b[fixedSize+i*relaySize:])
	}
	if err := h.check(); err != nil {
		return Header{}, err
	}
	return h, nil
}

// appendTo appends the header as it is authenticated, with At as 0.
func (h *Header) appendTo(b []byte) []byte {
	b = append(b, Type, version<<4|byte(h.Kind), h.N, 0)
	b = binary.BigEndian.AppendUint32(b, h.Key)
	b = binary.BigEndian.AppendUint64(b, h.Source)
	b = binary.BigEndian.AppendUint64(b, h.Destination)
	for _, id := range h.Relays[:h.N] {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	return b
}

// Advance makes the hop behind the next one the next one, in a datagram that Parse accepts. It reports false, and changes nothing, if the
// next one is the destination.
func Advance(b []byte) bool {
	if b[3] >= b[2] {
		return false
	}
	b[3]++
	return true
}
