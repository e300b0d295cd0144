// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// keyed is a peer with pre-shared keys.
func keyed(i int, s shape, keys ...session.PresharedKey) router.Peer {
	p := peer(i, s)
	p.Keys = keys
	return p
}

// TestPresharedKeysChange: the steps of a rotation, each host in its own time, under traffic in both directions: every packet arrives, the
// old key is of no use afterwards, and sessions were renewed though nothing but the keys called for it.
func TestPresharedKeysChange(t *testing.T) {
	old, next := session.PresharedKey{1}, session.PresharedKey{2}
	for _, s := range shapes {
		s.psk = old
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := routertest.NewNet(1)
				a, b := pair(t, net, s)
				defer a.stop()
				defer b.stop()
				establish(a, b)
				n := 0
				talk := func(d time.Duration) {
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
						n++
						there, back := udp(addr4(1, 9), addr4(2, 9), fmt.Sprint(n)), udp(addr4(2, 9), addr4(1, 9), fmt.Sprint(n))
						a.queues[0].Inject(there)
						b.queues[0].Inject(back)
						time.Sleep(50 * time.Millisecond)
						a.want(back)
						b.want(there)
					}
				}
				before := a.Stats().Handshakes
				for _, keys := range [][]session.PresharedKey{{old, next}, {next, old}} {
					a.setPeers(keyed(2, s, keys...))
					talk(time.Second)
					b.setPeers(keyed(1, s, keys...))
					talk(time.Second)
				}
				if got := a.Stats().Handshakes; got != before {
					t.Errorf("%d handshakes before anything was revoked", got-before)
				}
				a.setPeers(keyed(2, s, next))
				talk(time.Second)
				b.setPeers(keyed(1, s, next))
				talk(session.RevokeGrace + 2*time.Second)
				if got := a.Stats().Handshakes; got == before {
					t.Error("the session made with the old key was not renewed")
				}

				// Who has the old key alone is not let in any more.
				c := newHost(t, net, 3, s)
				a.setPeers(keyed(2, s, next), keyed(3, s, next))
				c.setPeers(peer(1, s))
				c.start()
				defer c.stop()
				c.queues[0].Inject(udp(addr4(3, 9), addr4(1, 9), "old"))
				time.Sleep(20 * time.Second)
				a.want()
			})
		})
	}
}

// TestPresharedKeysOfClientsStay: a WireGuard client has a key of its own, and cannot be given those of the mesh.
func TestPresharedKeysOfClientsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newHost(t, routertest.NewNet(1), 1, shape{shards: 1, psk: session.PresharedKey{1}})
		defer a.close()
		p := peer(2, shape{})
		p.External, p.Preshared, p.Keys = true, session.PresharedKey{9}, []session.PresharedKey{{2}}
		want := "external peer " + p.Name + ": it has one pre-shared key, not those of the mesh"
		if err := a.SetPeers([]router.Peer{p}); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}
