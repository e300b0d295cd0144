// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/mesh/memnet"
)

var chaosSeed = flag.Uint64("mesh.seed", 0, "replay one seed of TestChaos")

// TestChaos has a mesh suffer everything at once, in an order drawn from a seed, and
// then, with the network whole, looks whether all that run agree on who is there and
// what was said.
func TestChaos(t *testing.T) {
	seeds := []uint64{*chaosSeed}
	if *chaosSeed == 0 {
		seeds = seeds[:0]
		for range 8 {
			seeds = append(seeds, rand.Uint64())
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("-mesh.seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, seed) })
		})
	}
}

func chaos(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	c := newCluster(t, seed)
	c.net.Delay(0, time.Duration(r.IntN(60))*time.Millisecond)
	c.net.Faults(r.Float64()*0.3, r.Float64()*0.3)
	size := 3 + r.IntN(6)
	running := map[*testNode]bool{}
	gone := map[*testNode]bool{}
	for range size {
		n := c.node("n1", "n2")
		if r.IntN(4) > 0 {
			n.start()
			running[n] = true
		}
		time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
	}
	items := 0
	for range 30 {
		n := c.nodes[r.IntN(len(c.nodes))]
		switch what := r.IntN(10); {
		case gone[n]:
		case what < 4 && running[n]:
			items++
			n.add(fmt.Sprintf("item %d%s", items, string(make([]byte, r.IntN(3)*1000))))
		case what < 6 && !running[n]:
			n.start()
			running[n] = true
		case what == 6 && running[n]:
			n.kill()
			delete(running, n)
		case what == 7 && running[n]:
			left := r.IntN(4) == 0 && n != c.nodes[0] && n != c.nodes[1] // whom others join
			n.stop(left)
			delete(running, n)
			gone[n] = left
		case what == 8:
			var side []*memnet.Host
			for _, o := range c.nodes {
				if r.IntN(2) == 0 {
					side = append(side, o.host)
				}
			}
			c.net.Partition(side)
		case what == 9:
			c.net.Heal()
		}
		time.Sleep(time.Duration(r.IntN(8000)) * time.Millisecond)
	}
	c.net.Heal()
	c.net.Faults(0, 0)
	for _, n := range c.nodes {
		if !running[n] && !gone[n] {
			n.start()
			running[n] = true
		}
	}
	var alive []*testNode
	for _, n := range c.nodes {
		if running[n] {
			alive = append(alive, n)
		}
	}
	if len(alive) < 2 {
		return
	}
	c.eventually(15*time.Second, "all that run see each other", whole(alive...))
	c.eventually(15*time.Second, "all that run agree", agreed(alive...))
	for _, n := range alive {
		for _, k := range n.Nodes() {
			if (k.State == StateLeft) != (k.Status == Left) {
				t.Errorf("%s sees %s, which says %v, as %v", n.cfg.Name, k.Name, k.State, k.Status)
			}
		}
	}
}
