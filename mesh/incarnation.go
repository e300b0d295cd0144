// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"
	"fmt"
)

// An incarnation is how often a process has objected to being called dead, or had something new to say. Whoever is called dead objects by a greater
// one; so one word of a death in the last incarnation that there is leaves nothing to object by. No process gets anywhere near these bounds by itself; an
// objection is let through where no accusation is any more.
const (
	maxAccused = 1 << 30 // of suspect and dead
	maxAlive   = 1 << 31

	memberSuspect = 3
	memberAlive   = 4
	memberDead    = 5
)

// checkIncarnation returns an error if a message of memberlist's, b with its type, speaks of an incarnation that nobody can have, or is not of the form
// in which memberlist writes it: a map of MessagePack with short names and simple values.
func checkIncarnation(b []byte) error {
	limit := uint64(maxAccused)
	switch b[0] {
	case memberSuspect, memberDead:
	case memberAlive:
		limit = maxAlive
	default:
		return nil
	}
	odd := func() error { return fmt.Errorf("a message of type %d of another form: %w", b[0], errWire) }
	if len(b) < 2 || b[1]&0xf0 != 0x80 {
		return odd()
	}
	pairs, rest := int(b[1]&0x0f), b[2:]
	for range pairs {
		key, after, ok := packedValue(rest)
		if !ok {
			return odd()
		}
		value, after, ok := packedValue(after)
		if !ok {
			return odd()
		}
		if rest = after; string(key.text) != "Incarnation" {
			continue
		}
		if !value.number || value.n > limit {
			return fmt.Errorf("a message of type %d of an incarnation that nobody can have: %w", b[0], errWire)
		}
	}
	return nil
}

// packedThing is a simple value of MessagePack.
type packedThing struct {
	number bool
	n      uint64
	text   []byte // of a string or bytes
}

// packedValue reads a number that is not negative, nil, a string or bytes off the front of b.
func packedValue(b []byte) (v packedThing, rest []byte, ok bool) {
	if len(b) == 0 {
		return v, nil, false
	}
	t, b := b[0], b[1:]
	size := 0 // of what follows: of a number, or of the length of a text
	switch {
	case t < 0x80:
		return packedThing{number: true, n: uint64(t)}, b, true
	case t == 0xc0:
		return v, b, true
	case t&0xe0 == 0xa0:
		return textOf(b, uint64(t&0x1f))
	case t == 0xcc, t == 0xd9, t == 0xc4:
		size = 1
	case t == 0xcd, t == 0xda, t == 0xc5:
		size = 2
	case t == 0xce:
		size = 4
	case t == 0xcf:
		size = 8
	}
	if size == 0 || len(b) < size {
		return v, nil, false
	}
	var whole [8]byte
	copy(whole[8-size:], b)
	n, b := binary.BigEndian.Uint64(whole[:]), b[size:]
	if t >= 0xcc && t <= 0xcf {
		return packedThing{number: true, n: n}, b, true
	}
	return textOf(b, n)
}

func textOf(b []byte, n uint64) (v packedThing, rest []byte, ok bool) {
	if n > uint64(len(b)) {
		return v, nil, false
	}
	return packedThing{text: b[:n]}, b[n:], true
}
