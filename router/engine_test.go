// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
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
				a.queues[0].InjectSuper(packet.VNetHdr{Flags: packet.VNetNeedsCsum, GSOType: packet.VNetGSOTCPv4,
					HdrLen: 40, GSOSize: uint16(mss), CsumStart: 20, CsumOffset: 16}, super)
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
		for _, c := range b.conns {
			c.Move(at(77))
		}
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

// A host whom we have just refused because we did not know it yet is called back as soon as we do.
func TestKnock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		a, b := newHost(t, net, 1, shapes[0]), newHost(t, net, 2, shapes[0])
		a.setPeers(peer(2, shapes[0]))
		a.start()
		b.start()
		defer a.stop()
		defer b.stop()
		p := udp(addr4(1, 9), addr4(2, 9), "waits")
		a.queues[0].Inject(p)
		b.wantDrops(map[router.Reason]uint64{router.DropUnknownPeer: 1})
		b.setPeers(peer(1, shapes[0]))
		time.Sleep(time.Second)
		b.want(p)
		if n := b.log.Len(); n != 0 {
			t.Errorf("a host that had just joined was logged: %v", b.log.All())
		}
	})
}

func TestStrangersAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		a, b := newHost(t, net, 1, shapes[0]), newHost(t, net, 2, shapes[0])
		a.setPeers(peer(2, shapes[0]))
		a.start()
		b.start()
		defer a.stop()
		defer b.stop()
		for range 60 {
			a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "anybody?"))
			time.Sleep(time.Second)
		}
		if n := b.drops()[router.DropUnknownPeer]; n < 5 {
			t.Errorf("%d handshakes were counted", n)
		}
		lines := b.log.All()
		if len(lines) != 1 || lines[0].Message != "handshakes refused: the sender's key belongs to no node of this mesh; if it should, compare tokens and check that it has joined" ||
			lines[0].ContextMap()["from"] != at(1).String() {
			t.Errorf("log: %v", lines)
		}
	})
}

func TestOtherToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		s := shapes[0]
		a := newHost(t, net, 1, s)
		s.psk[0] = 1
		b := newHost(t, net, 2, s)
		a.setPeers(peer(2, s))
		b.setPeers(peer(1, s))
		a.start()
		b.start()
		defer a.stop()
		defer b.stop()
		for range 30 {
			a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "secret"))
			time.Sleep(time.Second)
		}
		b.want()
		if got := a.PeerStats()[0]; got.State != router.Handshaking || got.LastError != "answer does not authenticate: the other side has another token" {
			t.Errorf("state %v, error %q", got.State, got.LastError)
		}
		if lines := a.log.All(); len(lines) != 1 || !strings.Contains(lines[0].Message, "another token") {
			t.Errorf("log: %v", lines)
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

func TestWhatMustNotPass(t *testing.T) {
	inEachShape(t, func(t *testing.T, net *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		third := privateKey(3)
		sender := peer(1, shapes[0])
		sender.Suite = b.PeerStats()[0].Suite
		b.setPeers(sender, router.Peer{Key: third.Public(), Prefixes: prefixes(3)})
		// a sends in the name of others, and to others.
		for _, p := range [][]byte{
			udp(addr4(3, 9), addr4(2, 9), "another peer's source"),
			udp(addr4(2, 8), addr4(2, 9), "the receiver's own source"),
			udp(addr6(3, 9), addr6(2, 9), "another peer's source"),
			udp(netip.MustParseAddr("8.8.8.8"), addr4(2, 9), "nobody's source"),
		} {
			a.queues[0].Inject(p)
		}
		b.want()
		a.setPeers(router.Peer{Key: privateKey(2).Public(), Suite: a.PeerStats()[0].Suite, Endpoints: []netip.AddrPort{at(2)},
			Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}})
		for _, p := range [][]byte{
			udp(addr4(1, 9), addr4(3, 9), "a peer's destination"),
			udp(addr4(1, 9), netip.MustParseAddr("8.8.8.8"), "nobody's destination"),
			udp(addr6(1, 9), addr6(1, 9), "the sender's own destination, by way of us"),
		} {
			a.queues[0].Inject(p)
		}
		b.want()
		b.wantDrops(map[router.Reason]uint64{router.DropSource: 4, router.DropTransit: 2})
	})
}

func TestICMP(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		type c struct {
			name       string
			in         []byte
			proto      byte
			kind, code byte
			mtu        uint16
			reason     router.Reason
		}
		small := peer(2, shapes[0])
		small.Suite = a.PeerStats()[0].Suite
		small.MTU = 1300
		a.setPeers(small)
		for i, c := range []c{
			{"nobody's, v4", udp(addr4(1, 9), addr4(9, 9), "x"), 1, 3, 1, 0, router.DropNoRoute},
			{"nobody's, v6", udp(addr6(1, 9), addr6(9, 9), "x"), 58, 1, 3, 0, router.DropNoRoute},
			{"our own, unused, v4", udp(addr4(1, 9), addr4(1, 99), "x"), 1, 3, 1, 0, router.DropNoWorkload},
			{"our own, unused, v6", udp(addr6(1, 9), addr6(1, 99), "x"), 58, 1, 3, 0, router.DropNoWorkload},
			{"too big, v4", udp(addr4(1, 9), addr4(2, 9), strings.Repeat("x", 1301-28)), 1, 3, 4, 1300, router.DropTooBig},
			{"too big, v6", udp(addr6(1, 9), addr6(2, 9), strings.Repeat("x", 1301-48)), 58, 2, 0, 1300, router.DropTooBig},
		} {
			before := a.drops()[c.reason]
			a.queues[0].Inject(c.in)
			got := a.delivered()
			if len(got) != 1 {
				t.Errorf("%s: %d packets came back", c.name, len(got))
				continue
			}
			var p packet.Packet
			if err := p.Parse(got[0]); err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			gateway, sender, mtuAt := addr4(1, 1), addr4(1, 9), 6
			if p.Src.Is6() {
				gateway, sender, mtuAt = addr6(1, 1), addr6(1, 9), 6
			}
			icmp := got[0][p.HeaderLen:]
			if p.Src != gateway || p.Dst != sender || p.Proto != c.proto || icmp[0] != c.kind || icmp[1] != c.code ||
				c.mtu != 0 && binary.BigEndian.Uint16(icmp[mtuAt:]) != c.mtu {
				t.Errorf("%s: %x came back", c.name, got[0])
			}
			if after := a.drops()[c.reason]; after != before+1 {
				t.Errorf("%d %s: %v counted %d times", i, c.name, c.reason, after-before)
			}
		}
		// What fits or may be fragmented passes.
		fits := udp(addr4(1, 9), addr4(2, 9), strings.Repeat("x", 1300-28))
		mayFragment := udp(addr4(1, 9), addr4(2, 9), strings.Repeat("x", 1400-28))
		mayFragment[6] = 0
		b.delivered()
		a.queues[0].Inject(fits)
		a.queues[0].Inject(mayFragment)
		b.want(fits, mayFragment)
		a.want()
	})
}

func TestICMPIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, routertest.NewNet(1), shapes[0])
		defer a.stop()
		defer b.stop()
		for range 1000 {
			a.queues[0].Inject(udp(addr4(1, 9), addr4(9, 9), "x"))
		}
		if n := len(a.delivered()); n < 10 || n > 100 {
			t.Errorf("%d errors for 1000 packets", n)
		}
		a.wantDrops(map[router.Reason]uint64{router.DropNoRoute: 1000})
		a.SetLocal(router.Local{Prefixes: prefixes(1)})
		time.Sleep(time.Second)
		a.queues[0].Inject(udp(addr4(1, 9), addr4(9, 9), "no gateway to answer from"))
		a.want()
	})
}

func TestMSSIsClamped(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		// Only a knows of a narrow way; it clamps in both directions.
		p := peer(2, shapes[0])
		p.Suite, p.MTU = a.PeerStats()[0].Suite, 1300
		a.setPeers(p)
		mss := func(b []byte) int { return int(binary.BigEndian.Uint16(b[len(b)-2:])) }
		for _, v6 := range []bool{false, true} {
			from, to, want := addr4(1, 9), addr4(2, 9), 1300-40
			if v6 {
				from, to, want = addr6(1, 9), addr6(2, 9), 1300-60
			}
			a.queues[0].Inject(tcp(from, to, 2, 1460, ""))
			b.queues[0].Inject(tcp(to, from, 0x12, 1460, ""))
			for _, h := range []*host{b, a} {
				got := h.delivered()
				if len(got) != 1 || mss(got[0]) != want {
					t.Errorf("host %d got %x, want MSS %d", h.i, got, want)
					continue
				}
				checkSums(t, got[0])
			}
		}
		small := tcp(addr4(1, 9), addr4(2, 9), 2, 500, "")
		a.queues[0].Inject(small)
		b.want(small)
	})
}

func TestNoise(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, _ *host) {
		for _, p := range [][2]string{
			{"fe80::1", "ff02::2"}, {"fe80::1", "ff02::16"}, {"10.32.1.9", "224.0.0.251"}, {"10.32.1.9", "255.255.255.255"},
			{"0.0.0.0", "10.32.2.9"}, {"::", "fd00:77::2:9"}, {"169.254.3.4", "10.32.2.9"}, {"fd00:77::1:9", "fe80::2"},
		} {
			a.queues[0].Inject(udp(netip.MustParseAddr(p[0]), netip.MustParseAddr(p[1]), "noise"))
		}
		a.queues[0].Inject([]byte("not an IP packet at all"))
		a.want()
		a.wantDrops(map[router.Reason]uint64{router.DropNoise: 8, router.DropLocal: 1})
		if a.log.Len() != 0 {
			t.Errorf("log: %v", a.log.All())
		}
	})
}

func TestControl(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		if err := a.SendControl([]byte("gossip"), at(2)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := <-b.gossip; got != "192.0.2.1:6783 gossip" {
			t.Errorf("got %q", got)
		}
		if a.Stats().ControlTx != 1 || b.Stats().ControlRx != 1 {
			t.Errorf("stats %+v, %+v", a.Stats(), b.Stats())
		}
		a.conns[0].SetSendError(routertest.ErrUnreachable)
		if err := a.SendControl(nil, at(2)); !errors.Is(err, routertest.ErrUnreachable) || !strings.HasPrefix(err.Error(), "sending a gossip packet to 192.0.2.2:6783: ") {
			t.Errorf("error %v", err)
		}
	})
}

func TestSendErrors(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		for _, c := range a.conns {
			c.SetSendError(routertest.ErrUnreachable)
		}
		for range 3 {
			a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "lost"))
		}
		a.wantDrops(map[router.Reason]uint64{router.DropSend: 3})
		if got := a.PeerStats()[0].LastError; got != "network is unreachable" {
			t.Errorf("error %q", got)
		}
		for _, c := range a.conns {
			c.SetSendError(nil)
		}
		p := udp(addr4(1, 9), addr4(2, 9), "arrives")
		a.queues[0].Inject(p)
		b.want(p)
	})
}

// A full socket holds packets back in front of the TUN queue; none is lost.
func TestFullSocket(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		for _, c := range a.conns {
			c.SetFull(true)
		}
		var all [][]byte
		for i := range 1000 {
			all = append(all, udp(addr4(1, 9), addr4(2, 9), fmt.Sprint(i)))
			a.queues[0].Inject(all[i])
		}
		// Receiving goes on.
		in := udp(addr4(2, 9), addr4(1, 9), "in")
		b.queues[0].Inject(in)
		a.want(in)
		if n := a.queues[0].Waiting(); n < 900 {
			t.Errorf("%d of 1000 packets are waiting", n)
		}
		time.Sleep(3 * time.Second)
		for _, c := range a.conns {
			c.SetFull(false)
		}
		b.want(all...)
		a.wantDrops(nil)
	})
}

func TestWriteErrors(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		for _, q := range b.queues {
			q.SetWriteError(errors.New("device is down"))
		}
		for range 3000 {
			a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "lost"))
			synctest.Wait()
		}
		b.wantDrops(map[router.Reason]uint64{router.DropWrite: 3000})
		for _, q := range b.queues {
			q.SetWriteError(nil)
		}
		p := udp(addr4(1, 9), addr4(2, 9), "arrives")
		a.queues[0].Inject(p)
		b.want(p)
	})
}

func TestRunEndsWithWhatItNeeds(t *testing.T) {
	for name, closeIt := range map[string]func(*host) error{
		"queue": func(h *host) error { return h.queues[len(h.queues)-1].Close() },
		"conn":  func(h *host) error { return h.conns[len(h.conns)-1].Close() },
	} {
		for _, s := range shapes {
			synctest.Test(t, func(t *testing.T) {
				a := newHost(t, routertest.NewNet(1), 1, s)
				a.start()
				synctest.Wait()
				if err := closeIt(a); err != nil {
					t.Fatal(err)
				}
				err := <-a.ended
				if !errors.Is(err, os.ErrClosed) || !strings.HasPrefix(err.Error(), fmt.Sprintf("router shard %d: ", s.shards-1)) {
					t.Errorf("%s of %v: Run ended with %v", name, s, err)
				}
				a.cancel()
				if err := a.Run(t.Context()); err == nil || err.Error() != "router: Run was called twice" {
					t.Errorf("second Run: %v", err)
				}
			})
		}
	}
}

func TestNewErrors(t *testing.T) {
	net := routertest.NewNet(1)
	q, c := routertest.NewQueue(false), net.Listen(at(1))
	for _, x := range []struct {
		config router.Config
		want   string
	}{
		{router.Config{}, "router: 0 TUN queues and 0 UDP sockets: there must be one of each per shard"},
		{router.Config{TUN: []router.Queue{q}}, "router: 1 TUN queues and 0 UDP sockets: there must be one of each per shard"},
		{router.Config{TUN: []router.Queue{q}, Conns: []router.Conn{c}}, "router: queues and conns without descriptors need a Config.Poll"},
	} {
		if _, err := router.New(x.config); err == nil || err.Error() != x.want {
			t.Errorf("error %v, want %s", err, x.want)
		}
	}
}

func TestSetPeers(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		keep := peer(2, shapes[0])
		keep.Suite = a.PeerStats()[0].Suite
		handshake := a.PeerStats()[0].Handshake

		own := peer(1, shapes[0])
		double := peer(3, shapes[0])
		double.Prefixes = append(double.Prefixes, netip.MustParsePrefix("10.32.2.0/24"))
		invalid := peer(3, shapes[0])
		invalid.Prefixes = []netip.Prefix{{}}
		zero := router.Peer{Name: "zero"}
		suite := keep
		suite.Suite = 9
		for _, c := range []struct {
			peers []router.Peer
			want  string
		}{
			{[]router.Peer{keep, own}, "own key"},
			{[]router.Peer{keep, keep}, "peer host2 (" + keep.Key.String() + ") is given twice"},
			{[]router.Peer{keep, double}, "prefix 10.32.2.0/24 is claimed by both host2 and host3"},
			{[]router.Peer{keep, invalid}, "peer host3: invalid Prefix is not a valid prefix"},
			{[]router.Peer{keep, peer(3, shapes[0]), zero}, "peer zero: "},
			{[]router.Peer{suite}, "peer host2: unknown suite(9)"},
		} {
			if err := a.SetPeers(c.peers); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		}
		// Nothing has changed by these, nor by the same again.
		p := udp(addr4(1, 9), addr4(2, 9), "still the same session")
		keep.Name, keep.Endpoints = "renamed", []netip.AddrPort{at(55)}
		a.setPeers(peer(3, shapes[0]), keep)
		a.queues[0].Inject(p)
		b.want(p)
		s := a.PeerStats()[1]
		if len(a.PeerStats()) != 2 || s.Handshake != handshake || s.Name != "renamed" || s.Endpoint != at(2) {
			t.Errorf("peers: %+v", a.PeerStats())
		}
		// With another suite the session is a new one, to the same place.
		keep.Suite ^= 1
		a.setPeers(keep)
		time.Sleep(6 * time.Second) // b accepts no initiation that is as old as the last
		a.queues[0].Inject(p)
		b.want(p)
		if s := a.PeerStats()[0]; s.State != router.Established || s.Suite != keep.Suite || s.Endpoint != at(2) {
			t.Errorf("peers: %+v", s)
		}
		// Who is gone is gone in both directions.
		a.setPeers()
		a.queues[0].Inject(p)
		b.queues[0].Inject(udp(addr4(2, 9), addr4(1, 9), "to a host that does not know us"))
		b.want()
		if got := a.delivered(); len(got) != 1 || got[0][9] != 1 {
			t.Errorf("got %x, want one ICMP error", got)
		}
		if d := a.drops(); d[router.DropNoRoute] != 1 || d[router.DropIndex] == 0 {
			t.Errorf("drops %v", d)
		}
	})
}

func TestLocalGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, routertest.NewNet(1), shapes[0])
		defer a.stop()
		defer b.stop()
		both := append(prefixes(1), prefixes(2)[0], netip.Prefix{})
		a.SetLocal(router.Local{Prefixes: both})
		a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "ours for now"))
		a.wantDrops(map[router.Reason]uint64{router.DropNoWorkload: 1})
		a.SetLocal(router.Local{Prefixes: slices.Clone(prefixes(1))})
		p := udp(addr4(1, 9), addr4(2, 9), "theirs again")
		a.queues[0].Inject(p)
		b.want(p)
	})
}
