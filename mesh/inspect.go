// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// What memberlist is given of what comes in. Of its packets, those parts are let through that this package has it send, and
// changes are taken out, as memberlist does not say who has sent them. What is compressed is not let through: nobody here compresses, and
// a packet that unfolds into packets that unfold costs whoever receives it what it does not cost who sends it.
//
// The types of memberlist's messages, as far as they are of interest here.
const (
	memberCompound = 7
	memberChange   = 8
	memberNack     = 11
	memberCRC      = 12

	crcSize = 5 // with its type
)

// letThrough tells whether memberlist may see a message of this type in a packet.
func letThrough(t byte) bool {
	return t <= 5 || t == memberNack // ping, indirect ping, ack, suspect, alive, dead; nack
}

// inspect takes a packet of memberlist's apart, calls change for each change in it, and returns what memberlist is to see, which may be
// nothing. Word that a process is alive is left out if echo says so. All of it refers to b. An error says that something did not make
// sense; what came before it is returned all the same.
func inspect(b []byte, change func([]byte), echo func([]byte) bool) (rest []byte, err error) {
	if len(b) >= crcSize && b[0] == memberCRC {
		if crc32.ChecksumIEEE(b[crcSize:]) != binary.BigEndian.Uint32(b[1:crcSize]) {
			return nil, fmt.Errorf("the checksum of a packet is wrong: %w", errWire)
		}
		b = b[crcSize:]
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("an empty packet: %w", errWire)
	}
	if b[0] != memberCompound {
		return inspectOne(b, change, echo)
	}
	var room [32][]byte
	parts, err := partsOf(b, room[:0])
	keep := parts[:0]
	for _, p := range parts {
		one, odd := inspectOne(p, change, echo)
		if odd != nil {
			err = odd
		}
		if one != nil {
			keep = append(keep, one)
		}
	}
	return compound(keep), err
}

func inspectOne(b []byte, change func([]byte), echo func([]byte) bool) ([]byte, error) {
	switch {
	case len(b) == 0:
		return nil, fmt.Errorf("an empty message: %w", errWire)
	case b[0] == memberChange:
		change(b[1:])
		return nil, nil
	case !letThrough(b[0]):
		return nil, fmt.Errorf("a message of type %d in a packet: %w", b[0], errWire)
	case b[0] == memberAlive && echo(b):
		return nil, nil
	}
	if err := checkIncarnation(b); err != nil {
		return nil, err
	}
	return b, nil
}

// partsOf appends the parts of a compound message to parts: their number (1 byte), the length of each (2 bytes), and then they.
func partsOf(b []byte, parts [][]byte) ([][]byte, error) {
	cut := func() error { return fmt.Errorf("a compound message is cut short: %w", errWire) }
	if len(b) < 2 || len(b) < 2+2*int(b[1]) {
		return parts, cut()
	}
	lengths, rest := b[2:2+2*int(b[1])], b[2+2*int(b[1]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(rest) {
			return parts, cut()
		}
		parts, rest = append(parts, rest[:n]), rest[n:]
	}
	return parts, nil
}

// compound makes one message of at most 255.
func compound(parts [][]byte) []byte {
	switch len(parts) {
	case 0:
		return nil
	case 1:
		return parts[0]
	}
	size := 2 + 2*len(parts)
	for _, p := range parts {
		size += len(p)
	}
	b := append(make([]byte, 0, size), memberCompound, byte(len(parts)))
	for _, p := range parts {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	}
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
