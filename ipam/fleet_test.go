// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// Every node is replaced five times over by a new one. Of those that go at a time half leave, in the steps in which internal/node has
// them do it, and half are killed; all are forgotten then. What a node has stays in few pieces, and nothing gets lost.
func TestFleetOfLeavers(t *testing.T) {
	for _, tt := range []struct{ nodes, step int }{{20, 4}, {6, 2}, {3, 1}} {
		t.Run(fmt.Sprint(tt.nodes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const rounds = 5
				f := newFleet(t, tt.nodes)
				for range rounds * tt.nodes / tt.step {
					f.replace(tt.step)
				}
				time.Sleep(time.Minute)
				f.c.agree(f.nodes...)
				sum := uint64(0)
				for _, m := range f.nodes {
					u := m.Usage()
					sum += u.Free + u.Allocated + u.Resting
				}
				if want := f.nodes[0].Usage().Size; sum != want {
					t.Errorf("%d of %d addresses can be had", sum, want)
				}
				for i, m := range f.nodes {
					f.c.within(time.Minute, func(ctx context.Context) { m.allocate(ctx, fmt.Sprint("more", i), 100) })
				}
				f.c.unique()
				t.Logf("%d nodes were replaced; at most %d prefixes a node; the ring takes %d bytes", rounds*tt.nodes, f.worst, len(f.nodes[0].Encode()))
			})
		})
	}
}

// fleet is a cluster whose nodes come and go.
type fleet struct {
	c     *cluster
	nodes []*member // the oldest first
	next  ring.Owner
	worst int // the most prefixes that a node had
}

func newFleet(t *testing.T, n int) *fleet {
	c, nodes := founded(t, "10.32.0.0/16", n)
	for _, m := range nodes {
		m.allocate(t.Context(), "host", 1)
	}
	return &fleet{c: c, nodes: nodes, next: ring.Owner(n)}
}

// replace replaces the oldest nodes by new ones.
func (f *fleet) replace(n int) {
	f.c.t.Helper()
	for range n {
		f.next++
		m := f.c.join(f.next)
		f.c.within(5*time.Second, func(ctx context.Context) { m.allocate(ctx, "host", 1) })
		f.nodes = append(f.nodes, m)
	}
	old := f.nodes[:n]
	f.nodes = f.nodes[n:]
	for _, m := range old {
		if m.id%2 == 0 {
			f.c.crash(m)
		}
	}
	for _, m := range old {
		if m.id%2 == 1 {
			f.leave(m)
		}
	}
	for i, m := range old {
		f.c.sure(f.nodes[i], 20*time.Second, ForgetRequest{Dead: []ring.Owner{m.id}})
		f.c.mu.Lock()
		delete(f.c.nodes, m.id)
		f.c.mu.Unlock()
	}
	for _, h := range f.nodes[0].Owned() {
		f.worst = max(f.worst, len(h.Prefixes))
		if len(h.Prefixes) > 16 {
			f.c.t.Errorf("n%d has %d prefixes", h.Owner, len(h.Prefixes))
		}
	}
}

// leave has a node give away all but the host's own address, and then that.
func (f *fleet) leave(m *member) {
	f.c.t.Helper()
	for i := range 2 {
		f.c.within(10*time.Second, func(ctx context.Context) {
			if r, err := m.Leave(ctx); err != nil || r.Left > uint64(1-i) {
				f.c.t.Fatalf("n%d: %+v, %v", m.id, r, err)
			}
		})
		if err := m.Release("host-0"); err != nil {
			f.c.t.Fatal(err)
		}
	}
	f.c.crash(m)
	f.c.gone(m)
}

// Who has half of the range or more cannot be retired by a vote; that is said, and what can be done.
func TestForgetWhoHasHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 2)
		c.crash(nodes[0])
		c.within(5*time.Second, func(ctx context.Context) {
			err := nodes[1].Forget(ctx, ForgetRequest{Dead: []ring.Owner{1}})
			have := nodes[1].Usage().Owned * 100 / 256
			want := fmt.Sprintf("takeover of n1: %d%% of the range has voted, 51%% needed; all that the others own is no majority: bring n1 back, or forget it with --force", have)
			var e *ForgetError
			if !errors.As(err, &e) || len(e.Progress) != 1 || e.Progress[0] != want {
				t.Errorf("error %v\nwant %s", err, want)
			}
		})
		c.sure(nodes[1], 20*time.Second, ForgetRequest{Dead: []ring.Owner{1}, Force: true})
		if u := nodes[1].Usage(); u.Free != 254 {
			t.Errorf("%+v", u)
		}
	})
}
