// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// The simulator runs several allocators in one goroutine over a network and disks that misbehave, all decisions drawn
// from one seed. To replay a failure: go test -run TestSimulation ./ipam -sim.seed=N, or WEFT_SIM_SEED=N.
var (
	simSeed = flag.Uint64("sim.seed", 0, "run only this seed of TestSimulation, verbosely")
	simRuns = flag.Uint64("sim.runs", 300, "how many seeds TestSimulation runs")
)

func TestSimulation(t *testing.T) {
	first, n := uint64(1), *simRuns
	if s, err := strconv.ParseUint(os.Getenv("WEFT_SIM_SEED"), 10, 64); err == nil {
		*simSeed = s
	}
	if *simSeed != 0 {
		first, n = *simSeed, 1
	}
	for seed := first; seed < first+n; seed++ {
		s := newSim(seed)
		s.verbose = *simSeed != 0
		s.t = t
		if err := s.run(); err != nil {
			t.Fatalf("seed %d, step %d: %v\nreplay with: go test ./ipam -run TestSimulation -sim.seed=%d", seed, s.step, err, seed)
		}
	}
}

type sim struct {
	t        *testing.T
	verbose  bool
	rng      *rand.Rand
	now      time.Time
	step     int
	universe Universe
	seed     Seed
	nodes    []*simNode
	wire     []packet
	calm     bool // no faults of any kind any more
	loss     int  // of 100
	next     int  // to name workloads
	stranded ring.Set
}

type packet struct {
	at       time.Time
	from, to int // indexes of nodes
	msg      []byte
	gossip   bool
}

type simNode struct {
	sim   *sim
	index int
	id    ring.Owner
	seed  ring.Owner // to adopt; 0: none
	store *fakeStore
	group int  // of the partition
	gone  bool // left for good
	crash bool // while storing: nothing that the node does counts any more

	alloc   *Allocator // nil: down
	waiting []*waiter
	pending []commitCall

	saves  int // for which kept was computed
	kept   ring.Set
	keptAt map[uint32]bool
}

// commitCall is a call of Allocate that has picked a slot and has not made it durable yet.
type commitCall struct {
	e *entry
	b *batch
}

func newSim(seed uint64) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_000_000, 0)}
	ranges := []string{"10.32.0.0/28", "10.32.0.0/27", "10.32.0.0/26", "10.32.0.0/25,fd00::/64"}
	s.universe, _ = ParseUniverse(ranges[s.rng.IntN(len(ranges))])
	s.loss = s.rng.IntN(40)
	n := 2 + s.rng.IntN(4)
	for i := range n {
		s.nodes = append(s.nodes, &simNode{sim: s, index: i, id: ring.Owner(i + 1), store: newFakeStore(s.universe.Size())})
		s.nodes[i].store.fault = s.nodes[i].fault
	}
	if named := s.rng.IntN(4); named > 0 && named <= n {
		var names []string
		for i := range named {
			name := fmt.Sprintf("node-%d", i)
			names = append(names, name)
			s.nodes[i].seed = NameOwner(name)
		}
		s.seed, _ = SeedNames(names)
	} else {
		s.seed = Seed{Owners: []ring.Owner{1}}
	}
	return s
}

func (s *sim) logf(format string, args ...any) {
	if s.verbose {
		s.t.Logf("%d %v: %s", s.step, s.now.Sub(time.Unix(1_000_000, 0)), fmt.Sprintf(format, args...))
	}
}

func (s *sim) run() error {
	for s.step = range 150 + s.rng.IntN(300) {
		if err := s.act(); err != nil {
			return err
		}
		if err := s.check(); err != nil {
			return err
		}
	}
	return s.settle()
}

// act does one random thing.
func (s *sim) act() error {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if n.gone {
		return nil
	}
	if n.alloc == nil {
		if s.rng.IntN(4) == 0 {
			return n.start()
		}
		return nil
	}
	switch k := s.rng.IntN(100); {
	case k < 40:
		return s.deliver()
	case k < 55:
		n.allocate()
	case k < 62:
		n.release()
	case k < 74:
		n.progress()
	case k < 82:
		s.advance(time.Duration(s.rng.IntN(1500)) * time.Millisecond)
		n.alloc.finish()
	case k < 90:
		return s.gossip(n, s.nodes[s.rng.IntN(len(s.nodes))])
	case k < 93:
		s.partition()
	case k < 96:
		n.down("crash")
	case k < 97:
		n.leave()
	default:
		s.advance(time.Duration(s.rng.IntN(40)) * time.Second)
	}
	if n.crash {
		n.down("crash while storing")
	}
	return nil
}

func (s *sim) advance(d time.Duration) { s.now = s.now.Add(d) }

func (s *sim) partition() {
	groups := 1 + s.rng.IntN(3)
	for _, n := range s.nodes {
		n.group = s.rng.IntN(groups)
	}
	s.logf("partition into %d", groups)
}

func (s *sim) connected(a, b *simNode) bool {
	return a.alloc != nil && b.alloc != nil && (s.calm || a.group == b.group)
}

// deliver hands over one packet, not necessarily the next one.
func (s *sim) deliver() error {
	if len(s.wire) == 0 {
		return nil
	}
	i := 0
	if !s.calm && s.rng.IntN(3) == 0 {
		i = s.rng.IntN(len(s.wire))
	}
	p := s.wire[i]
	s.wire = slices.Delete(s.wire, i, i+1)
	if p.at.After(s.now) {
		s.now = p.at
	}
	from, to := s.nodes[p.from], s.nodes[p.to]
	if to.alloc == nil || !s.calm && from.group != to.group {
		return nil
	}
	var err error
	if p.gossip {
		_, err = to.alloc.Merge(p.msg)
		if errors.Is(err, errDisk) {
			err = nil
		}
	} else {
		to.alloc.HandleMessage(from.id, p.msg)
	}
	if to.crash {
		to.down("crash while storing")
	}
	return err
}

// gossip is the anti-entropy between two nodes.
func (s *sim) gossip(a, b *simNode) error {
	if a == b || !s.connected(a, b) {
		return nil
	}
	_, err := b.alloc.Merge(a.alloc.Encode())
	if b.crash {
		b.down("crash while storing")
	}
	if errors.Is(err, errDisk) {
		return nil
	}
	return err
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
	if n.crash {
		n.down("crash while storing")
	}
	return nil
}

func (n *simNode) down(why string) {
	n.alloc, n.waiting, n.pending = nil, nil, nil
	n.sim.logf("node %d: %s", n.id, why)
}

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
	living := 0
	for _, o := range n.sim.nodes {
		if !o.gone {
			living++
		}
	}
	if living < 3 && !n.alloc.leaving || n.alloc.ledger.adopted != n.seed {
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
	for _, o := range n.sim.nodes {
		// Of a node that cannot be reached it is not known whether it is about to grant something; such slots are for
		// reclaim, which is not simulated.
		if !o.gone && o != n && !n.alloc.parted[o.id] {
			return
		}
	}
	if err == nil && rest == 0 && len(open) == 0 && !n.crash {
		n.down("left")
		n.gone = true
	}
}

// check verifies that no slot is, or could be, in use on two nodes.
func (s *sim) check() error {
	owner := make(map[uint32]ring.Owner)
	for _, n := range s.nodes {
		if n.store.broken != nil {
			return fmt.Errorf("node %d: %w", n.id, n.store.broken)
		}
		if n.store.saves != n.saves || n.keptAt == nil {
			l, err := n.store.ledger(n.id)
			if err != nil {
				return err
			}
			n.saves, n.kept = n.store.saves, l.effective
			n.keptAt = make(map[uint32]bool)
			for _, slot := range n.store.allocs {
				n.keptAt[slot] = true
			}
		}
		may := n.kept
		if a := n.alloc; a != nil {
			may = may.Union(a.ledger.effective)
			if len(a.violated) > 0 || a.lost > 0 {
				return fmt.Errorf("node %d met a violation: %s", n.id, a.trouble)
			}
			for _, l := range a.List() {
				// A release that failed may have reached the disk all the same; whoever asks for the lease again has it
				// written first.
				if !a.ledger.effective.Contains(l.Slot) || !n.keptAt[l.Slot] && !a.doubt.owners[l.Owner] {
					return fmt.Errorf("node %d: slot %d of %s is not its own, or not durable", n.id, l.Slot, l.Owner)
				}
			}
			if u := a.space.total - a.space.inside; a.space.left() > a.space.total || u != a.space.left() {
				return fmt.Errorf("node %d: %d of %d slots taken", n.id, a.space.inside, a.space.total)
			}
		}
		for slot := range n.keptAt {
			if !may.Contains(slot) {
				return fmt.Errorf("node %d: slot %d is stored as allocated and is not its own", n.id, slot)
			}
		}
		for _, i := range may {
			for slot := i.First; slot <= i.Last; slot++ {
				if owner[slot] != 0 {
					return fmt.Errorf("slot %d is usable on node %d and on node %d", slot, owner[slot], n.id)
				}
				owner[slot] = n.id
			}
		}
	}
	return nil
}

// settle ends all faults and verifies that everything comes to rest: one ring everywhere, nothing under way, and every
// address to be had from any node.
func (s *sim) settle() error {
	s.calm = true
	s.logf("calm")
	for _, n := range s.nodes {
		if !n.gone && n.alloc == nil {
			if err := n.start(); err != nil {
				return err
			}
		}
		if n.alloc != nil {
			if n.alloc.leaving { // it changed its mind: that takes a restart
				n.down("restart")
				if err := n.start(); err != nil {
					return err
				}
			}
			if n.seed != 0 { // a fault may have kept it from doing so
				if err := n.alloc.Adopt(n.seed); err != nil {
					return err
				}
			}
		}
	}
	if err := s.pass(20 * time.Second); err != nil {
		return err
	}
	var first *simNode
	for _, n := range s.nodes {
		if n.gone {
			continue
		}
		l := n.alloc.ledger
		if first == nil {
			first = n
			s.logf("owned %v", l.ring.Owned())
		}
		s.logf("node %d: owns %v, effective %v", n.id, l.ring.OwnedBy(n.id), l.effective)
		for _, o := range l.outgoing {
			s.logf("  outgoing %v to %d, handed over %v, acks %v", o.grants.Known(), o.to, o.handed, o.acks)
		}
	}
	for _, n := range s.nodes {
		if n.gone {
			continue
		}
		l := n.alloc.ledger
		switch own := l.ring.OwnedBy(n.id); {
		case !l.ring.Equal(first.alloc.ledger.ring):
			return fmt.Errorf("rings of nodes %d and %d differ", first.id, n.id)
		case s.stuck(l):
			return fmt.Errorf("node %d: %d grants outgoing", n.id, len(l.outgoing))
		case !slices.Equal(own, l.effective):
			return fmt.Errorf("node %d owns %v, of which only %v took effect", n.id, own, l.effective)
		case len(n.waiting) > 0:
			return fmt.Errorf("node %d: %d calls wait", n.id, len(n.waiting))
		}
	}
	// What was granted to a node at the moment when it left, by one that had forgotten in a restart that it was leaving,
	// is for reclaim to bring back.
	for _, n := range s.nodes {
		if n.alloc == nil {
			continue
		}
		for _, o := range n.alloc.ledger.outgoing {
			s.stranded = s.stranded.Union(o.grants.Known())
		}
	}
	for _, n := range s.nodes {
		if n.gone && len(first.alloc.ledger.ring.OwnedBy(n.id).Subtract(s.stranded)) > 0 {
			return fmt.Errorf("node %d left, but owns %v", n.id, first.alloc.ledger.ring.OwnedBy(n.id))
		}
	}
	return s.drain()
}

// stuck reports whether a node has granted something that does not arrive, though the recipient is there.
func (s *sim) stuck(l *ledger) bool {
	return slices.ContainsFunc(l.outgoing, func(o *outgoing) bool { return o.handed || !s.nodes[o.to-1].gone })
}

// pass lets time go by with all nodes running.
func (s *sim) pass(d time.Duration) error {
	for end := s.now.Add(d); s.now.Before(end); {
		s.advance(100 * time.Millisecond)
		for len(s.wire) > 0 && !s.wire[0].at.After(s.now) {
			if err := s.deliver(); err != nil {
				return err
			}
		}
		for _, n := range s.nodes {
			if n.alloc == nil {
				continue
			}
			n.alloc.finish()
			for range len(n.waiting) + len(n.pending) {
				n.progress()
			}
		}
		a, b := s.nodes[s.rng.IntN(len(s.nodes))], s.nodes[s.rng.IntN(len(s.nodes))]
		if err := s.gossip(a, b); err != nil {
			return err
		}
		if err := s.check(); err != nil {
			return err
		}
	}
	return nil
}

// drain releases everything and then allocates on random nodes until no address is left, which must be all of them.
func (s *sim) drain() error {
	for _, n := range s.nodes {
		if n.alloc == nil {
			continue
		}
		for _, l := range n.alloc.List() {
			if err := n.alloc.Release(l.Owner); err != nil {
				return err
			}
		}
	}
	if err := s.pass(DefaultQuarantine + 2*time.Second); err != nil {
		return err
	}
	total, want, fulls := 0, int(s.universe.Size()-2-usable(s.stranded, uint32(s.universe.Size()))), 0
	for {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		if n.gone {
			continue
		}
		full, err := s.drainOne(n)
		if err != nil {
			return err
		}
		if full {
			// An address may have been on its way from one node to another, where nobody could see it.
			if fulls++; fulls > 5 {
				break
			}
			if err := s.pass(2 * time.Second); err != nil {
				return err
			}
			continue
		}
		fulls = 0
		if total++; total > want {
			return errors.New("more addresses than there are")
		}
	}
	if total != want {
		free := make(map[ring.Owner]uint64)
		for _, n := range s.nodes {
			if n.alloc != nil {
				free[n.id] = n.alloc.space.left()
			}
		}
		return fmt.Errorf("%d of %d addresses could be had; free: %v", total, want, free)
	}
	return nil
}

// drainOne allocates one address on a node; full means that there is none.
func (s *sim) drainOne(n *simNode) (full bool, err error) {
	owner := fmt.Sprintf("w%d", s.next)
	s.next++
	_, b, w, err := n.alloc.begin(owner, nil)
	if err != nil {
		return false, err
	}
	for tries := 0; w != nil; tries++ {
		select {
		case <-w.done:
			var e *ExhaustedError
			if errors.As(w.err, &e) {
				s.logf("node %d: %v", n.id, n.alloc.named(e))
				return true, nil
			}
			if w.err != nil {
				return false, w.err
			}
			b, w = w.entry.batch, nil
			continue
		default:
		}
		if tries > 100 {
			return false, fmt.Errorf("node %d waits for an address for ever: %s", n.id, n.alloc.text(n.alloc.reason(w, n.alloc.look())))
		}
		if err := s.pass(50 * time.Millisecond); err != nil {
			return false, err
		}
	}
	if b == nil {
		return false, nil // committed along with something else
	}
	return false, n.alloc.commit(b)
}
