// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// How Weave Net, whose successor Weft is, lost the addresses of clusters: each of these ways is walked here. The tests bear the
// numbers of its issues; those whose ways lead through the daemon and its data directory are in the package integration.

// Of two nodes whose rings contradicted each other each refused what the other sent, and dropped the connection: the mesh fell
// into cliques. Here a node comes back with an old copy of its disk: its ring is merged, and it catches up with the others.
func TestWeave1962RingsThatContradictEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 3)
		n2 := nodes[1]
		old := n2.store.copy()
		// Most of what n2 has goes to the others, and they use it.
		c.within(10*time.Second, func(ctx context.Context) {
			nodes[0].allocate(ctx, "a", 100)
			nodes[2].allocate(ctx, "c", 100)
		})
		time.Sleep(5 * time.Second) // so that all have heard of all
		c.crash(n2)
		n2.store.restore(old)
		n2 = c.join(2) // a merge that is refused fails the test
		nodes[1] = n2
		time.Sleep(10 * time.Second)
		c.agree(nodes...)
		// And what comes in any order, late and repeatedly, is merged by all alike.
		var heard [][]byte
		for i := range 20 {
			heard = append(heard, nodes[i%3].Encode())
			c.within(time.Second, func(ctx context.Context) { n2.allocate(ctx, fmt.Sprint("b", i), 1) })
		}
		for i := range heard {
			for _, m := range nodes {
				if _, err := m.Merge(heard[len(heard)-1-i]); err != nil {
					t.Errorf("n%d: %v", m.id, err)
				}
			}
		}
		c.agree(nodes...)
		// The copy is told of, where it is, and by nobody else; and it has not given out what it had no more.
		seen := make(map[uint32]bool)
		for _, m := range nodes {
			if u := m.Usage(); (u.Conflicts > 0) != (m == n2) {
				t.Errorf("n%d: %+v", m.id, u)
			}
			for _, l := range m.List() {
				if seen[l.Slot] {
					t.Errorf("%v is allocated twice", l.V4)
				}
				seen[l.Slot] = true
			}
		}
	})
}

// Nodes that an autoscaler took away kept their shares for ever, until there was nothing left for the living. Here each
// generation of nodes is killed without a word, and nobody does anything about it.
func TestWeave2797NodesThatAutoscalingTookAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "10.32.0.0/24", Seed{Owners: []ring.Owner{1}})
		c.reclaimAfter = 10 * time.Minute
		var nodes []*member
		for i := range 3 {
			nodes = append(nodes, c.join(ring.Owner(i+1)))
			time.Sleep(time.Second)
		}
		for i := range 30 {
			m := c.join(ring.Owner(i + 4))
			c.within(10*time.Second, func(ctx context.Context) { m.allocate(ctx, "pods", 20) })
			nodes = append(nodes, m)
			c.crash(nodes[0])
			nodes = nodes[1:]
			time.Sleep(11 * time.Minute)
		}
		c.agree(nodes...)
		c.within(time.Minute, func(ctx context.Context) {
			for i, m := range nodes {
				m.allocate(ctx, fmt.Sprint("all", i), (254-60)/3+i/2*2) // 64, 64, 66
			}
		})
		c.unique()
	})
}

// What a node had been given just before it was deleted was known to it and the donor alone when a third one took over its
// ranges, from a view in which there was no such gift: then the range was nobody's, or had two owners. Here the two alone hear of
// each other, and gossip is lost; the others hear of the gift by the donor's asking for confirmation, or not even so.
func TestWeave3628DonationNobodyElseHeardOf(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		confirmed, donorDies bool
	}{{"confirmed", true, false}, {"confirmed and the donor dies, too", true, true}, {"unheard of", false, false}, {"unheard of and the donor dies, too", false, true}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, nodes := founded(t, "10.32.0.0/24", 6)
				young, donor, rest := nodes[5], nodes[1], append(nodes[2:5:5], nodes[0])
				c.lose(func(from, to ring.Owner, k kind) bool {
					strange := func(o ring.Owner) bool { return o != young.id && o != donor.id }
					return k == 0 || k == kindConfirm && !tt.confirmed || from == young.id && strange(to) || to == young.id && strange(from)
				})
				full := young.allocate(t.Context(), "w", int(young.Usage().Free))
				before := young.Usage().Effective
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				gift, err := young.Allocate(ctx, "gift")
				cancel()
				if (err == nil) != tt.confirmed || (young.Usage().Effective > before) != tt.confirmed {
					t.Fatalf("%+v, %v, %+v", gift, err, young.Usage())
				}
				c.crash(young)
				dead := []ring.Owner{young.id}
				if tt.donorDies {
					c.crash(donor)
					dead = append(dead, donor.id)
				} else {
					rest = append(rest, donor)
				}
				c.lose(nil)
				by := rest[0]
				c.sure(by, 30*time.Second, ForgetRequest{Dead: dead})
				time.Sleep(10 * time.Second)
				c.agree(rest...)
				// Everything has one owner, who can use it.
				sum := uint64(0)
				for _, m := range rest {
					sum += m.Usage().Free
				}
				if sum != 254 {
					t.Errorf("%d of 254 addresses can be had", sum)
				}
				if err == nil {
					full = append(full, gift)
				}
				for _, l := range full {
					c.within(10*time.Second, func(ctx context.Context) {
						if _, err := by.AllocateExact(ctx, "again-"+l.Owner, l.V4); err != nil {
							t.Error(err)
						}
					})
				}
				c.unique()
			})
		})
	}
}

// Deleting a node and joining it anew, over and over, left rings that no two nodes agreed about, as what one of them had
// granted reached some of the others minutes later. Here most gossip is lost, whole states are exchanged every ten seconds, and
// each time another node forgets the old one.
func TestWeave3444NodesDeletedAndJoinedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 4)
		n := 0
		c.lose(func(_, _ ring.Owner, k kind) bool {
			n++
			return k == 0 && n%10 != 0
		})
		stop, stopped := make(chan struct{}), make(chan struct{})
		end := sync.OnceFunc(func() { close(stop); <-stopped })
		defer end()
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Second):
					c.heal()
				}
			}
		}()
		next := ring.Owner(5)
		for i := range 30 {
			m := c.join(next)
			c.within(20*time.Second, func(ctx context.Context) { m.allocate(ctx, "pods", 40) })
			if i%2 == 0 {
				time.Sleep(time.Second)
			}
			c.crash(m)
			c.sure(nodes[i%len(nodes)], time.Minute, ForgetRequest{Dead: []ring.Owner{next}})
			time.Sleep(15 * time.Second) // the heir may know of more than who forgets, and not be done
			next++
		}
		time.Sleep(time.Minute)
		end()
		c.lose(nil)
		c.agree(nodes...)
		c.within(time.Minute, func(ctx context.Context) {
			for i, m := range nodes {
				m.allocate(ctx, "all", []int{64, 64, 63, 63}[i])
			}
		})
		c.unique()
	})
}

// Nodes that were started one by one counted different numbers of others, and those that did not reach the first one founded
// a second network with the same addresses. Here they wait, for as long as it takes.
func TestWeave3891NodesStartedOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "10.32.0.0/12", Seed{Owners: []ring.Owner{1}})
		first := c.join(1)
		first.allocate(t.Context(), "w", 10)
		var others []*member
		for id := ring.Owner(2); id <= 4; id++ {
			c.place(id, 1)
			others = append(others, c.join(id))
			time.Sleep(10 * time.Minute)
		}
		for _, m := range others {
			c.within(time.Minute, func(ctx context.Context) {
				var wait *WaitError
				var full *ExhaustedError
				if l, err := m.Allocate(ctx, "w"); !errors.As(err, &wait) && !errors.As(err, &full) {
					t.Errorf("n%d: %v, %v", m.id, l, err)
				}
			})
		}
		// The fourth one reaches both sides.
		c.place(1, 1)
		c.heal()
		for _, m := range others {
			c.within(5*time.Second, func(ctx context.Context) { m.allocate(ctx, "w", 10) })
		}
		time.Sleep(time.Second)
		c.agree(append(others, first)...)
		c.unique()
	})
}

// copy returns what is on the disk, for restore.
func (s *fakeStore) copy() *fakeStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &fakeStore{
		ring: bytes.Clone(s.ring), grants: bytes.Clone(s.grants), allocs: maps.Clone(s.allocs), resting: maps.Clone(s.resting),
		used: maps.Clone(s.used),
	}
}

// restore puts an old copy back in place.
func (s *fakeStore) restore(old *fakeStore) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ring, s.grants, s.allocs, s.resting, s.used = old.ring, old.grants, old.allocs, old.resting, old.used
}
