// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/envelope"
	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a router on a network in memory. Host i lives at 192.0.2.i and owns 10.32.i.0/24 and
// fd00:77::i:0/112.
type host struct {
	*router.Router
	t       *testing.T
	i       int
	private session.PrivateKey
	queues  []*routertest.Queue
	conns   []*routertest.Conn
	control *routertest.Conn // apart; nil if the others are for that, too
	log     *observer.ObservedLogs
	gossip  chan string
	cancel  context.CancelFunc
	ended   chan error
}

// shape is how a host is built.
type shape struct {
	shards int
	vnet   bool
	suite  session.Suite
	psk    session.PresharedKey
	apart  bool // control datagrams have a socket of their own
}

var shapes = []shape{
	{shards: 1},
	{shards: 1, vnet: true, suite: session.Weft, apart: true},
	{shards: 2, vnet: true, apart: true},
	{shards: 2, suite: session.Weft},
}

func (s shape) String() string {
	return fmt.Sprintf("%d shards, vnet %v, %v, apart %v", s.shards, s.vnet, s.suite, s.apart)
}

const port = 6783

func at(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), port)
}

func addr4(i, n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 32, byte(i), byte(n)}) }

func addr6(i, n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 2: 0, 3: 0x77, 13: byte(i), 15: byte(n)})
}

func prefixes(i int) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(addr4(i, 0), 24), netip.PrefixFrom(addr6(i, 0), 112)}
}

func privateKey(i int) session.PrivateKey { return session.PrivateKey{0: 8, 1: byte(i), 31: 64} }

const localMTU = 1408

// meshKeys returns the keys of a mesh; each n is another one.
func meshKeys(t testing.TB, n byte) router.Keys {
	t.Helper()
	k, err := envelope.NewKey([32]byte{n})
	if err != nil {
		t.Fatal(err)
	}
	return router.Keys{Envelope: envelope.Keyring{Primary: k}}
}

// newHost makes host i and does not start it. Two with the same i are the same
// host before and after a restart.
func newHost(t *testing.T, net *routertest.Net, i int, s shape) *host {
	t.Helper()
	return newHostWith(t, net, i, s, func(*router.Config) {})
}

// newHostWith is newHost with a configuration that was changed.
func newHostWith(t *testing.T, net *routertest.Net, i int, s shape, change func(*router.Config)) *host {
	t.Helper()
	h := &host{t: t, i: i, private: privateKey(i), gossip: make(chan string, 16)}
	core, log := observer.New(zapcore.DebugLevel)
	h.log = log
	c := router.Config{
		Private:   h.private,
		Preshared: s.psk,
		Poll:      routertest.Poll,
		Log:       zap.New(core),
		ID:        uint64(i), Boot: 100 + uint64(i), Keys: meshKeys(t, 0),
		Control: func(b []byte, from router.Addr, _ time.Time) {
			h.gossip <- fmt.Sprintf("%v: %s", from, b)
		},
	}
	for range s.shards {
		q, conn := routertest.NewQueue(s.vnet), net.Listen(at(i))
		h.queues, h.conns = append(h.queues, q), append(h.conns, conn)
		c.TUN, c.Conns = append(c.TUN, q), append(c.Conns, conn)
	}
	if s.apart {
		h.control = net.ListenApart(at(i))
		c.ControlConn = h.control
	}
	change(&c)
	r, err := router.New(c)
	if err != nil {
		t.Fatal(err)
	}
	h.Router = r
	h.SetLocal(router.Local{Prefixes: prefixes(i), Gateway4: addr4(i, 1), Gateway6: addr6(i, 1), MTU: localMTU})
	return h
}

func (h *host) start() {
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	h.ended = make(chan error, 1)
	go func() { h.ended <- h.Run(ctx) }()
}

// stop ends the host and closes its sockets, unless that was done before.
func (h *host) stop() {
	h.t.Helper()
	if h.ended == nil {
		return
	}
	defer func() { h.ended = nil }()
	h.cancel()
	if err := <-h.ended; err != nil {
		h.t.Errorf("host %d: %v", h.i, err)
	}
	h.close()
}

func (h *host) close() {
	if h.control != nil {
		if err := h.control.Close(); err != nil {
			h.t.Error(err)
		}
	}
	for i := range h.conns {
		if err := h.conns[i].Close(); err != nil {
			h.t.Error(err)
		}
		if err := h.queues[i].Close(); err != nil {
			h.t.Error(err)
		}
	}
}

// peer describes host i to another.
func peer(i int, s shape) router.Peer {
	return router.Peer{
		Key: privateKey(i).Public(), ID: uint64(i), Name: fmt.Sprint("host", i), Endpoints: []netip.AddrPort{at(i)},
		Suite: s.suite, Prefixes: prefixes(i),
	}
}

func (h *host) setPeers(peers ...router.Peer) {
	h.t.Helper()
	if err := h.SetPeers(peers); err != nil {
		h.t.Fatal(err)
	}
}

// delivered returns all packets that arrived at the host's workloads since the last call.
func (h *host) delivered() [][]byte {
	synctest.Wait()
	var all [][]byte
	for _, q := range h.queues {
		all = append(all, q.Delivered()...)
	}
	return all
}

// want checks that exactly these packets arrived, in order.
func (h *host) want(packets ...[]byte) {
	h.t.Helper()
	got := h.delivered()
	for i := range max(len(got), len(packets)) {
		if i >= len(got) {
			h.t.Errorf("host %d: packet %d of %d did not arrive; drops %v", h.i, i, len(packets), h.drops())
			return
		}
		if i >= len(packets) {
			h.t.Errorf("host %d: packet %d of %d was not expected: %x", h.i, i, len(got), got[i])
			return
		}
		if string(got[i]) != string(packets[i]) {
			h.t.Errorf("host %d: packet %d is %x, want %x", h.i, i, got[i], packets[i])
		}
	}
}

// drops returns the reasons that have occurred.
func (h *host) drops() map[router.Reason]uint64 {
	synctest.Wait()
	all := h.Stats().Drops
	for r, n := range all {
		if n == 0 {
			delete(all, r)
		}
	}
	return all
}

// wantDrops checks that exactly these drops have been counted.
func (h *host) wantDrops(want map[router.Reason]uint64) {
	h.t.Helper()
	got := h.drops()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		h.t.Errorf("host %d: drops %v, want %v", h.i, got, want)
	}
}

// pair runs two hosts that know each other.
func pair(t *testing.T, net *routertest.Net, s shape) (a, b *host) {
	t.Helper()
	a, b = newHost(t, net, 1, s), newHost(t, net, 2, s)
	a.setPeers(peer(2, s))
	b.setPeers(peer(1, s))
	a.start()
	b.start()
	return a, b
}

// establish makes a key for both directions.
func establish(a, b *host) {
	a.t.Helper()
	hello := udp(addr4(a.i, 9), addr4(b.i, 9), "hello")
	a.queues[0].Inject(hello)
	b.want(hello)
	time.Sleep(time.Second)
}

// udp builds an IP packet with don't-fragment set.
func udp(src, dst netip.Addr, payload string) []byte {
	u := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(u[0:], 1000)
	binary.BigEndian.PutUint16(u[2:], 2000)
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(payload)))
	return ip(src, dst, 17, append(u, payload...), 6)
}

// tcp builds a TCP segment with the given flags, and a maximum segment size option if mss is not 0.
func tcp(src, dst netip.Addr, flags byte, mss int, payload string) []byte {
	s := make([]byte, 20)
	binary.BigEndian.PutUint16(s[0:], 1000)
	binary.BigEndian.PutUint16(s[2:], 80)
	binary.BigEndian.PutUint32(s[4:], 1)
	s[13] = flags
	if mss != 0 {
		s = append(s, 2, 4, byte(mss>>8), byte(mss))
	}
	s[12] = byte(len(s) / 4 << 4)
	return ip(src, dst, 6, append(s, payload...), 16)
}

// ip puts an IP header before a transport segment and completes both checksums.
func ip(src, dst netip.Addr, proto byte, segment []byte, sumAt int) []byte {
	var b []byte
	if src.Is4() {
		b = make([]byte, 20)
		b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(segment)))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^checksum(0, b))
	} else {
		b = make([]byte, 40)
		b[0], b[6], b[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(segment)))
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
	}
	sum := ^checksum(pseudo(src, dst, proto, len(segment)), segment)
	binary.BigEndian.PutUint16(segment[sumAt:], sum)
	return append(b, segment...)
}

func pseudo(src, dst netip.Addr, proto byte, n int) uint16 {
	return checksum(checksum(checksum(uint16(n), []byte{0, proto}), src.AsSlice()), dst.AsSlice())
}

// checksum adds b to a one's complement sum, slowly.
func checksum(sum uint16, b []byte) uint16 {
	acc := uint32(sum)
	for i, c := range b {
		if i%2 == 0 {
			acc += uint32(c) << 8
		} else {
			acc += uint32(c)
		}
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc)
}

// checkSums fails the test if the checksums of a TCP or UDP packet are wrong.
func checkSums(t *testing.T, b []byte) {
	t.Helper()
	var p packet.Packet
	if err := p.Parse(b); err != nil {
		t.Errorf("%v: %x", err, b)
		return
	}
	if p.Src.Is4() && checksum(0, b[:p.HeaderLen]) != 0xffff {
		t.Errorf("IP checksum is wrong: %x", b)
	}
	segment := b[p.HeaderLen:p.Len]
	if checksum(pseudo(p.Src, p.Dst, p.Proto, len(segment)), segment) != 0xffff {
		t.Errorf("transport checksum is wrong: %x", b)
	}
}

func zapFrom(a netip.AddrPort) zap.Field { return zap.Stringer("from", a) }
