// SPDX-License-Identifier: Apache-2.0

//go:build !race

package node

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/fnv"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/mesh/memnet"
)

var scaleNodes = flag.Int("scale.nodes", 100, "how many nodes TestScale has")

// scaleRing is the ring as a replicated state, without the allocator around it.
type scaleRing struct {
	mu sync.Mutex
	r  *ring.Ring
}

func (s *scaleRing) Encode() []byte {
	s.mu.Lock()
	r := s.r.Clone()
	s.mu.Unlock()
	return r.Encode()
}

func (s *scaleRing) Merge(b []byte) ([]byte, error) {
	o, err := ring.Decode(b)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	news, err := s.r.Merge(o)
	if err != nil || !news.Any() {
		return nil, err
	}
	return s.r.Only(news.Slots).Encode(), nil
}

// write changes the ring and returns the change.
func (s *scaleRing) write(change func(*ring.Ring) error, of ring.Interval) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := change(s.r); err != nil {
		return nil, err
	}
	return s.r.Only(ring.Set{of}).Encode(), nil
}

// at returns who owns a slot.
func (s *scaleRing) at(slot uint32) ring.Register {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.At(slot)
}

// scaleNode is a mesh on a host in memory.
type scaleNode struct {
	*mesh.Mesh
	id     mesh.NodeID
	host   *memnet.Host
	router *memnet.Router
	ring   scaleRing
	cancel context.CancelFunc
	done   chan error

	bytes, packets uint64 // both directions; guarded by the network
}

// scaleMesh is many of them.
type scaleMesh struct {
	t      *testing.T
	net    *memnet.Net
	nodes  []*scaleNode
	byAddr map[netip.Addr]*scaleNode
	shared *mesh.Shared // nil: each node has copies of its own, and its memory can be measured
	signed sync.Map     // by signed record: whether the signature is right
}

const (
	startAll   = 5 * time.Second // in which all nodes are started
	scaleSize  = 1 << 20
	scaleBlock = 128
	// What the network below and sealing add to a packet of the mesh, and TCP to what goes over a stream.
	datagramHeads = 64 + 28
	segmentHeads  = 20 + 20 + 12
	segmentSize   = 1400
)

func newScaleMesh(t *testing.T) *scaleMesh {
	s := &scaleMesh{t: t, net: memnet.New(1), byAddr: make(map[netip.Addr]*scaleNode)}
	s.net.Delay(500*time.Microsecond, 5*time.Millisecond)
	t.Cleanup(func() {
		for _, n := range s.nodes {
			n.cancel()
		}
		for _, n := range s.nodes {
			if err := <-n.done; err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Minute) // memberlist does not wait for its last probes
	})
	return s
}

// scalePackets carries packets over the network in memory.
type scalePackets struct{ n *scaleNode }

func (p scalePackets) SendControl(b []byte, to mesh.Addr) error {
	return p.n.router.SendControl(b, memnet.Addr{Node: uint64(to.Node), Addr: to.Addr})
}
func (p scalePackets) Examine(mesh.NodeID) {}

func newIdentity(t *testing.T, i int) mesh.Identity {
	t.Helper()
	identity, err := mesh.NewIdentity(binary.BigEndian.AppendUint64(make([]byte, 32), uint64(i)))
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// start runs one more node.
func (s *scaleMesh) start() *scaleNode {
	s.t.Helper()
	i := len(s.nodes) + 1
	addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	identity := newIdentity(s.t, i)
	n := &scaleNode{id: identity.ID(), host: s.net.Host(addr), done: make(chan error, 1)}
	s.net.Name(fmt.Sprint("n", i), addr)
	var targets []string
	if i > 1 { // the first three are what the others are told
		targets = []string{fmt.Sprint("n", 1+i%min(i-1, 3))}
	}
	var err error
	n.ring.r, err = ring.Seed(scaleSize, []ring.Owner{ring.Owner(newIdentity(s.t, 1).ID())})
	if err != nil {
		s.t.Fatal(err)
	}
	n.Mesh, err = mesh.New(mesh.Config{
		Identity: identity, Name: fmt.Sprint("node-", i), Keys: mesh.Keys{Hello: [32]byte{2}},
		Universe: mesh.UniverseInfo{ID: [16]byte{1}, Ranges: testRange}, Port: DefaultPort, Advertise: addr, Targets: targets,
		Packets: scalePackets{n}, Network: n.host, Authentic: s.authentic,
		Tuning: mesh.Tuning{Shared: s.shared},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	n.Register("ring", &n.ring)
	n.router = n.host.Router(memnet.Member{Node: uint64(n.id), Port: DefaultPort}, func(b []byte, from memnet.Addr, at time.Time) {
		n.Deliver(b, mesh.Addr{Node: mesh.NodeID(from.Node), Addr: from.Addr}, at)
	})
	if err := n.SetRecord(func(r *mesh.Record) {
		binary.BigEndian.PutUint64(r.PublicKey[:], uint64(i))
		r.Suites, r.MTU, r.Build, r.Features = []uint8{1, 0}, 1400, "v0.0.0-scale", []string{featureBench}
	}); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	s.nodes = append(s.nodes, n)
	s.byAddr[addr] = n
	go func() { n.done <- n.Run(ctx) }()
	return n
}

// grant gives the node its block, as the node that has all does.
func (s *scaleMesh) grant(from *scaleNode, to *scaleNode, i int) {
	s.t.Helper()
	block := ring.Interval{First: uint32(i) * scaleBlock, Last: uint32(i+1)*scaleBlock - 1}
	d, err := from.ring.write(func(r *ring.Ring) error { return r.Grant(ring.Owner(from.id), ring.Owner(to.id), block) }, block)
	if err != nil {
		s.t.Fatal(err)
	}
	from.Broadcast("ring", d)
	if _, err := to.ring.Merge(d); err != nil { // by a message of the allocator's
		s.t.Fatal(err)
	}
	if d, err = to.ring.write(func(r *ring.Ring) error { return r.Claim(ring.Owner(to.id), block) }, block); err != nil {
		s.t.Fatal(err)
	}
	to.Broadcast("ring", d)
}

// authentic has each signature checked once, not by each node.
func (s *scaleMesh) authentic(raw []byte, check func() bool) bool {
	if ok, known := s.signed.Load(string(raw)); known {
		return ok.(bool)
	}
	ok := check()
	s.signed.Store(string(raw), ok)
	return ok
}

// until waits in virtual time until share of the nodes are ok, and returns how long that took.
func (s *scaleMesh) until(limit time.Duration, what string, share float64, nodes []*scaleNode, ok func(*scaleNode) bool) time.Duration {
	s.t.Helper()
	begin := time.Now()
	left := append([]*scaleNode(nil), nodes...)
	for ; ; time.Sleep(100 * time.Millisecond) {
		rest := left[:0]
		for _, n := range left {
			if !ok(n) {
				rest = append(rest, n)
			}
		}
		left = rest
		if d := time.Since(begin); d%(5*time.Second) == 0 && d > 0 {
			s.t.Logf("  %v: %s: %d nodes are not so far", d, what, len(left))
		}
		if float64(len(left)) <= (1-share)*float64(len(nodes)) {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			s.t.Errorf("after %v not at %d of %d nodes: %s", limit, len(left), len(nodes), what)
			return time.Since(begin)
		}
	}
}

// sees tells whether a node sees so many others alive.
func sees(others int) func(*scaleNode) bool {
	return func(n *scaleNode) bool { return n.Alive() == others }
}

// equal waits until all nodes have the same records and rings.
func (s *scaleMesh) equal(limit time.Duration, nodes []*scaleNode) time.Duration {
	s.t.Helper()
	begin := time.Now()
	for {
		r, k := s.state(nodes[0])
		odd := 0
		for _, n := range nodes[1:] {
			if r2, k2 := s.state(n); r2 != r || k2 != k {
				odd++
				break
			}
		}
		if odd == 0 {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			s.t.Errorf("after %v the states differ", limit)
			return time.Since(begin)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// state hashes what a node has of records and ring.
func (s *scaleMesh) state(n *scaleNode) (records, owners uint64) {
	h := fnv.New64a()
	for _, k := range n.Nodes() {
		fmt.Fprint(h, k.ID, k.Seq, k.Boot, k.State, k.Name, k.MTU)
	}
	records = h.Sum64()
	h = fnv.New64a()
	_, _ = h.Write(n.ring.Encode())
	return records, h.Sum64()
}

// count begins or ends counting bytes.
func (s *scaleMesh) count(on bool) {
	if !on {
		s.net.Tap(nil)
		return
	}
	for _, n := range s.nodes {
		n.bytes, n.packets = 0, 0
	}
	s.net.Tap(func(proto string, from, to netip.AddrPort, b []byte) {
		size := len(b) + datagramHeads
		if proto == "tcp" {
			size = len(b) + segmentHeads*(len(b)+segmentSize-1)/segmentSize
		}
		for _, a := range []netip.Addr{from.Addr(), to.Addr()} {
			if n := s.byAddr[a]; n != nil {
				n.bytes += uint64(size)
				n.packets++
			}
		}
	})
}

func (s *scaleMesh) rate(over time.Duration) (mean, most float64) {
	for _, n := range s.nodes {
		r := float64(n.bytes) / over.Seconds()
		mean += r / float64(len(s.nodes))
		most = max(most, r)
	}
	return mean, most
}

// TestScale has a large mesh join, hear of one more node, lose one, and be cut in two and healed.
func TestScale(t *testing.T) {
	real := time.Now()
	defer debug.SetGCPercent(debug.SetGCPercent(200))
	synctest.Test(t, func(t *testing.T) { scale(t, *scaleNodes, func() time.Duration { return 0 }) })
	t.Log("real time", time.Since(real))
}

func scale(t *testing.T, size int, _ func() time.Duration) {
	s := newScaleMesh(t)
	s.count(true)
	begin := time.Now()
	for range size {
		s.start()
		time.Sleep(startAll / time.Duration(size))
	}
	granted := make([]bool, size)
	joined := startAll + s.until(60*time.Second-startAll, "all nodes are seen", 1, s.nodes, func(n *scaleNode) bool {
		for i, n := range s.nodes[1:] {
			if granted[i] {
				continue
			}
			select {
			case <-n.Joined():
				granted[i] = true
				s.grant(s.nodes[0], n, i+1)
			default:
			}
		}
		return n.Alive() == size-1
	})
	same := s.equal(60*time.Second, s.nodes)
	mean, most := s.rate(time.Since(begin))
	t.Logf("%d nodes joined within %v, equal %v later; traffic %.1f kB/s, at most %.1f", size, joined, same, mean/1e3, most/1e3)

	time.Sleep(30 * time.Second)
	fresh := s.start()
	known := s.until(10*time.Second, "the new node is known", 1, s.nodes, func(n *scaleNode) bool {
		k, ok := n.Node(fresh.id)
		return n.Alive() == size && ok && (k.Status == mesh.Alive || n == fresh)
	})
	s.grant(s.nodes[0], fresh, size)
	same = s.until(10*time.Second, "the grant is known", 1, s.nodes, func(n *scaleNode) bool {
		r := n.ring.at(uint32(size * scaleBlock))
		return r.Owner == ring.Owner(fresh.id) && r.From == 0
	})
	t.Logf("one more known after %v, its grant after %v", known, same)

	time.Sleep(time.Minute)
	s.count(true)
	time.Sleep(time.Minute)
	mean, most = s.rate(time.Minute)
	s.count(false)
	t.Logf("steady traffic %.2f kB/s, at most %.2f", mean/1e3, most/1e3)

	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	t.Logf("memory per node %d kB heap, %d kB stacks", stats.HeapAlloc/uint64(size)/1e3, stats.StackInuse/uint64(size)/1e3)

	lost := s.nodes[size/2]
	others := append(append([]*scaleNode(nil), s.nodes[:size/2]...), s.nodes[size/2+1:]...)
	lost.host.Dark(true)
	most99 := s.until(30*time.Second, "the failure is known", 0.99, others, sees(size-1))
	all := most99 + s.until(30*time.Second, "the failure is known", 1, others, sees(size-1))
	t.Logf("failure known to 99%% after %v, to all after %v", most99, all)
	lost.host.Dark(false)
	back := s.until(60*time.Second, "it is back", 1, s.nodes, sees(size))
	t.Logf("it is back after %v", back)

	half := len(s.nodes) / 2
	var side []*memnet.Host
	for _, n := range s.nodes[:half] {
		side = append(side, n.host)
	}
	s.net.Partition(side)
	cut := s.until(2*time.Minute, "the others are lost", 1, s.nodes[:half], sees(half-1))
	cut += s.until(2*time.Minute, "the others are lost", 1, s.nodes[half:], sees(len(s.nodes)-half-1))
	for i, n := range s.nodes[1:] { // both sides go on
		if i%10 == 0 {
			if err := n.SetRecord(func(r *mesh.Record) { r.MTU = 1300 }); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("parted after %v", cut)
	time.Sleep(30 * time.Second)
	s.net.Heal()
	s.count(true)
	healed := s.until(60*time.Second, "the halves see each other", 1, s.nodes, sees(size))
	same = s.equal(60*time.Second, s.nodes)
	mean, most = s.rate(healed + same)
	t.Logf("healed after %v, equal %v later; traffic %.1f kB/s, at most %.1f", healed, same, mean/1e3, most/1e3)
}
