// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

// diamond is four hosts: the first and the last reach each other through the second and the third, and directly if that is switched on.
func diamond(t *testing.T, s shape, change func(i int, c *router.Config)) *web {
	t.Helper()
	w := newWeb(t, 4, s, [][2]int{{1, 2}, {2, 4}, {1, 3}, {3, 4}}, change)
	w.way(1, 4, 2)
	return w
}

func inEachDiamond(t *testing.T, f func(t *testing.T, w *web, a, b *host)) {
	t.Helper()
	for _, s := range shapes {
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := diamond(t, s, asIs)
				defer w.stop()
				f(t, w, w.hosts[1], w.hosts[4])
			})
		})
	}
}

// count makes h send numbered packets until the returned function is called, which returns how many there were.
func (h *host) count(to int, gap time.Duration, size int) (stop func() int) {
	var done atomic.Bool
	ended := make(chan int)
	go func() {
		n := 0
		for ; !done.Load(); n++ {
			h.queues[0].Inject(udp(addr4(h.i, 9), addr4(to, 9), fmt.Sprintf("%06d%s", n, strings.Repeat("x", size))))
			time.Sleep(gap)
		}
		ended <- n
	}()
	return func() int { done.Store(true); return <-ended }
}

// numbers returns the numbers of the packets that have arrived.
func (h *host) numbers() (all []int) {
	h.t.Helper()
	for _, p := range h.delivered() {
		var n int
		if _, err := fmt.Sscanf(string(p[28:34]), "%d", &n); err != nil {
			h.t.Fatalf("%x: %v", p, err)
		}
		all = append(all, n)
	}
	return all
}

// A relay that dies and is replaced costs what was on its way, and no handshake with the other end.
func TestRelayIsReplaced(t *testing.T) {
	inEachDiamond(t, func(t *testing.T, w *web, a, b *host) {
		establish(a, b)
		b.delivered()
		handshakes := a.towards(4).Handshake
		stop := a.count(4, time.Millisecond, 800)
		time.Sleep(time.Second)
		w.hosts[2].stop()
		time.Sleep(500 * time.Millisecond)
		w.way(1, 4, 3)
		time.Sleep(time.Second)
		n := stop()
		got := b.numbers()
		if lost := n - len(got); lost > 502 || lost < 499 || slices.Max(got) != n-1 {
			t.Errorf("%d of %d packets were lost, the last to come was %d", lost, n, slices.Max(got))
		}
		if !a.towards(4).Handshake.Equal(handshakes) {
			t.Error("there was another handshake")
		}
		w.hosts[3].wantDrops(nil)
	})
}

// From direct to relayed and back, again and again under traffic, not a packet is lost or repeated, whatever its size.
func TestWayChangesLoseNothing(t *testing.T) {
	for _, size := range []int{100, relayedMTU(3) - 34, localMTU - 34} {
		inEachDiamond(t, func(t *testing.T, w *web, a, b *host) {
			w.set(1, 4, true)
			establish(a, b)
			b.delivered()
			a.delivered()
			tooBig := 0
			stop := a.count(4, time.Millisecond, size)
			for i := range 12 {
				switch i % 3 {
				case 0:
					w.way(1, 4)
				case 1:
					w.way(1, 4, 2)
				case 2:
					w.way(1, 4, 3)
				}
				time.Sleep(300*time.Millisecond + 500*time.Microsecond)
				tooBig += len(a.delivered())
			}
			n := stop()
			got := b.numbers()
			seen := map[int]bool{}
			for _, k := range got {
				if seen[k] {
					t.Errorf("packet %d came twice", k)
				}
				seen[k] = true
			}
			// What does not fit a frame is answered, once for each, so that nobody waits in vain.
			answered := int(a.drops()[router.DropTooBig])
			if len(got)+answered != n || answered > 0 != (size > relayedMTU(3)) || tooBig == 0 != (answered == 0) {
				t.Errorf("size %d: %d of %d packets arrived, %d were answered with the size that fits, %d times; %v", size, len(got), n, answered, tooBig, b.drops())
			}
			time.Sleep(time.Second)
			w.way(1, 4)
			stop = a.count(4, 10*time.Millisecond, 1000)
			time.Sleep(time.Second)
			stop()
			if s := a.towards(4); s.MTU != localMTU || !s.Confirmed {
				t.Errorf("MTU %d, confirmed %v", s.MTU, s.Confirmed)
			}
		})
	}
}

// On another way a size is tried before it is used: one that passes so far is not given up for one that may not pass.
func TestNarrowWayAfterRelay(t *testing.T) {
	inEachDiamond(t, func(t *testing.T, w *web, a, b *host) {
		establish(a, b)
		time.Sleep(time.Second)
		w.set(1, 4, true)
		w.tap(nil)
		// The direct way carries less than the links to the relay, and what the relay carries just fits.
		width := sealedLen(relayedMTU(3))
		w.net.SetFilter(narrow(w, width))
		w.way(1, 4)
		stop := a.count(4, 10*time.Millisecond, relayedMTU(3)-34)
		time.Sleep(5 * time.Second)
		n := stop()
		b.delivered()
		if s := a.towards(4); s.MTU != relayedMTU(3) || !s.Confirmed {
			t.Errorf("MTU %d, confirmed %v", s.MTU, s.Confirmed)
		}
		if got := b.towards(1).RxPackets; got < uint64(n) {
			t.Errorf("%d of %d packets arrived", got, n)
		}
	})
}

// The two that have no keys at all, with whoever is between them, lose none of the first packets.
func TestFirstPacketsWaitOnTheWay(t *testing.T) {
	inEachChain(t, 3, func(t *testing.T, w *web, a, b *host) {
		establish(a, b) // keys everywhere
		b.delivered()
		// The relay starts anew: it has no key with anybody.
		relay := w.hosts[2]
		relay.stop()
		fresh := newHostWith(t, w.net, 2, w.shape, func(c *router.Config) { c.ID = 2 })
		fresh.setPeers(member(1, w.shape), member(3, w.shape))
		fresh.start()
		w.hosts[2] = fresh
		time.Sleep(session.RekeyTimeout)
		stop := a.count(3, 10*time.Millisecond, 100)
		time.Sleep(20 * time.Second)
		stop()
		b.delivered()
		stop = a.count(3, 10*time.Millisecond, 100)
		time.Sleep(time.Second)
		n := stop()
		if got := b.numbers(); len(got) != n {
			t.Errorf("%d of %d packets arrived; %v", len(got), n, fresh.drops())
		}
	})
}

// A host that has lost its keys says so through the relay, and goes on.
func TestRestartBehindRelay(t *testing.T) {
	inEachChain(t, 3, func(t *testing.T, w *web, a, b *host) {
		establish(a, b)
		b.stop()
		fresh := newHostWith(t, w.net, 3, w.shape, func(c *router.Config) { c.ID, c.Keys = 3, router.Keys{} })
		fresh.setPeers(member(1, w.shape), member(2, w.shape))
		fresh.start()
		w.hosts[3] = fresh
		fresh.SetWay(1, 2)
		time.Sleep(session.RekeyTimeout)
		stop := a.count(3, 100*time.Millisecond, 100)
		time.Sleep(30 * time.Second)
		stop()
		fresh.delivered()
		p := udp(addr4(1, 9), addr4(3, 9), "again")
		a.queues[0].Inject(p)
		fresh.want(p)
	})
}
