// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Suite names the cryptography of a session; it is byte 1 of every message.
type Suite uint8

// The suites.
const (
	WireGuard Suite = 0 // WireGuard's own: ChaCha20-Poly1305
	Weft      Suite = 1 // between Weft nodes with AES in hardware: AES-256-GCM
)

// String names the cipher of the suite.
func (s Suite) String() string {
	switch s {
	case WireGuard:
		return "chacha20-poly1305"
	case Weft:
		return "aes-256-gcm"
	}
	return fmt.Sprintf("suite(%d)", uint8(s))
}

// Valid reports whether s is a suite of this package.
func (s Suite) Valid() bool { return s <= Weft }

// Message types, byte 0 of every message (whitepaper §5.4).
const (
	TypeInitiation = 1 // first handshake message
	TypeResponse   = 2 // second handshake message
	TypeCookie     = 3 // "prove your address first"
	TypeData       = 4 // a sealed packet
)

// Sizes in bytes.
const (
	InitiationSize = 148 // TypeInitiation, exactly
	ResponseSize   = 92  // TypeResponse, exactly
	CookieSize     = 64  // TypeCookie, exactly
	HeaderSize     = 16  // of a data message, in front of the ciphertext
	TagSize        = 16  // of a data message, behind the ciphertext
	Overhead       = HeaderSize + TagSize
	Padding        = 16 // data is padded with zeros to a multiple of this (whitepaper §5.4.6)
)

// Flags are what a data message of suite Weft says of its packet, in bytes 2 and 3 of the header, little endian. They are
// authenticated, and none is known to suite WireGuard. A message with a flag that is not known is refused.
type Flags uint16

// The flags.
const (
	// OpenChecksum says that the packet's TCP or UDP checksum was not computed: whoever passes it on has to.
	OpenChecksum Flags = 1 << 0

	allFlags = OpenChecksum
)

// DataFlags returns the flags of a data message, which can be believed once it is opened. msg must be at least HeaderSize long.
func DataFlags(msg []byte) Flags { return Flags(binary.LittleEndian.Uint16(msg[2:4])) }

// MaxQueued is how many packets an engine should hold for a peer without a key, newest first to
// stay: enough for the first flight of a connection, too few to matter in memory.
const MaxQueued = 128

// Padded returns the length in bytes that a packet of n bytes is padded to before it is sealed.
func Padded(n int) int { return (n + Padding - 1) &^ (Padding - 1) }

// MaxPlaintext returns the largest packet in bytes whose datagram, padded and sealed, fits into a
// UDP payload of the given size; 0 if there is none. Inner MTUs must not exceed it.
func MaxPlaintext(payload int) int {
	return max(payload-Overhead, 0) &^ (Padding - 1)
}

// What can be wrong with a message. Each is returned as it is and costs no allocation.
var (
	ErrShort       = errors.New("message has the wrong length for its type: dropped")
	ErrType        = errors.New("message has an unknown type or flags: dropped")
	ErrSuite       = errors.New("message is of an unknown suite or not that of its session: dropped")
	ErrMAC1        = errors.New("handshake message is not for this node's public key: dropped")
	ErrUnknownPeer = errors.New("handshake from a key that is no peer of this node: dropped")
	ErrReplay      = errors.New("message was received before, or is too old to tell: dropped")
	ErrFlood       = errors.New("more handshakes from one sender than allowed: dropped")
	ErrIndex       = errors.New("message belongs to no session or handshake of this node: dropped")
	ErrAuth        = errors.New("message does not authenticate: dropped")
	ErrExpired     = errors.New("session key is too old or used up: handshake again")
	ErrUnderLoad   = errors.New("under load: sender must prove its address by a cookie")
)

// appendWord appends the type word of a message.
func appendWord(b []byte, kind byte, s Suite) []byte { return append(b, kind, byte(s), 0, 0) }

// checkWord checks the length and the four bytes of the type word of a handshake message, and
// returns type and suite.
func checkWord(msg []byte) (kind byte, s Suite, err error) {
	if len(msg) < 4 {
		return 0, 0, ErrShort
	}
	var want int
	switch msg[0] {
	case TypeInitiation:
		want = InitiationSize
	case TypeResponse:
		want = ResponseSize
	case TypeCookie:
		want = CookieSize
	default:
		return 0, 0, ErrType
	}
	switch s = Suite(msg[1]); {
	case !s.Valid():
		return 0, 0, ErrSuite
	case msg[2] != 0 || msg[3] != 0:
		return 0, 0, ErrType
	case len(msg) != want:
		return 0, 0, ErrShort
	}
	return msg[0], s, nil
}

// Offsets of handshake fields (whitepaper §5.4.2 to §5.4.7).
const (
	macSize = 16 // mac1 and mac2, at the end of initiation and response

	senderAt           = 4 // initiation and response: index that the answer shall bear
	initiationNoiseAt  = 8
	initiationNoiseEnd = InitiationSize - 2*macSize

	responseReceiverAt = 8
	responseNoiseAt    = 12
	responseNoiseEnd   = ResponseSize - 2*macSize

	cookieReceiverAt = 4
	cookieNonceAt    = 8
	cookieSealedAt   = 32
)

// Receiver returns the receiver index of a data message, for [Machine.Keypair]. msg must be at least
// HeaderSize long.
func Receiver(msg []byte) uint32 { return binary.LittleEndian.Uint32(msg[4:8]) }
