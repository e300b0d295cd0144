// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"net/netip"
	"testing"
	"time"
)

// Networks that worked, and then change.

// Two hosts that reach each other through a relay: one gets another address, and one loses the relay for a while. What was found to lead nowhere meanwhile
// is not passed over when it leads on again.
func TestChainIsMended(t *testing.T) {
	for seed := range many(40) {
		for name, upset := range map[string]func(w *sim, relay, end *simHost){
			"moves and says so": func(w *sim, _, end *simHost) {
				w.move(end, 1)
				end.m.Moved(w.now)
				w.tick(end)
				w.gossip()
			},
			"moves": func(w *sim, _, end *simHost) {
				w.move(end, 1)
				w.gossip()
			},
			"is away": func(w *sim, _, _ *simHost) {
				far := w.block
				w.block = func(a, b *simHost) bool { return far(a, b) || a.id == 3 || b.id == 3 }
				w.run(time.Duration(1+seed) * 1300 * time.Millisecond)
				w.block = far
			},
		} {
			w := newSim(t, seed)
			w.block = blockPairs(true, [2]uint64{1, 3})
			a, relay, b := w.add(1, noNAT), w.add(2, noNAT), w.add(3, noNAT)
			w.run(15 * time.Second)
			w.talk(a, b)
			w.run(20 * time.Second)
			w.want(a, b, "relay [2]", 0)
			upset(w, relay, b)
			arrived := b.got[a.id]
			d, ok := w.until(20*time.Second, func() bool { return b.got[a.id].After(arrived) && w.path(a, b) == "relay [2]" })
			limit := 3 * time.Second
			if name == "is away" { // has to be found first
				limit = 4 * time.Second
			}
			if !ok || d > limit {
				t.Errorf("seed %d: who %s is reached after %v: %+v", seed, name, d, a.m.Explain(3, w.now))
			}
		}
	}
}

// What one sends does not arrive any more, what the other sends does: both take the relay, or another one.
func TestOneWayAllAtOnce(t *testing.T) {
	for seed := range many(40) {
		for _, apart := range []bool{false, true} { // from the beginning, so that a relay is in use
			w := newSim(t, seed)
			deaf := [][2]uint64{}
			w.block = func(a, b *simHost) bool {
				return apart && a.id+b.id == 3 || blockPairs(false, deaf...)(a, b)
			}
			a, b := w.add(1, noNAT), w.add(2, noNAT)
			for i := 3; i <= 4; i++ {
				w.add(i, noNAT)
			}
			w.run(10 * time.Second)
			w.talk(a, b)
			w.talk(b, a)
			w.run(10*time.Second + time.Duration(seed)*73*time.Millisecond)
			before, _ := a.m.Current(2)
			if before.Relayed() != apart {
				t.Fatalf("seed %d: path %v", seed, before)
			}
			deaf = append(deaf, [2]uint64{1, 2})
			if apart {
				deaf[0][1] = before.Relays[0]
			}
			a.gap[2], b.gap[1] = 0, 0
			w.run(8 * time.Second)
			if g := max(a.gap[2], b.gap[1]); g == 0 || g > 2500*time.Millisecond {
				t.Errorf("seed %d: silence of %v", seed, g)
			}
			for _, h := range []*simHost{a, b} {
				if p, proven := h.m.Current(3 - h.id); !proven || !p.Relayed() || p == before {
					t.Errorf("seed %d: %d has %v, proven %v", seed, h.id, p, proven)
				}
			}
		}
	}
}

// Of two addresses the one that is faster changes: it is taken when the paths are measured next.
func TestFasterAddressChanges(t *testing.T) {
	for seed := range many(20) {
		w := newSim(t, seed)
		w.jitter = time.Millisecond
		w.fast = func(netip.AddrPort) bool { return true }
		a, b := w.add(1, noNAT), w.add(2, noNAT)
		w.second(a)
		w.second(b)
		w.run(5 * time.Second)
		w.talk(a, b)
		w.run(time.Duration(10+seed) * time.Second)
		w.latency = func(_, _ *simHost) time.Duration { return 8 * time.Millisecond }
		for i, fast := range []func(netip.Addr) bool{netip.Addr.Is6, netip.Addr.Is4, netip.Addr.Is6} {
			w.fast = func(dst netip.AddrPort) bool { return fast(dst.Addr()) }
			d, ok := w.until(90*time.Second, func() bool {
				p, _ := a.m.Current(2)
				q, _ := b.m.Current(1)
				return fast(p.Addr.Addr()) && fast(q.Addr.Addr())
			})
			if !ok || d > compareGap+2*time.Second {
				t.Errorf("seed %d: change %d is known after %v: %+v", seed, i, d, a.m.Explain(2, w.now))
			}
		}
	}
}
