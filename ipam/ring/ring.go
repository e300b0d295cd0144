// SPDX-License-Identifier: Apache-2.0

// Package ring is the replicated map from slot to owner by which the nodes of a mesh share out its addresses without a
// coordinator.
//
// A slot is an address's offset in the mesh's range. The ring holds one register per slot: a version and an owner. Two
// rings are merged slot by slot, the register with the greater version wins. Merge is therefore commutative, associative
// and idempotent, and every register only ever grows: a state-based CRDT.
//
// What makes ownership exclusive is who may write: version (0,1) is the seed, which is the same everywhere; who has claimed a
// slot at (e,n) writes (e,n+1); so does, of a granted one, the granter until it hands it over, and from then on the recipient;
// and the heir whom the retirement number e names writes (e,1). Two different registers of the same version are thus a
// violation; they are resolved in the same way everywhere and reported (Conflict).
//
// The ring also carries the log of retirements, and the votes on its next entry: of two logs the longer one wins, and with it its
// votes; where logs are the same, votes are joined. Together they only ever grow, too.
//
// Registers are kept as runs of slots that have the same one, so the size of a ring is that of its fragmentation, not of
// the range. A ring in which most registers are unknown is what is called a delta: merging it changes nothing where it
// knows nothing.
//
// The package is pure: it imports the standard library alone, and knows neither time nor I/O. Only ipam and its tests
// import it, and internal/node for the types Owner and Interval.
package ring

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync/atomic"
)

// Owner identifies who owns a slot: a node, or the name of a node that is still to adopt its seeded share. 0 is nobody.
type Owner uint64

// Version orders the writes to one slot: epoch first, then count. The zero Version is that of a register that has never
// been written.
type Version struct{ Epoch, Count uint32 }

// Compare returns -1, 0 or +1 as v is before, equal to or after w.
func (v Version) Compare(w Version) int {
	return cmp.Compare(uint64(v.Epoch)<<32|uint64(v.Count), uint64(w.Epoch)<<32|uint64(w.Count))
}

// Register is what the ring knows about one slot. The zero Register means that it knows nothing.
//
// A register with From is pending: From has granted the slot to Owner, who has not got it yet. Without, it is claimed:
// Owner has it.
type Register struct {
	Version Version
	Owner   Owner
	From    Owner
}

// compare orders registers; the merge keeps the greater one. The owners decide only between registers that cannot
// legally both exist.
func (x Register) compare(y Register) int {
	if x.Version != y.Version {
		return x.Version.Compare(y.Version)
	}
	return cmp.Or(cmp.Compare(x.Owner, y.Owner), cmp.Compare(x.From, y.From))
}

// Conflict reports that two registers of the same version were different, which no legal history leads to.
type Conflict struct {
	Interval Interval
	Version  Version
	Kept     Owner // the owner that every node settles on
	Dropped  Owner // may be the same, if the two differ in who granted the slot
}

// Errors that callers tell apart; what is returned wraps them with the details.
var (
	ErrSize      = errors.New("rings of different size")
	ErrNotOwner  = errors.New("not the owner")
	ErrRetired   = errors.New("already retired")
	ErrMalformed = errors.New("malformed ring")
	ErrFormat    = errors.New("unknown ring format")
)

// run is a run of slots with the same register; it ends before the next run begins, the last one at the ring's end.
type run struct {
	first uint32
	reg   Register
}

// Ring maps the slots [0,Size) to registers, and keeps who was retired. It is not safe for concurrent use while one of
// the users writes. Use New, Seed or Decode to make one; the zero Ring has no slots.
type Ring struct {
	size  uint32
	runs  []run  // runs[0].first == 0; ascending; no two neighbours have equal registers; never modified where lent says so, only replaced
	lent  uint32 // 1: another ring may have the same runs in memory; atomic, as many may clone at the same time
	log   log
	votes Votes
}

// New returns a ring of size slots that knows nothing: whatever it is merged with wins.
func New(size uint32) *Ring {
	if size == 0 {
		return &Ring{}
	}
	return &Ring{size: size, runs: []run{{}}}
}

// Seed returns the ring that a mesh begins with: version (0,1) for every slot, split evenly among owners in the given
// order, along boundaries that need few CIDR blocks. The same arguments give the same ring everywhere. It is an error if
// there is no owner, or more than slots, or one is 0 or occurs twice.
func Seed(size uint32, owners []Owner) (*Ring, error) {
	n := uint64(len(owners))
	if n == 0 || n > uint64(size) {
		return nil, fmt.Errorf("ring: cannot split %d slots among %d owners", size, n)
	}
	seen := make(map[Owner]bool, n)
	for _, o := range owners {
		if o == 0 || seen[o] {
			return nil, fmt.Errorf("ring: owner %016x is 0 or occurs twice in the seed", uint64(o))
		}
		seen[o] = true
	}
	// Cutting the range into a power of two of equal parts, four or more for each owner, keeps the shares within a
	// quarter of each other, which matters when they vote, and each share within a few CIDR blocks.
	parts := uint64(1)
	for parts < 4*n && 2*parts <= uint64(size) {
		parts *= 2
	}
	if parts < n || n == 1 {
		parts = n
	}
	part := uint64(size) / parts
	r := &Ring{size: size, runs: make([]run, n)}
	for i, o := range owners {
		r.runs[i] = run{uint32(uint64(i) * parts / n * part), Register{Version: Version{0, 1}, Owner: o}}
	}
	return r, nil
}

// Size returns the number of slots.
func (r *Ring) Size() uint32 { return r.size }

// Clone returns a copy: what is written to one of the two does not show in the other. It costs next to nothing, since they
// share what neither modifies but only replaces.
func (r *Ring) Clone() *Ring {
	atomic.StoreUint32(&r.lent, 1)
	return &Ring{size: r.size, runs: r.runs, lent: 1, log: r.log, votes: r.votes}
}

// Equal reports whether both rings have the same size, the same register in every slot, the same log and the same votes.
func (r *Ring) Equal(o *Ring) bool {
	return r.size == o.size && r.votes == o.votes && slices.Equal(r.runs, o.runs) && slices.Equal(r.log.entries, o.log.entries)
}

// end returns the last slot of run i.
func (r *Ring) end(i int) uint32 {
	if i+1 < len(r.runs) {
		return r.runs[i+1].first - 1
	}
	return r.size - 1
}

// index returns the number of the run that slot, which must be in the ring, lies in.
func (r *Ring) index(slot uint32) int {
	n, found := slices.BinarySearchFunc(r.runs, slot, func(x run, slot uint32) int { return cmp.Compare(x.first, slot) })
	if !found {
		n--
	}
	return n
}

// At returns the register of a slot, the zero Register if the ring has no such slot.
func (r *Ring) At(slot uint32) Register {
	if slot >= r.size {
		return Register{}
	}
	return r.runs[r.index(slot)].reg
}

// All yields the whole ring in ascending order, as the longest runs of slots that have the same register.
func (r *Ring) All() iter.Seq2[Interval, Register] {
	return func(yield func(Interval, Register) bool) {
		for i, x := range r.runs {
			if !yield(Interval{x.first, r.end(i)}, x.reg) {
				return
			}
		}
	}
}

// Where returns the slots whose register is as wanted.
func (r *Ring) Where(wanted func(Register) bool) Set {
	var out Set
	for i, x := range r.runs {
		if wanted(x.reg) {
			out = out.append(Interval{x.first, r.end(i)})
		}
	}
	return out
}

// OwnedBy returns the slots that o owns, those included that were granted to it and that it has not claimed.
func (r *Ring) OwnedBy(o Owner) Set { return r.Where(func(x Register) bool { return x.Owner == o }) }

// Owned returns the number of slots that each owner owns; owner 0 stands for slots of which nothing is known.
func (r *Ring) Owned() map[Owner]uint64 {
	m := make(map[Owner]uint64)
	for i, x := range r.runs {
		m[x.reg.Owner] += Interval{x.first, r.end(i)}.Len()
	}
	return m
}

// Owners returns everybody whom a register names, as its owner or as who granted the slot, in ascending order.
func (r *Ring) Owners() []Owner {
	return slices.Sorted(maps.Keys(r.owners()))
}

// owners is the set of everybody whom a register names.
func (r *Ring) owners() map[Owner]uint64 {
	m := make(map[Owner]uint64, len(r.runs)/8+len(r.log.entries))
	for _, x := range r.runs {
		m[x.reg.Owner] = 0
		if x.reg.From != 0 {
			m[x.reg.From] = 0
		}
	}
	delete(m, 0)
	return m
}

// Known returns the slots of which the ring knows something; of a delta, those that it is about.
func (r *Ring) Known() Set {
	var out Set
	for i, x := range r.runs {
		if x.reg != (Register{}) {
			out = out.append(Interval{x.first, r.end(i)})
		}
	}
	return out
}

// Only returns a ring of the same size that knows what r knows about the slots in keep, and nothing else: a delta. See
// WithLog for one that tells more.
func (r *Ring) Only(keep Set) *Ring {
	var b builder
	at := uint64(0)
	for _, k := range keep {
		if k.First >= r.size {
			break
		}
		if at < uint64(k.First) {
			b.add(uint32(at), Register{})
		}
		last := min(k.Last, r.size-1)
		for i := r.index(k.First); i < len(r.runs) && r.runs[i].first <= last; i++ {
			b.add(max(r.runs[i].first, k.First), r.runs[i].reg)
		}
		at = uint64(last) + 1
	}
	if at < uint64(r.size) {
		b.add(uint32(at), Register{})
	}
	return &Ring{size: r.size, runs: b.runs}
}

// Same returns the slots of which r and o, which must be of the same size, know the same, and not nothing.
func (r *Ring) Same(o *Ring) Set {
	var out Set
	about, known := r.span()
	if !known {
		return nil
	}
	r.zip(o, about, func(i Interval, x, y *Register) {
		if *x == *y && *x != (Register{}) {
			out = out.append(i)
		}
	})
	return out
}

// News is what a Merge changed.
type News struct {
	Slots     Set        // whose register is another one now
	Log       bool       // the log or the votes are others
	Conflicts []Conflict // violations met, whether they changed anything or not
	Split     *Split     // the logs contradict each other; nil: they do not
}

// Any reports whether anything changed.
func (n News) Any() bool { return len(n.Slots) > 0 || n.Log }

// Merge takes into r, slot by slot, the greater of the registers of r and o, the longer log with its votes, and of equal
// logs the greater votes. It returns what changed, and the violations that it met. The only error is ErrSize; r is
// unchanged then.
func (r *Ring) Merge(o *Ring) (News, error) {
	var news News
	if r.size != o.size {
		return news, fmt.Errorf("ring: %w: %d and %d slots", ErrSize, r.size, o.size)
	}
	if about, known := o.span(); known {
		r.mergeIn(o, about, &news)
	}
	news.Log, news.Split = r.mergeLog(o)
	return news, nil
}

// span returns the shortest interval that has all the slots of which the ring knows something, false if there are none.
func (r *Ring) span() (Interval, bool) {
	known := func(x run) bool { return x.reg != (Register{}) }
	first := slices.IndexFunc(r.runs, known)
	if first < 0 {
		return Interval{}, false
	}
	last := len(r.runs) - 1
	for !known(r.runs[last]) {
		last--
	}
	return Interval{r.runs[first].first, r.end(last)}, true
}

// mergeIn merges the registers in one interval, outside of which o knows nothing: what is outside is copied as it is.
func (r *Ring) mergeIn(o *Ring, in Interval, news *News) {
	runs := 0 // that there may be then
	r.zip(o, in, func(i Interval, x, y *Register) {
		runs++
		if *x == *y {
			return
		}
		won, lost := x, y
		if x.compare(*y) < 0 {
			won, lost = y, x
			news.Slots = news.Slots.append(i)
		}
		if x.Version == y.Version {
			news.Conflicts = append(news.Conflicts, Conflict{i, x.Version, won.Owner, lost.Owner})
		}
	})
	if len(news.Slots) == 0 {
		return
	}
	r.change(in, runs, func(b *builder) {
		r.zip(o, in, func(i Interval, x, y *Register) {
			if x.compare(*y) < 0 {
				x = y
			}
			b.add(i.First, *x)
		})
	})
}

// change replaces the registers of one interval by those that f adds for it, of which there are about as many as said.
func (r *Ring) change(in Interval, more int, f func(b *builder)) {
	before, after := r.index(in.First), r.index(in.Last) // the runs that the interval begins and ends in
	from, to := before, after+1                          // those that may change: what is next to the interval may become one with what is in it
	b := builder{runs: make([]run, 0, more+4)}
	if x := r.runs[before]; x.first < in.First {
		b.add(x.first, x.reg)
	} else if before > 0 {
		from--
		b.runs = append(b.runs, r.runs[from])
	}
	f(&b)
	if r.end(after) > in.Last {
		b.add(in.Last+1, r.runs[after].reg)
	}
	if to < len(r.runs) {
		b.add(r.runs[to].first, r.runs[to].reg)
		to++
	}
	if atomic.LoadUint32(&r.lent) != 0 {
		r.runs = slices.Concat(r.runs[:from], b.runs, r.runs[to:])
		r.lent = 0
		return
	}
	r.runs = slices.Replace(r.runs, from, to, b.runs...)
}

// zip walks both rings, which must be of the same size, over the longest intervals in which each has one register, within
// one that ends where a run of either does.
func (r *Ring) zip(o *Ring, in Interval, f func(i Interval, x, y *Register)) {
	i, j, first := r.index(in.First), o.index(in.First), in.First
	for {
		ri, oj := r.end(i), o.end(j)
		last := min(ri, oj)
		f(Interval{first, last}, &r.runs[i].reg, &o.runs[j].reg)
		if last == in.Last {
			return
		}
		if ri == last {
			i++
		}
		if oj == last {
			j++
		}
		first = last + 1
	}
}

// builder collects runs in ascending order and joins those with equal registers.
type builder struct{ runs []run }

func (b *builder) add(first uint32, reg Register) {
	if n := len(b.runs); n > 0 && b.runs[n-1].reg == reg {
		return
	}
	b.runs = append(b.runs, run{first, reg})
}
