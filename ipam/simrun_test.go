// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// chaos is what may go wrong in a run.
type chaos struct {
	most      int // nodes, of all times together
	loss      int // of 100 messages that are lost
	twice     int // of 100 messages that come twice
	late      int // of 100 messages that take seconds
	misjudged int // of 100 looks at a peer that see the contrary
	disk      int // one commit in so many fails; 0: none
	cut       int // one message sent in so many is the last before a crash; 0: none
	reclaim   time.Duration
	rest      time.Duration // the quarantine
	undead    bool          // nodes that were declared gone may run, whether somebody tells them or not
	skewed    bool          // clocks differ, jump ahead, and are set back while a node is down
	sniff     bool          // what is in flight is looked at, too
}

type sim struct {
	chaos
	trace    io.Writer // nil: none
	rng      *rand.Rand
	now      time.Time
	step     int // what has happened so far, each followed by a check
	err      error
	universe Universe
	static   Reserve
	seed     Seed
	strays   []ring.Owner // seed names that are nobody's
	nodes    []*simNode
	wire     []packet // by time
	deaf     map[[2]int]bool
	gossipAt time.Time
	calm     bool // no faults of any kind any more
	calmAt   time.Time
	next     int // to name workloads

	steady  bool // nobody crashes any more
	commits int  // of all nodes, until then
	crashAt int  // the commit at which the node crashes; 0: none
	crashAs fault

	log    []ring.Retirement // as far as anybody knows
	dead   map[ring.Owner]bool
	record record
	handed map[uint32]ring.Version // the last version of each slot that was handed over
}

var epoch = time.Unix(1_000_000, 0)

// newSim draws a cluster: most are small.
func newSim(seed uint64) *sim {
	s := emptySim(seed)
	ranges, n := []string{"10.32.0.0/28", "10.32.0.0/27", "10.32.0.0/26", "10.32.0.0/28,fd00::/64"}, 2+s.rng.IntN(4)
	switch k := s.rng.IntN(2000); {
	case seed%5000 == 0: // they take long
		n, ranges = 40+s.rng.IntN(61), []string{"10.32.0.0/24"}
	case k < 10:
		n, ranges = 13+s.rng.IntN(20), []string{"10.32.0.0/26", "10.32.0.0/25"}
	case k < 200:
		n = 6 + s.rng.IntN(7)
	case k < 300:
		ranges = []string{"10.32.0.0/29", "10.32.0.0/25", "10.32.0.0/24"}
	}
	s.chaos = chaos{
		most: min(n+s.rng.IntN(4), 100), loss: s.rng.IntN(40), twice: s.rng.IntN(20), late: s.rng.IntN(20),
		misjudged: []int{0, 1, 10, 30}[s.rng.IntN(4)], disk: []int{0, 20, 20, 100}[s.rng.IntN(4)], cut: []int{0, 100, 500}[s.rng.IntN(3)],
		rest:   []time.Duration{-1, time.Second, 10 * time.Second, DefaultQuarantine}[s.rng.IntN(4)],
		undead: s.rng.IntN(4) == 0, skewed: s.rng.IntN(3) == 0, sniff: s.rng.IntN(8) == 0 && n < 40,
	}
	if s.rng.IntN(4) == 0 {
		s.reclaim = time.Duration(3+s.rng.IntN(40)) * time.Second
	}
	s.found(ranges[s.rng.IntN(len(ranges))], n, s.rng.IntN(5))
	if s.rng.IntN(6) == 0 {
		s.keep([]string{"10.32.0.0/30", "10.32.0.4/30", "10.32.0.4/31"}[s.rng.IntN(3)])
	}
	return s
}

func emptySim(seed uint64) *sim {
	return &sim{
		rng: rand.New(rand.NewPCG(seed, 1)), now: epoch, gossipAt: epoch, deaf: make(map[[2]int]bool),
		dead: make(map[ring.Owner]bool), handed: make(map[uint32]ring.Version),
	}
}

// found makes n nodes, for the first of which, and perhaps for somebody who never comes, the universe is seeded by name;
// with no names the first one has all of it.
func (s *sim) found(universe string, n, names int) {
	var err error
	if s.universe, err = ParseUniverse(universe); err != nil {
		panic(err)
	}
	s.record = newRecord(uint32(s.universe.Size()))
	s.seed = Seed{Owners: []ring.Owner{1}}
	var list []string
	for i := range min(names, n+1) {
		list = append(list, fmt.Sprintf("node-%d", i+1))
	}
	if len(list) > 0 {
		s.seed, _ = SeedNames(list)
	}
	for i := range n {
		s.join()
		if i < len(list) {
			s.nodes[i].seed = NameOwner(list[i])
		}
	}
	if len(list) > n {
		s.strays = append(s.strays, NameOwner(list[n]))
	}
}

// keep keeps a part of the universe for what is asked for by name.
func (s *sim) keep(prefix string) {
	var err error
	if s.static, err = s.universe.ParseReserve([]string{prefix}); err != nil {
		s.fail("%s: %w", prefix, err)
	}
}

func (s *sim) logf(format string, args ...any) {
	if s.trace != nil {
		fmt.Fprintf(s.trace, "%5d %9.3f  %s\n", s.step, s.now.Sub(epoch).Seconds(), fmt.Sprintf(format, args...))
	}
}

// fail takes note of the first violation.
func (s *sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf(format, args...)
		s.logf("VIOLATION: %v", s.err)
	}
}

func (s *sim) run() {
	s.logf("%d nodes of %d, %v without %v, %+v", len(s.nodes), s.most, s.universe, s.static, s.chaos)
	for range s.rng.IntN(len(s.nodes) + 1) {
		s.nodes[s.rng.IntN(len(s.nodes))].start()
	}
	for range 150 + s.rng.IntN(450+20*len(s.nodes)) {
		s.act()
		if s.check(); s.err != nil {
			return
		}
	}
	s.settle()
}

// act does one random thing.
func (s *sim) act() {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if n.alloc == nil {
		if s.rng.IntN(2) == 0 && n.mayStart() {
			n.start()
		} else {
			s.event()
		}
		return
	}
	switch k := s.rng.IntN(1000); {
	case k < 440:
		s.event()
	case k < 560:
		n.allocate()
	case k < 620:
		n.release()
	case k < 700:
		n.progress()
	case k < 740:
		s.advance(time.Duration(s.rng.IntN(1500)) * time.Millisecond)
	case k < 760:
		s.advance(time.Duration(s.rng.IntN(40)) * time.Second)
	case k < 840:
		s.gossip(n, s.nodes[s.rng.IntN(len(s.nodes))])
	case k < 860:
		s.partition()
	case k < 890:
		n.down("crash")
	case k < 905:
		n.leave()
	case k < 925:
		s.forget()
	case k < 935:
		s.lose()
	case k < 945:
		if len(s.nodes) < s.most {
			s.join()
		}
	case k < 955:
		n.inspect()
	case k < 965:
		n.jump()
	case k < 970:
		n.misjudge = s.rng.Uint64()
	default:
		n.poll()
	}
	n.reap()
}

// join adds a new node, which is not started yet.
func (s *sim) join() {
	i := len(s.nodes)
	n := &simNode{sim: s, index: i, id: ring.Owner(i + 1), store: newFakeStore(s.universe.Size())}
	n.store.self, n.store.fault = n.id, n.fault
	n.regs = make([]ring.Register, s.universe.Size())
	s.nodes = append(s.nodes, n)
	s.logf("node %d: to join", n.id)
}

// lose has a node, and what is on its disk, gone for good; often another one comes in its place.
func (s *sim) lose() {
	n := s.pick(func(n *simNode) bool { return !n.condemned && !n.gone })
	if n == nil || len(s.living()) < 3 {
		return
	}
	n.condemned = true
	if n.alloc != nil && (!s.undead || s.rng.IntN(2) == 0) {
		n.down("gone for good")
	}
	if len(s.nodes) < s.most && s.rng.IntN(2) == 0 {
		s.join()
	}
}

// pick returns a random node that is as wanted, of several preferably a rich one.
func (s *sim) pick(wanted func(*simNode) bool) *simNode {
	var best *simNode
	for range 1 + s.rng.IntN(4) {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		if wanted(n) && (best == nil || n.ledger().effective.Len() > best.ledger().effective.Len()) {
			best = n
		}
	}
	return best
}

// living returns the nodes that belong to the mesh.
func (s *sim) living() []*simNode {
	var out []*simNode
	for _, n := range s.nodes {
		if !n.gone && !n.condemned {
			out = append(out, n)
		}
	}
	return out
}

// earliest returns the node of which Run is to do something next, nil if there is none.
func (s *sim) earliest() *simNode {
	var first *simNode
	for _, n := range s.nodes {
		if n.alloc == nil {
			continue
		}
		if len(n.alloc.wake) > 0 && (n.timer.IsZero() || n.timer.After(s.now)) {
			n.timer = s.now
		}
		if !n.timer.IsZero() && (first == nil || n.timer.Before(first.timer)) {
			first = n
		}
	}
	return first
}

// event has the next thing happen, or a message arrive out of turn.
func (s *sim) event() {
	if len(s.wire) > 0 && s.rng.IntN(3) == 0 {
		s.deliver(s.rng.IntN(len(s.wire)))
		return
	}
	s.proceed()
}

// proceed has the next thing happen that is due by time: a message arrives, or a timer expires.
func (s *sim) proceed() {
	n := s.earliest()
	switch {
	case len(s.wire) > 0 && (n == nil || s.wire[0].at.Before(n.timer)):
		s.deliver(0)
	case n != nil:
		s.advance(n.timer.Sub(s.now))
		n.poll()
	}
}

func (s *sim) advance(d time.Duration) {
	if d > 0 {
		s.now = s.now.Add(d)
	}
}
