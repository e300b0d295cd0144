// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// While peers and prefixes come and go without end, and both sides make new keys as often as they may, every packet between those
// that stay arrives, from all shards, once.
func TestStormsLoseNothing(t *testing.T) {
	for _, s := range []shape{{shards: 2, vnet: true, suite: session.Weft}, {shards: 4}} {
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := routertest.NewNet(1)
				a, b := pair(t, net, s)
				defer a.stop()
				defer b.stop()
				establish(a, b)
				b.delivered()

				var ended atomic.Bool
				var storms sync.WaitGroup
				for _, h := range []*host{a, b} {
					other := peer(3-h.i, s)
					storms.Go(func() {
						for n := 0; !ended.Load(); n++ {
							peers := []router.Peer{other}
							if n%3 != 0 {
								peers = append([]router.Peer{peer(3+n%5, s)}, other)
							}
							h.setPeers(peers...)
							time.Sleep(time.Duration(n%7) * 6 * time.Millisecond)
						}
					})
					storms.Go(func() {
						for n := 0; !ended.Load(); n++ {
							l := router.Local{Prefixes: prefixes(h.i), Gateway4: addr4(h.i, 1), Gateway6: addr6(h.i, 1), MTU: localMTU - n%3}
							l.Prefixes = append(l.Prefixes, netip.PrefixFrom(addr4(100+n%100, 0), 24))
							h.SetLocal(l)
							time.Sleep(time.Duration(n%5) * 6 * time.Millisecond)
						}
					})
					storms.Go(func() {
						for !ended.Load() {
							h.Greet()
							time.Sleep(session.RekeyTimeout + time.Millisecond)
						}
					})
				}
				for round := range 30 {
					due := [2]map[string]bool{{}, {}}
					for i := range 60 {
						for j, h := range []*host{a, b} {
							p := udp(addr4(h.i, 9), addr4(3-h.i, 9), fmt.Sprint(round, i))
							due[1-j][string(p)] = true
							h.queues[i%s.shards].Inject(p)
						}
						if i%20 == 0 {
							time.Sleep(time.Millisecond)
						}
					}
					time.Sleep(time.Second)
					for j, h := range []*host{a, b} {
						for _, p := range h.delivered() {
							if !due[j][string(p)] {
								t.Fatalf("round %d: arrived twice or was never sent: %x", round, p)
							}
							delete(due[j], string(p))
						}
						if len(due[j]) > 0 {
							t.Fatalf("round %d: %d packets did not arrive at host %d; drops %v, %v", round, len(due[j]), h.i, a.drops(), b.drops())
						}
					}
				}
				ended.Store(true)
				storms.Wait()
				for _, h := range []*host{a, b} {
					if n := h.Stats().Handshakes; n < 6 {
						t.Errorf("host %d: only %d messages of handshakes", h.i, n)
					}
				}
			})
		})
	}
}
