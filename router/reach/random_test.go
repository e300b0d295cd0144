// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("reach.seed", 0, "run this seed of TestRandom only, and tell what happens")
	seedsFlag = flag.Uint64("reach.seeds", 10, "how many seeds TestRandom runs, and in percent of those that there are the others")
)

// many returns how many of n seeds a test runs.
func many(n uint64) uint64 { return min(n, max(2, n**seedsFlag/100)) }

// TestRandom runs hosts whose network changes at random, then lets it rest, and compares what they found with what there is.
func TestRandom(t *testing.T) {
	if *seedFlag != 0 {
		runRandom(t, *seedFlag, true)
		return
	}
	for seed := uint64(1); seed <= *seedsFlag && !t.Failed(); seed++ {
		runRandom(t, seed, false)
	}
}

// world is the network of a run.
type world struct {
	*sim
	seed    uint64
	blocked map[[2]uint64]bool
	pairs   [][2]*simHost // that talk
}

func runRandom(t *testing.T, seed uint64, trace bool) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	w := &world{sim: newSim(t, seed), seed: seed, blocked: map[[2]uint64]bool{}}
	w.trace = trace
	w.block = func(a, b *simHost) bool { return w.blocked[[2]uint64{a.id, b.id}] }
	base := 1 + rng.IntN(40)
	w.latency = func(a, b *simHost) time.Duration {
		return time.Duration(base+int(a.id+b.id)*7%31) * time.Millisecond
	}
	n := 3 + rng.IntN(10)
	dense := rng.Float64()
	for i := 1; i <= n; i++ {
		kind := noNAT
		if rng.IntN(3) == 0 {
			kind = natKind(1 + rng.IntN(4))
		}
		w.add(i, kind).noRel = rng.IntN(6) == 0
	}
	for i := 1; i <= n; i++ {
		for j := 1; j <= n; j++ {
			if i != j && rng.Float64() > dense {
				w.blocked[[2]uint64{uint64(i), uint64(j)}] = true
				if rng.IntN(4) > 0 {
					w.blocked[[2]uint64{uint64(j), uint64(i)}] = true
				}
			}
		}
	}
	for range 3 {
		a, b := w.hosts[rng.IntN(n)], w.hosts[rng.IntN(n)]
		if a != b && !a.talks[b.id] && !b.talks[a.id] {
			w.pairs = append(w.pairs, [2]*simHost{a, b})
			w.talk(a, b)
		}
	}
	for range rng.IntN(12) {
		w.upset(rng)
		w.run(time.Duration(rng.IntN(15000)) * time.Millisecond)
	}
	w.loss, w.jitter = 0, 0
	w.gossip()
	w.run(4 * time.Minute)
	for _, h := range w.hosts {
		h.change = nil
	}
	w.run(30 * time.Second)
	w.judge()
}

// upset changes something about the network.
func (w *world) upset(rng *rand.Rand) {
	h := w.hosts[rng.IntN(len(w.hosts))]
	o := w.hosts[rng.IntN(len(w.hosts))]
	switch rng.IntN(7) {
	case 0:
		w.loss = rng.Float64() * 0.3
		w.jitter = time.Duration(rng.IntN(30)) * time.Millisecond
	case 1, 2:
		block := rng.IntN(2) == 0
		w.blocked[[2]uint64{h.id, o.id}] = block
		if rng.IntN(3) > 0 {
			w.blocked[[2]uint64{o.id, h.id}] = block
		}
	case 3:
		h.dead = !h.dead
		if !h.dead {
			w.reboot(h)
		}
	case 4:
		if h.nat == nil {
			w.move(h, 1+rng.IntN(250))
			if rng.IntN(2) == 0 {
				h.m.Moved(w.now)
			}
			w.gossip()
		} else {
			h.nat.mappings = nil
		}
	case 5:
		w.reboot(h)
	case 6:
		h.noRel = !h.noRel
		w.gossip()
	}
}

// reboot starts a host anew, with nothing in its memory.
func (w *world) reboot(h *simHost) {
	m, err := New(Config{Self: h.id, Rand: randReader{rand.New(rand.NewPCG(w.rng.Uint64(), 2))}})
	if err != nil {
		w.t.Fatal(err)
	}
	h.m, h.dead, h.next = m, false, time.Time{}
	h.boot++
	w.gossip()
}

// meet tells whether two hosts reach each other directly: surely, or else perhaps.
func (w *world) meet(a, b *simHost) (surely, perhaps bool) {
	if a.dead || b.dead || w.block(a, b) || w.block(b, a) {
		return false, false
	}
	return a.nat == nil || b.nat == nil, true
}

// route tells whether there is a way from a to b through at most MaxRelays others: surely, or else perhaps.
func (w *world) route(a, b *simHost, perhaps bool) bool {
	at := map[*simHost]bool{a: true}
	for range MaxRelays + 1 {
		next := map[*simHost]bool{}
		for h := range at {
			for _, o := range w.hosts {
				s, p := w.meet(h, o)
				if h == o || !s && (!perhaps || !p) {
					continue
				}
				if o == b {
					return true
				}
				if !o.noRel {
					next[o] = true
				}
			}
		}
		at = next
	}
	return false
}

func (w *world) judge() {
	fail := func(a, b *simHost, what string) {
		w.t.Errorf("%d to %d: %s: by %s, %+v (replay with -run TestRandom -reach.seed %d)", a.id, b.id, what, w.path(a, b), a.m.Explain(b.id, w.now), w.seed)
	}
	for _, p := range w.pairs {
		for _, ends := range [][2]*simHost{{p[0], p[1]}, {p[1], p[0]}} {
			a, b := ends[0], ends[1]
			if a.dead || b.dead {
				continue
			}
			path := w.path(a, b)
			surely, perhaps := w.meet(a, b)
			switch {
			case !w.route(a, b, true):
				if path != "none" {
					fail(a, b, "there is no way")
				}
				continue
			case surely && path != "direct":
				fail(a, b, "the direct way is open")
			case !perhaps && path == "direct":
				fail(a, b, "the direct way is closed")
			case w.route(a, b, false) && path == "none":
				fail(a, b, "there is a way")
			}
			if path != "none" && (w.now.Sub(b.got[a.id]) > time.Second || w.now.Sub(a.got[b.id]) > time.Second) {
				fail(a, b, "nothing arrives")
			}
			changes := 0
			for _, c := range a.change {
				if c.To == b.id && path != "none" {
					changes++
				}
			}
			if changes > 1 {
				fail(a, b, "the path is not steady")
			}
		}
	}
}
