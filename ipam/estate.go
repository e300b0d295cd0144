// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"slices"

	"github.com/weftnet/weft/ipam/ring"
)

// estate returns the slots that a takeover is due for, by where it has to be: of retired nodes, and of those that such a
// node has granted or been granted without its having arrived. What this node has granted and not handed over is not
// among them: that is taken back (ledger.revoke).
func (l *ledger) estate() ring.Set {
	gone := l.ring.RetiredAt()
	if len(gone) == 0 || l.retired(l.self) {
		return nil
	}
	s := l.ring.Where(func(x ring.Register) bool { return concerns(gone, x) })
	if len(s) > 0 {
		s = s.Subtract(l.spoken())
	}
	return s
}

func concerns(gone map[ring.Owner]int, x ring.Register) bool {
	_, owner := gone[x.Owner]
	_, from := gone[x.From]
	return owner || from
}

// due returns the slots that this node, to whom the last retirement gives it, may take over now, and who else has to be
// asked before it may take over the rest. answers are the slots for which the others have said that they speak, with a log
// of exactly the length of this node's, and with their whole rings, which have been merged. Of a slot that may be taken
// over it is certain by that:
//
//   - whoever of its owner and of who granted it is not retired does not have it, and will not get it;
//   - no earlier heir has it;
//   - all that retired nodes have granted with effect is known, if the answers are a majority, which is for the caller to see to.
func (l *ledger) due(answers map[ring.Owner]ring.Set) (take ring.Set, ask []ring.Owner) {
	log := l.ring.Log()
	if len(log) == 0 || log[len(log)-1].Heir != l.self {
		return nil, nil
	}
	missing := make(map[ring.Owner]bool)
	for i, reg := range l.ring.Only(l.estate()).All() {
		if reg == (ring.Register{}) {
			continue
		}
		may := ring.Set{i}
		for _, o := range l.witnessesOf(reg) {
			if _, ok := answers[o]; !ok && o != l.self {
				missing[o] = true
				may = nil
			}
		}
		if reg.From != 0 {
			may = may.Subtract(answers[reg.From]) // it has not handed them over, and takes them back
		}
		take = append(take, may...)
	}
	for o := range missing {
		ask = append(ask, o)
	}
	slices.Sort(ask)
	return ring.NewSet(take...), ask
}

// witnessesOf returns who has to be asked before a slot with the register is taken over: its owner and who has granted it, and
// all heirs since the first of them was retired; not those of them who are retired.
func (l *ledger) witnessesOf(reg ring.Register) []ring.Owner {
	gone, log := l.ring.RetiredAt(), l.ring.Log()
	first := len(log)
	out := []ring.Owner{reg.Owner, reg.From}
	for _, o := range out {
		if n, ok := gone[o]; ok {
			first = min(first, n)
		}
	}
	if reg.Owner&seedBit != 0 {
		first = 0 // adopting takes no majority: any retired node may have, and its heir may know
	}
	for _, e := range log[first:] {
		out = append(out, e.Heir)
	}
	return slices.DeleteFunc(out, func(o ring.Owner) bool { _, retired := gone[o]; return retired || o == 0 })
}

// witnesses returns who has to be asked before all that is due is taken over, ascending.
func (l *ledger) witnesses() []ring.Owner {
	var out []ring.Owner
	for _, reg := range l.ring.Only(l.estate()).All() {
		if reg != (ring.Register{}) {
			out = append(out, l.witnessesOf(reg)...)
		}
	}
	if log := l.ring.Log(); len(out) > 0 {
		out = append(out, log[len(log)-1].Heir)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// takeOver takes slots over.
func (l *ledger) takeOver(slots ring.Set) error {
	if len(slots) == 0 {
		return nil
	}
	if err := l.edit(func(r *ring.Ring) error {
		return each(slots, func(i ring.Interval) error { return r.TakeOver(l.self, i) })
	}); err != nil {
		return err
	}
	l.effective = l.effective.Union(slots)
	l.settle()
	return nil
}
