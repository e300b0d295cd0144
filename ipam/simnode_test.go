// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// simNode is one node of the simulation: its disk, its clock, and the calls that are under way on it.
type simNode struct {
	sim       *sim
	index     int
	id        ring.Owner
	seed      ring.Owner // to adopt; 0: none
	store     *fakeStore
	met       bool   // it has been started, and the others have heard of it
	group     int    // of the partition
	misjudge  uint64 // whom it takes for dead or alive wrongly
	gone      bool   // left for good
	condemned bool   // declared gone: it is down, and stays so until that is decided, unless undead
	crash     bool   // nothing that the node does counts any more
	skew      time.Duration

	alloc   *Allocator // nil: down
	timer   time.Time  // when Run looks again; zero: not before it is woken
	parted  map[int]bool
	waiting []*waiter
	pending []commitCall
	forgets []forgetCall

	seen // by check
}

// commitCall is a call of Allocate that has picked a slot and has not made it durable yet.
type commitCall struct {
	e *entry
	b *batch
}

// forgetCall is a call of Forget.
type forgetCall struct {
	r     ForgetRequest
	wants []*want
}

// fault decides about a commit.
func (n *simNode) fault(Change) fault {
	s := n.sim
	if n.crash {
		return failBefore
	}
	if s.steady {
		return healthy
	}
	if s.commits++; s.commits == s.crashAt {
		s.logf("node %d: crash at commit %d, fault %d", n.id, s.commits, s.crashAs)
		n.crash = true
		return s.crashAs
	}
	if s.calm || s.disk == 0 || s.rng.IntN(s.disk) > 0 {
		return healthy
	}
	f := []fault{failBefore, failAfter}[s.rng.IntN(2)]
	n.crash = s.rng.IntN(2) == 0
	s.logf("node %d: fault %d in the store, crash %v", n.id, f, n.crash)
	return f
}

// clock is the node's own.
func (n *simNode) clock() time.Time { return n.sim.now.Add(n.skew) }

// jump sets the node's clock ahead.
func (n *simNode) jump() {
	if n.sim.skewed {
		n.skew += time.Duration(n.sim.rng.IntN(100)) * time.Second
		n.sim.logf("node %d: clock ahead by %v", n.id, n.skew)
	}
}

// ledger is what the node goes by, or would after a start.
func (n *simNode) ledger() *ledger {
	if n.alloc != nil {
		return n.alloc.ledger
	}
	return n.store.current()
}

// knows reports whether the node knows that it is retired.
func (n *simNode) knows() bool { return n.ledger().retired(n.id) }

func (n *simNode) start() {
	s := n.sim
	if n.alloc != nil || n.gone {
		return
	}
	if s.skewed && s.rng.IntN(2) == 0 {
		n.skew = time.Duration(s.rng.IntN(7200)-3600) * time.Second
	}
	n.crash = false
	a, err := New(Config{
		Self: n.id, Universe: s.universe, Reserve: s.static, Seed: s.seed, Store: n.store, Net: n, Now: n.clock,
		Quarantine: s.rest, ReclaimAfter: s.reclaim,
	})
	if n.crash || errors.Is(err, errDisk) {
		return
	}
	if err != nil {
		s.fail("node %d does not start: %w", n.id, err)
		return
	}
	n.met, n.alloc, n.timer = true, a, s.now
	if n.parted == nil {
		n.parted = make(map[int]bool)
	}
	s.logf("node %d: up with %v, log %d", n.id, a.ledger.effective, len(a.ledger.ring.Log()))
	if n.condemned && !s.undead {
		// It comes back with an old disk. What it did before somebody told it is what nobody can help: it does nothing.
		if !n.told() {
			n.down("not told yet that it is retired")
			return
		}
	} else if n.seed != 0 {
		if err := a.Adopt(n.seed); err != nil && !errors.Is(err, errDisk) && !n.condemned {
			s.fail("node %d does not adopt: %w", n.id, err)
		}
	}
	n.reap()
}

// told has a node that comes back learn that it is retired.
func (n *simNode) told() bool {
	for _, o := range n.sim.living() {
		if o.alloc != nil && o.alloc.ledger.retired(n.id) {
			n.sim.merge(n, o.alloc.Encode())
			break
		}
	}
	return n.knows()
}

// mayStart reports whether the node may be started.
func (n *simNode) mayStart() bool {
	if n.gone || !n.condemned || n.sim.undead && !n.sim.calm {
		return !n.gone
	}
	for _, o := range n.sim.living() {
		if o.alloc != nil && o.alloc.ledger.retired(n.id) {
			return true
		}
	}
	return false
}

// poll does what Run does.
func (n *simNode) poll() {
	if n.alloc == nil {
		return
	}
	select {
	case <-n.alloc.wake:
	default:
	}
	n.timer = time.Time{}
	if next := n.alloc.finish(); next > 0 {
		n.timer = n.sim.now.Add(next)
	}
	n.reap()
}

// reap ends a node that has crashed on its way.
func (n *simNode) reap() {
	if n.alloc != nil && n.crash {
		n.down("crash on its way")
	}
}

func (n *simNode) down(why string) {
	n.alloc, n.waiting, n.pending, n.forgets, n.timer = nil, nil, nil, nil, time.Time{}
	n.sim.logf("node %d: %s", n.id, why)
}
