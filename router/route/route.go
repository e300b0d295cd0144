// SPDX-License-Identifier: Apache-2.0

// Package route maps addresses to whatever owns them by longest-prefix match.
//
// A Table is built once from the whole list of prefixes and never changes
// afterwards, so any number of goroutines may read it without a lock. Who needs
// other routes builds another Table and swaps the pointer.
//
// The package is pure: no I/O, no clock, no log. It may be imported by anybody.
package route

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
)

// Entry gives a value to all addresses within a prefix.
type Entry[V any] struct {
	// Prefix may have host bits set, and an IPv4 prefix may be written in its
	// IPv4-mapped form (::ffff:a.b.c.d/96..128): New brings both into order.
	Prefix netip.Prefix
	Value  V
}

// Table is an immutable set of entries. Nil and the zero value are empty tables.
// It is safe for concurrent use; pass it by pointer.
type Table[V any] struct {
	trie *bart.Table[V] // nil = empty
	size int
}

// New builds a table. It keeps nothing of the slice. An invalid prefix and a
// prefix that occurs twice are errors that name the prefix; no table is returned then.
func New[V any](entries []Entry[V]) (*Table[V], error) {
	t := &Table[V]{trie: new(bart.Table[V])}
	for _, e := range entries {
		p, ok := Canonical(e.Prefix)
		if !ok {
			return nil, fmt.Errorf("route to %v: not a valid prefix", e.Prefix)
		}
		if _, dup := t.trie.Get(p); dup {
			return nil, fmt.Errorf("route to %v: given twice, so its owner is not clear", p)
		}
		t.trie.Insert(p, e.Value)
		t.size++
	}
	return t, nil
}

// Canonical returns the one form in which a table holds p: host bits cleared and
// IPv4-mapped prefixes as IPv4. It reports false for an invalid prefix, and for one
// that covers the IPv4-mapped range and more, which has no IPv4 form.
func Canonical(p netip.Prefix) (netip.Prefix, bool) {
	if !p.IsValid() {
		return netip.Prefix{}, false
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// Lookup returns the value of the longest prefix that contains a. IPv4-mapped
// addresses are looked up as IPv4, zones are ignored, and an invalid address is in no prefix.
// It does not allocate.
func (t *Table[V]) Lookup(a netip.Addr) (V, bool) {
	if t == nil || t.trie == nil || !a.IsValid() {
		var none V
		return none, false
	}
	return t.trie.Lookup(a.Unmap().WithZone(""))
}

// Len returns the number of prefixes.
func (t *Table[V]) Len() int {
	if t == nil {
		return 0
	}
	return t.size
}
