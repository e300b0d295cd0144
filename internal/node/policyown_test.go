// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
)

// looks is how many workloads m has looked at so far for what it tells the other nodes.
func looks(t *testing.T, m *machine) uint64 {
	t.Helper()
	h := m.node(t).engines().shared
	h.looking.Lock()
	defer h.looking.Unlock()
	return h.own.looks
}

// What is told of workloads costs one that comes or goes the same, however many there are; all are gone through once a second alone.
func TestOneOfManyIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := one(t)
		for _, many := range []int{10, 200} {
			for i := range many {
				c.attach(m, fmt.Sprintf("w%d", i))
			}
			for before := looks(t, m); looks(t, m) == before; { // until all were looked at
				time.Sleep(10 * time.Millisecond)
			}
			before := looks(t, m)
			c.attach(m, "one")
			time.Sleep(2 * hostsGap)
			if n := looks(t, m) - before; n != 1 {
				t.Errorf("with %d workloads one that comes has %d looked at", many, n)
			}
			before = looks(t, m)
			if _, err := m.service().Detach(t.Context(), api.DetachRequest{Netns: "/run/netns/one", IfName: "eth0"}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * hostsGap)
			if n := looks(t, m) - before; n != 0 {
				t.Errorf("with %d workloads one that goes has %d looked at", many, n)
			}
			time.Sleep(2 * ownGap)
			if n := looks(t, m) - before; n < uint64(many) {
				t.Errorf("of %d workloads %d are looked at in a second", many, n)
			}
		}
	})
}
