// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
)

// TestManyAreConnectedAgain has many interfaces go while the packet filter takes its time: what policies say of them is asked once, and nobody else waits for the answer.
func TestManyAreConnectedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := one(t)
		const many = 60
		for i := range many {
			c.labelled(m, fmt.Sprint("db-", i), "db")
		}
		c.apply(m, denyAll)
		time.Sleep(time.Minute)
		m.host.mu.Lock()
		clear(m.host.up)
		m.host.mu.Unlock()
		m.filter.set(func() { m.filter.slow = 5 * time.Second })
		c.apply(m, allowWeb)
		time.Sleep(time.Second)
		m.filter.take()

		begun := time.Now()
		reconciled := make(chan time.Duration)
		go func() {
			if undone, err := m.daemon().engines().workloads.reconcile(); undone != nil || err != nil {
				t.Errorf("%v, %v", undone, err)
			}
			reconciled <- time.Since(begun)
		}()
		synctest.Wait()
		if _, err := m.service().Detach(t.Context(), api.DetachRequest{Netns: "/run/netns/db-0", IfName: "eth0"}); err != nil || time.Since(begun) > 0 {
			t.Errorf("detaching took %v: %v", time.Since(begun), err)
		}
		if took := <-reconciled; took > 15*time.Second {
			t.Errorf("connecting %d again took %v", many-1, took)
		}
		m.host.mu.Lock()
		defer m.host.mu.Unlock()
		if len(m.host.up) != many-1 {
			t.Errorf("%d are connected again, of %d", len(m.host.up), many-1)
		}
	})
}
