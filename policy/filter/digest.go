// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"hash/fnv"
)

// The kernel takes time with the square of a set's size to list it: ten seconds for 300,000 elements. So the sets that may become that large are not
// read when they have more than readable elements: the element of the phase bears a digest of what is in them, and a table of another digest
// is replaced as a whole, which takes a second. What was taken over by its digest is compared afterwards.

// readable is how many elements the bulk may have to be read.
const readable = 20_000

// bulk says whether a set is one of those that may become very large.
func bulk(set string) bool { return set == setCells || set == setLists || set == setWide }

// A digest is of all elements of the bulk, whatever their order: the sum of theirs; one of those that say who is judged; and one of the rules, by which a
// later version knows that a table is as its maker made it.
type digest struct {
	sum   uint64
	count int
	sides uint64
	rules uint64
}

func (d digest) String() string { return fmt.Sprintf("%016x", d.sum) }

// judged is the part that tells a table whose endpoints and rules are all there.
func (d digest) judged() string { return fmt.Sprintf("%016x %016x", d.sides, d.rules) }

// fingerprint is a digest of rules, of which each line describes one.
func fingerprint(lines []string) uint64 {
	h := fnv.New64a()
	for _, line := range lines {
		_, _ = h.Write(append([]byte(line), '\n'))
	}
	return h.Sum64()
}

func (x element) digest(set string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(set))
	_, _ = h.Write(x.key)
	_, _ = h.Write(x.end)
	_, _ = h.Write(number(x.data))
	return h.Sum64()
}

// digest is that of the model's elements.
func (m *model) digest() (d digest) {
	for _, t := range m.byNumber {
		t.each(func(set string, x element) {
			d.sum += x.digest(set)
			d.count++
		})
	}
	for s, n := range m.sides {
		d.sides += element{key: s.Addr.AsSlice(), data: n}.digest(sideSet(s))
	}
	return d
}

// after is the digest after a change.
func (d digest) after(e *edit) digest {
	for set, changes := range e.sets {
		if setOf(set).dataType == typeVerdict {
			for _, c := range changes {
				if c.old != nil {
					d.sides -= c.old.digest(set)
				}
				if c.now != nil {
					d.sides += c.now.digest(set)
				}
			}
		}
		if !bulk(set) {
			continue
		}
		for _, c := range changes {
			if c.old != nil {
				d.sum -= c.old.digest(set)
				d.count--
			}
			if c.now != nil {
				d.sum += c.now.digest(set)
				d.count++
			}
		}
	}
	return d
}
