// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// What the users of a node do.

func (n *simNode) allocate() {
	s := n.sim
	var slot *uint32
	owner := fmt.Sprintf("w%d", s.next)
	s.next++
	if all := n.alloc.List(); len(all) > 0 && s.rng.IntN(8) == 0 {
		owner = all[s.rng.IntN(len(all))].Owner
	}
	if s.rng.IntN(4) == 0 {
		v := uint32(1 + s.rng.IntN(int(s.universe.Size()-2)))
		slot = &v
	}
	n.ask(owner, slot)
}

// ask begins a call of Allocate.
func (n *simNode) ask(owner string, slot *uint32) {
	e, b, w, err := n.alloc.begin(owner, slot)
	switch {
	case err != nil:
		n.refused(owner, err)
	case w != nil:
		n.waiting = append(n.waiting, w)
	case b != nil:
		n.pending = append(n.pending, commitCall{e, b})
	}
}

// progress goes on with one call of each kind.
func (n *simNode) progress() {
	s := n.sim
	if n.alloc == nil {
		return
	}
	n.waiting = slices.DeleteFunc(n.waiting, func(w *waiter) bool {
		select {
		case <-w.done:
		default:
			return false
		}
		if w.entry != nil && w.entry.batch != nil {
			n.pending = append(n.pending, commitCall{w.entry, w.entry.batch})
		}
		if w.err != nil {
			n.refused(w.owner, w.err)
		}
		return true
	})
	n.forgets = slices.DeleteFunc(n.forgets, func(c forgetCall) bool {
		done, err := n.alloc.forgotten(c.r)
		if done || err != nil || !s.calm && s.loss > 0 && s.rng.IntN(20) == 0 {
			s.logf("node %d: forget %d: %v %v", n.id, c.r.Dead, done, err)
			n.alloc.unwant(c.wants)
			return true
		}
		return false
	})
	if len(n.pending) == 0 {
		return
	}
	i := s.rng.IntN(len(n.pending))
	c := n.pending[i]
	n.pending = slices.Delete(n.pending, i, i+1)
	if err := n.alloc.commit(c.b); err == nil && c.e != nil && c.e.state == held {
		s.logf("node %d: %s has slot %d", n.id, c.e.owner, c.e.slot)
	}
	n.reap()
}

// refused verifies that an address is refused for a reason that is true.
func (n *simNode) refused(owner string, err error) {
	s := n.sim
	s.logf("node %d: %s: %v", n.id, owner, n.alloc.named(err))
	var full *ExhaustedError
	var elsewhere *ElsewhereError
	var retired *RetiredError
	quiet := s.calm && s.now.Sub(s.calmAt) > 20*time.Second && 2*s.spoken() > s.universe.Size()
	switch {
	case errors.As(err, &retired):
		if !s.dead[n.id] {
			s.fail("node %d was told that it is retired, and is not: %w", n.id, err)
		}
	case errors.Is(err, ErrLeaving):
		if !n.alloc.leaving {
			s.fail("node %d says that it leaves, and does not", n.id)
		}
	case errors.As(err, &full):
		if quiet && !full.Majority {
			s.fail("node %d says that there is no majority, and there is one: %w", n.id, err)
		}
	case errors.As(err, &elsewhere):
		if quiet && elsewhere.Reason == ElsewhereNoMajority {
			s.fail("node %d says that there is no majority, and there is one: %w", n.id, err)
		}
	}
}

func (n *simNode) release() {
	if all := n.alloc.List(); len(all) > 0 {
		l := all[n.sim.rng.IntN(len(all))]
		err := n.alloc.Release(l.Owner)
		n.sim.logf("node %d: release %s, slot %d: %v", n.id, l.Owner, l.Slot, err)
	}
}

// inspect looks at whatever is shown of a node.
func (n *simNode) inspect() {
	a := n.alloc
	u := a.Usage()
	if u.Effective+u.Pending != u.Owned || u.Free > u.Effective {
		n.sim.fail("node %d: %+v", n.id, u)
	}
	a.Reclaims()
	a.Retirements()
	if _, retired := a.Retired(); retired != n.knows() {
		n.sim.fail("node %d: retired %v", n.id, retired)
	}
	a.Owned()
	v4, _ := a.cfg.Universe.Addrs(uint32(n.sim.rng.IntN(int(a.size))))
	if _, err := a.Explain(v4); err != nil {
		n.sim.fail("node %d: %w", n.id, err)
	}
}

// leave has the node leave if that works out, or go on to try.
func (n *simNode) leave() {
	s := n.sim
	if living := len(s.living()); n.condemned || living < 3 && !n.alloc.leaving && !s.calm || n.alloc.ledger.adopted != n.seed || n.knows() {
		return
	}
	n.alloc.close()
	for len(n.waiting)+len(n.pending) > 0 && n.alloc != nil {
		n.progress()
	}
	if n.alloc == nil {
		return
	}
	for _, l := range n.alloc.List() {
		if n.alloc.Release(l.Owner) != nil {
			return
		}
	}
	given := make(map[ring.Owner]uint64)
	err := n.alloc.giveAll(given)
	n.alloc.finish()
	report, open, rest := n.alloc.farewell(given)
	s.logf("node %d: leaving: %+v, open %v, rest %d: %v", n.id, report, open, rest, err)
	if err == nil && rest == 0 && len(open) == 0 && !n.crash && !n.knows() {
		n.down("left")
		n.gone = true
		for _, o := range s.nodes {
			// Some hear of it only later, from others.
			if o.parted != nil && s.hears(n, o) && (s.calm || s.rng.IntN(5) > 0) {
				o.parted[n.index] = true
			}
		}
	}
}

// forget has one to three nodes declare one gone, the same one or each another one.
func (s *sim) forget() {
	var names []ring.Owner
	for range 1 + s.rng.IntN(3) {
		if names == nil || s.rng.IntN(2) == 0 {
			dead := s.pick(func(n *simNode) bool { return (n.condemned || n.gone) && !s.dead[n.id] })
			switch {
			case dead != nil:
				names = dead.names()
			case len(s.strays) > 0:
				names = s.strays
			default:
				return
			}
		}
		by := s.nodes[s.rng.IntN(len(s.nodes))]
		if by.alloc == nil || by.condemned || by.alloc.leaving {
			continue
		}
		by.forget(names, s.rng.IntN(2) == 0, false)
	}
}

// names returns what is to be forgotten if the node is gone: it, and what was seeded for it, if it never came to adopt that.
func (n *simNode) names() []ring.Owner {
	if n.seed == 0 {
		return []ring.Owner{n.id}
	}
	return []ring.Owner{n.id, n.seed}
}

func (n *simNode) forget(names []ring.Owner, sure, force bool) {
	r := ForgetRequest{Dead: names, Sure: sure, Force: force}
	wants, err := n.alloc.want(r)
	n.sim.logf("node %d: forget %d, sure %v, force %v: %v", n.id, names, sure, force, err)
	if err != nil {
		return
	}
	n.forgets = append(n.forgets, forgetCall{r, wants})
	n.alloc.finish()
	n.alloc.Wake()
	n.reap()
}
