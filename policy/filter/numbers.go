// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// numbers are what the kernel knows tables, identities and verdicts by. Those of an earlier run are taken over where they mean the same, so that
// an equal state has equal elements. None is used again for something else; there are 2^30 of each kind.
type numbers struct {
	nextTable, nextIdentity, nextVerdict uint32

	given      map[compile.TableID]uint32  // that have to be used
	taken      map[compile.Identity]uint32 // likewise
	old        map[string]uint32           // likewise, by comment
	identities map[compile.Identity]*inUse // in use
	meaning    map[uint32]compile.Identity // of what is in use
	verdicts   map[uint32]*putDown         // in use or counted
	byComment  map[string]uint32           // of verdicts
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
		nextTable: 1, nextIdentity: 2, nextVerdict: 1,
		given: map[compile.TableID]uint32{}, taken: map[compile.Identity]uint32{}, old: map[string]uint32{},
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
	n.nextTable, n.nextIdentity, n.nextVerdict = have.tables+1, max(have.identities+1, 2), have.verdicts+1
	used := map[uint32]bool{}
	for side, id := range s.Sides {
		number, ok := have.value(sideSet(side), side.Addr.AsSlice())
		if _, done := n.given[id]; ok && !done && !used[number] {
			n.given[id], used[number] = number, true
		}
	}
	used = map[uint32]bool{}
	take := func(i compile.Identity, number uint32) {
		if _, done := n.taken[i]; !done && !used[number] && fixed(i) == nil && i.IsOwnNode() == (number&ownBit != 0) && number&^ownBit > 1 {
			n.taken[i], used[number] = number, true
		}
	}
	for a, i := range s.Identities {
		if number, ok := have.value(familyOf(a).set(setHosts), a.AsSlice()); ok {
			take(i, number)
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
	return n
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
	number := n.nextTable
	n.nextTable++
	n.given[id] = number
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
			number = n.nextIdentity
			n.nextIdentity++
			if i.IsOwnNode() {
				number |= ownBit
			}
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
