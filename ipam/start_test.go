// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

func TestPace(t *testing.T) {
	var p pace
	for n, want := range []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second} {
		if got := p.wait(n); got != want {
			t.Errorf("without an answer so far it waits %v the time %d, want %v", got, n, want)
		}
	}
	start := time.Now()
	p.note(time.Time{}, start)
	if got := p.wait(0); got != patience {
		t.Errorf("after an answer to an earlier run it waits %v, want %v", got, patience)
	}
	p.note(start, start.Add(400*time.Millisecond))
	if got := p.wait(0); got != 800*time.Millisecond {
		t.Errorf("where an answer took 400ms it waits %v, want 800ms", got)
	}
	for range 50 {
		p.note(start, start.Add(time.Hour))
	}
	if got := p.wait(1); got > 2*time.Second {
		t.Errorf("after those who were away for an hour it waits %v, more than 2s", got)
	}
	if got := p.wait(6); got != abstain {
		t.Errorf("it waits %v, more than %v", got, abstain)
	}
	for range 50 {
		p.note(start, start.Add(10*time.Millisecond))
	}
	if got := p.wait(0); got != patience {
		t.Errorf("where answers take 10ms it waits %v, want %v", got, patience)
	}
}

// TestManyStartAtOnce has thirty nodes on a machine that comes to the messages of all of them one after the other. All are served in time, most with
// about the same, and nobody with much more.
func TestManyStartAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes = 30
		c := newCluster(t, "10.32.0.0/12", Seed{Owners: []ring.Owner{1}})
		first := c.join(1)
		c.within(time.Minute, func(ctx context.Context) { first.allocate(ctx, "self", 1) })
		free := time.Now()
		c.slow = func() time.Duration {
			free = later(free, time.Now()).Add(2 * time.Millisecond)
			return time.Until(free)
		}
		var wait sync.WaitGroup
		c.within(10*time.Second, func(ctx context.Context) {
			for i := range nodes - 1 {
				m := c.join(ring.Owner(i + 2))
				wait.Go(func() { m.allocate(ctx, fmt.Sprint("pod-", i), 2) })
			}
			wait.Wait()
		})
		time.Sleep(time.Minute)
		c.unique()
		var shares []uint64
		for _, m := range c.nodes {
			shares = append(shares, m.Usage().Owned)
		}
		slices.Sort(shares)
		if size := c.universe.Size(); shares[nodes/3] < size/64 || shares[nodes-1] > size/8 {
			t.Errorf("they own %d", shares)
		}
	})
}
