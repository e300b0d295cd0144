// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// numbers are what the kernel knows tables, identities and verdicts by. Those of an earlier run are taken over where they mean the same, so that
// an equal state has equal elements. Those that nothing has any more are given again as late as possible.
type numbers struct {
	nextTable, nextIdentity, nextVerdict, nextList uint32

	full string // what there are too many of, "" if nothing

	given      map[compile.TableID]uint32  // that have to be used
	taken      map[compile.Identity]uint32 // likewise
	old        map[string]uint32           // likewise, by comment
	oldLists   map[string]uint32           // likewise, by content
	reserved   map[uint32]bool             // values of taken
	numbered   map[uint32]bool             // values of given
	identities map[compile.Identity]*inUse // in use
	meaning    map[uint32]compile.Identity // of what is in use
	verdicts   map[uint32]*putDown         // in use or counted
	byComment  map[string]uint32           // of verdicts
	lists      map[string]*list            // in use, by content
	listed     map[uint32]bool             // their numbers
}

// A list is intervals of ports of a protocol with their verdicts, as identities have them in tables: many have the same.
type list struct {
	number uint32
	uses   int
	ranges []portRange // sorted
}

// inUse is a number with how often it is used.
type inUse struct {
	number uint32
	uses   int
}

// putDown is what a verdict's connections are put down to.
type putDown struct {
	comment string
	by      []policy.PolicyKey
	allow   bool
	uses    int
}

func newNumbers() numbers {
	return numbers{
		nextTable: 1, nextIdentity: unsortedNumber + 1, nextVerdict: 1, nextList: 1,
		given: map[compile.TableID]uint32{}, taken: map[compile.Identity]uint32{}, old: map[string]uint32{}, oldLists: map[string]uint32{},
		reserved: map[uint32]bool{}, numbered: map[uint32]bool{}, lists: map[string]*list{}, listed: map[uint32]bool{},
		identities: map[compile.Identity]*inUse{}, meaning: map[uint32]compile.Identity{},
		verdicts: map[uint32]*putDown{}, byComment: map[string]uint32{},
	}
}

// adopt takes over what the kernel has.
func adopt(s *compile.State, have *contents) numbers {
	n := newNumbers()
	if have == nil {
		return n
	}
	n.nextTable, n.nextIdentity, n.nextVerdict, n.nextList = have.tables+1, max(have.identities, unsortedNumber)+1, have.verdicts+1, have.lists+1
	for side, id := range s.Sides {
		number, ok := have.value(sideSet(side), side.Addr.AsSlice())
		if _, done := n.given[id]; ok && !done && !n.numbered[number] {
			n.given[id], n.numbered[number] = number, true
		}
	}
	take := func(i compile.Identity, number uint32) {
		if _, done := n.taken[i]; !done && !n.reserved[number] && fixed(i) == nil && i.IsOwnNode() == (number&ownBit != 0) &&
			number <= identityMask && number&^ownBit > unsortedNumber {
			n.taken[i], n.reserved[number] = number, true
		}
	}
	for a, i := range s.Identities {
		for _, set := range []string{setOwn, setHosts} {
			if number, ok := have.value(familyOf(a).set(set), a.AsSlice()); ok {
				take(i, number)
			}
		}
	}
	plain := map[netip.Prefix]uint32{}
	for p, i := range s.Blocks {
		plain[p] = uint32(i)
	}
	for _, sp := range flatten(plain) {
		if x, ok := have.intervals[familyOf(sp.first).set(setBlocks)][string(sp.element().key)]; ok {
			take(compile.Identity(sp.identity), x.data)
		}
	}
	for key, comment := range have.comments {
		n.old[comment] = key
	}
	lists := map[uint32][]portRange{}
	for _, x := range have.intervals[setRanges] {
		if number, r, ok := x.portRange(); ok {
			lists[number] = append(lists[number], r)
		}
	}
	for number, ranges := range lists {
		slices.SortFunc(ranges, func(a, b portRange) int { return int(a.first) - int(b.first) })
		n.oldLists[content(ranges)] = number
	}
	return n
}

// settle forgets what was to be taken over and was not.
func (n *numbers) settle(tables map[compile.TableID]*table) {
	n.given, n.taken, n.old, n.oldLists = map[compile.TableID]uint32{}, map[compile.Identity]uint32{}, nil, nil
	n.numbered, n.reserved = map[uint32]bool{}, map[uint32]bool{}
	for id, t := range tables {
		n.given[id], n.numbered[t.number] = t.number, true
	}
}

// pick returns a number from first to most that is not in use, as long as possible after it was; what is full if there is none.
func (n *numbers) pick(next *uint32, first, most uint32, what string, used func(number uint32) bool) uint32 {
	for range most - first + 1 {
		if *next < first || *next > most {
			*next = first
		}
		number := *next
		*next++
		if !used(number) {
			return number
		}
	}
	n.full = fmt.Sprintf("%d %s", most, what)
	return first
}

// fixed returns the number of an identity that is always there.
func fixed(i compile.Identity) *uint32 {
	var n uint32
	switch i {
	case compile.World:
		n = worldNumber
	case compile.Unsorted:
		n = unsortedNumber
	case compile.OwnNode:
		n = ownNumber
	default:
		return nil
	}
	return &n
}

func (n *numbers) tableNumber(id compile.TableID) uint32 {
	if number, ok := n.given[id]; ok {
		return number
	}
	number := n.pick(&n.nextTable, 1, maxTable, "tables of verdicts", func(number uint32) bool { return n.numbered[number] })
	n.given[id], n.numbered[number] = number, true
	return number
}

// identityNumber returns the number of an identity, for one more use.
func (n *numbers) identityNumber(i compile.Identity) uint32 {
	if number := fixed(i); number != nil {
		return *number
	}
	u := n.identities[i]
	if u == nil {
		number, ok := n.taken[i]
		if !ok {
			var own uint32
			if i.IsOwnNode() {
				own = ownBit
			}
			number = own | n.pick(&n.nextIdentity, unsortedNumber+1, maxIdentity, "kinds of addresses", func(number uint32) bool {
				_, used := n.meaning[own|number]
				return used || n.reserved[own|number]
			})
		}
		delete(n.taken, i)
		u = &inUse{number: number}
		n.identities[i], n.meaning[number] = u, i
	}
	u.uses++
	return u.number
}

// identityKnown returns the number of an identity that is in use.
func (n *numbers) identityKnown(i compile.Identity) (uint32, bool) {
	if number := fixed(i); number != nil {
		return *number, true
	}
	u := n.identities[i]
	if u == nil {
		return 0, false
	}
	return u.number, true
}

// release ends one use of an identity.
func (n *numbers) release(number uint32) {
	i, ok := n.meaning[number]
	if !ok {
		return
	}
	if u := n.identities[i]; u.uses > 1 {
		u.uses--
		return
	}
	delete(n.identities, i)
	delete(n.meaning, number)
}

// verdictNumber returns the number of a verdict, for one more use. Cache is of one change.
func (n *numbers) verdictNumber(v compile.Verdict, cache map[compile.Verdict]uint32, e *edit) uint32 {
	number, ok := cache[v]
	if !ok {
		number = n.verdictOf(v, e)
		cache[v] = number
	}
	n.verdicts[number].uses++
	return number
}

func (n *numbers) verdictOf(v compile.Verdict, e *edit) uint32 {
	p := describe(v)
	if number, ok := n.byComment[p.comment]; ok {
		return number
	}
	number, ok := n.old[p.comment]
	if !ok || (number&allowed != 0) != v.Allow {
		number = n.nextVerdict
		n.nextVerdict++
		if v.Allow {
			number |= allowed
		}
	}
	n.verdicts[number], n.byComment[p.comment] = p, number
	e.counter(number, p.comment)
	return number
}

// forget ends one use of a verdict, which stays until its counter has been read.
func (n *numbers) forget(number uint32) {
	if v := n.verdicts[number]; v != nil {
		v.uses--
	}
}

// content is what a list is known by.
func content(ranges []portRange) string {
	var b []byte
	for _, r := range ranges {
		b = binary.BigEndian.AppendUint16(b, r.first)
		b = binary.BigEndian.AppendUint16(b, r.last)
		b = binary.BigEndian.AppendUint32(b, r.verdict)
	}
	return string(b)
}

// list returns the number of a list, with room for the port below it, for one more use; 0 if there are no ranges.
func (n *numbers) list(ranges []portRange, e *edit) uint32 {
	if len(ranges) == 0 {
		return 0
	}
	key := content(ranges)
	l := n.lists[key]
	if l == nil {
		number, ok := n.oldLists[key]
		if !ok || n.listed[number] {
			number = n.pick(&n.nextList, 1, maxList, "lists of ports", func(number uint32) bool { return n.listed[number] })
		}
		l = &list{number: number, ranges: slices.Clone(ranges)}
		n.lists[key], n.listed[number] = l, true
		for _, r := range l.ranges {
			e.interval(setRanges, rangeOf(number, r), true)
		}
	}
	l.uses++
	return l.number << 16
}

// unlist ends one use of a list.
func (n *numbers) unlist(ranges []portRange, e *edit) {
	key := content(ranges)
	l := n.lists[key]
	if l == nil {
		return
	}
	if l.uses--; l.uses > 0 {
		return
	}
	delete(n.lists, key)
	delete(n.listed, l.number)
	for _, r := range l.ranges {
		e.interval(setRanges, rangeOf(l.number, r), false)
	}
}

// describe returns what a verdict is put down to. Its comment tells it from all others; nft(8) prints it.
func describe(v compile.Verdict) *putDown {
	p := &putDown{allow: v.Allow}
	what := "deny"
	if v.Allow {
		what = "allow"
	}
	by := policy.Verdict{}
	if v.By != nil {
		by = *v.By
	}
	switch by.Reason {
	case policy.ByRule:
		p.by = []policy.PolicyKey{by.Policy}
	case policy.Isolated:
		p.by = by.Isolating
	}
	var names []string
	for _, k := range p.by {
		names = append(names, fmt.Sprintf("%d/%s/%s", k.Kind, k.Namespace, k.Name.Name))
	}
	whole := fmt.Sprintf("%s %d %s", what, by.Reason, strings.Join(names, ","))
	sum := sha256.Sum256([]byte(whole))
	const most = 90 // a comment may have 128 bytes
	text := whole
	if len(text) > most {
		text = text[:most]
	}
	p.comment = text + " #" + hex.EncodeToString(sum[:8])
	return p
}
