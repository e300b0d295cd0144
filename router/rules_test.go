// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/routertest"
)

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
		a.setPeers(router.Peer{
			Key: privateKey(2).Public(), Suite: a.PeerStats()[0].Suite, Endpoints: []netip.AddrPort{at(2)},
			Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		})
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
		// What fits passes, and what may be fragmented is.
		fits := udp(addr4(1, 9), addr4(2, 9), strings.Repeat("x", 1300-28))
		mayFragment := udp(addr4(1, 9), addr4(2, 9), strings.Repeat("x", 1400-28))
		mayFragment[6] = 0
		b.delivered()
		a.queues[0].Inject(fits)
		a.queues[0].Inject(mayFragment)
		b.want(append([][]byte{fits}, fragments(t, mayFragment, 1300)...)...)
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
			{"fe80::1", "ff02::2"},
			{"fe80::1", "ff02::16"},
			{"10.32.1.9", "224.0.0.251"},
			{"10.32.1.9", "255.255.255.255"},
			{"0.0.0.0", "10.32.2.9"},
			{"::", "fd00:77::2:9"},
			{"169.254.3.4", "10.32.2.9"},
			{"fd00:77::1:9", "fe80::2"},
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
