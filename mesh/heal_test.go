// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/mesh/memnet"
)

// While a mesh is being cut in two, one node believes that the others are alive whom another has lost. That is not the end of the cut,
// and what a node does about those that it has lost is bounded, however many they are and however often it hears of them.
func TestCutIsBounded(t *testing.T) {
	notUnderRace(t)
	synctest.Test(t, func(t *testing.T) {
		const size = 32
		c := newCluster(t, 1)
		c.net.Delay(500*time.Microsecond, 5*time.Millisecond)
		for range size {
			c.node("n1", "n2").start()
		}
		c.eventually(30*time.Second, "all see each other", whole(c.nodes...))
		var side []*memnet.Host
		for _, n := range c.nodes[:size/2] {
			side = append(side, n.host)
		}
		c.net.Partition(side)
		c.eventually(time.Minute, "each half has lost the other", func() bool {
			for _, n := range c.nodes {
				if n.Alive() != size/2-1 {
					return false
				}
			}
			return true
		})
		a, b, lost := c.nodes[0], c.nodes[1], c.nodes[size-1]
		var f found
		for _, n := range c.nodes[size/2:] {
			f.missing = append(f.missing, member{n.id, n.boot})
		}
		tries := func() int {
			a.Mesh.mu.Lock()
			defer a.Mesh.mu.Unlock()
			return a.tries
		}
		for range 100 {
			if a.noteMissing(b.id, f) {
				t.Fatal("what a node says that was there all the time is an end of the cut")
			}
			if n := tries(); n == 0 || n > perRound {
				t.Fatalf("%d of those that are lost are tried at a time, not 1 to %d", n, perRound)
			}
			time.Sleep(100 * time.Millisecond)
		}
		const alarm = "were cut off"
		if n := c.logged(alarm); n != 0 {
			t.Errorf("%d alarms during the cut", n)
		}
		c.eventually(time.Minute, "there is room for another try", func() bool { return tries() < perRound })
		before := tries()
		if !a.noteMissing(lost.id, f) {
			t.Error("what a lost node says is no end of the cut")
		}
		if n := tries(); n > before {
			t.Errorf("%d nodes are called on, though all will say by themselves that they live", n-before)
		}
		c.net.Heal()
		c.eventually(15*time.Second, "all see each other again", whole(c.nodes...))
		if n := c.logged(alarm); n != size {
			t.Errorf("%d of %d nodes had an alarm", n, size)
		}
	})
}
