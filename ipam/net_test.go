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

func TestJoinersGetAddressesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "10.32.0.0/12,fd00::/64", Seed{Owners: []ring.Owner{1}})
		n1 := c.join(1)
		if l := n1.allocate(t.Context(), "host", 1)[0]; l.V4.String() != "10.32.0.1" || l.V6.String() != "fd00::1" {
			t.Errorf("the first lease is %+v", l)
		}
		for id := ring.Owner(2); id <= 8; id++ {
			m := c.join(id)
			c.within(100*time.Millisecond, func(ctx context.Context) { m.allocate(ctx, "w", 1) })
			time.Sleep(50 * time.Millisecond)
			if u := m.Usage(); u.Free < 10_000 || u.Pending != 0 {
				t.Errorf("n%d has %+v", id, u)
			}
			for _, h := range m.Owned() {
				if len(h.Prefixes) > 16 {
					t.Errorf("n%d has %d prefixes", h.Owner, len(h.Prefixes))
				}
			}
		}
		c.unique()
	})
}

// A node asks for addresses when it joins, before it needs any; and once it has them no message is sent any more.
func TestReserveAndQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/12", 3)
		for _, m := range nodes {
			if u := m.Usage(); u.Free < 1<<17 || u.Outgoing != 0 || !u.Majority {
				t.Errorf("n%d has %+v", m.id, u)
			}
		}
		before := c.messages()
		time.Sleep(time.Hour)
		if after := c.messages(); after != before {
			t.Errorf("%d messages in an idle hour", after-before)
		}
	})
}

func TestPartitionedNodesGoOnAllocating(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/12", 3)
		for i, m := range nodes {
			rest := slices.Delete(slices.Clone(nodes), i, i+1)
			c.partition([]*member{m}, rest)
			m.allocate(t.Context(), fmt.Sprintf("alone-%d", i), 3000)
			rest[0].allocate(t.Context(), fmt.Sprintf("others-%d", i), 100)
			c.heal()
			time.Sleep(2 * time.Second)
		}
		c.unique()
		for _, m := range nodes[1:] {
			if string(m.Encode()) != string(nodes[0].Encode()) {
				t.Errorf("the rings of n1 and n%d differ", m.id)
			}
		}
	})
}

// Three founders, any of which may be missing: two of them are a majority.
func TestSeededPartitioned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed, err := SeedNames([]string{"a", "b", "c"})
		if err != nil {
			t.Fatal(err)
		}
		c := newCluster(t, "10.32.0.0/24", seed)
		for i, name := range []string{"a", "b", "c"} {
			c.place(ring.Owner(i+1), i)
			m := c.join(ring.Owner(i + 1))
			if err := m.Adopt(NameOwner(name)); err != nil {
				t.Fatal(err)
			}
			if err := m.Adopt(NameOwner(name)); err != nil {
				t.Errorf("adopting again: %v", err)
			}
			m.allocate(t.Context(), "w", 70)
		}
		c.heal()
		time.Sleep(time.Second)
		c.unique()
		// With one of them down the others still share what they have.
		c.crash(c.nodes[3])
		c.within(5*time.Second, func(ctx context.Context) { c.nodes[1].allocate(ctx, "more", 15) })
		c.unique()

		// Another node of the same name learns that it is not alone before it has done harm.
		late := c.join(9)
		err = late.Adopt(NameOwner("b"))
		if want := "the seeded share of this node's name was taken over by node n2 (0000000000000002); give every node a name of its own, or join with --peer instead of --seed"; err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		if err := late.Adopt(NameOwner("x")); err == nil {
			t.Error("a name that was not seeded was adopted")
		}
	})
}

// Two nodes of one seed name that have never heard of each other: the damage is seen and settled alike everywhere.
func TestSeedNameUsedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed, err := SeedNames([]string{"a", "b"})
		if err != nil {
			t.Fatal(err)
		}
		c := newCluster(t, "10.32.0.0/24", seed)
		c.place(2, 1)
		n1, n2 := c.join(1), c.join(2)
		for _, m := range []*member{n1, n2} {
			if err := m.Adopt(NameOwner("a")); err != nil {
				t.Fatal(err)
			}
			m.allocate(t.Context(), "w", 1)
		}
		c.heal()
		time.Sleep(time.Second)
		if string(n1.Encode()) != string(n2.Encode()) {
			t.Error("the rings differ")
		}
		// Who meets it first reports it; that is n1, which loses: 128 slots, and they are in conflict.
		if u := n1.Usage(); u.Conflicts != 129 || u.Effective != 0 || u.Free != 0 || u.Allocated != 1 {
			t.Errorf("n1: %+v", u)
		}
		if want := "128 addresses from 10.32.0.0 were this node's and were given to n2 without it"; n1.Usage().LastConflict != want {
			t.Errorf("n1: %q, want %s", n1.Usage().LastConflict, want)
		}
		if err := n1.Release("w-0"); err != nil {
			t.Error(err)
		}
	})
}

func TestAddressesOfOthersByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/12", 3)
		n1, n2 := nodes[0], nodes[1]
		theirs := n2.allocate(t.Context(), "w", 1)[0]
		free, _ := c.universe.Addrs(theirs.Slot + 500)
		var l Lease
		c.within(200*time.Millisecond, func(ctx context.Context) {
			var err error
			if l, err = n1.AllocateExact(ctx, "mine", free); err != nil || l.V4 != free {
				t.Fatalf("%+v, %v", l, err)
			}
			if _, err = n1.AllocateExact(ctx, "mine", free); err != nil {
				t.Errorf("asking again: %v", err)
			}
		})
		want := fmt.Sprintf("address %v belongs to node n2 and is in use or reserved there; attach it on n2 or choose another", theirs.V4)
		if _, err := n1.AllocateExact(t.Context(), "other", theirs.V4); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}

		c.partition(nodes[:1], nodes[1:])
		next, _ := c.universe.Addrs(theirs.Slot + 501)
		want = fmt.Sprintf("address %v belongs to node n2, which does not answer; try again when it does or choose another", next)
		if _, err := n1.AllocateExact(t.Context(), "third", next); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		c.heal()
		c.silence(n2)
		if _, err := n1.AllocateExact(t.Context(), "third", next); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		c.unique()
	})
}

// TestNotExhaustedWhileUnderWay has the last address on its way between two nodes while a third one asks both: neither has it.
func TestNotExhaustedWhileUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/28", 3)
		n1, n2, n3 := nodes[0], nodes[1], nodes[2]
		c.within(time.Minute, func(ctx context.Context) {
			for i, m := range nodes {
				m.allocate(ctx, "all", []int{6, 4, 4}[i])
			}
		})
		if err := n1.Release("all-0"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(DefaultQuarantine + time.Second)
		c.lose(func(from, to ring.Owner, k kind) bool { return k == kindGrant && from == 1 && to == 2 })
		gone := make(chan struct{})
		go func() { // the grant is for it, but it is gone when that arrives
			defer close(gone)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if l, err := n2.Allocate(ctx, "impatient"); err == nil {
				t.Errorf("got %v by a grant that was lost", l)
			}
		}()
		time.AfterFunc(time.Second, func() { c.lose(nil) })
		time.Sleep(200 * time.Millisecond)
		c.within(silence, func(ctx context.Context) { n3.allocate(ctx, "patient", 1) })
		<-gone
		c.unique()
		c.within(silence+time.Second, func(ctx context.Context) {
			_, err := n3.Allocate(ctx, "one too many")
			if want := "no address left in 10.32.0.0/28: 14 of 14 in use (n1 5, n3 5, n2 4); detach workloads or start a mesh with a larger range"; err == nil || err.Error() != want {
				t.Errorf("error %v\nwant %s", err, want)
			}
		})
	})
}

func TestExhaustion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/29", 2)
		n1, n2 := nodes[0], nodes[1]
		n1.allocate(t.Context(), "a", 4)
		c.within(5*time.Second, func(ctx context.Context) { n2.allocate(ctx, "b", 2) })
		c.unique()
		for _, m := range nodes {
			c.within(100*time.Millisecond, func(ctx context.Context) {
				_, err := m.Allocate(ctx, "one too many")
				if want := "no address left in 10.32.0.0/29: 6 of 6 in use (n1 4, n2 2); detach workloads or start a mesh with a larger range"; err == nil || err.Error() != want {
					t.Errorf("n%d: error %v\nwant %s", m.id, err, want)
				}
			})
		}
		if err := n1.Release("a-3"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(fresh + latency) // a refusal holds for a moment
		_, err := n2.Allocate(t.Context(), "one too many")
		if want := "no address left in 10.32.0.0/29: 5 of 6 in use (n1 3, n2 2), 1 resting after their release (n1 1); detach workloads or start a mesh with a larger range"; err == nil || err.Error() != want {
			t.Errorf("error %v\nwant %s", err, want)
		}
		time.Sleep(DefaultQuarantine + time.Second)
		c.within(time.Second, func(ctx context.Context) { n2.allocate(ctx, "again", 1) })
		c.unique()

		// n1 has 4 of 8 slots, n2 has 4: neither is a majority.
		c.partition(nodes[:1], nodes[1:])
		c.within(100*time.Millisecond, func(ctx context.Context) {
			_, err := n2.Allocate(ctx, "alone")
			if want := "no address left on this node (3 of 3 in use), and the nodes that can be reached hold no more than half of 10.32.0.0/29, so none can be granted; reconnect the others (n1 3) or detach workloads"; err == nil || err.Error() != want {
				t.Errorf("error %v\nwant %s", err, want)
			}
		})
	})
}

// A donor that does not answer keeps nobody from being served by another one, and nothing waits behind what waits for it.
func TestSlowDonor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/22", 5)
		n1, n5 := nodes[0], nodes[4]
		c.silence(n1) // the one that n5 asks first
		n5.allocate(t.Context(), "w", int(n5.Usage().Free))
		exact, _ := c.universe.Addrs(5)
		waits := make(chan error, 1)
		go func() {
			_, err := n5.AllocateExact(t.Context(), "exact", exact)
			waits <- err
		}()
		synctest.Wait()
		c.within(time.Second, func(ctx context.Context) { n5.allocate(ctx, "more", 10) })
		if err := <-waits; err == nil {
			t.Error("an address of a node that does not answer was had")
		}
		c.unique()
	})
}

// Any one message may be lost once, of any kind.
func TestLostMessages(t *testing.T) {
	for k := kindRequest; k <= kindReceived; k++ {
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, nodes := founded(t, "10.32.0.0/22", 4) // nobody has a majority
				m := nodes[3]
				lost := false
				c.lose(func(_, _ ring.Owner, got kind) bool {
					drop := got == k && !lost
					lost = lost || drop
					return drop
				})
				n := int(m.Usage().Free) + 20
				c.within(4*time.Second, func(ctx context.Context) { m.allocate(ctx, "w", n) })
				time.Sleep(10 * time.Second)
				c.lose(nil)
				if !lost && k != kindDeny && k != kindNews {
					t.Error("no such message was sent")
				}
				for _, m := range nodes {
					if u := m.Usage(); u.Outgoing > 0 || u.Pending > 0 {
						t.Errorf("n%d: %+v", m.id, u)
					}
				}
				c.unique()
			})
		})
	}
}

func TestWaitError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "10.32.0.0/24", Seed{Owners: []ring.Owner{1}})
		n2 := c.join(2)
		waits := make(chan error, 1)
		go c.within(2*time.Second, func(ctx context.Context) {
			_, err := n2.Allocate(ctx, "w")
			waits <- err
		})
		time.Sleep(time.Second)
		if w := n2.Usage().Waiting; len(w) != 1 || w[0].Owner != "w" || w[0].Reason != "this node has no addresses yet and reaches no other node" {
			t.Errorf("waiting: %+v", w)
		}
		if err, want := <-waits, "no address for w in time, this node has no addresses yet and reaches no other node (context deadline exceeded); try again"; err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		if w := n2.Usage().Waiting; len(w) != 0 {
			t.Errorf("still waiting: %+v", w)
		}
		// A call that waits is served as soon as the node joins.
		go func() {
			_, err := n2.Allocate(t.Context(), "w")
			waits <- err
		}()
		time.Sleep(10 * time.Second)
		c.join(1)
		start := time.Now()
		if err := <-waits; err != nil || time.Since(start) > 500*time.Millisecond {
			t.Errorf("served after %v: %v", time.Since(start), err)
		}
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 3)
		n1, n2, n3 := nodes[0], nodes[1], nodes[2]
		kept := n1.allocate(t.Context(), "w", 2)
		if err := n1.Release("w-0"); err != nil {
			t.Fatal(err)
		}
		var report LeaveReport
		c.within(5*time.Second, func(ctx context.Context) {
			var err error
			if report, err = n1.Leave(ctx); err != nil {
				t.Fatal(err)
			}
		})
		given := uint64(0)
		for _, s := range report.Granted {
			given += s.Slots
			if s.Slots < 30 {
				t.Errorf("n%d gets only %d", s.Owner, s.Slots)
			}
		}
		if report.Left != 1 || len(report.Held) != 1 || report.Held[0] != kept[1] || given != 95 || len(report.Granted) != 2 {
			t.Errorf("report %+v", report)
		}
		if _, err := n1.Allocate(t.Context(), "new"); err == nil || err.Error() != ErrLeaving.Error() {
			t.Errorf("error %v", err)
		}
		if l, err := n1.Allocate(t.Context(), "w-1"); err != nil || l != kept[1] {
			t.Errorf("what it has is not found: %v", err)
		}
		if err := n1.Release("w-1"); err != nil {
			t.Fatal(err)
		}
		c.within(5*time.Second, func(ctx context.Context) {
			if report, err := n1.Leave(ctx); err != nil || report.Left != 0 {
				t.Errorf("%+v, %v", report, err)
			}
		})
		c.crash(n1)
		c.gone(n1)
		c.within(10*time.Second, func(ctx context.Context) {
			n2.allocate(ctx, "all", 200)
			n3.allocate(ctx, "rest", 54)
		})
		c.unique()
	})
}

// All leave at the same time but one, and nothing gets lost on the way.
func TestLeaveTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 4)
		var wg sync.WaitGroup
		for _, m := range nodes[:3] {
			wg.Go(func() {
				c.within(time.Minute, func(ctx context.Context) {
					if report, err := m.Leave(ctx); err != nil || report.Left != 0 {
						t.Errorf("n%d: %+v, %v", m.id, report, err)
					}
				})
				c.gone(m)
			})
		}
		wg.Wait()
		if u := nodes[3].Usage(); u.Free != 254 {
			t.Errorf("n4 has %+v", u)
		}
	})
}

func TestLeaveRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 5)
		c.partition(nodes[:1], nodes[1:])
		report, err := nodes[0].Leave(t.Context())
		if want := "no address was given away, because no other node that stays answers; try again when one does"; err == nil || err.Error() != want {
			t.Errorf("%+v, error %v", report, err)
		}
		c.partition(nodes[:1], nodes[1:3], nodes[3:])
		_, err = nodes[4].Leave(t.Context())
		if want := "no address was given away, because the nodes that answer hold no more than half of the range; try again when more of them do"; err == nil || err.Error() != want {
			t.Errorf("error %v", err)
		}
		c.heal()
		c.crash(nodes[4])
		c.silence(nodes[2])
		before := nodes[0].ledger.ring.Owned()[3]
		c.within(2*silence, func(ctx context.Context) {
			_, err = nodes[0].Leave(ctx)
			if want := "leaving is not confirmed by n3 (context deadline exceeded); wait for these nodes or try again"; err == nil || err.Error() != want {
				t.Errorf("error %v", err)
			}
		})
		// A node that died a moment ago, and seems to be there, gets nothing; the others have all.
		if after := nodes[0].ledger.ring.Owned(); after[3] != before || after[1] != 0 {
			t.Errorf("n3 has %d slots, had %d; n1 has %d", after[3], before, after[1])
		}
	})
}
