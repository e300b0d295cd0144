// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"slices"

	"github.com/weftnet/weft/ipam/ring"
)

// estate is what retired nodes, whose heir this node is, have left, as far as it is this node's to see to.
type estate struct {
	over   ring.Set  // to take over
	claim  ring.Set  // granted to this node by a node whose heir it is
	grants []bequest // granted to others by such a node: to be recorded by a majority, and then handed over
	forced bool      // one of the retirements was
}

// bequest is what a retired node has granted to another, and not handed over as far as is known.
type bequest struct {
	from, to ring.Owner
	slots    ring.Set
}

func (e *estate) empty() bool { return len(e.over) == 0 && len(e.claim) == 0 && len(e.grants) == 0 }

// estate returns what this node is to see to, once it knows all that a majority knows. What a living node has granted to a
// retired one is not in it, unless that living node is this one: the donor either takes it back or hands it over to the heir.
func (l *ledger) estate() *estate {
	e := new(estate)
	heirs := l.ring.Heirs()
	if len(heirs) == 0 || l.retired(l.self) {
		return e
	}
	var under, handed ring.Set
	for _, o := range l.outgoing {
		switch slots := l.ring.Same(o.grants); {
		case o.from != l.self:
			under = under.Union(slots)
		case o.handed:
			handed = handed.Union(slots)
		}
	}
	grants := make(map[bequestKey]ring.Set)
	for i, reg := range l.ring.All() {
		owner, from := end(heirs, reg.Owner), end(heirs, reg.From)
		switch {
		case reg.From == 0 && owner == l.self && reg.Owner != l.self:
			e.over = append(e.over, i)
		case reg.From == 0 || from != l.self:
		case reg.From == l.self:
			if owner == l.self {
				e.over = append(e.over, ring.Set{i}.Intersect(handed)...)
			}
		case reg.Owner == l.self:
			e.claim = append(e.claim, i)
		case owner == l.self:
			e.over = append(e.over, i)
		default:
			k := bequestKey{reg.From, reg.Owner}
			grants[k] = append(grants[k], ring.Set{i}.Subtract(under)...)
		}
	}
	for k, slots := range grants {
		if len(slots) > 0 {
			e.grants = append(e.grants, bequest{k.from, k.to, slots})
		}
	}
	slices.SortFunc(e.grants, func(x, y bequest) int { return cmp.Or(cmp.Compare(x.from, y.from), cmp.Compare(x.to, y.to)) })
	for _, r := range l.ring.Log() {
		e.forced = e.forced || r.Forced && heirs[r.Dead].Owner == l.self
	}
	return e
}

type bequestKey struct{ from, to ring.Owner }

// inherit does what is to be done about an estate, for which this node must know what a majority knows. It returns the
// slots that it has got.
func (l *ledger) inherit(e *estate) (ring.Set, error) {
	got, err := l.take(e.claim, e.over)
	if err != nil {
		return nil, err
	}
	l.outgoing = slices.Clone(l.outgoing)
	for _, g := range e.grants {
		l.outgoing = append(l.outgoing, &outgoing{to: g.to, from: g.from, grants: l.ring.Only(g.slots)})
	}
	return got, nil
}
