// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"slices"

	"github.com/weftnet/weft/ipam/ring"
)

// view is what is known of the other nodes, each list in ascending order.
type view struct {
	alive   []ring.Owner // those that are not retired
	undead  []ring.Owner // retired ones that answer
	left    []ring.Owner
	retired []ring.Owner
}

func contains(s []ring.Owner, o ring.Owner) bool {
	_, ok := slices.BinarySearch(s, o)
	return ok
}

// has reports whether a node answers and is not retired.
func (v view) has(o ring.Owner) bool { return contains(v.alive, o) }

// lacks reports whether a node has left for good.
func (v view) lacks(o ring.Owner) bool { return contains(v.left, o) }

// gone reports whether a node has left or is retired.
func (v view) gone(o ring.Owner) bool { return contains(v.left, o) || contains(v.retired, o) }

// look asks who answers. No lock must be held.
func (a *Allocator) look() view {
	var v view
	peers := a.cfg.Net.Peers()
	a.mu.Lock()
	v.retired = a.deceased()
	a.mu.Unlock()
	for _, p := range peers {
		switch {
		case p.Owner == a.cfg.Self, p.Owner == 0:
		case p.Left:
			v.left = append(v.left, p.Owner)
		case p.Alive && contains(v.retired, p.Owner):
			v.undead = append(v.undead, p.Owner)
		case p.Alive:
			v.alive = append(v.alive, p.Owner)
		}
	}
	slices.Sort(v.alive)
	slices.Sort(v.undead)
	slices.Sort(v.left)
	v.alive = slices.Compact(v.alive)
	return v
}

// deceased returns who is retired, ascending. It is not modified afterwards. a.mu must be held.
func (a *Allocator) deceased() []ring.Owner {
	log := a.ledger.ring.Log()
	if n := len(log); n != len(a.buried.log) || n > 0 && &log[0] != &a.buried.log[0] {
		a.buried.log, a.buried.dead = log, make([]ring.Owner, 0, n)
		for _, r := range log {
			a.buried.dead = append(a.buried.dead, r.Dead)
		}
		slices.Sort(a.buried.dead)
	}
	return a.buried.dead
}

// majority reports whether this node and those that answer speak for more than half of the universe, as far as the ring
// tells. a.mu must be held.
func (a *Allocator) majority(v view) bool {
	n := uint64(0)
	for i, reg := range a.ledger.ring.All() {
		if o := cmp.Or(reg.From, reg.Owner); o == a.cfg.Self || v.has(o) {
			n += i.Len()
		}
	}
	return 2*n > uint64(a.size)
}
