// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A node that gets no processor for a while comes back, and does not have others taken for dead: neither by what it
// believed meanwhile, nor by what it says when it goes on.
func TestStarvedNode(t *testing.T) {
	for _, pause := range []time.Duration{3 * time.Second, 8 * time.Second, 20 * time.Second} {
		t.Run(fmt.Sprint(pause), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 80)
				c.net.Delay(time.Millisecond, 5*time.Millisecond)
				c.node().start()
				for range 7 {
					c.node("n1").start()
				}
				c.eventually(5*time.Second, "whole", whole(c.nodes...))
				time.Sleep(20 * time.Second)
				starved := c.nodes[3]
				rest := append(append([]*testNode(nil), c.nodes[:3]...), c.nodes[4:]...)
				watch := func(d time.Duration) {
					t.Helper()
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
						if !whole(rest...)() {
							t.Fatal("the others lose each other")
						}
					}
				}
				for round := range 3 {
					starved.host.Still(true)
					watch(pause)
					starved.host.Still(false)
					begin := time.Now()
					for !whole(c.nodes...)() {
						watch(100 * time.Millisecond)
						if time.Since(begin) > 10*time.Second {
							t.Fatal("it does not come back")
						}
					}
					t.Logf("round %d: back after %v", round, time.Since(begin))
					watch(20 * time.Second)
				}
				if !whole(c.nodes...)() {
					t.Error("it was lost again")
				}
			})
		})
	}
}
