// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestBudget(t *testing.T) {
	var b budget
	now := time.Unix(1e9, 0)
	sent := 0
	for b.take(1000, now) {
		sent += 1000
	}
	if sent > budgetBurst || sent < budgetBurst-1000 {
		t.Errorf("%d bytes at once", sent)
	}
	begin := now
	for sent = 0; now.Sub(begin) < time.Minute; now = now.Add(time.Millisecond) {
		if b.take(1000, now) {
			sent += 1000
		}
	}
	if want := 60 * budgetRate; sent < want*95/100 || sent > want*105/100 {
		t.Errorf("%d bytes in a minute, %d are allowed", sent, want)
	}
	if !b.take(budgetBurst, now.Add(time.Hour)) || b.take(1, now.Add(time.Hour)) || b.take(1, now) {
		t.Error("it fills up to the burst, and no further")
	}
}

// A state that changes all the time keeps its queue and what it sends within bounds; another one is not held up, and all
// end the same.
func TestFloodOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 63)
		for range 4 {
			c.node("n1").start()
		}
		c.eventually(5*time.Second, "whole", whole(c.nodes...))
		a := c.nodes[0]
		item := strings.Repeat("x", 700)
		for i := range 3000 {
			a.add(fmt.Sprint(item, i))
			if q := a.gossip.NumQueued(); q > maxQueued {
				t.Fatalf("%d changes wait to be gossiped", q)
			}
		}
		if a.Dropped() < 2000 {
			t.Errorf("only %d changes were dropped", a.Dropped())
		}
		if err := a.SetRecord(func(r *Record) { r.Build = "told" }); err != nil {
			t.Fatal(err)
		}
		c.eventually(3*time.Second, "the record is known", func() bool {
			for _, n := range c.nodes {
				if k, ok := n.Node(a.id); !ok || k.Build != "told" {
					return false
				}
			}
			return true
		})
		c.eventually(15*time.Second, "all agree", agreed(c.nodes...))
	})
}
