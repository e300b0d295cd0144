// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
)

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
		if len(lines) != 1 || lines[0].Message != "handshakes refused: the sender's key belongs to no node of this mesh and no WireGuard client of this node; if it should, compare tokens and check that it has joined" ||
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
