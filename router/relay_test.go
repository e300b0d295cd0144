// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// member is peer for a host that is a node of the mesh; its ID is its number.
func member(i int, s shape) router.Peer {
	p := peer(i, s)
	p.ID = uint64(i)
	return p
}

// web is hosts of which only some reach each other.
type web struct {
	net   *routertest.Net
	shape shape
	hosts []*host // the first is no host, so that numbers are indices

	mu    sync.Mutex
	edges map[[2]int]bool // of those that reach each other, the lesser one first
	lost  int             // datagrams between others
	wire  func(from, to int, b []byte)
}

// newWeb runs n hosts that all know each other, of which those reach each other that edges says.
func newWeb(t *testing.T, n int, s shape, edges [][2]int, change func(i int, c *router.Config)) *web {
	t.Helper()
	w := &web{net: routertest.NewNet(1), shape: s, hosts: make([]*host, n+1), edges: map[[2]int]bool{}}
	for _, e := range edges {
		w.edges[e] = true
	}
	w.net.SetFilter(func(from, to netip.AddrPort, b []byte) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		i, j := int(from.Addr().As4()[3]), int(to.Addr().As4()[3])
		if w.wire != nil {
			w.wire(i, j, b)
		}
		ok := w.edges[[2]int{min(i, j), max(i, j)}]
		if !ok {
			w.lost++
		}
		return ok
	})
	for i := 1; i <= n; i++ {
		w.hosts[i] = newHostWith(t, w.net, i, s, func(c *router.Config) {
			c.ID, c.Keys = uint64(i), router.Keys{} // without keys no ways are found but those that are given
			change(i, c)
		})
		var peers []router.Peer
		for j := 1; j <= n; j++ {
			if j != i {
				peers = append(peers, member(j, s))
			}
		}
		w.hosts[i].setPeers(peers...)
		w.hosts[i].start()
	}
	return w
}

func (w *web) stop() {
	for _, h := range w.hosts[1:] {
		h.stop()
	}
}

// way makes the traffic between two hosts, both ways, go through the relays.
func (w *web) way(from, to int, relays ...uint64) {
	w.hosts[from].SetWay(uint64(to), relays...)
	back := make([]uint64, len(relays))
	for i, id := range relays {
		back[len(relays)-1-i] = id
	}
	w.hosts[to].SetWay(uint64(from), back...)
}

func (w *web) set(from, to int, reach bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.edges[[2]int{min(from, to), max(from, to)}] = reach
}

func (w *web) tap(f func(from, to int, b []byte)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wire = f
}

// towards returns what h says of its peer, a host by number.
func (h *host) towards(i int) router.PeerStats {
	synctest.Wait()
	for _, p := range h.PeerStats() {
		if p.Name == fmt.Sprint("host", i) {
			return p
		}
	}
	h.t.Fatalf("no host %d", i)
	return router.PeerStats{}
}

// chain runs hosts of which each reaches the next, with ways between the first and the last through all the others.
func chain(t *testing.T, n int, s shape, change func(i int, c *router.Config)) *web {
	t.Helper()
	var edges [][2]int
	var relays []uint64
	for i := 1; i < n; i++ {
		edges = append(edges, [2]int{i, i + 1})
		if i > 1 {
			relays = append(relays, uint64(i))
		}
	}
	w := newWeb(t, n, s, edges, change)
	w.way(1, n, relays...)
	return w
}

func asIs(int, *router.Config) {}

// inEachChain runs f on a chain of five hosts of each shape.
func inEachChain(t *testing.T, n int, f func(t *testing.T, w *web, a, b *host)) {
	t.Helper()
	for _, s := range shapes {
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := chain(t, n, s, asIs)
				defer w.stop()
				f(t, w, w.hosts[1], w.hosts[n])
			})
		})
	}
}

// relayedMTU is what a chain of n hosts carries.
func relayedMTU(n int) int { return relay.MTU(localMTU, n-2, session.Overhead) }

// Through three relays packets arrive as they left, from the first one on, though there is not a single key when it leaves.
func TestChain(t *testing.T) {
	inEachChain(t, 5, func(t *testing.T, w *web, a, b *host) {
		secret := []byte("nobody on the way reads this")
		w.tap(func(_, _ int, d []byte) {
			if bytes.Contains(d, secret) {
				t.Error("a datagram has the packet in clear")
			}
		})
		var packets, back [][]byte
		for i := range 20 {
			packets = append(packets, udp(addr4(1, 9), addr4(5, 9), fmt.Sprint(string(secret), strings.Repeat("x", 50*i))),
				udp(addr6(1, 9), addr6(5, 9), fmt.Sprint(string(secret), i)))
			back = append(back, udp(addr4(5, 9), addr4(1, 9), fmt.Sprint(string(secret), i)))
		}
		send := func(h *host, all [][]byte) {
			for i, p := range all {
				h.queues[i%len(h.queues)].Inject(p)
			}
		}
		shards := len(a.queues)
		send(a, packets)
		b.wantAny(shards == 1, packets...)
		send(b, back)
		a.wantAny(shards == 1, back...)
		for range 3 {
			send(a, packets)
			b.wantAny(shards == 1, packets...)
			time.Sleep(100 * time.Second) // another key
		}
		for i := 2; i < 5; i++ {
			s := w.hosts[i].Stats()
			if s.Relayed.Packets < 180 || s.Relayed.Bytes < 180*100 || s.RxPackets != 0 || s.TxPackets != 0 {
				t.Errorf("host %d: %+v", i, s)
			}
			if from := w.hosts[i].towards(i - 1).Relayed; from.Packets < 160 || from.Packets >= s.Relayed.Packets {
				t.Errorf("host %d has relayed %+v from %d, %+v in all", i, from, i-1, s.Relayed)
			}
			w.hosts[i].want()
		}
		for _, h := range w.hosts[1:] {
			h.wantDrops(nil)
		}
		if s := a.towards(5); s.TxPackets != 160 || s.State != router.Established || s.LastError != "" {
			t.Errorf("%+v", s)
		}
		if s := a.towards(2); s.TxPackets != 0 || s.RxPackets != 0 {
			t.Errorf("%+v", s)
		}
		if w.lost != 0 {
			t.Errorf("%d datagrams went where nobody hears them", w.lost)
		}
	})
}

// wantAny is want, or if the packets need not arrive in order, checks that they all do.
func (h *host) wantAny(ordered bool, packets ...[]byte) {
	h.t.Helper()
	if ordered {
		h.want(packets...)
		return
	}
	left := map[string]int{}
	for _, p := range packets {
		left[string(p)]++
	}
	for _, p := range h.delivered() {
		if left[string(p)]--; left[string(p)] < 0 {
			h.t.Errorf("host %d: %x was not expected", h.i, p)
		}
	}
	for p, n := range left {
		if n > 0 {
			h.t.Errorf("host %d: %x did not arrive; drops %v", h.i, p, h.drops())
			return
		}
	}
}

// Superpackets cross relays, at the size that their frames leave.
func TestSuperpacketsThroughRelays(t *testing.T) {
	for _, suite := range []session.Suite{session.WireGuard, session.Weft} {
		for n := 3; n <= 6; n++ {
			synctest.Test(t, func(t *testing.T) {
				w := chain(t, n, shape{shards: 1, vnet: true, suite: suite}, asIs)
				defer w.stop()
				a, b := w.hosts[1], w.hosts[n]
				establish(a, b)
				time.Sleep(time.Second)
				b.delivered()
				if s := a.towards(n); s.MTU != relayedMTU(n) || !s.Confirmed {
					t.Errorf("%d hosts: MTU %d, confirmed %v, want %d", n, s.MTU, s.Confirmed, relayedMTU(n))
				}
				longest := 0
				w.tap(func(_, _ int, d []byte) { longest = max(longest, len(d)) })
				for _, src := range []netip.Addr{addr4(1, 9), addr6(1, 9)} {
					dst, headers := addr4(n, 9), 40
					if src.Is6() {
						dst, headers = addr6(n, 9), 60
					}
					h, frame, segments := super(t, src, dst, 6, 60000, relayedMTU(n)-headers)
					a.queues[0].InjectSuper(h, frame)
					b.want(segments...)
				}
				if longest > sealedLen(localMTU) || longest < sealedLen(localMTU)-32 {
					t.Errorf("%d hosts: the longest datagram has %d bytes", n, longest)
				}
				a.wantDrops(nil)
				b.wantDrops(nil)
			})
		}
	}
}

// The senders of packets that do not fit a frame are told what does, connections are told from the start, and IPv6 gets the 1280 bytes that it needs.
func TestMTUThroughRelays(t *testing.T) {
	for _, mtu := range []int{localMTU, 1280} {
		inEachChain(t, 4, func(t *testing.T, w *web, a, b *host) {
			for _, h := range w.hosts[1:] {
				h.SetLocal(router.Local{Prefixes: prefixes(h.i), Gateway4: addr4(h.i, 1), Gateway6: addr6(h.i, 1), MTU: mtu})
			}
			room := relay.MTU(mtu, 2, session.Overhead)
			for range 2 { // before probes have confirmed it, and after
				for _, src := range []netip.Addr{addr4(1, 9), addr6(1, 9)} {
					dst, least, at, headers := addr4(4, 9), room, 26, 40
					if src.Is6() {
						dst, least, at, headers = addr6(4, 9), max(room, 1280), 46, 60
					}
					a.queues[0].Inject(tcp(src, dst, 2, 1460, ""))
					got := b.delivered()
					if len(got) != 1 || int(got[0][len(got[0])-2])<<8|int(got[0][len(got[0])-1]) != room-headers {
						t.Fatalf("MTU %d: %x, want a segment size of %d", mtu, got, room-headers)
					}
					fits := sized(src, dst, least)
					a.queues[0].Inject(fits)
					b.want(fits)
					if mtu == least {
						continue
					}
					a.queues[0].Inject(sized(src, dst, least+1))
					b.want()
					if got := a.delivered(); len(got) != 1 || int(got[0][at])<<8|int(got[0][at+1]) != least {
						t.Errorf("MTU %d: the sender is told %x, want %d", mtu, got, least)
					}
				}
				time.Sleep(time.Second)
				if s := a.towards(4); s.MTU != room || !s.Confirmed {
					t.Errorf("MTU %d: %d, %v", mtu, s.MTU, s.Confirmed)
				}
			}
		})
	}
}

// A way that becomes narrower behind the first relay is found out by probes, which no relay lets be fragmented.
func TestNarrowWayBehindRelay(t *testing.T) {
	inEachChain(t, 4, func(t *testing.T, w *web, a, b *host) {
		establish(a, b)
		time.Sleep(time.Second)
		for _, c := range w.hosts[2].conns {
			c.SetLink(1400)
		}
		stop := a.keepSending(4)
		start := time.Now()
		want := relay.MTU(session.MaxPlaintext(1400), 2, session.Overhead)
		for a.towards(4).MTU != want {
			time.Sleep(10 * time.Millisecond)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("%d after %v, want %d", a.towards(4).MTU, took, want)
				break
			}
		}
		time.Sleep(time.Second)
		b.delivered()
		p := sized(addr4(1, 9), addr4(4, 9), 1200)
		stop()
		synctest.Wait()
		b.delivered()
		a.queues[0].Inject(p)
		b.want(p)
		for _, c := range w.hosts[2].conns {
			c.SetLink(0)
		}
		stop = a.keepSending(4)
		time.Sleep(70 * time.Second)
		stop()
		if got := a.towards(4).MTU; got != relayedMTU(4) {
			t.Errorf("MTU %d, want %d", got, relayedMTU(4))
		}
	})
}

// Whatever mark a datagram gets between any two hosts is on the packet at the end; a stretch that erases marks does not harm the next. All of these are
// light (16) besides.
func TestMarksThroughRelays(t *testing.T) {
	inEachChain(t, 4, func(t *testing.T, w *web, a, b *host) {
		establish(a, b)
		time.Sleep(time.Second)
		b.delivered()
		var mu sync.Mutex
		var outer [3]uint8 // what becomes of the mark on each stretch; 4: it stays
		var sent []uint8
		w.net.SetMarks(func(from, to netip.AddrPort, tos uint8) uint8 {
			mu.Lock()
			defer mu.Unlock()
			i, j := from.Addr().As4()[3], to.Addr().As4()[3]
			if j != i+1 {
				return tos
			}
			sent = append(sent, tos)
			if o := outer[i-1]; o < 4 {
				return o
			}
			return tos
		})
		defer w.net.SetMarks(nil)
		for _, c := range []struct {
			inner uint8
			outer [3]uint8
			sent  string
			want  uint8
			lost  bool
		}{
			{packet.ECT0, [3]uint8{4, 4, 4}, "[18 18 18]", packet.ECT0, false},
			{packet.ECT1, [3]uint8{4, 4, 4}, "[17 17 17]", packet.ECT1, false},
			{packet.NotECT, [3]uint8{4, 4, 4}, "[16 16 16]", packet.NotECT, false},
			{packet.ECT0, [3]uint8{packet.CE, 4, 4}, "[18 19 19]", packet.CE, false},
			{packet.ECT0, [3]uint8{4, packet.CE, 4}, "[18 18 19]", packet.CE, false},
			{packet.ECT0, [3]uint8{4, 4, packet.CE}, "[18 18 18]", packet.CE, false},
			{packet.ECT0, [3]uint8{packet.CE, packet.NotECT, packet.NotECT}, "[18 19 19]", packet.CE, false},
			{packet.ECT0, [3]uint8{packet.NotECT, packet.CE, 4}, "[18 18 19]", packet.CE, false},
			{packet.ECT0, [3]uint8{packet.ECT1, 4, 4}, "[18 17 17]", packet.ECT1, false},
			{packet.NotECT, [3]uint8{packet.ECT0, 4, 4}, "[16 16 16]", packet.NotECT, false},
			{packet.NotECT, [3]uint8{packet.CE, 4, 4}, "[16 19 19]", 0, true},
			{packet.CE, [3]uint8{packet.ECT0, packet.NotECT, 4}, "[19 19 19]", packet.CE, false},
		} {
			mu.Lock()
			outer, sent = c.outer, nil
			mu.Unlock()
			for _, p := range [][]byte{udp(addr4(1, 9), addr4(4, 9), "marked"), udp(addr6(1, 9), addr6(4, 9), "marked")} {
				before := b.drops()[router.DropECN]
				a.queues[0].Inject(withTOS(p, 0xb8|c.inner))
				if c.lost {
					b.want()
					if n := b.drops()[router.DropECN] - before; n != 1 {
						t.Errorf("%+v: %d dropped", c, n)
					}
				} else {
					b.want(withTOS(p, 0xb8|c.want))
				}
				mu.Lock()
				if got := fmt.Sprint(sent); got != c.sent {
					t.Errorf("%+v: sent with %s", c, got)
				}
				sent = nil
				mu.Unlock()
			}
		}
	})
}

// The DSCP is outside on the whole way if that is wanted, and handshakes have theirs.
func TestTOSThroughRelays(t *testing.T) {
	for _, copied := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := chain(t, 4, shapes[0], func(_ int, c *router.Config) { c.CopyDSCP = copied })
			defer w.stop()
			var mu sync.Mutex
			var last [3]uint8
			w.net.SetMarks(func(from, to netip.AddrPort, tos uint8) uint8 {
				mu.Lock()
				defer mu.Unlock()
				if i, j := from.Addr().As4()[3], to.Addr().As4()[3]; j == i+1 {
					last[i-1] = tos
				}
				return tos
			})
			a, b := w.hosts[1], w.hosts[4]
			establish(a, b)
			a.queues[0].Inject(withTOS(udp(addr4(1, 9), addr4(4, 9), "expedited"), 0xba))
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			want := "[18 18 18]"
			if copied {
				want = "[186 186 186]"
			}
			if got := fmt.Sprint(last); got != want {
				t.Errorf("copied %v: %s, want %s", copied, got, want)
			}
		})
	}
}

// narrow is the filter of w for hosts 1 and 4 over a network that drops datagrams between these of more than width bytes.
func narrow(w *web, width int) func(from, to netip.AddrPort, b []byte) bool {
	return func(from, to netip.AddrPort, b []byte) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		i, j := int(from.Addr().As4()[3]), int(to.Addr().As4()[3])
		return w.edges[[2]int{min(i, j), max(i, j)}] && (i+j != 5 || i == 2 || i == 3 || len(b) <= width)
	}
}
