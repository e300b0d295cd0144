// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// blockPairs makes a filter of pairs that do not reach each other.
func blockPairs(both bool, pairs ...[2]uint64) func(a, b *simHost) bool {
	return func(a, b *simHost) bool {
		for _, p := range pairs {
			if p == [2]uint64{a.id, b.id} || both && p == [2]uint64{b.id, a.id} {
				return true
			}
		}
		return false
	}
}

func TestDirect(t *testing.T) {
	w := newSim(t, 1)
	a, b := w.add(1, noNAT), w.add(2, noNAT)
	w.run(time.Second)
	w.talk(a, b)
	w.want(a, b, "direct", time.Second)
	w.want(b, a, "direct", time.Second)
}

func TestNATs(t *testing.T) {
	for _, c := range []struct {
		a, b   natKind
		direct bool
	}{
		{noNAT, fullCone, true},
		{noNAT, symmetricNAT, true},
		{fullCone, fullCone, true},
		{addrRestricted, addrRestricted, true},
		{addrRestricted, portRestricted, true},
		{portRestricted, portRestricted, true},
		{fullCone, symmetricNAT, true},
		{addrRestricted, symmetricNAT, true},
		{portRestricted, symmetricNAT, false},
		{symmetricNAT, symmetricNAT, false},
	} {
		for seed := range many(20) {
			w := newSim(t, seed)
			a, b := w.add(1, c.a), w.add(2, c.b)
			w.add(3, noNAT)
			w.run(10 * time.Second)
			if seed%2 == 1 {
				a, b = b, a
			}
			w.talk(a, b)
			want := "relay [3]"
			if c.direct {
				want = "direct"
			}
			w.want(a, b, want, 5*time.Second)
			w.want(b, a, want, 5*time.Second)
			w.run(2 * time.Minute) // mappings expire that are not used
			w.want(a, b, want, time.Second)
			w.want(b, a, want, time.Second)
			if g := b.gap[a.id]; g > 3*time.Second {
				t.Errorf("%+v, seed %d: silence of %v", c, seed, g)
			}
		}
	}
}

// Each reaches its neighbours only.
func TestChain(t *testing.T) {
	for seed := range many(50) {
		w := newSim(t, seed)
		w.block = func(a, b *simHost) bool { return a.id > b.id+1 || b.id > a.id+1 }
		for i := 1; i <= 5; i++ {
			w.add(i, noNAT)
		}
		w.run(10 * time.Second)
		a, e := w.hosts[0], w.hosts[4]
		w.talk(a, e)
		w.want(a, e, "relay [2 3 4]", 3*time.Second)
		w.want(e, a, "relay [4 3 2]", 3*time.Second)
		w.want(a, w.hosts[1], "direct", 0)
		w.run(time.Minute)
		if g := max(e.gap[1], a.gap[5]); g > time.Second {
			t.Errorf("seed %d: silence of %v", seed, g)
		}
		if why := a.m.Explain(5, w.now).Why; !strings.HasPrefix(why, "no answer from 192.0.0.5:6783 since ") {
			t.Errorf("seed %d: why: %s", seed, why)
		}
	}
}

// All reach one, and nobody else.
func TestHubAndSpokes(t *testing.T) {
	w := newSim(t, 1)
	w.block = func(a, b *simHost) bool { return a.id != 1 && b.id != 1 }
	for i := 1; i <= 60; i++ {
		w.add(i, noNAT)
	}
	w.run(90 * time.Second)
	for i := 2; i <= 59; i += 3 {
		a, b := w.hosts[i], w.hosts[i-1]
		w.talk(a, b)
		w.want(a, b, "relay [1]", 3*time.Second)
		w.want(b, a, "relay [1]", 3*time.Second)
	}
}

func TestAsymmetric(t *testing.T) {
	for seed := range many(20) {
		for _, starts := range []int{0, 1} {
			w := newSim(t, seed)
			w.block = blockPairs(false, [2]uint64{2, 1})
			a, b := w.add(1, noNAT), w.add(2, noNAT)
			w.add(3, noNAT)
			w.run(5 * time.Second)
			w.talk(w.hosts[starts], w.hosts[1-starts])
			w.want(a, b, "relay [3]", 3*time.Second)
			w.want(b, a, "relay [3]", 3*time.Second)
			w.run(3 * time.Minute)
			for _, h := range []*simHost{a, b} {
				for _, c := range h.change {
					if c.Proven && !c.Path.Relayed() && c.To < 3 {
						t.Errorf("seed %d: %d took %v for proven", seed, h.id, c.Path)
					}
				}
			}
		}
	}
}

func TestRelayDies(t *testing.T) {
	for seed := range many(100) {
		w := newSim(t, seed)
		w.block = blockPairs(true, [2]uint64{1, 2})
		a, b := w.add(1, noNAT), w.add(2, noNAT)
		for i := 3; i <= 6; i++ {
			w.add(i, noNAT)
		}
		w.latency = func(x, y *simHost) time.Duration { return time.Duration(x.id+y.id) * time.Millisecond }
		w.run(5*time.Second + time.Duration(seed)*37*time.Millisecond)
		w.talk(a, b)
		w.run(20 * time.Second)
		for range 3 {
			p, proven := a.m.Current(2)
			if !proven || p.N != 1 {
				t.Fatalf("seed %d: path %v", seed, p)
			}
			w.byID[p.Relays[0]].dead = true
			b.gap[1], a.gap[2] = 0, 0
			w.run(10 * time.Second)
			if g := max(a.gap[2], b.gap[1]); g == 0 || g > 2900*time.Millisecond {
				t.Errorf("seed %d: silence of %v", seed, g)
			}
		}
	}
}

// A host gets another address under traffic, in either direction.
func TestRoaming(t *testing.T) {
	for seed := range many(100) {
		w := newSim(t, seed)
		a, b := w.add(1, noNAT), w.add(2, noNAT)
		for i := 3; i <= 5; i++ {
			w.add(i, noNAT)
		}
		w.run(5 * time.Second)
		if seed%2 == 0 {
			w.talk(a, b)
		} else {
			w.talk(b, a)
		}
		w.run(10 * time.Second)
		for i := range 3 {
			w.run(time.Duration(seed) * 13 * time.Millisecond)
			w.move(b, i+1) // and nobody tells anybody
			a.gap[2], b.gap[1] = 0, 0
			w.run(10 * time.Second)
			if g := max(a.gap[2], b.gap[1]); g == 0 || g > 2900*time.Millisecond {
				t.Errorf("seed %d: silence of %v", seed, g)
			}
			if got := w.path(a, b); got != "direct" {
				t.Errorf("seed %d: path %v", seed, got)
			}
			w.gossip()
		}
	}
}

// What blocks the direct way ends: it replaces the relay, and nothing is lost.
func TestDirectFoundLater(t *testing.T) {
	for seed := range many(30) {
		w := newSim(t, seed)
		w.block = blockPairs(true, [2]uint64{1, 2})
		a, b := w.add(1, noNAT), w.add(2, noNAT)
		w.add(3, noNAT)
		w.run(5 * time.Second)
		w.talk(a, b)
		w.run(time.Duration(20+seed) * time.Second)
		w.want(a, b, "relay [3]", 0)
		w.block = func(_, _ *simHost) bool { return false }
		a.gap[2], b.gap[1] = 0, 0
		w.want(a, b, "direct", 70*time.Second)
		w.want(b, a, "direct", 70*time.Second)
		w.run(10 * time.Second)
		if g := max(a.gap[2], b.gap[1]); g > 200*time.Millisecond {
			t.Errorf("seed %d: silence of %v", seed, g)
		}
	}
}

// Two ways of the same length: none is left for the other.
func TestNoFlapping(t *testing.T) {
	for seed := range many(6) {
		w := newSim(t, seed)
		w.jitter = 10 * time.Millisecond
		a, b := w.add(1, noNAT), w.add(2, noNAT)
		w.second(a)
		w.second(b)
		w.run(5 * time.Second)
		w.talk(a, b)
		w.run(10 * time.Second)
		a.change, b.change = nil, nil
		w.run(time.Hour)
		if n := max(len(a.change), len(b.change)); n > 6 {
			t.Errorf("seed %d: the path changed %d times in an hour", seed, n)
		}
	}
}

// A much faster address is found, and taken.
func TestFasterAddress(t *testing.T) {
	w := newSim(t, 1)
	a, b := w.add(1, noNAT), w.add(2, noNAT)
	w.run(5 * time.Second)
	w.latency = func(_, _ *simHost) time.Duration { return 40 * time.Millisecond }
	w.talk(a, b)
	w.run(10 * time.Second)
	fast := w.second(b)
	w.second(a)
	old := w.fast
	w.fast = func(dst netip.AddrPort) bool { return dst.Addr().Is6() }
	defer func() { w.fast = old }()
	if _, ok := w.until(40*time.Second, func() bool { p, _ := a.m.Current(2); return p == Direct(fast) }); !ok {
		t.Errorf("%+v", a.m.Explain(2, w.now))
	}
}

// Many nodes of which nothing is wanted, a thousand with all seeds, cost what their links cost.
func TestIdleCosts(t *testing.T) {
	w := newSim(t, 1)
	w.gossiped = 20 * time.Second
	n := many(1000)
	for i := 1; i <= int(n); i++ {
		w.add(i, noNAT)
	}
	w.run(time.Minute)
	var before []int
	for _, h := range w.hosts {
		before = append(before, h.count["ping"])
	}
	w.run(time.Minute)
	sum, most := 0, 0
	for i, h := range w.hosts {
		n := h.count["ping"] - before[i]
		sum += n
		most = max(most, n)
	}
	t.Logf("pings per node and second: %.2f on average, %.2f at most", float64(sum)/float64(60*n), float64(most)/60)
	if most > 4*60 {
		t.Errorf("a node sent %d pings in a minute", most)
	}
}
