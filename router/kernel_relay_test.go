// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// bend is three hosts in namespaces: two, and the third on the way between them, which forwards their datagrams as a router of the underlay, and
// relays their data if they so wish.
type bend struct {
	a, b, middle *node
}

// via is the number of the third.
const via = 3

// newBend makes the hosts. The ends are in networks of their own, on links of the MTU.
func newBend(t testing.TB, s, middle setup, mtu int) *bend {
	t.Helper()
	na, nb, nm := routertest.NewNamespace(t), routertest.NewNamespace(t), routertest.NewNamespace(t)
	addr := func(side, host byte) (all [2]netip.Addr) {
		return [2]netip.Addr{
			netip.AddrFrom4([4]byte{192, 0, 2 + side, host}),
			netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 5: side, 15: host}),
		}
	}
	for side, end := range []*routertest.Namespace{na, nb} {
		device := fmt.Sprint("eth", side)
		routertest.Pair(end, "eth0", nm, device, mtu)
		at, gate := addr(byte(side), byte(side+1)), addr(byte(side), via)
		for i, bits := range []int{24, 48} {
			end.Address("eth0", netip.PrefixFrom(at[i], bits))
			nm.Address(device, netip.PrefixFrom(gate[i], bits))
		}
		end.Know("eth0", nm.LinkAddress(device), gate[:]...)
		nm.Know(device, end.LinkAddress("eth0"), at[:]...)
		end.AwaitCarrier("eth0")
		nm.AwaitCarrier(device)
		end.Do(func() {
			for i, all := range []string{"192.0.0.0/16", "2001:db8::/32"} {
				_, dst, err := net.ParseCIDR(all)
				if err == nil {
					err = netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gate[i].AsSlice()})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	nm.Do(func() {
		for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	x := &bend{a: startNode(t, na, 1, s), b: startNode(t, nb, 2, s), middle: startNode(t, nm, via, middle)}
	family := 0
	if s.v6 {
		family = 1
	}
	known := func(i int, at netip.Addr) router.Peer {
		return router.Peer{
			Key: privateKey(i).Public(), ID: uint64(i), Name: fmt.Sprint("host", i), Endpoints: []netip.AddrPort{netip.AddrPortFrom(at, port)},
			Suite: s.suite, Prefixes: prefixes(i),
		}
	}
	ends := []router.Peer{known(1, addr(0, 1)[family]), known(2, addr(1, 2)[family])}
	for n, peers := range map[*node][]router.Peer{
		x.a:      {ends[1], known(via, addr(0, via)[family])},
		x.b:      {ends[0], known(via, addr(1, via)[family])},
		x.middle: ends,
	} {
		if err := n.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

// relayed makes the ends use the relay, or not.
func (x *bend) relayed(on bool) {
	var relays []uint64
	if on {
		relays = []uint64{via}
	}
	x.a.SetWay(2, relays...)
	x.b.SetWay(1, relays...)
}

// check fails the test if anything was dropped that should not. Where the way changes while a handshake is in flight it begins anew, and the
// answer to the first initiation belongs to no session: a host may have dropped as many of these.
func (x *bend) check(t *testing.T, answers uint64, but ...router.Reason) {
	t.Helper()
	for _, n := range []*node{x.a, x.b, x.middle} {
		drops := n.Stats().Drops
		delete(drops, router.DropNoise)
		for _, r := range but {
			delete(drops, r)
		}
		for r, count := range drops {
			if count != 0 && (r != router.DropIndex || count > answers) {
				t.Errorf("host %d: %d drops for %v", n.i, count, r)
			}
		}
	}
}

// Streams and datagrams of all sizes go through a relay, with all offloads and with none at the ends and in between.
func TestRelayOverKernel(t *testing.T) {
	size := 8 << 20
	if raceDetector {
		size = 2 << 20
	}
	for i, s := range setups {
		relays := []setup{s, setups[0], setups[2]}
		if raceDetector { // each of them has its turn
			relays = relays[i%3:][:1]
		}
		for _, m := range relays {
			m.v6, m.suite = s.v6, s.suite
			t.Run(fmt.Sprint(s, "; relay ", m), func(t *testing.T) {
				x := newBend(t, s, m, 1500)
				x.relayed(true)
				for family := range 2 {
					here := x.a.listenUDP(netip.AddrPortFrom(addrs(1)[family], 5000))
					there := x.b.listenUDP(netip.AddrPortFrom(addrs(2)[family], 5000))
					for _, size := range []int{0, 1, 1280, 4000} {
						if size > localMTU && family == 1 { // the first one tells its sender what size fragments may have
							learn(t, here, there)
							learn(t, there, here)
						}
						payload := bytes.Repeat([]byte{byte(size)}, size)
						exchange(t, here, there, payload)
						exchange(t, there, here, payload)
					}
					segmented(t, here, there, 1000, 40)
					transfer(t, x.a, x.b, family, size)
					transfer(t, x.b, x.a, family, size)
				}
				if s := x.middle.Stats(); s.Relayed.Bytes < uint64(2*size) || s.RxPackets+s.TxPackets > 0 {
					t.Errorf("relayed %+v, %d packets in, %d out", s.Relayed, s.RxPackets, s.TxPackets)
				}
				x.check(t, session.AgainLimit, router.DropTooBig) // the way has changed at the beginning
				for _, p := range append(x.a.PeerStats(), x.b.PeerStats()...) {
					if p.LastError != "" {
						t.Errorf("%s: %s", p.Name, p.LastError)
					}
				}
			})
		}
	}
}

// learn sends datagrams of which the fragments are too large, until the sender's kernel has been told and one arrives.
func learn(t *testing.T, from, to *net.UDPConn) {
	t.Helper()
	in := make([]byte, 65536)
	for i := range 100 {
		payload := bytes.Repeat([]byte{byte(i)}, 4000)
		if _, err := from.WriteTo(payload, to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if err := to.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for {
			n, _, err := to.ReadFrom(in)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(in[:n], payload) {
				return
			}
		}
	}
	t.Fatalf("no fragments of %v arrive at %v", from.LocalAddr(), to.LocalAddr())
}

// A connection goes on while its way changes, in the middle of it, and both ways.
func TestWayChangesOverKernel(t *testing.T) {
	for _, s := range []setup{setups[0], setups[2], setups[3]} {
		t.Run(s.String(), func(t *testing.T) {
			x := newBend(t, s, s, 1500)
			x.relayed(true)
			transfer(t, x.a, x.b, 0, 1<<20) // there are all keys
			stop := make(chan struct{})
			changes := make(chan int)
			go func() {
				n := 0
				for {
					select {
					case <-stop:
						changes <- n
						return
					case <-time.After(150 * time.Millisecond):
						n++
						x.relayed(n%2 == 1)
					}
				}
			}()
			began := time.Now()
			for time.Since(began) < 3*time.Second {
				for family := range 2 {
					transfer(t, x.a, x.b, family, 4<<20)
					transfer(t, x.b, x.a, family, 4<<20)
				}
			}
			close(stop)
			if n := <-changes; n < 5 || x.middle.Stats().Relayed.Packets == 0 {
				t.Errorf("%d changes, %+v relayed", n, x.middle.Stats().Relayed)
			}
			x.check(t, session.AgainLimit, router.DropTooBig)
		})
	}
}

// Behind a relay the link is narrower than at the ends: connections find the size, and go on when it becomes narrower still.
func TestNarrowRelayOverKernel(t *testing.T) {
	for _, s := range []setup{setups[0], setups[3]} {
		t.Run(s.String(), func(t *testing.T) {
			x := newBend(t, s, s, 1500)
			x.relayed(true)
			transfer(t, x.a, x.b, 0, 1<<20)
			for _, mtu := range []int{1400, 1300} {
				x.middle.ns.SetMTU("eth1", mtu)
				x.b.ns.SetMTU("eth0", mtu)
				for family := range 2 {
					transfer(t, x.a, x.b, family, 1<<20)
					transfer(t, x.b, x.a, family, 1<<20)
				}
			}
		})
	}
}

// BenchmarkRelayOverKernel is one TCP stream between two hosts on either side of a third, which forwards their datagrams or relays
// their data, with everything on the processors of this machine. The times are what the threads of the three routers use of the processors for a
// GB of the stream, in ms.
func BenchmarkRelayOverKernel(b *testing.B) {
	for _, suite := range []session.Suite{session.Weft, session.WireGuard} {
		for _, offload := range []offload{all, none} {
			s := setup{offload: offload, shards: 1, suite: suite}
			for _, relayed := range []bool{false, true} {
				b.Run(fmt.Sprintf("%v/relayed=%v", s, relayed), func(b *testing.B) {
					x := newBend(b, s, s, 1500)
					x.relayed(relayed)
					transfer(b, x.a, x.b, 0, 1<<20)
					const size = 256 << 20
					b.SetBytes(size)
					all := map[string]*node{"sender": x.a, "relay": x.middle, "receiver": x.b}
					before := map[string]time.Duration{}
					for name, h := range all {
						before[name] = h.CPUTime()
					}
					n := 0
					for b.Loop() {
						transfer(b, x.a, x.b, 0, size)
						n++
					}
					for name, h := range all {
						used := h.CPUTime() - before[name]
						b.ReportMetric(used.Seconds()*1000/(float64(n)*size/1e9), name+"-ms/GB")
					}
				})
			}
		}
	}
}
