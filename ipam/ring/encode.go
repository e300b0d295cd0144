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
//	format   1 byte, 2
//	size     number of slots, 1..2^32-1
//	owners   how many, then each as 8 bytes little endian, ascending, none 0, all named below, as indexes into these
//	runs     how many, then for each
//	  owner    times 8; plus 1 if an epoch follows, plus 2 if a granter follows, plus 4 if a gap follows
//	  gap      unknown slots since the end of the run before; only if there are any
//	  length   of the run, less 1
//	  epoch    only if it is not 0
//	  from     who granted it; only if it is pending
//	  count
//	log      how many retirements, then for each
//	  dead     times 2; plus 1 if it was forced
//	  heir, by
//	  at
//	votes    1 byte: 0 nothing, 1 a promise, 2 a promise and a value
//	  promised  count, node
//	  accepted  count, node; dead, heir, by, at as above; only if 2
//
// Unknown slots cost nothing, so a delta is as long as what it tells. A ring has one form only: runs are as long as they
// can be, and numbers as short.
const (
	format = 2

	ownerSize    = 8
	minRunSize   = 3
	minEntrySize = 4
)

const (
	runEpoch = 1 << iota
	runFrom
	runGap
	runFlags = iota
)

// Encode returns the ring's binary form. Equal rings have equal forms.
func (r *Ring) Encode() []byte { return r.AppendEncode(nil) }

// AppendEncode appends to b what Encode returns.
func (r *Ring) AppendEncode(b []byte) []byte {
	owners := r.named()
	e := encoder{owners}
	known := 0
	for _, x := range r.runs {
		if x.reg != (Register{}) {
			known++
		}
	}
	b = slices.Grow(b, 24+ownerSize*len(owners)+8*known+12*len(r.log.entries))
	b = append(b, format)
	b = binary.AppendUvarint(b, uint64(r.size))
	b = binary.AppendUvarint(b, uint64(len(owners)))
	for _, o := range owners {
		b = binary.LittleEndian.AppendUint64(b, uint64(o))
	}
	b = binary.AppendUvarint(b, uint64(known))
	at := uint32(0)
	for i, x := range r.runs {
		if x.reg == (Register{}) {
			continue
		}
		last := r.end(i)
		b = e.run(b, x.first-at, last-x.first, x.reg)
		at = last + 1
	}
	b = binary.AppendUvarint(b, uint64(len(r.log.entries)))
	for _, x := range r.log.entries {
		b = e.entry(b, x)
	}
	return e.votes(b, r.votes)
}

// named returns everybody whom the ring names, in ascending order.
func (r *Ring) named() []Owner {
	all := make([]Owner, 0, 2*len(r.runs)+3*len(r.log.entries)+5)
	for _, x := range r.runs {
		all = append(all, x.reg.Owner, x.reg.From)
	}
	entry := func(e Retirement) { all = append(all, e.Dead, e.Heir, e.By) }
	for _, e := range r.log.entries {
		entry(e)
	}
	entry(r.votes.Value)
	all = append(all, r.votes.Promised.Node, r.votes.Accepted.Node)
	all = slices.DeleteFunc(all, func(o Owner) bool { return o == 0 })
	slices.Sort(all)
	return slices.Compact(all)
}

type encoder struct {
	owners []Owner // the table
}

// index returns where in the table somebody is; 0 for nobody.
func (e *encoder) index(o Owner) uint64 {
	i, found := slices.BinarySearch(e.owners, o)
	if !found {
		return 0
	}
	return uint64(i)
}

// run appends a run of length+1 slots after gap unknown ones.
func (e *encoder) run(b []byte, gap, length uint32, x Register) []byte {
	flags := uint64(0)
	if x.Version.Epoch != 0 {
		flags |= runEpoch
	}
	if x.From != 0 {
		flags |= runFrom
	}
	if gap != 0 {
		flags |= runGap
	}
	b = binary.AppendUvarint(b, e.index(x.Owner)<<runFlags|flags)
	if gap != 0 {
		b = binary.AppendUvarint(b, uint64(gap))
	}
	b = binary.AppendUvarint(b, uint64(length))
	if x.Version.Epoch != 0 {
		b = binary.AppendUvarint(b, uint64(x.Version.Epoch))
	}
	if x.From != 0 {
		b = binary.AppendUvarint(b, e.index(x.From))
	}
	return binary.AppendUvarint(b, uint64(x.Version.Count))
}

func (e *encoder) entry(b []byte, x Retirement) []byte {
	forced := uint64(0)
	if x.Forced {
		forced = 1
	}
	b = binary.AppendUvarint(b, e.index(x.Dead)<<1|forced)
	b = binary.AppendUvarint(b, e.index(x.Heir))
	b = binary.AppendUvarint(b, e.index(x.By))
	return binary.AppendUvarint(b, uint64(x.At))
}

func (e *encoder) ballot(b []byte, x Ballot) []byte {
	b = binary.AppendUvarint(b, uint64(x.Count))
	return binary.AppendUvarint(b, e.index(x.Node))
}

func (e *encoder) votes(b []byte, v Votes) []byte {
	switch {
	case v == (Votes{}):
		return append(b, 0)
	case v.Accepted == (Ballot{}):
		return e.ballot(append(b, 1), v.Promised)
	}
	b = e.ballot(append(b, 2), v.Promised)
	return e.entry(e.ballot(b, v.Accepted), v.Value)
}

// Decode parses what Encode returned, from any node, and nothing else: b need not be trusted, and no more memory is used
// than is proportional to len(b). The ring does not refer to b afterwards. Errors are ErrFormat, for a form that another
// version writes, and ErrMalformed.
func Decode(b []byte) (*Ring, error) {
	if len(b) > 0 && b[0] != format {
		who := "this node"
		if b[0] < format {
			who = "the node that wrote it"
		}
		return nil, fmt.Errorf("ring: %w %d, this build knows %d; upgrade %s", ErrFormat, b[0], format, who)
	}
	d := decoder{b: b}
	d.take(1)
	size := d.number(math.MaxUint32)
	if size == 0 {
		d.bad = true
	}
	d.readOwners()
	out := &Ring{size: uint32(size), runs: d.runs(size)}
	if d.log(out); !d.bad {
		d.votes(out)
	}
	if d.bad || len(d.b) != 0 || slices.Contains(d.named, false) {
		return nil, fmt.Errorf("ring: %w of %d bytes", ErrMalformed, len(b))
	}
	return out, nil
}

// runs reads the runs of a ring of size slots.
func (d *decoder) runs(size uint64) []run {
	n := d.number(uint64(len(d.b) / minRunSize))
	out := builder{}
	if !d.bad {
		out.runs = make([]run, 0, n+1)
	}
	at := uint64(0) // behind the last run
	for i := uint64(0); i < n && !d.bad; i++ {
		who := d.number(uint64(len(d.owners)) << runFlags)
		reg := Register{Owner: d.ownerAt(who >> runFlags)}
		gap := uint64(0)
		if who&runGap != 0 {
			gap = d.positive(size)
		}
		length := d.number(size) + 1
		if who&runEpoch != 0 {
			reg.Version.Epoch = uint32(d.positive(math.MaxUint32))
		}
		if who&runFrom != 0 {
			reg.From = d.owner()
		}
		reg.Version.Count = uint32(d.number(math.MaxUint32))
		again := gap == 0 && len(out.runs) > 0 && out.runs[len(out.runs)-1].reg == reg
		if d.bad || again || at+gap+length > size || reg.Version == (Version{}) || reg.From == reg.Owner {
			d.bad = true
			return nil
		}
		if gap > 0 {
			out.add(uint32(at), Register{})
		}
		out.add(uint32(at+gap), reg)
		at += gap + length
	}
	if at < size {
		out.add(uint32(at), Register{})
	}
	return out.runs
}

// log reads the log of r.
func (d *decoder) log(r *Ring) {
	n := d.number(uint64(min(len(d.b)/minEntrySize, len(d.owners)))) // everybody is retired once
	if d.bad || n == 0 {
		return
	}
	r.log = log{make([]Retirement, 0, n), make(map[Owner]int, n)}
	for i := range int(n) {
		e := d.entry()
		if d.bad = d.bad || r.mayRetire(e) != nil; d.bad {
			return
		}
		r.log.entries = append(r.log.entries, e)
		r.log.index[e.Dead] = i
	}
}

func (d *decoder) entry() Retirement {
	who := d.number(uint64(len(d.owners)) << 1)
	return Retirement{Forced: who&1 != 0, Dead: d.ownerAt(who >> 1), Heir: d.owner(), By: d.owner(), At: int64(d.number(math.MaxInt64))}
}

func (d *decoder) ballot() Ballot {
	return Ballot{Count: uint32(d.number(math.MaxUint32)), Node: d.owner()}
}

// votes reads the votes of r, whose log was read before.
func (d *decoder) votes(r *Ring) {
	kind := d.number(2)
	if kind == 0 {
		return
	}
	v := Votes{Promised: d.ballot()}
	if kind == 2 {
		v.Accepted, v.Value = d.ballot(), d.entry()
		d.bad = d.bad || v.Accepted.Compare(v.Promised) > 0 || r.mayRetire(v.Value) != nil
	}
	r.votes = v
}

// decoder reads from b; after a failure bad is set and whatever it returns is zero.
type decoder struct {
	b      []byte
	bad    bool
	owners []Owner
	named  []bool // which of the owners occurred
}

// readOwners reads the table of owners.
func (d *decoder) readOwners() {
	n := d.number(uint64(len(d.b) / ownerSize))
	for range n {
		raw := d.take(ownerSize)
		if raw == nil {
			return
		}
		o := Owner(binary.LittleEndian.Uint64(raw))
		if o == 0 || len(d.owners) > 0 && o <= d.owners[len(d.owners)-1] {
			d.bad = true
		}
		d.owners = append(d.owners, o)
	}
	d.named = make([]bool, len(d.owners))
}

// ownerAt returns an owner of the table.
func (d *decoder) ownerAt(i uint64) Owner {
	if d.bad || i >= uint64(len(d.owners)) {
		d.bad = true
		return 0
	}
	d.named[i] = true
	return d.owners[i]
}

// owner reads an owner, as an index into the table.
func (d *decoder) owner() Owner { return d.ownerAt(d.number(math.MaxUint32)) }

func (d *decoder) take(n int) []byte {
	if d.bad || len(d.b) < n {
		d.bad = true
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

// positive reads a varint that must be 1 to limit.
func (d *decoder) positive(limit uint64) uint64 {
	v := d.number(limit)
	d.bad = d.bad || v == 0
	return v
}

// number reads a varint that must not exceed limit, nor be longer than it has to be.
func (d *decoder) number(limit uint64) uint64 {
	if d.bad {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit || n > 1 && d.b[n-1] == 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}
