// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/weftnet/weft/internal/token"
)

// settle ends all faults; the user runs the commands until they have done, launches who was cut off with the new token, and
// then all have the same one, and nothing else.
func (s *sim) settle() {
	s.side, s.loss = map[uint64]int{}, 0
	s.notef("settle")
	for _, n := range s.nodes {
		n.goal = None // who waits for a command elsewhere gives up
	}
	driver := s.nodes[0]
	everyone := func() {
		for _, n := range s.nodes {
			if !n.up {
				s.start(n)
			}
		}
	}
	everyone()
	s.run(50)
	// Another rotation, begun while the driver was away, may come to light when its own has ended: then once more.
	for round := 0; round < 4 && (round == 0 || driver.state.Register.Phase != Revoked); round++ {
		s.complete(driver, everyone)
		s.run(60)
		everyone()
	}
	key := driver.state.Register.Key
	given, _ := driver.state.New()
	for _, n := range s.nodes { // the user brings them back
		if _, ok := n.state.Holds(key); !ok {
			adopted := State{Tokens: n.tokens, Register: n.register}.Adopt(given)
			n.tokens, n.register = adopted.Tokens, adopted.Register
			s.start(n)
		}
	}
	s.run(100)
	everyone()
	s.run(100)
	for _, n := range s.nodes {
		if n.up && (!slices.Equal(n.state.Accepted(), []token.ID{key}) || !n.state.Equal(driver.state)) {
			s.failf("in the end node %d accepts %v, and not %v alone", n.id, n.state.Accepted(), key)
		}
	}
}

// complete runs both commands to their ends, however often the driver dies.
func (s *sim) complete(driver *simNode, everyone func()) {
	for _, goal := range []Phase{Switched, Revoked} {
		everyone()
		driver.goal = goal
		for end := s.now + settleFor; driver.goal != None; {
			everyone()
			if s.now > end {
				s.failf("the command does not come to its end")
			}
			s.run(1)
			if !driver.up {
				s.start(driver)
				driver.goal = goal
			}
		}
	}
}

// TestSimulator runs a mesh through rotations with all that can go wrong. WEFT_SEEDS sets how many seeds are tried, WEFT_SEED replays one.
func TestSimulator(t *testing.T) {
	seeds := uint64(fewSeeds)
	if v, err := strconv.ParseUint(os.Getenv("WEFT_SEEDS"), 10, 64); err == nil {
		seeds = v
	}
	first := uint64(1)
	if v, err := strconv.ParseUint(os.Getenv("WEFT_SEED"), 10, 64); err == nil {
		first, seeds = v, 1
	}
	done := map[Phase]int{}
	for seed := first; seed < first+seeds; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := newSim(t, seed, 2+int(seed%6))
			s.run(20)
			for range 5 + s.dice.IntN(25) {
				s.happen()
				s.run(s.dice.IntN(40))
				done[s.nodes[0].state.Register.Phase]++
			}
			s.settle()
		})
		if t.Failed() {
			t.Fatalf("replay with WEFT_SEED=%d", seed)
		}
	}
	if first == 1 && (done[Distributing] == 0 || done[Switched] == 0 || done[Revoked] == 0) {
		t.Errorf("the simulation does not reach all phases: %v", done)
	}
}
