// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
)

// What a host relays stays within its limit, over all shards, whoever asks; and it is used.
func TestRelayLimit(t *testing.T) {
	for _, s := range shapes {
		for _, limit := range []uint64{1e6, 20e6} {
			synctest.Test(t, func(t *testing.T) {
				w := chain(t, 3, s, func(i int, c *router.Config) {
					if i == 2 {
						c.RelayLimit = limit
					}
				})
				defer w.stop()
				a, b, middle := w.hosts[1], w.hosts[3], w.hosts[2]
				establish(a, b)
				b.delivered()
				const span = 6 * time.Second
				gap := time.Duration(float64(1500*8) / float64(limit) * float64(time.Second)) // of either: a third more in all than may pass
				stopA, stopB := a.count(3, gap, 900), b.count(1, gap, 900)
				before := middle.Stats()
				time.Sleep(span)
				after := middle.Stats()
				stopA()
				stopB()
				a.delivered()
				b.delivered()
				rate := float64(after.Relayed.Bytes-before.Relayed.Bytes) * 8 / span.Seconds()
				if rate > 1.1*float64(limit) || rate < 0.9*float64(limit) {
					t.Errorf("%v: relayed %.0f bit/s of %d; %v, %v", s, rate, limit, middle.drops(), a.drops())
				}
				if after.Drops[router.DropRelayLimit] == 0 {
					t.Errorf("%v: nothing was dropped", s)
				}
			})
		}
	}
}

// Where far more is sent than a relay passes on, that is not taken for a path that loses large packets, and sessions go on.
func TestRelayLimitSparesProbes(t *testing.T) {
	for _, s := range shapes[1:3] {
		synctest.Test(t, func(t *testing.T) {
			w := chain(t, 3, s, func(i int, c *router.Config) {
				if i == 2 {
					c.RelayLimit = 500e3
				}
			})
			defer w.stop()
			a, b := w.hosts[1], w.hosts[3]
			establish(a, b)
			stopA, stopB := a.count(3, 8*time.Millisecond, 1250), b.count(1, 8*time.Millisecond, 1250) // five times as much
			time.Sleep(140 * time.Second)
			stopA()
			stopB()
			for _, h := range []*host{a, b} {
				if p := h.towards(4 - h.i); p.MTU != relayedMTU(3) || p.State != router.Established || time.Since(p.Handshake) > 130*time.Second {
					t.Errorf("%v: host %d: %+v", s, h.i, p)
				}
				h.delivered()
			}
		})
	}
}

// A host that does not relay passes nothing on, and is reached as ever.
func TestNoRelay(t *testing.T) {
	inEachShapeOf := func(f func(t *testing.T, w *web)) {
		for _, s := range shapes {
			synctest.Test(t, func(t *testing.T) {
				w := chain(t, 3, s, func(i int, c *router.Config) { c.NoRelay = i == 2 })
				defer w.stop()
				f(t, w)
			})
		}
	}
	inEachShapeOf(func(t *testing.T, w *web) {
		a, b, middle := w.hosts[1], w.hosts[3], w.hosts[2]
		a.queues[0].Inject(udp(addr4(1, 9), addr4(3, 9), "refused"))
		time.Sleep(time.Second)
		b.want()
		if d := middle.drops(); d[router.DropRelayRefused] != 1 || len(d) != 1 || middle.Stats().Relayed != (router.Traffic{}) {
			t.Errorf("drops %v, relayed %+v", d, middle.Stats().Relayed)
		}
		p := udp(addr4(1, 9), addr4(2, 9), "for the host itself")
		a.queues[0].Inject(p)
		middle.want(p)
	})
}

// hacker is a member of the mesh, host 1, that seals what it likes.
type hacker struct {
	t     *testing.T
	w     *web
	m     *session.Machine
	peers map[int]*session.Peer
}

// newHacker makes host 1 of w, which must not be running, a hacker with sessions to others.
func newHacker(t *testing.T, w *web, to ...int) *hacker {
	t.Helper()
	m, err := session.New(session.Config{Private: privateKey(1), Rand: rand.NewChaCha8([32]byte{1})})
	if err != nil {
		t.Fatal(err)
	}
	h := &hacker{t: t, w: w, m: m, peers: map[int]*session.Peer{}}
	for _, i := range to {
		p, err := m.AddPeer(session.PeerConfig{Public: privateKey(i).Public(), Suite: w.shape.suite})
		if err != nil {
			t.Fatal(err)
		}
		h.peers[i] = p
		msg, ok := p.Initiate(nil, time.Now())
		if !ok {
			t.Fatal("no initiation")
		}
		response := h.listen(i, session.TypeResponse, func() { w.net.Inject(at(1), at(i), msg) })
		res, err := m.Receive(nil, response, at(i), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w.net.Inject(at(1), at(i), res.Reply)
		synctest.Wait()
	}
	return h
}

// listen returns the last message of the kind that another host sends to the hacker because of f.
func (h *hacker) listen(from int, kind byte, f func()) (msg []byte) {
	h.t.Helper()
	h.w.tap(func(i, j int, b []byte) {
		if i == from && j == 1 && b[0] == kind {
			msg = bytes.Clone(b)
		}
	})
	f()
	synctest.Wait()
	h.w.tap(nil)
	if msg == nil {
		h.t.Fatalf("host %d has sent no message of type %d", from, kind)
	}
	return msg
}

// seal makes the datagram with that plaintext for a host.
func (h *hacker) seal(to int, plain []byte) []byte {
	h.t.Helper()
	d, err := h.peers[to].Key(time.Now()).Seal(nil, plain)
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// say seals a plaintext for a host and sends it.
func (h *hacker) say(to int, plain []byte) { h.w.net.Inject(at(1), at(to), h.seal(to, plain)) }

// frameWith makes a frame through these nodes, at a stop, with a message.
func frameWith(at int, message []byte, nodes ...uint64) []byte {
	h := relay.Header{N: uint8(len(nodes) - 2), At: uint8(at)}
	copy(h.Nodes[:], nodes)
	b := make([]byte, h.Len())
	h.Put(b, len(message))
	return append(b, message...)
}

// What a member cannot do with frames: every case is one frame to host 2, which reaches 1, 3 and 4 directly, and 5 by 3.
func TestForgedFrames(t *testing.T) {
	message := append([]byte{session.TypeData, 0, 0, 0, 1, 2, 3, 4}, make([]byte, 40)...)
	good := frameWith(0, message, 1, 2, 3)
	for _, c := range []struct {
		name  string
		frame []byte
		want  router.Reason
	}{
		{"that of another as the stop before", frameWith(0, message, 4, 2, 3), router.DropRelayFrame},
		{"later on the way than it is", frameWith(1, message, 4, 1, 3), router.DropRelayFrame},
		{"as if it came from behind", frameWith(1, message, 1, 3, 2), router.DropRelayFrame},
		{"for another relay", frameWith(0, message, 1, 4, 3), router.DropRelayFrame},
		{"next unknown", frameWith(0, message, 1, 2, 99), router.DropRelayRoute},
		{"next not reached directly", frameWith(0, message, 1, 2, 5), router.DropRelayRoute},
		{"back to where it came from", frameWith(0, message, 1, 2, 1), router.DropRelayFrame},
		{"in circles", frameWith(0, message, 1, 2, 3, 2, 3, 4), router.DropRelayFrame},
		{"through the host that it is for", frameWith(1, message, 4, 1, 2, 2), router.DropRelayFrame},
		{"too many relays", append([]byte{0x51, 5 << 4, 0, 0}, make([]byte, 124)...), router.DropRelayFrame},
		{"no relays", append([]byte{0x51, 0, 0, 0}, make([]byte, 60)...), router.DropRelayFrame},
		{"stop out of range", func() []byte { b := bytes.Clone(good); b[1] = 1<<4 | 2; return b }(), router.DropRelayFrame},
		{"another version", func() []byte { b := bytes.Clone(good); b[0]++; return b }(), router.DropRelayFrame},
		{"truncated", good[:20], router.DropRelayFrame},
		{"nothing but a head", good[:28], router.DropRelayFrame},
		{"one byte", good[:1], router.DropRelayFrame},
		{"message of an unknown type", frameWith(1, append([]byte{16}, message[1:]...), 3, 1, 2), router.DropType},
		{"message that is too short", frameWith(1, message[:20], 3, 1, 2), router.DropShort},
		{"message of no session", frameWith(1, message, 3, 1, 2), router.DropIndex},
		{"handshake that is none", frameWith(1, make([]byte, 148), 3, 1, 2), router.DropType},
		{"handshake that is not for this host", frameWith(1, append([]byte{1}, make([]byte, 147)...), 3, 1, 2), router.DropMAC1},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, s := range shapes {
				synctest.Test(t, func(t *testing.T) {
					w := newWeb(t, 5, s, [][2]int{{1, 2}, {2, 3}, {2, 4}, {3, 5}}, asIs)
					defer w.stop()
					w.way(2, 5, 3)
					w.hosts[1].stop()
					h := newHacker(t, w, 2)
					h.say(2, c.frame)
					got := w.hosts[2].drops()
					if fmt.Sprint(got) != fmt.Sprint(map[router.Reason]uint64{c.want: 1}) || w.hosts[2].Stats().Relayed.Packets != 0 {
						t.Errorf("%v: drops %v, relayed %+v", s, got, w.hosts[2].Stats().Relayed)
					}
				})
			}
		})
	}
}

// Nothing that a relay does with what two others send through it gets to these but what they have sent, once, nor does it
// change how they reach each other while that works.
func TestRelayCannotInterfere(t *testing.T) {
	for _, s := range shapes {
		synctest.Test(t, func(t *testing.T) {
			// 2 and 3 talk through 4, until 2 thinks that it has to take 1, which is the hacker.
			w := newWeb(t, 4, s, [][2]int{{2, 4}, {3, 4}, {1, 2}, {1, 3}}, asIs)
			defer w.stop()
			w.way(2, 3, 4)
			w.hosts[1].stop()
			a, b := w.hosts[2], w.hosts[3]
			establish(a, b)
			b.delivered()
			h := newHacker(t, w, 2, 3)
			a.SetWay(3, 1)
			synctest.Wait()
			time.Sleep(time.Second) // it gets the probes of the path, too
			secret := udp(addr4(2, 9), addr4(3, 9), "secret")
			datagram := h.listen(2, session.TypeData, func() { a.queues[0].Inject(secret) })
			frame, err := h.m.Keypair(session.Receiver(datagram)).Open(datagram, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			var head relay.Header
			if !head.Parse(frame) || fmt.Sprint(head.Nodes[:3]) != "[2 1 3]" {
				t.Fatalf("%x", frame)
			}
			inner := bytes.Clone(head.Message(frame))
			if bytes.Contains(inner, []byte("secret")) {
				t.Error("the relay can read it")
			}

			b.wantDrops(nil)
			drops := map[router.Reason]uint64{}
			try := func(name string, want router.Reason, datagram []byte) {
				t.Helper()
				drops[want]++
				w.net.Inject(at(1), at(3), datagram)
				b.want()
				if got := b.drops(); fmt.Sprint(got) != fmt.Sprint(drops) {
					t.Errorf("%s: drops %v, want %v", name, got, drops)
				}
			}
			changed := bytes.Clone(inner)
			changed[len(changed)-1] ^= 1
			try("changed", router.DropAuth, h.seal(3, frameWith(1, changed, 2, 1, 3)))
			if s.suite == session.Weft {
				changed = bytes.Clone(inner)
				changed[2] ^= 1
				try("its flags changed", router.DropAuth, h.seal(3, frameWith(1, changed, 2, 1, 3)))
			}
			own := h.seal(3, udp(addr4(1, 9), addr4(3, 9), "not from 2"))
			try("one's own under the name of another", router.DropRelayFrame, h.seal(3, frameWith(1, own, 2, 1, 3)))
			try("a packet of another", router.DropSource, h.seal(3, udp(addr4(2, 9), addr4(3, 9), "not from 2")))
			own = h.seal(3, frameWith(1, inner, 2, 1, 3))
			try("a frame in a frame", router.DropRelayFrame, h.seal(3, frameWith(1, own, 2, 1, 3)))
			try("a way that it does not stand on", router.DropRelayFrame, h.seal(3, frameWith(1, inner, 2, 4, 3)))

			w.net.Inject(at(1), at(3), h.seal(3, frameWith(1, inner, 2, 1, 3)))
			b.want(secret)
			try("repeated", router.DropReplay, h.seal(3, frameWith(1, inner, 2, 1, 3)))
			try("repeated without a frame", router.DropReplay, inner)
			try("repeated as if by a longer way", router.DropReplay, h.seal(3, frameWith(2, inner, 2, 4, 1, 3)))

			toHacker := 0
			w.tap(func(_, to int, _ []byte) {
				if to == 1 {
					toHacker++
				}
			})
			p := udp(addr4(3, 9), addr4(2, 9), "back")
			b.queues[0].Inject(p)
			a.want(p)
			if toHacker != 0 {
				t.Errorf("%v: %d datagrams were redirected", s, toHacker)
			}
		})
	}
}

// A host that is no node takes part in no relaying.
func TestNoNodesNoFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := shapes[0]
		w := newWeb(t, 3, s, [][2]int{{1, 2}, {2, 3}}, asIs)
		defer w.stop()
		w.hosts[1].stop()
		stranger := peer(1, s)
		stranger.ID = 0
		w.hosts[2].setPeers(stranger, member(3, s))
		h := newHacker(t, w, 2)
		h.say(2, frameWith(0, append([]byte{4}, make([]byte, 47)...), 1, 2, 3))
		w.hosts[2].wantDrops(map[router.Reason]uint64{router.DropRelayFrame: 1})
	})
}

func TestSetPeersWithIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWeb(t, 1, shapes[0], nil, asIs)
		defer w.stop()
		two, three := member(2, shapes[0]), member(3, shapes[0])
		three.ID = 2
		if err := w.hosts[1].SetPeers([]router.Peer{two, three}); err == nil || !strings.Contains(err.Error(), "its ID 0000000000000002 is also that of another peer") {
			t.Error(err)
		}
	})
}
