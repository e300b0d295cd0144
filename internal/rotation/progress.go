// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/weftnet/weft/internal/token"
)

// Node is what is known here of a node: from its record, and whether it answers. This node is one, too; nodes that left for good are none.
type Node struct {
	ID     uint64
	Public [32]byte
	Keys   []token.ID // what it accepts; the first is the one that it sends under
	Alive  bool
}

func (n Node) has(k token.ID) bool { return slices.Contains(n.Keys, k) }

// done tells whether the node has done what a phase asks of it.
func (n Node) done(r Register) bool {
	switch {
	case r.Phase == Distributing || !n.Alive:
		return n.has(r.Key)
	case r.Phase == Switched:
		return len(n.Keys) > 0 && n.Keys[0] == r.Key
	}
	return len(n.Keys) == 1 && n.Keys[0] == r.Key
}

// Progress tells how far the phase of a register is. Nodes are listed in the order in which they were given.
type Progress struct {
	Phase     Phase
	Total     int      // members, and others who have the new token
	Confirmed int      // of these, who have done what the phase asks for, or will on coming back
	Waiting   []uint64 // of these, who answer and have not
	Away      []uint64 // of these, who do not answer and do not have the new token
	Strangers []uint64 // who came with the old token after the rotation began, and are not given the new one
	LeftOut   []uint64 // who answer and were left out by the user, and do not have the new token
}

// Complete tells whether every living member has done what the phase asks for.
func (p Progress) Complete() bool { return p.Phase != None && len(p.Waiting) == 0 }

// ProgressOf returns how far a register's phase is among the nodes.
func ProgressOf(r Register, nodes []Node) Progress {
	p := Progress{Phase: r.Phase}
	if r.Phase == None {
		return p
	}
	for _, n := range nodes {
		switch {
		case !n.has(r.Key) && r.LeavesOut(n.ID):
			if n.Alive {
				p.LeftOut = append(p.LeftOut, n.ID)
			}
		case !n.has(r.Key) && !r.Has(n.ID, n.Public):
			p.Strangers = append(p.Strangers, n.ID)
		case n.done(r):
			p.Total++
			p.Confirmed++
		case n.Alive:
			p.Total++
			p.Waiting = append(p.Waiting, n.ID)
		default:
			p.Total++
			p.Away = append(p.Away, n.ID)
		}
	}
	return p
}

// Giver decides to whom this node gives the new token. It is not safe for concurrent use; the zero value is ready.
type Giver struct {
	key   token.ID
	since map[uint64]time.Time // since when a node lacks the token, by what was seen here
	last  map[uint64]time.Time // when it was last given to a node from here
}

// The pace of giving. Of all who have the token two give it to a node at first, the same for everybody, and one more each
// while it does not arrive.
const (
	firstGivers = 2
	moreAfter   = 2 * time.Second
	againAfter  = 3 * time.Second
)

// Due returns the nodes to give the new token to now. It is to be called whenever records or liveness change, and now and then.
func (g *Giver) Due(s State, self uint64, nodes []Node, now time.Time) []Node {
	r := s.Register
	if _, ok := s.New(); !ok || r.Phase != Distributing && r.Phase != Switched {
		*g = Giver{}
		return nil
	}
	if g.key != r.Key {
		*g = Giver{key: r.Key, since: map[uint64]time.Time{}, last: map[uint64]time.Time{}}
	}
	var have []uint64
	for _, n := range nodes {
		if n.ID == self || n.Alive && n.has(r.Key) {
			have = append(have, n.ID)
		}
	}
	var due []Node
	for _, n := range nodes {
		if n.ID == self || !n.Alive || n.has(r.Key) || !r.Has(n.ID, n.Public) {
			delete(g.since, n.ID)
			delete(g.last, n.ID)
			continue
		}
		if g.since[n.ID].IsZero() {
			g.since[n.ID] = now
		}
		givers := firstGivers + int(now.Sub(g.since[n.ID])/moreAfter)
		if last := g.last[n.ID]; rank(have, self, n.ID) >= givers || !last.IsZero() && now.Sub(last) < againAfter {
			continue
		}
		g.last[n.ID] = now
		due = append(due, n)
	}
	return due
}

// rank returns how many of those who have the token come before self in giving it to a node.
func rank(have []uint64, self, to uint64) int {
	weight := func(id uint64) uint64 {
		h := sha256.Sum256(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, id), to))
		return binary.BigEndian.Uint64(h[:])
	}
	mine, before := weight(self), 0
	for _, id := range have {
		if w := weight(id); cmp.Or(cmp.Compare(w, mine), cmp.Compare(id, self)) < 0 {
			before++
		}
	}
	return before
}
