// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/bits"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/tun"
	"github.com/weftnet/weft/router/underlay"
)

// These tests run the router over the kernel: TUN devices, UDP sockets and epoll, between network
// namespaces of their own.

// node is a host in a namespace. Its overlay addresses are addr4(i, 1) and addr6(i, 1).
type node struct {
	*router.Router
	t      testing.TB
	i      int
	ns     *routertest.Namespace
	device *tun.Device
	conns  []*underlay.Conn
	apart  *underlay.Conn
	gossip chan string
	cancel context.CancelFunc
	ended  chan error
}

// setup is how a node is built.
type setup struct {
	offload  offload
	shards   int
	suite    session.Suite
	v6       bool   // the underlay
	portable bool   // the TUN device is opened by water, without tso and uso
	shared   bool   // control datagrams come to the sockets of data
	limit    uint64 // of what is relayed
}

func (s setup) String() string {
	kind := "native"
	if s.portable {
		kind = "portable"
	}
	return fmt.Sprintf("%s, offload %04b, %d shards, %v, underlay v6 %v, shared %v", kind, s.offload, s.shards, s.suite, s.v6, s.shared)
}

// open opens the device in the namespace of the calling thread.
func (s setup) open() (*tun.Device, error) {
	return tun.Open(tun.Config{
		Name: "weft0", Queues: s.shards, Persist: true, Portable: s.portable,
		VNetHdr: s.offload.has(tso | uso), NoTSO: !s.offload.has(tso), NoUSO: !s.offload.has(uso),
	})
}

// offload is a set of what is left to the kernel.
type offload uint8

const (
	tso offload = 1 << iota
	uso
	gso
	gro
	none offload = 0
	all  offload = tso | uso | gso | gro
)

func (o offload) has(x offload) bool { return o&x != 0 }

var setups = []setup{
	{offload: all, shards: 1, suite: session.Weft},
	{offload: all, shards: 2, suite: session.WireGuard, v6: true},
	{offload: none, shards: 1, suite: session.WireGuard, shared: true},
	{offload: none, shards: 2, suite: session.Weft, v6: true},
	{offload: gso | gro, shards: 2, suite: session.Weft, portable: true},
}

// where returns the underlay address of host i.
func (s setup) where(i int) netip.AddrPort {
	if s.v6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i)}), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), port)
}

// startNode runs host i in the namespace, over the device that is there already if there is one.
func startNode(t testing.TB, ns *routertest.Namespace, i int, s setup) *node {
	t.Helper()
	n := &node{t: t, i: i, ns: ns, gossip: make(chan string, 1000)}
	fresh := false
	ns.Do(func() {
		_, err := netlink.LinkByName("weft0")
		fresh = err != nil
		if n.device, err = s.open(); err != nil {
			t.Fatal(err)
		}
		o := underlay.Options{NoGSO: !s.offload.has(gso), NoGRO: !s.offload.has(gro)}
		if s.shared {
			n.conns, err = underlay.Listen(port, s.shards, o)
		} else {
			n.conns, n.apart, err = underlay.ListenApart(port, s.shards, router.ControlType, o)
		}
		if err != nil || (n.apart == nil) != s.shared {
			t.Fatal(n.apart, err)
		}
	})
	if fresh {
		ns.SetMTU("weft0", localMTU)
		// The prefixes make the device the way to all hosts.
		ns.Address("weft0", netip.PrefixFrom(addr4(i, 1), 16), netip.PrefixFrom(addr6(i, 1), 64))
		for host := 1; host <= via; host++ {
			if host != i {
				ns.Know("weft0", nil, addrs(host)...)
			}
		}
	}
	c := router.Config{
		Private: privateKey(i), TUN: router.Queues(n.device), Conns: router.Conns(n.conns),
		ID: uint64(i), Boot: 100 + uint64(i), Keys: meshKeys(t, 0), RelayLimit: s.limit,
		Control: func(b []byte, from router.Addr, _ time.Time) {
			select {
			case n.gossip <- fmt.Sprintf("%v: %s", from, b):
			default:
			}
		},
	}
	if n.apart != nil {
		c.ControlConn = n.apart
	}
	r, err := router.New(c)
	if err != nil {
		t.Fatal(err)
	}
	n.Router = r
	n.SetLocal(router.Local{Prefixes: prefixes(i), Gateway4: addr4(i, 254), Gateway6: addr6(i, 254), MTU: localMTU})
	n.setPeer(3-i, s, 0)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan error, 1)
	go func() { n.ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("host %d: %+v", i, n.Stats())
		}
	})
	return n
}

func (n *node) setPeer(i int, s setup, mtu int) {
	n.t.Helper()
	if err := n.SetPeers([]router.Peer{{
		Key: privateKey(i).Public(), ID: uint64(i), Name: fmt.Sprint("host", i), Endpoints: []netip.AddrPort{s.where(i)}, Suite: s.suite, Prefixes: prefixes(i), MTU: mtu,
	}}); err != nil {
		n.t.Fatal(err)
	}
}

// stop ends the node, which leaves its device behind. Once is enough.
func (n *node) stop() {
	n.t.Helper()
	if n.ended == nil {
		return
	}
	n.cancel()
	if err := <-n.ended; err != nil {
		n.t.Errorf("host %d: %v", n.i, err)
	}
	n.ended = nil
	n.close()
}

func (n *node) close() {
	n.t.Helper()
	all := n.conns
	if n.apart != nil {
		all = append(all, n.apart)
	}
	for _, c := range all {
		if err := c.Close(); err != nil {
			n.t.Error(err)
		}
	}
	if err := n.device.Close(); err != nil {
		n.t.Error(err)
	}
}

// nodes runs two hosts on one link.
func nodes(t testing.TB, s setup) (a, b *node) {
	t.Helper()
	na, nb := routertest.NewNamespace(t), routertest.NewNamespace(t)
	routertest.Link(na, nb, 1500)
	return startNode(t, na, 1, s), startNode(t, nb, 2, s)
}

func inEachSetup(t *testing.T, f func(t *testing.T, s setup, a, b *node)) {
	for _, s := range setups {
		t.Run(s.String(), func(t *testing.T) {
			a, b := nodes(t, s)
			f(t, s, a, b)
		})
	}
}

// combinations are the setups of TestEveryOffloadOverKernel: every combination of offloads, on one shard and on two, native and portable, in
// each suite, over each underlay. Under the race detector, which makes each several times slower, there is every combination of
// offloads over each underlay, and of the rest every pair.
func combinations() (list []setup) {
	for o := none; o <= all; o++ {
		for i := range 16 {
			s := setup{offload: o, shards: 1 + i&1, suite: session.Suite(i >> 1 & 1), v6: i&4 != 0, portable: i&8 != 0}
			if s.portable && s.offload.has(tso|uso) {
				continue // it would ignore them
			}
			odd := bits.OnesCount8(uint8(o))&1 == 1
			if raceDetector && ((s.suite == session.Weft) != (s.v6 != odd) || (s.shards == 2) != (s.v6 != s.offload.has(gso))) {
				continue
			}
			list = append(list, s)
		}
	}
	return list
}

// Every combination of offloads carries the same, on either side of a host that has all of them and between two alike.
func TestEveryOffloadOverKernel(t *testing.T) {
	for _, s := range combinations() {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel() // most of it is waiting
			na, nb := routertest.NewNamespace(t), routertest.NewNamespace(t)
			routertest.Link(na, nb, 1500)
			other := s
			if !s.v6 {
				other.offload, other.portable = all, false
			}
			a, b := startNode(t, na, 1, s), startNode(t, nb, 2, other)
			for family := range 2 {
				here := a.listenUDP(netip.AddrPortFrom(addrs(1)[family], 5000))
				there := b.listenUDP(netip.AddrPortFrom(addrs(2)[family], 5000))
				for _, size := range []int{0, 1, localMTU - 48, 4000} {
					payload := bytes.Repeat([]byte{byte(size)}, size)
					exchange(t, here, there, payload)
					exchange(t, there, here, payload)
				}
				segmented(t, here, there, 1000, 40)
				segmented(t, there, here, 1001, 7)
				transfer(t, a, b, family, 1<<19)
				transfer(t, b, a, family, 1<<19)
			}
			nothingDropped(t, a, b)
			nothingLearnt(t, a, b)
		})
	}
}

// nothingLearnt checks that the hosts need nothing of the neighbour table of the machine.
func nothingLearnt(t *testing.T, all ...*node) {
	t.Helper()
	for _, n := range all {
		for _, device := range []string{"weft0", "eth0"} {
			if addrs := n.ns.Learnt(device); len(addrs) > 0 {
				t.Errorf("host %d: neighbours of %s that the test has not made: %v", n.i, device, addrs)
			}
		}
	}
}

// nothingDropped checks that the hosts have dropped nothing but what was nobody's, and answers to handshakes that began anew
// while the way was looked for. An initiation, too, may be sent again and overtaken, which counts as a replay: that no packet of data was one
// is seen by all of them having arrived.
func nothingDropped(t *testing.T, all ...*node) {
	t.Helper()
	var sent, received uint64
	for _, n := range all {
		s := n.Stats()
		sent, received = sent+s.TxPackets, received+s.RxPackets
	}
	for _, n := range all {
		for r, count := range n.Stats().Drops {
			if r == router.DropReplay && count == 1 && sent == received {
				continue
			}
			if count != 0 && r != router.DropNoise && (r != router.DropIndex || count > session.AgainLimit) {
				t.Errorf("host %d: %d drops for %v", n.i, count, r)
			}
		}
	}
}

func (n *node) listenUDP(at netip.AddrPort) (c *net.UDPConn) {
	n.t.Helper()
	n.ns.Do(func() {
		var err error
		if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
			n.t.Fatal(err)
		}
	})
	n.t.Cleanup(func() { closeIt(n.t, c) })
	return c
}

func closeIt(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// addrs are the overlay addresses of host i.
func addrs(i int) []netip.Addr { return []netip.Addr{addr4(i, 1), addr6(i, 1)} }

// TestDatagramsOverKernel sends datagrams of many sizes, some larger than the MTU, which the kernel fragments.
func TestDatagramsOverKernel(t *testing.T) {
	inEachSetup(t, func(t *testing.T, _ setup, a, b *node) {
		for family := range 2 {
			here := a.listenUDP(netip.AddrPortFrom(addrs(1)[family], 5000))
			there := b.listenUDP(netip.AddrPortFrom(addrs(2)[family], 5000))
			for _, size := range []int{0, 1, 15, 16, 17, 500, localMTU - 48, localMTU - 28, 4000, 20000} {
				payload := make([]byte, size)
				for i := range payload {
					payload[i] = byte(rand.Uint32())
				}
				exchange(t, here, there, payload)
				exchange(t, there, here, payload)
			}
		}
		for _, n := range []*node{a, b} {
			s := n.PeerStats()[0]
			if s.State != router.Established || s.RxPackets == 0 || s.TxPackets == 0 {
				t.Errorf("host %d: %+v", n.i, s)
			}
		}
	})
}

// exchange sends a datagram and waits for it.
func exchange(t *testing.T, from, to *net.UDPConn, payload []byte) {
	t.Helper()
	if _, err := from.WriteTo(payload, to.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 65536)
	n, src, err := to.ReadFrom(in)
	if err != nil || !bytes.Equal(in[:n], payload) || src.String() != from.LocalAddr().String() {
		t.Fatalf("%d bytes to %v: got %d from %v, %v", len(payload), to.LocalAddr(), n, src, err)
	}
}

// TestSegmentedDatagramsOverKernel has the kernel hand over runs of datagrams as one (USO), where it can.
func TestSegmentedDatagramsOverKernel(t *testing.T) {
	inEachSetup(t, func(t *testing.T, _ setup, a, b *node) {
		for family := range 2 {
			here := a.listenUDP(netip.AddrPortFrom(addrs(1)[family], 5000))
			there := b.listenUDP(netip.AddrPortFrom(addrs(2)[family], 5000))
			exchange(t, here, there, []byte("hello"))
			segmented(t, here, there, 1000, 40)
		}
	})
}

// segmented sends count datagrams of each bytes with one system call, and waits for them.
func segmented(t *testing.T, from, to *net.UDPConn, each, count int) {
	t.Helper()
	segment := func(size int) {
		raw, err := from.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var failed error
		if err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
		}); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
	}
	segment(each)
	defer segment(0)
	payload := make([]byte, each*count)
	for i := range payload {
		payload[i] = byte(rand.Uint32())
	}
	if _, err := from.WriteTo(payload, to.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 65536)
	for i := range count {
		n, _, err := to.ReadFrom(in)
		if err != nil || !bytes.Equal(in[:n], payload[i*each:(i+1)*each]) {
			t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
		}
	}
}

// transfer sends size random bytes over TCP and checks that they arrive.
func transfer(t testing.TB, from, to *node, family, size int) {
	t.Helper()
	at := netip.AddrPortFrom(addrs(to.i)[family], 5001)
	var listener *net.TCPListener
	to.ns.Do(func() {
		var err error
		if listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err != nil {
			t.Fatal(err)
		}
	})
	defer closeIt(t, listener)
	type result struct {
		sum [32]byte
		n   int64
		err error
	}
	got := make(chan result, 1)
	go func() {
		var r result
		defer func() { got <- r }()
		var c net.Conn
		if c, r.err = listener.Accept(); r.err != nil {
			return
		}
		defer closeIt(t, c)
		h := sha256.New()
		r.n, r.err = io.Copy(h, c)
		r.sum = [32]byte(h.Sum(nil))
	}()
	var c net.Conn
	from.ns.Do(func() {
		var err error
		if c, err = net.DialTimeout("tcp", at.String(), 10*time.Second); err != nil {
			t.Fatalf("%v; here %v, there %v", err, from.Stats(), to.Stats())
		}
	})
	defer closeIt(t, c)
	if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if err := pour(io.MultiWriter(c, h), size); err != nil {
		t.Fatalf("%v; here %v, there %v", err, from.Stats(), to.Stats())
	}
	closeIt(t, c)
	if r := <-got; r.err != nil || r.n != int64(size) || r.sum != sum(h) {
		t.Errorf("%d of %d bytes arrived, %v", r.n, size, r.err)
	}
}

func sum(h hash.Hash) [32]byte { return [32]byte(h.Sum(nil)) }

// pour writes size bytes of noise.
func pour(w io.Writer, size int) error {
	rng := rand.NewChaCha8([32]byte{7})
	b := make([]byte, 64<<10)
	for size > 0 {
		b := b[:min(size, len(b))]
		_, _ = rng.Read(b) // never fails
		if _, err := w.Write(b); err != nil {
			return err
		}
		size -= len(b)
	}
	return nil
}

func TestStreamsOverKernel(t *testing.T) {
	size := 24 << 20
	if raceDetector {
		size = 6 << 20
	}
	inEachSetup(t, func(t *testing.T, s setup, a, b *node) {
		for family := range 2 {
			transfer(t, a, b, family, size)
			transfer(t, b, a, family, size)
		}
		nothingDropped(t, a, b)
		// A link that is narrower than was known fragments, and carries all.
		a.ns.SetMTU("eth0", 1300)
		b.ns.SetMTU("eth0", 1300)
		for family := range 2 {
			transfer(t, a, b, family, size/6)
		}
	})
}

// Stopping leaves the device with its addresses; whatever it is started with next, it goes on.
func TestRestartOverKernel(t *testing.T) {
	a, b := nodes(t, setups[0])
	transfer(t, a, b, 0, 1<<20)
	for _, s := range []setup{
		{offload: all, shards: 1},
		{offload: all, shards: 2},
		{offload: gso | gro, shards: 2, portable: true},
		{offload: all, shards: 4},
		{offload: none, shards: 1, portable: true},
	} {
		s.suite = session.Weft
		b.stop()
		b = startNode(t, b.ns, 2, s)
		b.Greet()
		transfer(t, a, b, 0, 1<<20)
		transfer(t, b, a, 1, 1<<20)
	}
}
