// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// The binary form, all numbers unsigned varints unless said otherwise:
//
//	format   1 byte, 1
//	size     number of slots, 1..2^32-1
//	owners   how many, then each as 8 bytes little endian, ascending, none 0
//	runs     how many, then for each
//	  gap      unknown slots since the end of the run before
//	  length   of the run, less 1
//	  owner    index into the owners, times 2; plus 1 if an epoch follows
//	  epoch    only if it is not 0
//	  count
//
// Unknown slots cost nothing, so a delta is as long as what it tells.
const (
	format = 1

	ownerSize  = 8
	minRunSize = 4
)

// Encode returns the ring's binary form. Equal rings have equal forms.
func (r *Ring) Encode() []byte { return r.AppendEncode(nil) }

// AppendEncode appends to b what Encode returns.
func (r *Ring) AppendEncode(b []byte) []byte {
	owners := r.Owners()
	known := 0
	for _, x := range r.runs {
		if x.reg != (Register{}) {
			known++
		}
	}
	b = slices.Grow(b, 16+ownerSize*len(owners)+8*known)
	b = append(b, format)
	b = binary.AppendUvarint(b, uint64(r.size))
	b = binary.AppendUvarint(b, uint64(len(owners)))
	index := make(map[Owner]uint64, len(owners))
	for i, o := range owners {
		index[o] = uint64(i)
		b = binary.LittleEndian.AppendUint64(b, uint64(o))
	}
	b = binary.AppendUvarint(b, uint64(known))
	at := uint32(0)
	for i, x := range r.runs {
		if x.reg == (Register{}) {
			continue
		}
		last := r.end(i)
		b = binary.AppendUvarint(b, uint64(x.first-at))
		b = binary.AppendUvarint(b, uint64(last-x.first))
		at = last + 1
		v := x.reg.Version
		if v.Epoch == 0 {
			b = binary.AppendUvarint(b, index[x.reg.Owner]<<1)
		} else {
			b = binary.AppendUvarint(b, index[x.reg.Owner]<<1|1)
			b = binary.AppendUvarint(b, uint64(v.Epoch))
		}
		b = binary.AppendUvarint(b, uint64(v.Count))
	}
	return b
}

// Decode parses what Encode returned, from any node: b need not be trusted, and no more memory is used than is
// proportional to len(b). The ring does not refer to b afterwards. Errors are ErrFormat, for a form that a later version
// writes, and ErrMalformed.
func Decode(b []byte) (*Ring, error) {
	if len(b) > 0 && b[0] != format {
		return nil, fmt.Errorf("ring: %w %d, this build knows %d; upgrade this node", ErrFormat, b[0], format)
	}
	d := decoder{b: b}
	d.take(1)
	size := d.number(math.MaxUint32)
	n := d.number(uint64(len(d.b) / ownerSize))
	if size == 0 {
		d.bad = true
	}
	var owners []Owner
	for range n {
		if raw := d.take(ownerSize); raw != nil {
			o := Owner(binary.LittleEndian.Uint64(raw))
			if o == 0 || len(owners) > 0 && o <= owners[len(owners)-1] {
				d.bad = true
			}
			owners = append(owners, o)
		}
	}
	runs := d.number(uint64(len(d.b) / minRunSize))
	out := builder{}
	if !d.bad {
		out.runs = make([]run, 0, runs+1)
	}
	at := uint64(0) // behind the last run
	for i := uint64(0); i < runs && !d.bad; i++ {
		gap := d.number(size)
		length := d.number(size) + 1
		who := d.number(2*uint64(len(owners)) + 1)
		var v Version
		if who&1 == 1 {
			v.Epoch = uint32(d.number(math.MaxUint32))
		}
		v.Count = uint32(d.number(math.MaxUint32))
		if d.bad || at+gap+length > size || who>>1 >= uint64(len(owners)) || v == (Version{}) {
			d.bad = true
			break
		}
		if gap > 0 {
			out.add(uint32(at), Register{})
		}
		out.add(uint32(at+gap), Register{v, owners[who>>1]})
		at += gap + length
	}
	if d.bad || len(d.b) != 0 {
		return nil, fmt.Errorf("ring: %w of %d bytes", ErrMalformed, len(b))
	}
	if at < size {
		out.add(uint32(at), Register{})
	}
	return &Ring{size: uint32(size), runs: out.runs}, nil
}

// decoder reads from b; after a failure bad is set and whatever it returns is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || len(d.b) < n {
		d.bad = true
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

// number reads a varint that must not exceed limit.
func (d *decoder) number(limit uint64) uint64 {
	if d.bad {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}
