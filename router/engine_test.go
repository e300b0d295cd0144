// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// inEachShape runs f with two hosts that know each other, under virtual time.
func inEachShape(t *testing.T, f func(t *testing.T, net *routertest.Net, a, b *host)) {
	for _, s := range shapes {
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := routertest.NewNet(1)
				a, b := pair(t, net, s)
				defer a.stop()
				defer b.stop()
				f(t, net, a, b)
			})
		})
	}
}

func TestPacketsCross(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		// The first packets wait for the key, and come in order.
		var there [][]byte
		for i := range 10 {
			there = append(there, udp(addr4(1, 9), addr4(2, 9), fmt.Sprint("there ", i)), udp(addr6(1, 9), addr6(2, 9), strings.Repeat("x", i)))
		}
		for _, p := range there {
			a.queues[0].Inject(p)
		}
		b.want(there...)
		back := udp(addr4(2, 9), addr4(1, 9), strings.Repeat("back", 300))
		b.queues[len(b.queues)-1].Inject(back)
		a.want(back)
		a.wantDrops(nil)
		b.wantDrops(nil)

		s := a.PeerStats()[0]
		if s.State != router.Established || s.Name != "host2" || s.Endpoint != at(2) || !s.Heard || s.Handshake.IsZero() ||
			s.TxPackets != 20 || s.RxPackets != 1 || s.RxBytes != uint64(len(back)) || s.LastError != "" {
			t.Errorf("peer stats: %+v", s)
		}
		if s := b.Stats(); s.RxPackets != 20 || s.TxPackets != 1 || s.Handshakes == 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestSuperpackets(t *testing.T) {
	for _, s := range shapes {
		if !s.vnet {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			net := routertest.NewNet(1)
			a, b := pair(t, net, s)
			defer a.stop()
			defer b.stop()
			establish(a, b)
			b.delivered()
			payload := make([]byte, 60000)
			for i := range payload {
				payload[i] = byte(rand.Uint32())
			}
			for _, mss := range []int{1360, 1000, 88} { // the last makes more segments than a batch has
				super := tcp(addr4(1, 9), addr4(2, 9), 0x18, 0, string(payload))
				// A partial checksum: the sum of the pseudo header.
				binary.BigEndian.PutUint16(super[36:], pseudo(addr4(1, 9), addr4(2, 9), 6, len(super)-20))
				a.queues[0].InjectSuper(packet.VNetHdr{
					Flags: packet.VNetNeedsCsum, GSOType: packet.VNetGSOTCPv4,
					HdrLen: 40, GSOSize: uint16(mss), CsumStart: 20, CsumOffset: 16,
				}, super)
				var got []byte
				all := b.delivered()
				for _, segment := range all {
					checkSums(t, segment)
					if seq := binary.BigEndian.Uint32(segment[24:]); seq != uint32(1+len(got)) {
						t.Fatalf("segment at %d where %d was due", seq, 1+len(got))
					}
					got = append(got, segment[40:]...)
				}
				if !bytes.Equal(got, payload) || len(all) != (len(payload)+mss-1)/mss {
					t.Errorf("mss %d: %d bytes in %d segments arrived", mss, len(got), len(all))
				}
			}
			a.wantDrops(nil)
		})
	}
}

func TestBadNetwork(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			net := routertest.NewNet(seed)
			net.SetFaults(routertest.Faults{Loss: 0.3, Duplicate: 0.2, Late: 0.2})
			a, b := pair(t, net, shapes[seed%4])
			defer a.stop()
			defer b.stop()
			sent := map[string]bool{}
			for i := range 600 { // 10 minutes, so a few keys
				p := udp(addr4(1, 9), addr4(2, 9), fmt.Sprint(i))
				sent[string(p)] = true
				a.queues[0].Inject(p)
				b.queues[0].Inject(udp(addr6(2, 9), addr6(1, 9), fmt.Sprint(i)))
				time.Sleep(time.Second)
			}
			got := b.delivered()
			for _, p := range got {
				if !sent[string(p)] {
					t.Fatalf("seed %d: arrived twice or was never sent: %x", seed, p)
				}
				delete(sent, string(p))
			}
			if len(got) < 300 {
				t.Errorf("seed %d: only %d of 600 packets arrived", seed, len(got))
			}
		})
	}
}

func TestRekeyLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, routertest.NewNet(1), shapes[1])
		defer a.stop()
		defer b.stop()
		for i := range 1000 {
			there := udp(addr4(1, 9), addr4(2, 9), fmt.Sprint(i))
			back := udp(addr4(2, 9), addr4(1, 9), fmt.Sprint(i))
			a.queues[0].Inject(there)
			b.want(there)
			b.queues[0].Inject(back)
			a.want(back)
			time.Sleep(time.Second)
		}
		a.wantDrops(nil)
		b.wantDrops(nil)
	})
}

// A host that lost its keys by a restart tells the peers who go on using them.
func TestRestart(t *testing.T) {
	inEachShape(t, func(t *testing.T, net *routertest.Net, a, b *host) {
		establish(a, b)
		b.stop()
		again := newHost(t, net, 2, shape{shards: 1, suite: session.Weft})
		again.setPeers(peer(1, shape{suite: session.Weft}))
		again.start()
		defer again.stop()
		lost := udp(addr4(1, 9), addr4(2, 9), "lost")
		a.queues[0].Inject(lost)
		again.want()
		a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "arrives"))
		again.want(udp(addr4(1, 9), addr4(2, 9), "arrives"))
		again.wantDrops(map[router.Reason]uint64{router.DropIndex: 1})
	})
}

func TestGreet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		a := newHost(t, net, 1, shapes[0])
		var peers []router.Peer
		for i := range 50 {
			peers = append(peers, peer(i+2, shapes[0]))
		}
		peers[7].Endpoints = nil
		a.setPeers(peers...)
		called := map[netip.AddrPort]int{}
		net.SetFilter(func(_, to netip.AddrPort, b []byte) bool {
			if b[0] == session.TypeInitiation {
				called[to]++
			}
			return true
		})
		a.Greet()
		a.start()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(called) != 49 {
			t.Errorf("%d peers were called, want 49", len(called))
		}
		for to, n := range called {
			if n != 1 {
				t.Errorf("%v was called %d times", to, n)
			}
		}
		a.stop()
	})
}

func TestRoaming(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.move(at(77))
		moved := udp(addr4(2, 9), addr4(1, 9), "moved")
		b.queues[0].Inject(moved)
		a.want(moved)
		if got := a.PeerStats()[0].Endpoint; got != at(77) {
			t.Errorf("endpoint %v, want %v", got, at(77))
		}
		reply := udp(addr4(1, 9), addr4(2, 9), "reply")
		a.queues[0].Inject(reply)
		b.want(reply)
	})
}

func TestCandidatesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		a, b := newHost(t, net, 1, shapes[0]), newHost(t, net, 2, shapes[0])
		p := peer(2, shapes[0])
		p.ID = 0 // no node: nobody answers pings
		p.Endpoints = []netip.AddrPort{at(101), {}, at(102), at(102), at(2)}
		a.setPeers(p)
		b.setPeers(peer(1, shapes[0]))
		a.start()
		b.start()
		defer a.stop()
		defer b.stop()
		start := time.Now()
		var first time.Duration
		for i := range 20 {
			a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), fmt.Sprint(i)))
			synctest.Wait()
			if first == 0 && len(b.delivered()) > 0 {
				first = time.Since(start)
			}
			time.Sleep(time.Second)
		}
		// Two attempts in vain, each with up to a third of a second of jitter.
		if first < 10*time.Second || first > 12*time.Second {
			t.Errorf("the third candidate was reached after %v", first)
		}
	})
}

func TestQueueForKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		a := newHost(t, net, 1, shapes[0])
		a.setPeers(peer(2, shapes[0]))
		a.start()
		defer a.stop()
		var all [][]byte
		for i := range session.MaxQueued + 20 {
			all = append(all, udp(addr4(1, 9), addr4(2, 9), fmt.Sprint(i)))
			a.queues[0].Inject(all[i])
		}
		a.wantDrops(map[router.Reason]uint64{router.DropQueue: 20})
		time.Sleep(time.Second)
		b := newHost(t, net, 2, shapes[0])
		b.setPeers(peer(1, shapes[0]))
		b.start()
		defer b.stop()
		time.Sleep(6 * time.Second) // a retries
		b.want(all[20:]...)

		// What waits too long is not sent any more.
		net.SetFilter(func(_, _ netip.AddrPort, _ []byte) bool { return false })
		time.Sleep(10 * time.Minute)
		a.queues[0].Inject(all[0])
		time.Sleep(30 * time.Second)
		net.SetFilter(nil)
		time.Sleep(time.Minute)
		b.want()
		a.wantDrops(map[router.Reason]uint64{router.DropQueue: 20, router.DropStale: 1})
	})
}
