// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// A Dot names an item for ever: no other one has it.
type Dot struct {
	Writer uint64 // NodeID
	Seq    uint64 // 1 to maxNumber
}

// An Item is one write. It is never changed.
type Item struct {
	Dot
	Version uint64 // 1 to maxNumber, by which the last of several of one key is told
	Key     string // of at most MaxKey bytes
	Value   []byte
}

// Limits bound a Set. What is written here keeps to them; what comes from other nodes may be twice as much, as two parts of a mesh
// may have written apart.
type Limits struct {
	Items   int // how many there are
	Value   int // bytes of one
	Bytes   int // of all keys and values
	Writers int // nodes that have ever written
}

// MaxKey bounds a key in bytes: two names as Kubernetes has them, and what kind of thing it is.
const MaxKey = 768

// maxNumber bounds sequence numbers and versions, far above what can come to be.
const maxNumber = 1 << 62

// What is wrong with what came from another node.
var (
	ErrMalformed = errors.New("it is malformed")
	ErrTooMuch   = errors.New("it would be more than fits")
)

// A Set is items and what was seen. Make one by [New]. What it returns must not be written to.
type Set struct {
	self   uint64
	floor  uint64
	limits Limits

	seen  map[uint64]spans // by writer; none is empty
	items map[Dot]Item
	keys  map[string][]Dot
	mine  map[Dot]struct{} // items that self has written
	bytes int              // of all keys and values
	sum   uint64           // see Digest

	disturbed uint64 // see Disturbed
}

// New makes an empty set. self is the NodeID that writes by it; it gives its items numbers from floor on, or from the greatest that was seen of
// it, if that is more.
func New(self, floor uint64, l Limits) *Set {
	return &Set{self: self, floor: min(max(floor, 1), maxNumber), limits: l, seen: map[uint64]spans{}, items: map[Dot]Item{}, keys: map[string][]Dot{}, mine: map[Dot]struct{}{}}
}

// Clone returns a set that changes independently.
func (s *Set) Clone() *Set {
	c := *s
	c.seen, c.items, c.mine, c.keys = maps.Clone(s.seen), maps.Clone(s.items), maps.Clone(s.mine), make(map[string][]Dot, len(s.keys))
	for k, dots := range s.keys {
		c.keys[k] = slices.Clone(dots)
	}
	return &c
}

// Get returns the item of a key that counts.
func (s *Set) Get(key string) (Item, bool) {
	dots := s.keys[key]
	if len(dots) == 0 {
		return Item{}, false
	}
	return s.items[slices.MaxFunc(dots, func(a, b Dot) int {
		return cmp.Or(cmp.Compare(s.items[a].Version, s.items[b].Version), compareDots(a, b))
	})], true
}

// At returns all items of a key, also those that do not count, by writer and number.
func (s *Set) At(key string) (all []Item) {
	for _, dot := range slices.SortedFunc(slices.Values(s.keys[key]), compareDots) {
		all = append(all, s.items[dot])
	}
	return all
}

// Keys returns all keys, ascending.
func (s *Set) Keys() []string { return slices.Sorted(maps.Keys(s.keys)) }

// Items returns all items, also those of one key that do not count, by writer and number.
func (s *Set) Items() []Item {
	return slices.SortedFunc(maps.Values(s.items), func(a, b Item) int { return compareDots(a.Dot, b.Dot) })
}

// A Change is what a key is to be: a value, or, if that is nil, nothing.
type Change struct {
	Key   string
	Value []byte
}

// Write makes changes, all or none, and returns what the others are to be told, and the keys that are not as they were; nil both if everything is
// as it should be. Values are kept.
func (s *Set) Write(changes []Change) (delta []byte, changed []string, err error) {
	d := newChange(s)
	version := uint64(0)
	for _, i := range s.items {
		version = max(version, i.Version)
	}
	last := map[string]int{}
	for i, c := range changes {
		last[c.Key] = i
	}
	for i, c := range changes {
		if last[c.Key] != i {
			continue // the last one counts
		}
		dots := s.keys[c.Key]
		if c.Value != nil && len(dots) == 1 && bytes.Equal(s.items[dots[0]].Value, c.Value) {
			continue
		}
		for _, dot := range dots {
			d.drop(dot)
		}
		if c.Value != nil {
			if err := d.write(Item{Version: version + 1, Key: c.Key, Value: c.Value}); err != nil {
				return nil, nil, err
			}
		}
	}
	d.tell()
	if err := d.within(s.limits); err != nil {
		return nil, nil, err
	}
	delta, changed = d.commit()
	return delta, changed, nil
}

// Own makes the items that this node has written those of values, and returns as Write does. An item of this node's that came from elsewhere, or went
// missing, is put right by it.
func (s *Set) Own(values map[string][]byte) (delta []byte, changed []string, err error) {
	return s.own(maps.Keys(s.mine), values)
}

// OwnOf is Own for the items of some keys, and leaves the others alone, however many there are. Those of values are among these keys; what is not in
// values is to be nothing.
func (s *Set) OwnOf(keys []string, values map[string][]byte) (delta []byte, changed []string, err error) {
	var mine []Dot
	for _, k := range keys {
		for _, dot := range s.keys[k] {
			if dot.Writer == s.self {
				mine = append(mine, dot)
			}
		}
	}
	return s.own(slices.Values(mine), values)
}

// own makes those of this node's items be those of values.
func (s *Set) own(mine iter.Seq[Dot], values map[string][]byte) (delta []byte, changed []string, err error) {
	d := newChange(s)
	kept := make(map[string]Dot, len(values))
	for dot := range mine {
		i := s.items[dot]
		if v, ok := values[i.Key]; !ok || i.Seq < s.floor || !bytes.Equal(v, i.Value) {
			d.drop(dot)
			continue
		}
		if other, twice := kept[i.Key]; twice { // the first stays
			if compareDots(other, dot) < 0 {
				d.drop(dot)
				continue
			}
			d.drop(other)
		}
		kept[i.Key] = dot
	}
	var more []string
	for k := range values {
		if _, ok := kept[k]; !ok {
			more = append(more, k)
		}
	}
	slices.Sort(more)
	for _, k := range more {
		if err := d.write(Item{Version: 1, Key: k, Value: values[k]}); err != nil {
			return nil, nil, err
		}
	}
	d.tell()
	if err := d.within(s.limits); err != nil {
		return nil, nil, err
	}
	delta, changed = d.commit()
	return delta, changed, nil
}

// Merge takes in what another node has encoded or was returned by Write, Own or Merge. It returns what was new here, and the keys that are not
// as they were; nil both if nothing was new. What concerns nodes for which gone, unless it is nil, returns true is left out. On an error, which is
// ErrMalformed or ErrTooMuch, nothing was taken in. It does not keep b.
func (s *Set) Merge(b []byte, gone func(writer uint64) bool) (delta []byte, changed []string, err error) {
	seen, items, err := decode(b, s.limits)
	if err != nil {
		return nil, nil, err
	}
	d := newChange(s)
	for w, theirs := range seen {
		if gone != nil && gone(w) {
			continue
		}
		if news := theirs.without(s.seen[w]); len(news) > 0 {
			d.seen[w] = news
		}
	}
	for dot := range s.within(seen) {
		if _, ok := items[dot]; !ok && (gone == nil || !gone(dot.Writer)) {
			d.drop(dot)
		}
	}
	for dot, i := range items {
		if gone != nil && gone(dot.Writer) {
			continue
		}
		switch mine, ok := s.items[dot]; {
		case ok && i.beats(mine): // somebody's disk was put back to an earlier time
			d.drop(dot)
			d.added[dot] = i
		case !ok && !s.seen[dot.Writer].has(dot.Seq):
			d.added[dot] = i
		}
	}
	d.tell()
	if err := d.within(s.limits.twice()); err != nil {
		return nil, nil, err
	}
	d.notice()
	delta, changed = d.commit()
	return delta, changed, nil
}

// within are the items that are seen there. What it costs is in proportion to what was seen, if that is less than there are items.
func (s *Set) within(seen map[uint64]spans) iter.Seq[Dot] {
	return func(yield func(Dot) bool) {
		numbers := uint64(0)
		for _, of := range seen {
			for _, r := range of {
				numbers += min(r.hi-r.lo, maxNumber>>20) + 1
			}
		}
		if numbers >= uint64(len(s.items)) {
			for dot := range s.items {
				if seen[dot.Writer].has(dot.Seq) && !yield(dot) {
					return
				}
			}
			return
		}
		for w, of := range seen {
			for _, r := range of {
				for n := r.lo; n <= r.hi; n++ {
					dot := Dot{w, n}
					if _, ok := s.items[dot]; ok && !yield(dot) {
						return
					}
				}
			}
		}
	}
}

// Prune forgets all that nodes for which gone returns true have written, as if they had never been, and returns the keys that are not as they
// were. Everybody has to do so, and to leave them out of what is merged, for good.
func (s *Set) Prune(gone func(writer uint64) bool) (changed []string) {
	d := newChange(s)
	for dot := range s.items {
		if gone(dot.Writer) {
			d.dropped[dot] = true
		}
	}
	d.notice()
	_, changed = d.commit()
	for w, have := range s.seen {
		if gone(w) {
			s.sum -= sumSeen(w, have)
			delete(s.seen, w)
		}
	}
	return changed
}

// Disturbed is how often Merge or Prune has changed what this node has written: only Own puts that right.
func (s *Set) Disturbed() uint64 { return s.disturbed }

// notice counts a change that is not this node's own of what this node has written.
func (d *change) notice() {
	for dot := range d.dropped {
		if dot.Writer == d.s.self {
			d.s.disturbed++
			return
		}
	}
	for dot := range d.added {
		if dot.Writer == d.s.self {
			d.s.disturbed++
			return
		}
	}
}

// beats tells which of two items of one dot counts; there is one alone unless a disk was put back.
func (i Item) beats(o Item) bool {
	return cmp.Or(cmp.Compare(i.Version, o.Version), cmp.Compare(i.Key, o.Key), bytes.Compare(i.Value, o.Value)) > 0
}

func compareDots(a, b Dot) int {
	return cmp.Or(cmp.Compare(a.Writer, b.Writer), cmp.Compare(a.Seq, b.Seq))
}

func (l Limits) twice() Limits {
	return Limits{Items: 2 * l.Items, Value: l.Value, Bytes: 2 * l.Bytes, Writers: 2 * l.Writers}
}

// change is what is about to be done to a set.
type change struct {
	s       *Set
	seen    map[uint64]spans
	dropped map[Dot]bool
	added   map[Dot]Item
}

func newChange(s *Set) *change {
	return &change{s: s, seen: map[uint64]spans{}, dropped: map[Dot]bool{}, added: map[Dot]Item{}}
}

func (d *change) drop(dot Dot) { d.dropped[dot] = true }

// tell has the others told of what is dropped, all at once: numbers that were seen and have no item.
func (d *change) tell() {
	of := map[uint64][]uint64{}
	for dot := range d.dropped {
		of[dot.Writer] = append(of[dot.Writer], dot.Seq)
	}
	for w, numbers := range of {
		d.seen[w] = d.seen[w].with(spansOf(numbers))
	}
}

// write adds an item of this node's, with the next number. The numbers that are skipped nobody ever has.
func (d *change) write(i Item) error {
	have := d.s.seen[d.s.self].with(d.seen[d.s.self])
	before := have.last()
	i.Dot = Dot{Writer: d.s.self, Seq: max(before+1, d.s.floor)}
	switch {
	case i.Key == "" || len(i.Key) > MaxKey || len(i.Value) > d.s.limits.Value:
		return fmt.Errorf("%.80q has %d bytes, and at most %d fit: %w", i.Key, len(i.Value), d.s.limits.Value, ErrTooMuch)
	case i.Seq > maxNumber || i.Version > maxNumber:
		return fmt.Errorf("no number is left for %.80q: %w", i.Key, ErrTooMuch)
	}
	d.added[i.Dot] = i
	d.seen[d.s.self] = d.seen[d.s.self].with(spans{{before + 1, i.Seq}})
	return nil
}

// within tells whether the set would be within l. A set that is beyond it already, as others have written, may become less.
func (d *change) within(l Limits) error {
	items, size := len(d.s.items)+len(d.added)-len(d.dropped), d.s.bytes
	for dot := range d.dropped {
		size -= d.s.items[dot].size()
	}
	for _, i := range d.added {
		size += i.size()
	}
	writers := len(d.s.seen)
	for w, seen := range d.seen {
		if len(d.s.seen[w]) == 0 {
			writers++
		}
		if len(d.s.seen[w].with(seen)) > maxSpans {
			return fmt.Errorf("too much of what node %016x has written is missing: %w", w, ErrTooMuch)
		}
	}
	switch {
	case items > l.Items && items > len(d.s.items):
		return fmt.Errorf("%d objects, and at most %d fit: %w", items, l.Items, ErrTooMuch)
	case size > l.Bytes && size > d.s.bytes:
		return fmt.Errorf("%d bytes, and at most %d fit: %w", size, l.Bytes, ErrTooMuch)
	case writers > l.Writers && writers > len(d.s.seen):
		return fmt.Errorf("%d nodes have written, and at most %d may: %w", writers, l.Writers, ErrTooMuch)
	}
	return nil
}

func (i Item) size() int { return len(i.Key) + len(i.Value) }

// commit does it, and returns what was new, encoded, and the keys that are not as they were.
func (d *change) commit() (delta []byte, changed []string) {
	s := d.s
	touched := map[string]bool{}
	for dot := range d.dropped {
		i := s.items[dot]
		delete(s.items, dot)
		delete(s.mine, dot)
		s.bytes -= i.size()
		s.sum -= i.sum()
		if dots := slices.DeleteFunc(s.keys[i.Key], func(o Dot) bool { return o == dot }); len(dots) > 0 {
			s.keys[i.Key] = dots
		} else {
			delete(s.keys, i.Key)
		}
		touched[i.Key] = true
	}
	for dot, i := range d.added {
		s.items[dot] = i
		if dot.Writer == s.self {
			s.mine[dot] = struct{}{}
		}
		s.bytes += i.size()
		s.sum += i.sum()
		s.keys[i.Key] = append(s.keys[i.Key], dot)
		touched[i.Key] = true
	}
	for w, seen := range d.seen {
		if had := s.seen[w]; len(had) > 0 {
			s.sum -= sumSeen(w, had)
		}
		s.seen[w] = s.seen[w].with(seen)
		s.sum += sumSeen(w, s.seen[w])
	}
	if len(d.seen) == 0 {
		return nil, slices.Sorted(maps.Keys(touched))
	}
	return encode(d.seen, d.added), slices.Sorted(maps.Keys(touched))
}
