// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// cluster is a mesh of allocators with their Run loops, in virtual time: to be used within synctest.Test. The network has a
// latency of 5 ms, loses what drop says, and delivers nothing between nodes that are cut from each other.
type cluster struct {
	t        *testing.T
	universe Universe
	seed     Seed

	reclaimAfter time.Duration // of nodes that join

	mu    sync.Mutex
	nodes map[ring.Owner]*member
	cut   map[ring.Owner]int // the side of a partition on which a node is
	drop  func(from, to ring.Owner, k kind) bool
	slow  func() time.Duration // instead of the latency, of all but broadcasts
	mute  map[ring.Owner]bool  // seems alive and answers nothing
	left  map[ring.Owner]bool
	sent  map[kind]int
}

type member struct {
	*Allocator
	c     *cluster
	id    ring.Owner
	store *fakeStore
	stop  context.CancelFunc
	done  chan struct{}
}

const latency = 5 * time.Millisecond

func newCluster(t *testing.T, universe string, seed Seed) *cluster {
	return &cluster{
		t: t, universe: mustUniverse(t, universe), seed: seed, nodes: make(map[ring.Owner]*member), cut: make(map[ring.Owner]int),
		mute: make(map[ring.Owner]bool), left: make(map[ring.Owner]bool), sent: make(map[kind]int),
	}
}

// founded is a cluster that node 1 has founded, with nodes 1 to n, each joined after the other.
func founded(t *testing.T, universe string, n int) (*cluster, []*member) {
	c := newCluster(t, universe, Seed{Owners: []ring.Owner{1}})
	var out []*member
	for i := range n {
		out = append(out, c.join(ring.Owner(i+1)))
		time.Sleep(time.Second)
	}
	return c, out
}

// join starts a node, with the store that it had before if it is not new, and makes it known to the others.
func (c *cluster) join(id ring.Owner) *member {
	c.t.Helper()
	m := &member{c: c, id: id, store: newFakeStore(c.universe.Size()), done: make(chan struct{})}
	if old := c.nodes[id]; old != nil {
		m.store = old.store
	}
	a, err := New(Config{
		Self: id, Universe: c.universe, Seed: c.seed, Store: m.store, Net: m, Now: time.Now, ReclaimAfter: c.reclaimAfter,
		NameOf: func(o ring.Owner) string {
			if o&seedBit != 0 {
				return ""
			}
			return fmt.Sprintf("n%d", o)
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	m.Allocator = a
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	c.mu.Lock()
	c.nodes[id] = m
	c.mu.Unlock()
	c.exchange(m)
	go func() {
		defer close(m.done)
		if err := a.Run(ctx); err != nil {
			c.t.Error(err)
		}
	}()
	c.t.Cleanup(m.halt)
	return m
}

// halt stops a node and waits for it.
func (m *member) halt() {
	m.stop()
	<-m.done
}

// crash takes a node away; join brings it back.
func (c *cluster) crash(m *member) {
	m.halt()
	c.mu.Lock()
	defer c.mu.Unlock()
	m.Allocator = nil
	c.wake()
}

// exchange is the push and pull of whole states with those that can be reached. A node may crash meanwhile.
func (c *cluster) exchange(m *member) {
	c.mu.Lock()
	self := m.Allocator
	var others []*Allocator
	for id, o := range c.nodes {
		if id != m.id && o.Allocator != nil && c.cut[id] == c.cut[m.id] {
			others = append(others, o.Allocator)
		}
	}
	c.mu.Unlock()
	if self == nil {
		return
	}
	for _, o := range others {
		for _, way := range [][2]*Allocator{{o, self}, {self, o}} {
			if _, err := way[1].Merge(way[0].Encode()); err != nil {
				c.t.Error(err)
			}
		}
	}
}

// place puts a node, which may be about to join, on a side of a partition.
func (c *cluster) place(id ring.Owner, side int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[id] = side
}

// partition puts nodes on sides; heal undoes it.
func (c *cluster) partition(sides ...[]*member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, side := range sides {
		for _, m := range side {
			c.cut[m.id] = i
		}
	}
}

func (c *cluster) heal() {
	c.mu.Lock()
	clear(c.cut)
	all := make([]*member, 0, len(c.nodes))
	for _, m := range c.nodes {
		if m.Allocator != nil {
			all = append(all, m)
		}
	}
	c.mu.Unlock()
	for _, m := range all {
		c.exchange(m)
	}
}

func (m *member) Peers() []Peer {
	c := m.c
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Peer
	for id, o := range c.nodes {
		if id != m.id {
			out = append(out, Peer{Owner: id, Alive: o.Allocator != nil && c.cut[id] == c.cut[m.id] && !c.left[id], Left: c.left[id]})
		}
	}
	return out
}

func (m *member) Send(to ring.Owner, msg []byte) error {
	k := kind(msg[1])
	m.c.deliver(m.id, to, k, func(a *Allocator) { a.HandleMessage(m.id, msg) })
	return nil
}

func (m *member) Broadcast(delta []byte) {
	m.c.mu.Lock()
	ids := make([]ring.Owner, 0, len(m.c.nodes))
	for id := range m.c.nodes {
		ids = append(ids, id)
	}
	m.c.mu.Unlock()
	for _, id := range ids {
		if id != m.id {
			m.c.deliver(m.id, id, 0, func(a *Allocator) {
				if _, err := a.Merge(delta); err != nil {
					m.c.t.Error(err)
				}
			})
		}
	}
}

func (c *cluster) deliver(from, to ring.Owner, k kind, f func(*Allocator)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent[k]++
	o := c.nodes[to]
	if o == nil || o.Allocator == nil || c.cut[from] != c.cut[to] || c.mute[to] || c.mute[from] || c.drop != nil && c.drop(from, to, k) {
		return
	}
	after := latency
	if c.slow != nil && k != 0 {
		after = c.slow()
	}
	time.AfterFunc(after, func() {
		c.mu.Lock()
		a := c.nodes[to].Allocator
		c.mu.Unlock()
		if a != nil {
			f(a)
		}
	})
}

// lose sets which messages are lost.
func (c *cluster) lose(drop func(from, to ring.Owner, k kind) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop = drop
}

// silence keeps a node from answering, though it seems to be there.
func (c *cluster) silence(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute[m.id] = true
}

// gone has everybody know that a node has left for good.
func (c *cluster) gone(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left[m.id] = true
	c.wake()
}

// wake tells all nodes that their peers changed. c.mu must be held.
func (c *cluster) wake() {
	for _, m := range c.nodes {
		if m.Allocator != nil {
			m.Wake()
		}
	}
}

// within fails the test if f takes longer than d of virtual time.
func (c *cluster) within(d time.Duration, f func(ctx context.Context)) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), d)
	defer cancel()
	f(ctx)
}

// allocate makes n allocations and fails the test if one fails.
func (m *member) allocate(ctx context.Context, prefix string, n int) []Lease {
	m.c.t.Helper()
	var out []Lease
	for i := range n {
		l, err := m.Allocate(ctx, fmt.Sprintf("%s-%d", prefix, i))
		if err != nil {
			m.c.t.Fatalf("node %d, allocation %d: %v", m.id, i, err)
		}
		out = append(out, l)
	}
	return out
}

// unique fails the test if an address was handed out twice.
func (c *cluster) unique() {
	c.t.Helper()
	seen := make(map[uint32]string)
	for id, m := range c.nodes {
		if m.Allocator == nil {
			continue
		}
		for _, l := range m.List() {
			if seen[l.Slot] != "" {
				c.t.Errorf("slot %d is held by %s and by %s on n%d", l.Slot, seen[l.Slot], l.Owner, id)
			}
			seen[l.Slot] = fmt.Sprintf("%s on n%d", l.Owner, id)
		}
		if u := m.Usage(); u.Conflicts > 0 {
			c.t.Errorf("n%d: %s", id, u.LastConflict)
		}
		if m.store.broken != nil {
			c.t.Errorf("n%d: %v", id, m.store.broken)
		}
	}
}

func (c *cluster) messages() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.sent {
		n += k
	}
	return n
}
