// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/blake2s"
)

// PairLabel is for what two nodes derive the secret of a Pair for.
const PairLabel = "weft ping v1"

// TagSize is the length of a Tag in bytes.
const TagSize = 16

const (
	tagHeader = 2 + 8*(2+MaxRelays)               // what a tag says of the header
	maxTagged = echoSize + MaxCandidates*addrSize // the longest body without its tag
)

// Tag tells of a ping, a pong or a punch which node has made it: the seal of a datagram is that of any member. It is the
// first half of BLAKE2s-256 of a secret of the two nodes, filled up to a block with zeros, the kind of the datagram, the number of relays, its source, its
// destination and its relays, and of the body before the tag. The zero Tag
// is none: who does not know the other node yet has no secret to make one with.
type Tag [TagSize]byte

// Pair makes and checks tags between two nodes. The zero value does neither. It prints as "(hidden)", whatever the verb.
type Pair struct {
	secret *[32]byte // behind a pointer so that no printing of a struct shows it
}

// NewPair makes a Pair of a secret that the two nodes share and nobody else has.
func NewPair(secret [32]byte) Pair { return Pair{&secret} }

// Format writes "(hidden)" for every verb and flag.
func (p Pair) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "(hidden)") }

// tag returns what the tag of the body is, of which the last TagSize bytes do not count.
func (p Pair) tag(h *Header, body []byte) Tag {
	var b [blake2s.BlockSize + tagHeader + maxTagged]byte
	copy(b[:], p.secret[:])
	at := b[blake2s.BlockSize:]
	at[0], at[1] = byte(h.Kind), h.N
	binary.BigEndian.PutUint64(at[2:], h.Source)
	binary.BigEndian.PutUint64(at[10:], h.Destination)
	for i, id := range h.Relays {
		binary.BigEndian.PutUint64(at[18+8*i:], id)
	}
	n := copy(at[tagHeader:], body[:len(body)-TagSize])
	sum := blake2s.Sum256(b[:blake2s.BlockSize+tagHeader+n])
	return Tag(sum[:TagSize])
}

// Put makes the tag of a body, which Append of a Ping, a Pong or a Punch has made, that of a datagram with the header. It changes nothing if p is zero.
func (p Pair) Put(h *Header, body []byte) {
	if p.secret == nil || len(body) < TagSize || len(body) > maxTagged+TagSize {
		return
	}
	t := p.tag(h, body)
	copy(body[len(body)-TagSize:], t[:])
}

// Check tells whether the other node of the pair has made the body, of a ping, a pong or a punch, for a datagram with this header.
func (p Pair) Check(h *Header, body []byte) bool {
	if p.secret == nil || len(body) < TagSize || len(body) > maxTagged+TagSize {
		return false
	}
	t := p.tag(h, body)
	return hmac.Equal(t[:], body[len(body)-TagSize:])
}
