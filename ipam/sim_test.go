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
	retired := 0
	for seed := first; seed < first+n; seed++ {
		s := newSim(seed)
		s.verbose = *simSeed != 0
		s.t = t
		if err := s.run(); err != nil {
			t.Fatalf("seed %d, step %d: %v\nreplay with: go test ./ipam -run TestSimulation -sim.seed=%d", seed, s.step, err, seed)
		}
		retired += len(s.log)
	}
	t.Logf("%d nodes were retired in %d runs", retired, n)
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

	log    []ring.Retirement       // as far as anybody knows
	handed map[uint32]ring.Version // the last version of each slot that was handed over
}

type packet struct {
	at       time.Time
	from, to int // indexes of nodes
	msg      []byte
	gossip   bool
}

func newSim(seed uint64) *sim {
	s := &sim{handed: make(map[uint32]ring.Version), rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_000_000, 0)}
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
	if n.alloc == nil {
		if s.rng.IntN(4) == 0 && n.mayStart() {
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
	case k < 98:
		return n.forget()
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
