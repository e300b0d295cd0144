// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
)

const (
	codecVersion = 1
	// maxSpans bounds the ranges in which what a node has written was seen: all but the last one are gaps that the next comparison of states fills.
	maxSpans    = 1024
	maxAllSpans = 1 << 16 // in one message
)

// Encode returns the whole set; of equal sets the same bytes.
//
//	version 1 | writers, each: NodeID (8 bytes), spans, each: gap before it, length less 1
//	          | items, each: NodeID (8 bytes), number, version, key, value
//
// Counts, numbers and lengths are varints. Writers, spans and items ascend.
func (s *Set) Encode() []byte { return encode(s.seen, s.items) }

func encode(seen map[uint64]spans, items map[Dot]Item) []byte {
	size := 0
	for _, i := range items {
		size += i.encoded()
	}
	b := append(make([]byte, 0, size+64*len(seen)), codecVersion)
	b = binary.AppendUvarint(b, uint64(len(seen)))
	for _, w := range slices.Sorted(maps.Keys(seen)) {
		b = appendSeen(b, w, seen[w])
	}
	b = binary.AppendUvarint(b, uint64(len(items)))
	for _, dot := range slices.SortedFunc(maps.Keys(items), compareDots) {
		b = items[dot].append(b)
	}
	return b
}

func appendSeen(b []byte, w uint64, seen spans) []byte {
	b = binary.BigEndian.AppendUint64(b, w)
	b = binary.AppendUvarint(b, uint64(len(seen)))
	end := uint64(0)
	for _, r := range seen {
		b = binary.AppendUvarint(b, r.lo-end)
		b = binary.AppendUvarint(b, r.hi-r.lo)
		end = r.hi
	}
	return b
}

func (i Item) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, i.Writer)
	b = binary.AppendUvarint(b, i.Seq)
	b = binary.AppendUvarint(b, i.Version)
	b = binary.AppendUvarint(b, uint64(len(i.Key)))
	b = append(b, i.Key...)
	b = binary.AppendUvarint(b, uint64(len(i.Value)))
	return append(b, i.Value...)
}

// decode reads what encode has written, no more than twice what limits allow. Nothing of b is kept.
func decode(b []byte, l Limits) (seen map[uint64]spans, items map[Dot]Item, err error) {
	if len(b) == 0 {
		return nil, nil, nil
	}
	l = l.twice()
	r := reader{b: b, spansLeft: maxAllSpans}
	if r.byte() != codecVersion {
		return nil, nil, ErrMalformed
	}
	seen, items = map[uint64]spans{}, map[Dot]Item{}
	writers := r.uvarint()
	if writers > uint64(l.Writers) {
		return nil, nil, ErrTooMuch
	}
	for last := uint64(0); writers > 0 && !r.bad; writers-- {
		w := r.uint64()
		if w <= last {
			return nil, nil, ErrMalformed
		}
		last = w
		seen[w] = r.spans()
	}
	count := r.uvarint()
	if count > uint64(l.Items) {
		return nil, nil, ErrTooMuch
	}
	size := 0
	for last := (Dot{}); count > 0 && !r.bad; count-- {
		i := Item{Dot: Dot{Writer: r.uint64(), Seq: r.uvarint()}, Version: r.uvarint()}
		i.Key = string(r.bytes(MaxKey))
		i.Value = append([]byte{}, r.bytes(l.Value)...)
		if compareDots(i.Dot, last) <= 0 || i.Version == 0 || i.Version > maxNumber || i.Key == "" || !seen[i.Writer].has(i.Seq) {
			return nil, nil, ErrMalformed
		}
		if size += i.size(); size > l.Bytes {
			return nil, nil, ErrTooMuch
		}
		last = i.Dot
		items[i.Dot] = i
	}
	if r.bad || len(r.b) > 0 {
		return nil, nil, ErrMalformed
	}
	return seen, items, nil
}

// Digest returns a hash of the set: of equal sets the same, of others, but for chance, not. It costs nothing.
func (s *Set) Digest() uint64 { return s.sum }

func (i Item) sum() uint64 { return hash(i.append(make([]byte, 0, i.encoded()))) }

// encoded is how many bytes it is encoded into, at most.
func (i Item) encoded() int { return 8 + 4*binary.MaxVarintLen64 + i.size() }

func sumSeen(w uint64, seen spans) uint64 { return hash(appendSeen(nil, w, seen)) }

func hash(b []byte) uint64 {
	h := sha256.Sum256(b)
	return binary.BigEndian.Uint64(h[:])
}

// reader reads from b, until it is bad.
type reader struct {
	b         []byte
	bad       bool
	spansLeft uint64 // how many may come
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// uvarint reads a varint in its shortest form.
func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.bad = true
		return 0
	}
	r.take(n)
	return v
}

func (r *reader) bytes(limit int) []byte {
	n := r.uvarint()
	if n > uint64(limit) {
		r.bad = true
		return nil
	}
	return r.take(int(n))
}

func (r *reader) spans() (out spans) {
	n := r.uvarint()
	if n == 0 || n > maxSpans || n > r.spansLeft {
		r.bad = true
		return nil
	}
	r.spansLeft -= n
	for end := uint64(0); n > 0 && !r.bad; n-- {
		gap, length := r.uvarint(), r.uvarint()
		if gap == 0 || gap == 1 && end > 0 || gap > maxNumber || length > maxNumber || end+gap+length > maxNumber {
			r.bad = true
			return nil
		}
		out = append(out, span{end + gap, end + gap + length})
		end += gap + length
	}
	return out
}
