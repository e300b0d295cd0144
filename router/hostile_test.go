// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// tap records what crosses a network.
type tap struct {
	mu  sync.Mutex
	all map[byte][][]byte // by type
}

func newTap(net *routertest.Net) *tap {
	x := &tap{all: map[byte][][]byte{}}
	net.SetFilter(func(_, _ netip.AddrPort, b []byte) bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.all[b[0]] = append(x.all[b[0]], slices.Clone(b))
		return true
	})
	return x
}

func (x *tap) last(kind byte) []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.all[kind][len(x.all[kind])-1])
}

func (x *tap) count(kind byte) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.all[kind])
}

func TestBadDatagrams(t *testing.T) {
	inEachShape(t, func(t *testing.T, net *routertest.Net, a, b *host) {
		wire := newTap(net)
		establish(a, b)
		a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "the last of a"))
		b.delivered()
		data := wire.last(session.TypeData)
		initiation := wire.last(session.TypeInitiation)
		endpoint := b.PeerStats()[0].Endpoint
		stranger := at(66)

		inject := func(d []byte) { net.Inject(stranger, at(2), d) }
		cases := []struct {
			name   string
			d      []byte
			reason router.Reason
		}{
			{"empty", nil, router.DropShort},
			{"only a type", []byte{session.TypeData}, router.DropShort},
			{"data without a tag", data[:session.Overhead-1], router.DropShort},
			{"data cut short", data[:len(data)-1], router.DropAuth},
			{"data with more behind", append(slices.Clone(data), 0), router.DropAuth},
			{"data replayed", data, router.DropReplay},
			{"initiation cut short", initiation[:147], router.DropShort},
			{"initiation replayed", initiation, router.DropReplay},
			{"response out of nowhere", append([]byte{session.TypeResponse, 0, 0, 0}, make([]byte, session.ResponseSize-4)...), router.DropIndex},
			{"cookie out of nowhere", append([]byte{session.TypeCookie, 0, 0, 0}, make([]byte, session.CookieSize-4)...), router.DropIndex},
			{"a handshake for somebody else", append([]byte{session.TypeInitiation, 0, 0, 0}, make([]byte, session.InitiationSize-4)...), router.DropMAC1},
			{"type 0", make([]byte, 100), router.DropType},
			{"type 5", append([]byte{5}, make([]byte, 100)...), router.DropType},
			{"type 255", append([]byte{255}, make([]byte, 100)...), router.DropType},
			{"unknown index", append([]byte{session.TypeData, 0, 0, 0, 1, 2, 3, 4}, make([]byte, 100)...), router.DropIndex},
			{"too long", append([]byte{session.TypeData}, make([]byte, 20000)...), router.DropLong},
		}
		for _, c := range cases {
			before := b.drops()
			inject(c.d)
			after := b.drops()
			if after[c.reason] != before[c.reason]+1 {
				t.Errorf("%s: drops went from %v to %v, want one more of %v", c.name, before, after, c.reason)
			}
		}
		for i := range data {
			d := slices.Clone(data)
			d[i] ^= 1 << rand.N(8)
			inject(d)
		}
		for i := range initiation {
			d := slices.Clone(initiation)
			d[i] ^= 1 << rand.N(8)
			inject(d)
		}
		b.want()
		if got := b.PeerStats()[0].Endpoint; got != endpoint {
			t.Errorf("a forged datagram moved the endpoint to %v", got)
		}
		// One source, one line.
		if n := b.log.FilterField(zapFrom(stranger)).Len(); n != 1 {
			t.Errorf("%d lines: %v", n, b.log.All())
		}
		p := udp(addr4(1, 9), addr4(2, 9), "after all that")
		a.queues[0].Inject(p)
		b.want(p)
	})
}

// What a peer seals may be anything; only packets get through.
func TestBadPlaintext(t *testing.T) {
	for _, suite := range []session.Suite{session.WireGuard, session.Weft} {
		synctest.Test(t, func(t *testing.T) {
			s := shape{shards: 1, vnet: true, suite: suite}
			net := routertest.NewNet(1)
			b := newHost(t, net, 2, s)
			b.setPeers(peer(1, s))
			b.start()
			defer b.stop()

			// The peer is a session without a router.
			rng := rand.NewChaCha8([32]byte{1})
			m, err := session.New(session.Config{Private: privateKey(1), Rand: rng})
			if err != nil {
				t.Fatal(err)
			}
			p, err := m.AddPeer(session.PeerConfig{Public: privateKey(2).Public(), Suite: suite})
			if err != nil {
				t.Fatal(err)
			}
			wire := newTap(net)
			msg, ok := p.Initiate(nil, time.Now())
			if !ok {
				t.Fatal("no initiation")
			}
			net.Inject(at(1), at(2), msg)
			synctest.Wait()
			res, err := m.Receive(nil, wire.last(session.TypeResponse), at(2), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			net.Inject(at(1), at(2), res.Reply)
			synctest.Wait()

			good := udp(addr4(1, 9), addr4(2, 9), "a good packet")
			long := bytes.Clone(good)
			long[3] = 255
			plains := [][]byte{{0}, {0x45}, good[:19], long, make([]byte, 1400), append([]byte{0x60}, make([]byte, 30)...)}
			for range 200 {
				junk := make([]byte, rand.N(100)+1)
				_, _ = rng.Read(junk)
				plains = append(plains, junk)
			}
			for _, plain := range plains {
				d, err := p.Key(time.Now()).Seal(nil, plain)
				if err != nil {
					t.Fatal(err)
				}
				net.Inject(at(1), at(2), d)
			}
			b.want()
			d := b.drops()
			if n := d[router.DropMalformed] + d[router.DropSource] + d[router.DropRelayFrame]; n != uint64(len(plains)) || d[router.DropMalformed] < 6 {
				t.Errorf("drops %v for %d packets", d, len(plains))
			}
			if suite == session.Weft { // checksums said to be open that cannot be
				before := d[router.DropMalformed]
				fragment, short, icmp := bytes.Clone(good), bytes.Clone(good[:20]), bytes.Clone(good)
				fragment[6] = 0x20
				short[3] = 20
				icmp[9] = 1
				for _, plain := range [][]byte{fragment, short, icmp} {
					d, err := p.Key(time.Now()).SealFlags(nil, plain, session.OpenChecksum)
					if err != nil {
						t.Fatal(err)
					}
					net.Inject(at(1), at(2), d)
				}
				b.want()
				if n := b.drops()[router.DropMalformed] - before; n != 3 {
					t.Errorf("%d of 3 were dropped", n)
				}
			}
			sealed, err := p.Key(time.Now()).Seal(nil, good)
			if err != nil {
				t.Fatal(err)
			}
			net.Inject(at(1), at(2), sealed)
			b.want(good)
		})
	}
}

// Data for sessions that we do not have, in any number, makes us begin one handshake with
// the peer whose address it bears, and none with others.
func TestStrangersDoNotMakeUsShout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		wire := newTap(net)
		b := newHost(t, net, 2, shapes[0])
		b.setPeers(peer(1, shapes[0]))
		b.start()
		defer b.stop()
		junk := append([]byte{session.TypeData, 0, 0, 0, 9, 9, 9, 9}, make([]byte, 64)...)
		for range 1000 {
			net.Inject(at(66), at(2), junk)
		}
		synctest.Wait()
		if n := wire.count(session.TypeInitiation); n != 0 {
			t.Errorf("%d initiations for a stranger", n)
		}
		for range 1000 {
			net.Inject(at(1), at(2), junk)
		}
		synctest.Wait()
		if n := wire.count(session.TypeInitiation); n != 1 {
			t.Errorf("%d initiations, want 1", n)
		}
		if b.log.Len() != 0 {
			t.Errorf("log: %v", b.log.All())
		}
	})
}

func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := routertest.NewNet(1)
		b := newHost(t, net, 2, shapes[0])
		b.start()
		defer b.stop()
		forged := append([]byte{session.TypeInitiation, 0, 0, 0}, make([]byte, session.InitiationSize-4)...)
		flood := func(from byte) {
			for i := range 5000 {
				net.Inject(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, from, byte(i >> 8), byte(i)}), 1), at(2), forged)
				if i%1000 == 0 {
					synctest.Wait()
				}
			}
			synctest.Wait()
		}
		flood(18)
		if n := b.log.Len(); n != 1024 {
			t.Errorf("%d lines, want 1024", n)
		}
		time.Sleep(5 * time.Minute)
		flood(19)
		if n := b.log.Len(); n != 1024 {
			t.Errorf("%d lines, want 1024", n)
		}
		time.Sleep(10 * time.Minute)
		flood(20)
		if n := b.log.Len(); n != 2048 {
			t.Errorf("%d lines, want 2048", n)
		}
		b.wantDrops(map[router.Reason]uint64{router.DropMAC1: 15000})
	})
}
