// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/binary"
	"math"

	"github.com/weftnet/weft/ipam/ring"
)

// Building blocks of the binary forms of messages and of the stored ledger: varints, byte strings with their length in
// front, rings in such strings, and sets of slots as (gap, length-1) pairs.

func appendBytes(b, s []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// appendRing appends a ring; nil is allowed.
func appendRing(b []byte, r *ring.Ring) []byte {
	if r == nil {
		return binary.AppendUvarint(b, 0)
	}
	return appendBytes(b, r.Encode())
}

func appendSet(b []byte, s ring.Set) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	at := uint64(0)
	for _, i := range s {
		b = binary.AppendUvarint(b, uint64(i.First)-at)
		b = binary.AppendUvarint(b, i.Len()-1)
		at = uint64(i.Last) + 1
	}
	return b
}

// reader takes such building blocks from b. After the first failure bad is set, and all that it returns is zero. It
// uses no more memory than is proportional to what it reads.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number(limit uint64) uint64 {
	if r.bad {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte { return byte(r.number(math.MaxUint8)) }

// take returns the next n bytes, which alias b.
func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	s := r.b[:n]
	r.b = r.b[n:]
	return s
}

func (r *reader) bytes() []byte { return r.take(r.number(math.MaxUint32)) }

// ring reads a ring of size slots; none may be nil only if that is allowed.
func (r *reader) ring(size uint32, none bool) *ring.Ring {
	s := r.bytes()
	if r.bad || none && len(s) == 0 {
		return nil
	}
	out, err := ring.Decode(s)
	if err != nil || out.Size() != size {
		r.bad = true
		return nil
	}
	return out
}

// set reads a set of slots below size.
func (r *reader) set(size uint32) ring.Set {
	n := r.number(uint64(len(r.b) / 2))
	if r.bad || n == 0 {
		return nil
	}
	out := make(ring.Set, 0, n)
	at := uint64(0)
	for i := range n {
		first := at + r.number(uint64(size))
		last := first + r.number(uint64(size))
		if r.bad || last >= uint64(size) || i > 0 && first == at {
			r.bad = true
			return nil
		}
		out = append(out, ring.Interval{First: uint32(first), Last: uint32(last)})
		at = last + 1
	}
	return out
}

// done reports whether everything was read, and well formed.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }
