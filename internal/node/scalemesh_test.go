// SPDX-License-Identifier: Apache-2.0

//go:build !race

package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/mesh/memnet"
)

// scaleRing is the ring as a replicated state, without the allocator around it.
type scaleRing struct {
	mu      sync.Mutex
	r       *ring.Ring
	decoded *sync.Map // of all rings, by bytes: changes that are gossiped
}

// scaleGossip is the most bytes of a change that comes to each ring as it is.
const scaleGossip = 1 << 10

func (s *scaleRing) Encode() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.Encode()
}

func (s *scaleRing) Merge(b []byte) ([]byte, error) {
	o, err := s.decode(b)
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

// decode decodes each change once for all.
func (s *scaleRing) decode(b []byte) (*ring.Ring, error) {
	if len(b) > scaleGossip {
		return ring.Decode(b)
	}
	if o, ok := s.decoded.Load(string(b)); ok {
		return o.(*ring.Ring), nil
	}
	o, err := ring.Decode(b)
	if err == nil {
		s.decoded.Store(string(b), o)
	}
	return o, err
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
	number int // from 1
	id     mesh.NodeID
	host   *memnet.Host
	router *memnet.Router
	ring   scaleRing
	cancel context.CancelFunc
	done   chan error

	bytes atomic.Uint64 // both directions
}

// scaleMesh is many of them.
type scaleMesh struct {
	t      *testing.T
	net    *memnet.Net
	nodes  []*scaleNode
	mu     sync.RWMutex // guards byAddr
	byAddr map[netip.Addr]*scaleNode
	shared *mesh.Shared // nil: each node has copies of its own, and its memory can be measured
	deltas sync.Map     // by what is gossiped of a ring: what it says
	signed sync.Map     // by signed record: whether the signature is right
	peak   scalePeak
}

// scalePeak is the most that the process took at a time, by the number of nodes.
type scalePeak struct {
	bytes      uint64 // heap that was live when garbage was collected last, and stacks
	goroutines uint64
}

// look has the peak grow with what the process takes now.
func (s *scaleMesh) look() {
	now := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}, {Name: "/sched/goroutines:goroutines"}}
	metrics.Read(now)
	n := uint64(len(s.nodes))
	s.peak.bytes = max(s.peak.bytes, (now[0].Value.Uint64()+now[1].Value.Uint64())/n)
	s.peak.goroutines = max(s.peak.goroutines, now[2].Value.Uint64()/n)
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
	s.net.Step(500 * time.Microsecond) // so that it uses more than one processor
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
	n := &scaleNode{number: i, id: identity.ID(), host: s.net.Host(addr), done: make(chan error, 1)}
	s.net.Name(fmt.Sprint("n", i), addr)
	var targets []string
	if i > 1 { // the first three are what the others are told
		targets = []string{fmt.Sprint("n", 1+i%min(i-1, 3))}
	}
	var err error
	n.ring.decoded = &s.deltas
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
	s.mu.Lock()
	s.byAddr[addr] = n
	s.mu.Unlock()
	go func() { n.done <- n.Run(ctx) }()
	return n
}

// grant gives the node its block, as the node that has all does.
func (s *scaleMesh) grant(from, to *scaleNode, i int) {
	s.t.Helper()
	s.give(from, to, ring.Interval{First: uint32(i) * scaleBlock, Last: uint32(i+1)*scaleBlock - 1})
}

// pass gives half of node i's block on.
func (s *scaleMesh) pass(from, to *scaleNode, i int) {
	s.t.Helper()
	s.give(from, to, ring.Interval{First: uint32(i) * scaleBlock, Last: uint32(i)*scaleBlock + scaleBlock/2 - 1})
}

func (s *scaleMesh) give(from, to *scaleNode, block ring.Interval) {
	s.t.Helper()
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
		s.look()
		rest := left[:0]
		for _, n := range left {
			if !ok(n) {
				rest = append(rest, n)
			}
		}
		left = rest
		if d := time.Since(begin); d%(5*time.Second) == 0 && d > 0 {
			s.t.Logf("  %v: not on %d nodes: %s (%s)", d, len(left), what, spent())
		}
		if float64(len(left)) <= (1-share)*float64(len(nodes)) {
			return time.Since(begin)
		}
		if time.Since(begin) >= limit {
			s.t.Errorf("after %v this is not so on %d of %d nodes: %s", limit, len(left), len(nodes), what)
			return time.Since(begin)
		}
	}
}

// spent tells what the process has used of the machine, which virtual time does not.
func spent() string {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return err.Error()
	}
	now := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(now)
	return fmt.Sprintf("processor %d s, %d GiB allocated, %d MiB live, %d MiB at most",
		u.Utime.Sec+u.Stime.Sec, now[0].Value.Uint64()>>30, now[1].Value.Uint64()>>20, u.Maxrss>>10)
}

// sees tells whether a node sees so many others alive.
func sees(others int) func(*scaleNode) bool {
	return func(n *scaleNode) bool { return n.Alive() == others }
}

// equal waits until all nodes have the same records and rings.
func (s *scaleMesh) equal(limit time.Duration, nodes []*scaleNode) time.Duration {
	s.t.Helper()
	seed := maphash.MakeSeed()
	begin := time.Now()
	suspect := nodes[0] // who differed last
	for {
		want := nodes[0].state(seed)
		if suspect.state(seed) == want {
			suspect = unlike(nodes, func(n *scaleNode) bool { return n.state(seed) == want })
		}
		if suspect == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			s.t.Errorf("after %v the states differ", limit)
			return time.Since(begin)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// unlike returns one of the nodes that are not ok, nil if all are. It asks several at the same time.
func unlike(nodes []*scaleNode, ok func(*scaleNode) bool) *scaleNode {
	var next atomic.Int64
	var found atomic.Pointer[scaleNode]
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(nodes) && found.Load() == nil; i = int(next.Add(1)) - 1 {
				if !ok(nodes[i]) {
					found.Store(nodes[i])
				}
			}
		})
	}
	wg.Wait()
	return found.Load()
}

// scaleState is a hash of what a node has.
type scaleState struct{ records, owners uint64 }

func (n *scaleNode) state(seed maphash.Seed) scaleState {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, k := range n.Nodes() {
		_, _ = h.Write(k.Signed)
	}
	return scaleState{h.Sum64(), maphash.Bytes(seed, n.ring.Encode())}
}

// count begins or ends counting bytes.
func (s *scaleMesh) count(on bool) {
	if !on {
		s.net.Tap(nil)
		return
	}
	for _, n := range s.nodes {
		n.bytes.Store(0)
	}
	s.net.Tap(func(proto string, from, to netip.AddrPort, b []byte) {
		size := len(b) + datagramHeads
		if proto == "tcp" {
			size = len(b) + segmentHeads*(len(b)+segmentSize-1)/segmentSize
		}
		s.mu.RLock()
		defer s.mu.RUnlock()
		for _, a := range [...]netip.Addr{from.Addr(), to.Addr()} {
			if n := s.byAddr[a]; n != nil {
				n.bytes.Add(uint64(size))
			}
		}
	})
}

func (s *scaleMesh) rate(over time.Duration) (mean, most float64) {
	for _, n := range s.nodes {
		r := float64(n.bytes.Load()) / over.Seconds()
		mean += r / float64(len(s.nodes))
		most = max(most, r)
	}
	return mean, most
}
