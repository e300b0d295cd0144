// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weftnet/weft/mesh/memnet"
)

const testPort = 6783

// bag is a grow-only set of strings, the simplest CRDT. It checks that Merge is
// never called twice at a time.
type bag struct {
	mu      sync.Mutex
	items   map[string]bool
	merging bool
	slow    time.Duration // a Merge's fsync
}

func (b *bag) Encode() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	out, _ := json.Marshal(slices.Sorted(maps.Keys(b.items)))
	return out
}

func (b *bag) Merge(in []byte) ([]byte, error) {
	var items []string
	if err := json.Unmarshal(in, &items); err != nil {
		return nil, err
	}
	b.mu.Lock()
	if b.merging {
		panic("two merges at a time")
	}
	b.merging = true
	b.mu.Unlock()
	if b.slow > 0 {
		time.Sleep(b.slow)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.merging = false
	var news []string
	for _, i := range items {
		if !b.items[i] {
			b.items[i] = true
			news = append(news, i)
		}
	}
	if news == nil {
		return nil, nil
	}
	return json.Marshal(news)
}

func (b *bag) has(item string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.items[item]
}

// cluster is a mesh in memory.
type cluster struct {
	t     *testing.T
	net   *memnet.Net
	keys  Keys
	uni   UniverseInfo
	tune  Tuning
	log   *observer.ObservedLogs
	core  *zap.Logger
	nodes []*testNode
}

type received struct {
	from    NodeID
	channel string
	payload string
}

type testNode struct {
	*Mesh
	c      *cluster
	cfg    Config
	host   *memnet.Host
	router *memnet.Router
	bag    *bag
	cancel context.CancelFunc
	done   chan error

	mu       sync.Mutex
	messages []received
	changes  int
}

func testKeys(b byte) Keys {
	var k Keys
	for i := range k.Hello {
		k.Hello[i] = b ^ 0x55
	}
	return k
}

func testUniverse(b byte) UniverseInfo {
	return UniverseInfo{ID: [16]byte{b, 1, 2, 3}, Ranges: "10.32.0.0/12", Seed: []byte{b}}
}

func newCluster(t *testing.T, seed uint64) *cluster {
	core, logs := observer.New(zap.DebugLevel)
	c := &cluster{t: t, net: memnet.New(seed), keys: testKeys(7), uni: testUniverse(1), log: logs, core: zap.New(core)}
	t.Cleanup(c.stopAll)
	return c
}

// testIdentity returns one of 100 identities; their ids ascend with i.
func testIdentity(i int) Identity { return testIdentities()[i] }

var testIdentities = sync.OnceValue(func() []Identity {
	var all []Identity
	for j := range 100 {
		one, err := NewIdentity(bytes.Repeat([]byte{byte(j)}, 32))
		if err != nil {
			panic(err)
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Identity) int { return cmp.Compare(a.id, b.id) })
	return all
})

func hostAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 0, byte(i)}) }

// node adds a host and a node on it; it is not started yet. Nodes count from 1.
func (c *cluster) node(targets ...string) *testNode {
	i := len(c.nodes) + 1
	host := c.net.Host(hostAddr(i))
	name := fmt.Sprintf("n%d", i)
	c.net.Name(name, hostAddr(i))
	n := &testNode{c: c, host: host, bag: &bag{items: map[string]bool{}}}
	n.cfg = Config{
		Identity: testIdentity(i), Name: name, Keys: c.keys, Universe: c.uni, Port: testPort, Advertise: hostAddr(i),
		Targets: targets, Packets: packets{n}, Network: host, Log: c.core.Named(name), Tuning: c.tune,
		OnChange: func() {
			n.mu.Lock()
			n.changes++
			n.mu.Unlock()
		},
		OnMessage: func(from NodeID, channel string, payload []byte) {
			n.mu.Lock()
			n.messages = append(n.messages, received{from, channel, string(payload)})
			n.mu.Unlock()
		},
	}
	c.nodes = append(c.nodes, n)
	return n
}

// start runs the node, afresh if it ran before.
func (n *testNode) start() *testNode {
	n.c.t.Helper()
	m, err := New(n.cfg)
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.Mesh = m
	m.Register("bag", n.bag)
	n.router = n.host.Router(memnet.Member{Node: uint64(n.cfg.Identity.ID()), Port: testPort, Secret: n.cfg.Keys.Hello},
		func(b []byte, from memnet.Addr, at time.Time) {
			m.Deliver(b, Addr{Node: NodeID(from.Node), Addr: from.Addr}, at)
		})
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan error, 1)
	go func() { n.done <- m.Run(ctx) }()
	return n
}

// kill ends the node without a word; what it knew of the others is kept.
func (n *testNode) kill() {
	n.c.t.Helper()
	n.unplug()
	n.cancel()
	n.finish()
}

func (n *testNode) unplug() {
	n.c.t.Helper()
	if err := n.router.Close(); err != nil {
		n.c.t.Error(err)
	}
}

func (n *testNode) finish() {
	n.c.t.Helper()
	if n.Mesh == nil || n.done == nil {
		return
	}
	if err := <-n.done; err != nil {
		n.c.t.Errorf("%s: %v", n.cfg.Name, err)
	}
	n.unplug()
	n.cfg.Known = nil
	for _, k := range n.Nodes() {
		n.cfg.Known = append(n.cfg.Known, k.Signed)
	}
	n.done = nil
}

// stop ends the node politely.
func (n *testNode) stop(left bool) {
	n.c.t.Helper()
	begin := time.Now()
	if err := n.Stop(context.Background(), left); err != nil {
		n.c.t.Errorf("%s: %v", n.cfg.Name, err)
	}
	if d := time.Since(begin); d > stopTime+time.Second {
		n.c.t.Errorf("%s took %v to stop", n.cfg.Name, d)
	}
	n.finish()
}

func (c *cluster) stopAll() {
	for _, n := range c.nodes {
		if n.done != nil {
			n.kill()
		}
	}
	time.Sleep(30 * time.Second) // memberlist's last goroutines
}

func (n *testNode) add(items ...string) {
	n.bag.mu.Lock()
	for _, i := range items {
		n.bag.items[i] = true
	}
	n.bag.mu.Unlock()
	delta, _ := json.Marshal(items)
	n.Broadcast("bag", delta)
}

func (n *testNode) inbox() []received {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.messages)
}

func (n *testNode) status(of *testNode) Status {
	for _, k := range n.Nodes() {
		if k.ID == of.cfg.Identity.ID() {
			return k.Status
		}
	}
	return 255
}

// eventually waits for ok, looking every 50 ms, and returns how long it took.
func (c *cluster) eventually(limit time.Duration, what string, ok func() bool) time.Duration {
	c.t.Helper()
	begin := time.Now()
	for {
		synctest.Wait()
		if ok() {
			return time.Since(begin)
		}
		if time.Since(begin) >= limit {
			c.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// whole tells whether all of ns see all of ns alive.
func whole(ns ...*testNode) func() bool {
	return func() bool {
		for _, n := range ns {
			for _, o := range ns {
				if want := Alive; n != o && n.status(o) != want {
					return false
				}
			}
		}
		return true
	}
}

// agreed tells whether all of ns have the same states.
func agreed(ns ...*testNode) func() bool {
	return func() bool {
		for _, n := range ns[1:] {
			if !bytes.Equal(ns[0].bag.Encode(), n.bag.Encode()) || !slices.EqualFunc(ns[0].Nodes(), n.Nodes(), func(a, b Node) bool {
				return a.ID == b.ID && a.Seq == b.Seq && a.Boot == b.Boot && a.State == b.State
			}) {
				return false
			}
		}
		return true
	}
}

func (c *cluster) logged(text string) int { return c.log.FilterMessageSnippet(text).Len() }

// packets carries a node's packets by its router.
type packets struct{ n *testNode }

func (p packets) SendControl(b []byte, to Addr) error {
	return p.n.router.SendControl(b, memnet.Addr{Node: uint64(to.Node), Addr: to.Addr})
}

func (p packets) Examine(NodeID) {}
