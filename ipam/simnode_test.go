// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// simNode is one node of the simulation: its disk, its network, and the calls that are under way on it.
type simNode struct {
	sim       *sim
	index     int
	id        ring.Owner
	seed      ring.Owner // to adopt; 0: none
	store     *fakeStore
	group     int  // of the partition
	gone      bool // left for good
	condemned bool // declared gone: it is down, and stays so until that is decided
	crash     bool // while storing: nothing that the node does counts any more

	alloc   *Allocator // nil: down
	waiting []*waiter
	pending []commitCall

	saves  int // for which the rest was read from the store
	stored *ledger
	kept   ring.Set
	keptAt map[uint32]bool
}

// commitCall is a call of Allocate that has picked a slot and has not made it durable yet.
type commitCall struct {
	e *entry
	b *batch
}

// fault decides about a commit.
func (n *simNode) fault(Change) fault {
	s := n.sim
	if n.crash {
		return failBefore
	}
	if s.calm || s.rng.IntN(20) > 0 {
		return healthy
	}
	f := []fault{failBefore, failAfter}[s.rng.IntN(2)]
	n.crash = s.rng.IntN(2) == 0
	s.logf("node %d: fault %d in the store, crash %v", n.id, f, n.crash)
	return f
}

// The network as one node sees it.

func (n *simNode) Send(to ring.Owner, msg []byte) error {
	n.transmit(packet{from: n.index, to: int(to) - 1, msg: msg})
	return nil
}

func (n *simNode) Broadcast(delta []byte) {
	for _, o := range n.sim.nodes {
		if o != n {
			n.transmit(packet{from: n.index, to: o.index, msg: delta, gossip: true})
		}
	}
}

func (n *simNode) transmit(p packet) {
	s := n.sim
	if n.crash || p.to < 0 || p.to >= len(s.nodes) {
		return
	}
	copies := 1
	if !s.calm {
		if s.rng.IntN(100) < s.loss {
			copies = 0
		} else if s.rng.IntN(10) == 0 {
			copies = 2
		}
	}
	for range copies {
		p.at = s.now.Add(time.Duration(1+s.rng.IntN(50)) * time.Millisecond)
		if !s.calm && s.rng.IntN(10) == 0 {
			p.at = p.at.Add(time.Duration(s.rng.IntN(5000)) * time.Millisecond)
		}
		i := len(s.wire)
		for i > 0 && s.wire[i-1].at.After(p.at) {
			i--
		}
		s.wire = slices.Insert(s.wire, i, p)
	}
}

func (n *simNode) Peers() []Peer {
	var out []Peer
	for _, o := range n.sim.nodes {
		if o == n {
			continue
		}
		alive := n.sim.connected(n, o)
		if !n.sim.calm && n.sim.rng.IntN(10) == 0 {
			alive = !alive // failure detectors err
		}
		out = append(out, Peer{Owner: o.id, Alive: alive && !o.gone, Left: o.gone})
	}
	return out
}

func (n *simNode) start() error {
	n.crash = false
	a, err := New(Config{
		Self: n.id, Universe: n.sim.universe, Seed: n.sim.seed, Store: n.store, Net: n,
		Now: func() time.Time { return n.sim.now },
	})
	if n.crash || errors.Is(err, errDisk) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("node %d does not start: %w", n.id, err)
	}
	n.alloc = a
	n.sim.logf("node %d: up with %v", n.id, a.ledger.effective)
	if n.seed != 0 {
		if err := a.Adopt(n.seed); err != nil && !errors.Is(err, errDisk) {
			return fmt.Errorf("node %d does not adopt: %w", n.id, err)
		}
	}
	a.finish()
	if n.condemned {
		// It comes back with an old disk. What it did before somebody told it is what nobody can help: it does nothing.
		for _, o := range n.sim.living() {
			if o.alloc != nil && o.alloc.ledger.retired(n.id) {
				if _, err := a.Merge(o.alloc.Encode()); err != nil && !errors.Is(err, errDisk) {
					return err
				}
				break
			}
		}
		if !a.ledger.retired(n.id) {
			n.down("not told yet that it is retired")
		}
	}
	if n.crash {
		n.down("crash while storing")
	}
	return nil
}

// mayStart reports whether the node may be started.
func (n *simNode) mayStart() bool {
	told := func(o *simNode) bool { return o.alloc != nil && o.alloc.ledger.retired(n.id) }
	return !n.gone && (!n.condemned || slices.ContainsFunc(n.sim.living(), told))
}

// ledgers returns what the node knows, and what its disk does.
func (n *simNode) ledgers() []*ledger {
	out := []*ledger{n.stored}
	if n.alloc != nil {
		out = append(out, n.alloc.ledger)
	}
	return out
}

// names returns what is to be forgotten if the node is gone: it, and what was seeded for it, if it never came to adopt that.
func (n *simNode) names() []ring.Owner {
	if n.seed == 0 {
		return []ring.Owner{n.id}
	}
	return []ring.Owner{n.id, n.seed}
}

// forget has the node declare another one gone that is down.
func (n *simNode) forget() error {
	s := n.sim
	if n.condemned || n.alloc.leaving {
		return nil
	}
	dead := s.nodes[s.rng.IntN(len(s.nodes))]
	if dead.alloc != nil || dead == n || !dead.condemned && len(s.living()) < 3 {
		return nil
	}
	dead.condemned = true
	s.logf("node %d: forget node %d", n.id, dead.id)
	_, err := n.alloc.want(ForgetRequest{Dead: dead.names(), Sure: true})
	return err
}

func (n *simNode) down(why string) {
	n.alloc, n.waiting, n.pending = nil, nil, nil
	n.sim.logf("node %d: %s", n.id, why)
}

func (n *simNode) allocate() {
	s := n.sim
	if n.condemned {
		return
	}
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
	e, b, w, err := n.alloc.begin(owner, slot)
	switch {
	case err != nil:
		s.logf("node %d: %s: %v", n.id, owner, err)
	case w != nil:
		n.waiting = append(n.waiting, w)
	case b != nil:
		n.pending = append(n.pending, commitCall{e, b})
	}
}

// progress goes on with one call of Allocate.
func (n *simNode) progress() {
	s := n.sim
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
			s.logf("node %d: %s: %v", n.id, w.owner, w.err)
		}
		return true
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
}

func (n *simNode) release() {
	if all := n.alloc.List(); len(all) > 0 {
		l := all[n.sim.rng.IntN(len(all))]
		err := n.alloc.Release(l.Owner)
		n.sim.logf("node %d: release %s, slot %d: %v", n.id, l.Owner, l.Slot, err)
	}
}

// leave has the node leave if that works out, or go on to try.
func (n *simNode) leave() {
	living := len(n.sim.living())
	if n.condemned || living < 3 && !n.alloc.leaving || n.alloc.ledger.adopted != n.seed {
		return
	}
	n.alloc.close()
	for len(n.waiting)+len(n.pending) > 0 {
		n.progress()
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
	n.sim.logf("node %d: leaving: %+v, open %v, rest %d: %v", n.id, report, open, rest, err)
	if err == nil && rest == 0 && len(open) == 0 && !n.crash {
		n.down("left")
		n.gone = true
	}
}
