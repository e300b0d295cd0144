// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// Twenty nodes, each of which is replaced ten times over by a new one (three times with the race detector), and forgotten: nothing of the universe gets lost, and
// what a node has stays in one piece, or few.
func TestReplaceAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rounds := 20, 10
		if raceDetector {
			rounds = 3
		}
		c, nodes := founded(t, "10.32.0.0/20", n)
		next := ring.Owner(n)
		worst := 0
		for round := range rounds {
			for i, old := range nodes {
				by := nodes[(i+1)%n]
				old.allocate(t.Context(), fmt.Sprint("w", round), 3)
				c.crash(old)
				c.sure(by, 20*time.Second, ForgetRequest{Dead: []ring.Owner{old.id}})
				next++
				nodes[i] = c.join(next)
				time.Sleep(3 * time.Second)
			}
			for _, h := range nodes[0].Owned() {
				worst = max(worst, len(h.Prefixes))
				if len(h.Prefixes) > 16 {
					t.Errorf("round %d: n%d has %d prefixes", round, h.Owner, len(h.Prefixes))
				}
			}
		}
		time.Sleep(time.Minute)
		c.agree(nodes...)
		t.Logf("at most %d prefixes a node; the ring takes %d bytes", worst, len(nodes[0].Encode()))
		c.within(10*time.Minute, func(ctx context.Context) {
			for i, m := range nodes {
				m.allocate(ctx, "all", min(205, 4094-i*205))
			}
		})
		c.unique()
	})
}
