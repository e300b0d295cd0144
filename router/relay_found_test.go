// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
)

// newFound is newWeb with hosts that find the ways by themselves, and tell each other their links as the mesh would.
func newFound(t *testing.T, n int, s shape, edges [][2]int) *web {
	t.Helper()
	w := newWeb(t, n, s, edges, func(_ int, c *router.Config) { c.Keys = meshKeys(t, 0) })
	for range 4 {
		time.Sleep(5 * time.Second)
		w.gossip()
	}
	return w
}

// gossip tells every host the links of the others.
func (w *web) gossip() {
	links := make([][]uint64, len(w.hosts))
	for i, h := range w.hosts[1:] {
		links[i+1] = h.Reach().Links
	}
	for i, h := range w.hosts[1:] {
		var peers []router.Peer
		for j := range w.hosts {
			if j > 0 && j != i+1 {
				p := member(j, w.shape)
				p.Boot, p.Links = 100+uint64(j), links[j]
				peers = append(peers, p)
			}
		}
		h.setPeers(peers...)
	}
	synctest.Wait()
}

// Hosts of which only neighbours reach each other talk through those between them, of whatever is known of them no more than what their records say.
func TestFoundChain(t *testing.T) {
	for _, s := range shapes {
		synctest.Test(t, func(t *testing.T) {
			w := newFound(t, 5, s, [][2]int{{1, 2}, {2, 3}, {3, 4}, {4, 5}})
			defer w.stop()
			a, b := w.hosts[1], w.hosts[5]
			first := udp(addr4(1, 9), addr4(5, 9), "the first")
			a.queues[0].Inject(first)
			time.Sleep(3 * time.Second)
			b.want(first)
			back := udp(addr4(5, 9), addr4(1, 9), "and back")
			b.queues[0].Inject(back)
			time.Sleep(time.Second)
			a.want(back)
			for _, x := range []struct {
				h    *host
				to   int
				want string
			}{{a, 5, "relay [2 3 4]"}, {b, 1, "relay [4 3 2]"}} {
				if p := x.h.towards(x.to); fmt.Sprint(p.Path, " ", p.Via) != x.want || p.State != router.Established {
					t.Errorf("%v: host %d: %+v", s, x.h.i, p)
				}
			}
		})
	}
}

// A relay dies under traffic: another one has taken its place within 3 s. A direct path that opens takes the place of that one, and nothing is
// lost by it.
func TestFoundRelayIsReplaced(t *testing.T) {
	for _, s := range shapes {
		synctest.Test(t, func(t *testing.T) {
			w := newFound(t, 4, s, [][2]int{{1, 2}, {2, 4}, {1, 3}, {3, 4}})
			defer w.stop()
			a, b := w.hosts[1], w.hosts[4]
			stop := a.count(4, 10*time.Millisecond, 800)
			time.Sleep(5 * time.Second)
			via := a.towards(4).Via
			if len(via) != 1 {
				t.Fatalf("%v: %+v", s, a.towards(4))
			}
			dead := int(via[0])
			b.delivered()
			w.set(1, dead, false)
			w.set(dead, 4, false)
			died := time.Now()
			for len(b.delivered()) == 0 {
				time.Sleep(10 * time.Millisecond)
				if took := time.Since(died); took > 3*time.Second {
					t.Fatalf("%v: nothing arrives %v after a relay died; %+v", s, took, a.towards(4))
				}
			}
			time.Sleep(5 * time.Second)
			if via := a.towards(4).Via; len(via) != 1 || int(via[0]) != 5-dead {
				t.Errorf("%v: via %v after the death of %d", s, via, dead)
			}
			stop()
			b.delivered()

			stop = a.count(4, 10*time.Millisecond, 800)
			w.set(1, 4, true)
			opened := time.Now()
			for a.towards(4).Path != router.PathUDP {
				time.Sleep(100 * time.Millisecond)
				if took := time.Since(opened); took > 70*time.Second {
					t.Fatalf("%v: the direct path is not found: %+v", s, a.towards(4))
				}
			}
			time.Sleep(2 * time.Second)
			n := stop()
			if got := len(b.numbers()); got != n {
				t.Errorf("%v: %d of %d packets arrived", s, got, n)
			}
			before := w.hosts[5-dead].Stats().Relayed.Packets
			a.queues[0].Inject(udp(addr4(1, 9), addr4(4, 9), "000000"))
			synctest.Wait()
			if after := w.hosts[5-dead].Stats().Relayed.Packets; after != before {
				t.Errorf("%v: still relayed", s)
			}
		})
	}
}
