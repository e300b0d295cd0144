// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// clientOf is a client that joins by host i: a router of its own, which knows that host as the way to everything.
type clientOf struct {
	*host
	addr4, addr6 netip.Addr
	psk          session.PresharedKey
}

// newClient makes client n of host i, which has lent it the n-th address of its range. change may alter how it is built.
func newClient(t *testing.T, net *routertest.Net, i, n int, change func(*shape)) *clientOf {
	t.Helper()
	s := shape{shards: 1, psk: session.PresharedKey{0: byte(n), 1: 0xee}}
	c := &clientOf{addr4: addr4(i, n), addr6: addr6(i, n), psk: s.psk}
	if change != nil {
		change(&s)
	}
	c.host = newHost(t, net, n, s)
	c.SetLocal(router.Local{Prefixes: single(c.addr4, c.addr6), MTU: 1280})
	c.setPeers(router.Peer{
		Key: privateKey(i).Public(), Name: "way in", Endpoints: []netip.AddrPort{at(i)}, Suite: s.suite,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
	})
	return c
}

func single(addrs ...netip.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// peer describes the client to its host.
func (c *clientOf) peer() router.Peer {
	return router.Peer{
		Key: c.private.Public(), Name: "client", External: true, Preshared: c.psk, MTU: 1280,
		Suite: session.WireGuard, Prefixes: single(c.addr4, c.addr6),
	}
}

// kernel forwards what the host delivers until nothing comes any more, as the kernel forwards what is not for the host
// itself: back into the device. It returns how many packets those were.
func (h *host) kernel(own ...netip.Addr) (forwarded int, kept [][]byte) {
	for {
		all := h.delivered()
		if len(all) == 0 {
			return forwarded, kept
		}
		for _, p := range all {
			dst, _ := netip.AddrFromSlice(p[16:20])
			if p[0]>>4 == 6 {
				dst, _ = netip.AddrFromSlice(p[24:40])
			}
			if slices.Contains(own, dst) {
				kept = append(kept, p)
				continue
			}
			forwarded++
			h.queues[0].Inject(p)
		}
	}
}

func TestExternalPeers(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s.psk[5] = 7
				net := routertest.NewNet(1)
				a, b := newHost(t, net, 1, s), newHost(t, net, 2, s)
				x, y := newClient(t, net, 1, 50, nil), newClient(t, net, 1, 51, nil)
				z := newClient(t, net, 2, 60, nil)
				a.setPeers(peer(2, s), x.peer(), y.peer())
				b.setPeers(peer(1, s), z.peer())
				for _, h := range []*host{a, b, x.host, y.host, z.host} {
					h.start()
					defer h.stop()
				}
				type end struct {
					on     *host // where its packets come out
					v4, v6 netip.Addr
				}
				ends := []end{
					{a, addr4(1, 9), addr6(1, 9)},
					{b, addr4(2, 9), addr6(2, 9)},
					{x.host, x.addr4, x.addr6},
					{y.host, y.addr4, y.addr6},
					{z.host, z.addr4, z.addr6},
				}
				// carry sends one packet and lets the kernels of both nodes forward what they get.
				carry := func(from, to end, p []byte) (arrived bool) {
					from.on.queues[0].Inject(p)
					for range 4 {
						synctest.Wait()
						for _, node := range []end{ends[0], ends[1]} {
							_, kept := node.on.kernel(node.v4, node.v6)
							arrived = arrived || node.on == to.on && len(kept) == 1 && string(kept[0]) == string(p)
						}
					}
					if to.on != a && to.on != b {
						got := to.on.delivered()
						arrived = len(got) == 1 && string(got[0]) == string(p)
					}
					return arrived
				}
				// Clients call: nobody knows where they are before.
				for _, c := range ends[2:] {
					if to := ends[0]; c.on == z.host {
						carry(c, ends[1], udp(c.v4, ends[1].v4, "first"))
					} else {
						carry(c, to, udp(c.v4, to.v4, "first"))
					}
				}
				time.Sleep(time.Second)
				for i, from := range ends {
					for j, to := range ends {
						if i == j {
							continue
						}
						p4, p6 := udp(from.v4, to.v4, "over v4"), udp(from.v6, to.v6, "over v6")
						if !carry(from, to, p4) || !carry(from, to, p6) {
							t.Errorf("from end %d nothing reaches end %d; drops at a %v, at b %v", i, j, a.drops(), b.drops())
						}
					}
				}
				for _, p := range slices.Concat(a.PeerStats(), b.PeerStats()) {
					want := session.WireGuard
					if p.Name != "client" {
						want = s.suite
					}
					if p.Suite != want || p.State != router.Established {
						t.Errorf("session with %s: %v in suite %v", p.Name, p.State, p.Suite)
					}
				}
			})
		})
	}
}

func TestWhatExternalPeersMustNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		s := shape{shards: 1, suite: session.Weft, psk: session.PresharedKey{9: 9}}
		a, b := newHost(t, net, 1, s), newHost(t, net, 2, s)
		x, y := newClient(t, net, 1, 50, nil), newClient(t, net, 1, 51, nil)
		a.setPeers(peer(2, s), x.peer(), y.peer(), peer(3, s))
		b.setPeers(peer(1, s))
		for _, h := range []*host{a, b, x.host, y.host} {
			h.start()
			defer h.stop()
		}
		hello := udp(x.addr4, addr4(1, 9), "hello")
		x.queues[0].Inject(hello)
		a.want(hello)
		for _, p := range [][]byte{
			udp(addr4(1, 9), addr4(2, 9), "a workload's source"),
			udp(addr4(1, 1), addr4(2, 9), "the host's source"),
			udp(addr4(2, 9), addr4(1, 9), "another node's source"),
			udp(y.addr4, addr4(1, 9), "another client's source"),
			udp(addr6(1, 9), addr6(2, 9), "a workload's source"),
			udp(netip.MustParseAddr("8.8.8.8"), addr4(1, 9), "nobody's source"),
		} {
			x.queues[0].Inject(p)
		}
		a.want()
		a.wantDrops(map[router.Reason]uint64{router.DropSource: 6})
		for _, p := range [][]byte{
			udp(x.addr4, netip.MustParseAddr("8.8.8.8"), "out of the mesh"),
			udp(x.addr6, netip.MustParseAddr("2001:db8::1"), "out of the mesh"),
			udp(x.addr4, addr4(9, 9), "to nobody"),
		} {
			x.queues[0].Inject(p)
		}
		a.want()
		a.wantDrops(map[router.Reason]uint64{router.DropSource: 6, router.DropTransit: 3})
		// Between nodes there is no transit, with clients or without.
		b.setPeers(router.Peer{
			Key: privateKey(1).Public(), Suite: s.suite, Endpoints: []netip.AddrPort{at(1)},
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/16")},
		})
		b.queues[0].Inject(udp(addr4(2, 9), addr4(3, 9), "to another node"))
		a.want()
		// A node does not speak for a client either.
		b.SetLocal(router.Local{Prefixes: append(prefixes(2), single(x.addr4)...)})
		b.queues[0].Inject(udp(x.addr4, addr4(1, 9), "a client's source"))
		a.want()
		a.wantDrops(map[router.Reason]uint64{router.DropSource: 7, router.DropTransit: 4})
	})
}

// Clients take no room from the pieces of nodes.
func TestExternalPeersSendNoPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		a := newHost(t, net, 1, shape{shards: 1})
		x := newClient(t, net, 1, 50, nil) // which is no stock one
		a.setPeers(x.peer())
		for _, h := range []*host{a, x.host} {
			h.start()
			defer h.stop()
		}
		net.SetWidth(sealedLen(1008))
		x.queues[0].Inject(udp(x.addr6, addr6(1, 9), "hello"))
		time.Sleep(2 * time.Second)
		x.wantPath(1008, true)
		a.delivered()
		x.queues[0].Inject(sized(x.addr6, addr6(1, 9), 1280))
		a.want()
		a.wantDrops(map[router.Reason]uint64{router.DropMalformed: 2})
	})
}

// A client has neither the mesh's pre-shared key nor its suite, nor can it get by with them.
func TestExternalPeersAreNoNodes(t *testing.T) {
	mesh := session.PresharedKey{9: 9}
	for name, c := range map[string]struct {
		change func(*shape)
		reason router.Reason
	}{
		"the mesh's key":       {func(s *shape) { s.psk = mesh }, 0},
		"no key":               {func(s *shape) { s.psk = session.PresharedKey{} }, 0},
		"another client's key": {func(s *shape) { s.psk[0] = 51 }, 0},
		"suite weft":           {func(s *shape) { s.suite = session.Weft }, router.DropSuite},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := routertest.NewNet(1)
				a := newHost(t, net, 1, shape{shards: 1, suite: session.Weft, psk: mesh})
				x, y := newClient(t, net, 1, 50, c.change), newClient(t, net, 1, 51, nil)
				a.setPeers(x.peer(), y.peer())
				for _, h := range []*host{a, x.host, y.host} {
					h.start()
					defer h.stop()
				}
				for range 20 {
					x.queues[0].Inject(udp(x.addr4, addr4(1, 9), "let me in"))
					time.Sleep(time.Second)
				}
				a.want()
				if st := a.PeerStats()[0]; st.State == router.Established || !st.Handshake.IsZero() {
					t.Errorf("there is a session: %+v", st)
				}
				if c.reason != 0 && a.drops()[c.reason] == 0 {
					t.Errorf("drops %v, want some for %v", a.drops(), c.reason)
				}
				p := udp(y.addr4, addr4(1, 9), "the other client is as before")
				y.queues[0].Inject(p)
				a.want(p)
			})
		})
	}
}

func TestSetExternalPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		s := shape{shards: 1, psk: session.PresharedKey{9: 9}}
		a, x := newHost(t, net, 1, s), newClient(t, net, 1, 50, nil)
		a.start()
		x.start()
		defer a.stop()
		defer x.stop()
		good := x.peer()
		with := func(change func(*router.Peer)) router.Peer {
			p := good
			change(&p)
			return p
		}
		for _, c := range []struct {
			peer router.Peer
			want string
		}{
			{with(func(p *router.Peer) { p.Preshared = session.PresharedKey{} }), "external peer client: it has no pre-shared key"},
			{with(func(p *router.Peer) { p.Preshared = s.psk }), "external peer client: its pre-shared key is the mesh's"},
			{with(func(p *router.Peer) { p.Suite = session.Weft }), "external peer client: it cannot speak aes-256-gcm"},
			{with(func(p *router.Peer) { p.External = false }), "peer client: only an external peer has a pre-shared key of its own"},
		} {
			if err := a.SetPeers([]router.Peer{peer(2, s), c.peer}); err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		}
		if err := a.SetPeers([]router.Peer{peer(2, s), good, with(func(p *router.Peer) { p.External, p.Preshared = false, session.PresharedKey{} })}); err == nil || !strings.Contains(err.Error(), "is given twice") {
			t.Errorf("a client that is a node as well: %v", err)
		}

		p, q := udp(x.addr4, addr4(1, 9), "up"), udp(addr4(1, 9), x.addr4, "down")
		both := func(when string, works bool) {
			t.Helper()
			time.Sleep(6 * time.Second) // between handshakes
			for range 2 {
				x.queues[0].Inject(p)
				time.Sleep(time.Second)
			}
			up := slices.ContainsFunc(a.delivered(), func(b []byte) bool { return string(b) == string(p) })
			a.queues[0].Inject(q)
			down := slices.ContainsFunc(x.delivered(), func(b []byte) bool { return string(b) == string(q) })
			a.delivered()
			if up != works || down != works {
				t.Errorf("%s: up %v, down %v", when, up, down)
			}
		}
		a.setPeers(good)
		both("added", true)
		since := a.PeerStats()[0].Handshake
		a.setPeers(good, peer(2, s))
		both("with another peer", true)
		if a.PeerStats()[0].Handshake != since {
			t.Error("its session did not outlive the change of another peer")
		}
		// The host's own range may be no larger than the client's address.
		a.SetLocal(router.Local{Prefixes: single(x.addr4, x.addr6, addr4(1, 9)), MTU: localMTU})
		both("with blocks of one address", true)
		a.SetLocal(router.Local{Prefixes: prefixes(1), MTU: localMTU})
		both("as before", true)
		a.setPeers(with(func(p *router.Peer) { p.Preshared[7] ^= 1 }))
		both("with another key", false)
		a.setPeers(with(func(p *router.Peer) { p.External, p.Preshared = false, session.PresharedKey{} }))
		both("as a node", false)
		a.setPeers(good)
		both("as a client again", true)
		a.setPeers()
		x.queues[0].Inject(p)
		a.queues[0].Inject(q)
		for _, b := range a.delivered() { // an ICMP error for what we sent may be there
			if b[9] != 1 {
				t.Errorf("removed, it is heard: %x", b)
			}
		}
		x.want()
		both("removed", false)
	})
}

// What is too large for a client is refused with what fits, and TCP is told beforehand.
func TestExternalMTU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		s := shape{shards: 1}
		a, b := newHost(t, net, 1, s), newHost(t, net, 2, s)
		x := newClient(t, net, 1, 50, nil)
		a.setPeers(peer(2, s), x.peer())
		b.setPeers(peer(1, s))
		for _, h := range []*host{a, b, x.host} {
			h.start()
			defer h.stop()
		}
		hello := udp(x.addr4, addr4(1, 9), "hello")
		x.queues[0].Inject(hello)
		a.want(hello)
		x.queues[0].Inject(tcp(x.addr4, addr4(1, 9), 2, 1460, ""))
		got := a.delivered()
		if len(got) != 1 || got[0][len(got[0])-2] != (1280-40)>>8 || got[0][len(got[0])-1] != (1280-40)&0xff {
			t.Errorf("the MSS of a client was not clamped: %x", got)
		}
		big := udp(addr4(2, 9), x.addr4, strings.Repeat("x", 1300))
		b.queues[0].Inject(big)
		a.kernel()
		got = b.delivered()
		if len(got) != 1 || got[0][9] != 1 || got[0][20] != 3 || got[0][21] != 4 || int(got[0][26])<<8|int(got[0][27]) != 1280 {
			t.Errorf("the sender on the other node was told %x, want that 1280 fit", got)
		}
		x.want()
	})
}
