// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// An element is one of a set or map.
type element struct {
	key     []byte
	end     []byte // where an interval has ended; empty if it is the last one and does not end, nil for what is no interval
	data    uint32
	comment string
}

func familyOf(a netip.Addr) family {
	f := families()
	if a.Is4() {
		return f[0]
	}
	return f[1]
}

func sideSet(s compile.Side) string {
	if s.Direction == policy.Egress {
		return familyOf(s.Addr).set(setEgress)
	}
	return familyOf(s.Addr).set(setIngress)
}

// hostSet is where an address has an identity.
func hostSet(a netip.Addr, identity uint32) string {
	if identity&ownBit != 0 {
		return familyOf(a).set(setOwn)
	}
	return familyOf(a).set(setHosts)
}

// directionOf is the name of the direction of a map of sides.
func directionOf(set string) string { return set[:len(set)-1] }

// leafOf is the element of setLeaves for the chain that elements of a map of sides lead to. Its data is the number of the table.
func leafOf(set string, number uint32) element {
	return element{key: []byte(leafName(directionOf(set), number)), data: number}
}

func twice(a netip.Addr) []byte { return append(a.AsSlice(), a.AsSlice()...) }

// wideKey is the number of a table with that of an identity.
func wideKey(table, identity uint32) []byte { return number(table<<identityBits | identity) }

func cellKey(table uint32, s service, port uint16) []byte {
	b := listKey(table, s)
	return append(binary.BigEndian.AppendUint16(b, port), 0, 0)
}

func listKey(table uint32, s service) []byte {
	return append(wideKey(table, s.identity), byte(s.protocol), 0, 0, 0)
}

func rangeOf(list uint32, r portRange) element {
	return element{
		key: binary.BigEndian.AppendUint32(nil, list<<16|uint32(r.first)), end: binary.BigEndian.AppendUint32(nil, list<<16|uint32(r.last)+1),
		data: r.verdict,
	}
}

// portRange is the opposite of rangeOf.
func (x element) portRange() (list uint32, r portRange, ok bool) {
	if len(x.key) != 4 || len(x.end) != 4 {
		return 0, r, false
	}
	first, last := binary.BigEndian.Uint32(x.key), binary.BigEndian.Uint32(x.end)-1
	return first >> 16, portRange{uint16(first), uint16(last), x.data}, first>>16 == last>>16
}

func (s span) element() element {
	x := element{key: s.first.AsSlice(), end: []byte{}, data: s.identity}
	if next := s.last.Next(); next.IsValid() {
		x.end = next.AsSlice()
	}
	return x
}

// An edit is elements that go and come. A nil one notes nothing.
type edit struct {
	sets map[string]map[string]*change // by set and key
}

// A change is what becomes of an element; nil is for none.
type change struct{ old, now *element }

func newEdit() *edit { return &edit{sets: map[string]map[string]*change{}} }

// at returns what becomes of an element.
func (e *edit) at(set string, key []byte) *change {
	m := e.sets[set]
	if m == nil {
		m = map[string]*change{}
		e.sets[set] = m
	}
	c := m[string(key)]
	if c == nil {
		c = &change{}
		m[string(key)] = c
	}
	return c
}

// empty says whether nothing changes.
func (e *edit) empty() bool {
	for _, m := range e.sets {
		for _, c := range m {
			if c.real() {
				return false
			}
		}
	}
	return true
}

func (c *change) real() bool {
	if c.old == nil || c.now == nil {
		return c.old != c.now
	}
	return c.old.data != c.now.data || !bytes.Equal(c.old.end, c.now.end) || c.old.comment != c.now.comment
}

// replace notes that an element becomes another one with the same key.
func (e *edit) replace(set string, old, now *element) {
	var key []byte
	switch {
	case e == nil:
		return
	case old != nil:
		key = old.key
	case now != nil:
		key = now.key
	default:
		return
	}
	c := e.at(set, key)
	if c.old == nil && c.now == nil {
		c.old = old
	}
	c.now = now
}

// value notes that an element with that key has another value; nil is for none.
func (e *edit) value(set string, key []byte, old, now *uint32) {
	if e == nil || old != nil && now != nil && *old == *now {
		return
	}
	var a, b *element
	if old != nil {
		a = &element{key: key, data: *old}
	}
	if now != nil {
		b = &element{key: key, data: *now}
	}
	e.replace(set, a, b)
}

func (e *edit) interval(set string, x element, add bool) {
	switch {
	case e == nil:
	case add:
		e.replace(set, nil, &x)
	default:
		e.replace(set, &x, nil)
	}
}

func (e *edit) counter(verdict uint32, comment string) {
	if e != nil {
		e.replace(setCounts, nil, &element{key: number(verdict), comment: comment})
	}
}

// spans notes the difference of two lists that are sorted.
func (e *edit) spans(was, now []span) {
	if e == nil {
		return
	}
	for len(was)+len(now) > 0 {
		switch {
		case len(now) == 0 || len(was) > 0 && was[0].first.Less(now[0].first):
			e.interval(familyOf(was[0].first).set(setBlocks), was[0].element(), false)
			was = was[1:]
		case len(was) == 0 || now[0].first.Less(was[0].first):
			e.interval(familyOf(now[0].first).set(setBlocks), now[0].element(), true)
			now = now[1:]
		default:
			if was[0] != now[0] {
				e.interval(familyOf(was[0].first).set(setBlocks), was[0].element(), false)
				e.interval(familyOf(now[0].first).set(setBlocks), now[0].element(), true)
			}
			was, now = was[1:], now[1:]
		}
	}
}

// listSize is how long a list of elements becomes in one message, in bytes: an attribute must stay below 64 KiB.
const listSize = 60_000

// A lister puts the elements of one set into as many messages as they need.
type lister struct {
	b     *buffer
	table string
	kind  setKind
	flags uint16
	what  uint16

	message, list int
	open          bool
}

func (b *buffer) adding(table string, k setKind) *lister {
	return &lister{b: b, table: table, kind: k, what: unix.NFT_MSG_NEWSETELEM, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL}
}

func (b *buffer) deleting(table string, k setKind) *lister {
	return &lister{b: b, table: table, kind: k, what: unix.NFT_MSG_DELSETELEM}
}

// add adds an element, of which an interval is two.
func (l *lister) add(x element) {
	l.one(x.key, x, 0)
	if len(x.end) > 0 {
		l.one(x.end, x, unix.NFT_SET_ELEM_INTERVAL_END)
	}
}

func (l *lister) one(key []byte, x element, flags uint32) {
	if l.open && len(*l.b)-l.list > listSize {
		l.close()
	}
	b := l.b
	if !l.open {
		l.message = b.begin(nft(l.what), l.flags, unix.NFPROTO_INET, 0)
		b.text(unix.NFTA_SET_ELEM_LIST_TABLE, l.table)
		b.text(unix.NFTA_SET_ELEM_LIST_SET, l.kind.name)
		l.list, l.open = b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS), true
	}
	at := b.nest(unix.NFTA_LIST_ELEM)
	b.value(unix.NFTA_SET_ELEM_KEY, key)
	if flags != 0 {
		b.word(unix.NFTA_SET_ELEM_FLAGS, flags)
	}
	if l.what == unix.NFT_MSG_NEWSETELEM && flags == 0 {
		switch {
		case l.kind.dataType == typeVerdict:
			b.verdict(unix.NFTA_SET_ELEM_DATA, unix.NFT_JUMP, leafName(directionOf(l.kind.name), x.data))
		case l.kind.flags&unix.NFT_SET_MAP != 0:
			b.value(unix.NFTA_SET_ELEM_DATA, number(x.data))
		}
		if x.comment != "" {
			// As libnftnl writes it (NFTNL_UDATA_SET_ELEM_COMMENT): kind, length, text.
			b.attr(unix.NFTA_SET_ELEM_USERDATA, append(append([]byte{0, byte(len(x.comment) + 1)}, x.comment...), 0))
		}
		if l.kind.counted {
			b.expression(unix.NFTA_SET_ELEM_EXPR, counter())
		}
	}
	b.close(at)
}

func (l *lister) close() {
	if l.open {
		l.b.close(l.list)
		l.b.end(l.message)
		l.open = false
	}
}

// compose adds the change to a transaction: what goes first, then what comes. Chains are there as long as elements lead to them.
func (e *edit) compose(b *buffer, table string) {
	kinds := sets()
	for _, k := range kinds {
		l := b.deleting(table, k)
		for _, c := range e.sets[k.name] {
			if c.real() && c.old != nil {
				l.add(*c.old)
			}
		}
		l.close()
	}
	for _, c := range e.sets[setLeaves] {
		if c.real() && c.now == nil {
			at := b.begin(nft(unix.NFT_MSG_DELCHAIN), 0, unix.NFPROTO_INET, 0)
			b.text(unix.NFTA_CHAIN_TABLE, table)
			b.text(unix.NFTA_CHAIN_NAME, string(c.old.key))
			b.end(at)
		}
	}
	for _, c := range e.sets[setLeaves] {
		if c.real() && c.old == nil {
			b.composeLeaf(table, *c.now)
		}
	}
	for _, k := range kinds {
		l := b.adding(table, k)
		for _, c := range e.sets[k.name] {
			if c.real() && c.now != nil {
				l.add(*c.now)
			}
		}
		l.close()
	}
}
