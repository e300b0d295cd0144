// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A process that was lost may come back however often others say that it is there: in a cut of a large mesh, they all say so of half of it.
// Others that are said to be there are counted.
func TestLostMayComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(10*time.Second, "they see each other", whole(a, b))
		boot := b.boot
		b.kill()
		c.eventually(time.Minute, "it is lost", func() bool { return a.status(b) == Failed })
		for range 2*processBurst + metBurst {
			if err := a.admit(b.id, boot); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.admit(testIdentity(50).ID(), 1); err != nil {
			t.Errorf("there is no room for another: %v", err)
		}
		var err error
		for i := range 2 * processBurst {
			if err = a.admit(b.id, boot+1+uint64(i)); err != nil {
				break
			}
		}
		if !errors.Is(err, errFlood) {
			t.Errorf("any number of processes that the record does not speak of may come: %v", err)
		}
	})
}
