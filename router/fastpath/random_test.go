// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	seedFlag  = flag.Uint64("fastpath.seed", 0, "run this seed of TestRandom only, and tell what happens")
	seedsFlag = flag.Uint64("fastpath.seeds", 10, "how many seeds TestRandom runs")
)

// TestRandom runs hosts the lines between which fail in all ways and recover, while users change their minds and traffic comes and goes. Traffic must
// get through again within two seconds each time, what failed must not come back at once, and in the end the best way is used.
func TestRandom(t *testing.T) {
	if *seedFlag != 0 {
		runRandom(t, *seedFlag)
		return
	}
	for seed := uint64(1); seed <= *seedsFlag && !t.Failed(); seed++ {
		runRandom(t, seed)
		if t.Failed() {
			t.Logf("seed %d: go test ./router/fastpath -run TestRandom -fastpath.seed=%d", seed, seed)
		}
	}
}

func runRandom(t *testing.T, seed uint64) {
	t.Helper()
	s := newSim(t, 2+int(seed%3), seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	for _, h := range s.hosts {
		h.sends = rng.IntN(3) > 0
	}
	lossy := seed%4 == 3 // then nothing is said of how long traffic is interrupted
	keys := slices.SortedFunc(maps.Keys(s.lines), func(a, b [3]uint64) int { return slices.Compare(a[:], b[:]) })
	for _, k := range keys {
		s.lines[k].delay = time.Duration(rng.IntN(60)) * time.Millisecond
		if lossy {
			s.lines[k].loss = 0.03 * rng.Float64()
		}
	}
	s.start()
	s.run(2 * time.Second)
	for range 40 {
		s.disturb(rng, keys)
		s.run(4*time.Second + time.Duration(rng.IntN(8000))*time.Millisecond)
	}
	for _, k := range keys {
		*s.lines[k] = line{mtu: 1500}
	}
	for _, h := range s.hosts {
		for id := range h.cands {
			h.cands[id] = candidateOf(id, Direct, VXLAN)
		}
		s.set(h)
	}
	s.run(75 * time.Second)
	for _, h := range s.hosts {
		for id := range h.cands {
			if st := h.m.Status(id); st.Path != Direct {
				t.Errorf("node %d reaches %d by %v in the end: %+v", h.id, id, st.Path, st)
			}
		}
		if h.worst > 2*time.Second && !lossy {
			t.Errorf("node %d: nothing passed for %v", h.id, h.worst)
		}
		if n := h.busiest(); n > 200 {
			t.Errorf("node %d sends %d probes in a second", h.id, n)
		}
		if n := len(h.m.echoes); n > 100 {
			t.Errorf("node %d keeps %d probes in mind", h.id, n)
		}
		h.checkPatience(t)
		if t.Failed() || *seedFlag != 0 {
			t.Logf("node %d:\n%s", h.id, strings.Join(h.trace, "\n"))
		}
	}
}

// disturb changes something.
func (s *sim) disturb(rng *rand.Rand, keys [][3]uint64) {
	h := s.hosts[rng.IntN(len(s.hosts))]
	switch rng.IntN(8) {
	case 0:
		h.sends = !h.sends
		clear(h.lost)
	case 1:
		for id, c := range h.cands {
			c.Want = Want{rng.IntN(2) == 0, Kind(rng.IntN(3))}
			h.cands[id] = c
		}
		s.set(h)
	case 2:
		for id := range h.cands {
			c := candidateOf(id, Direct, VXLAN)
			c.Ways[1].MTU = 1400 + 50*rng.IntN(2)
			if rng.IntN(3) == 0 {
				c = candidateOf(id, VXLAN)
			}
			h.cands[id] = c
		}
		s.set(h)
	default:
		for range 1 + rng.IntN(4) {
			k := keys[rng.IntN(len(keys))]
			if Kind(k[2]) == UDP { // the answers arrive
				continue
			}
			x := s.lines[k]
			fresh := line{mtu: 1500, loss: x.loss, delay: x.delay}
			switch rng.IntN(8) {
			case 0:
				fresh.down = true
			case 1:
				fresh.down6 = true
			case 2:
				fresh.mtu = 1300
			case 3:
				fresh.error = errUnreachable
			}
			*x = fresh
		}
	}
}

// checkPatience fails if what failed was taken again too soon.
func (h *simHost) checkPatience(t *testing.T) {
	t.Helper()
	type at struct {
		peer uint64
		kind Kind
	}
	failed := map[at]time.Time{}
	for i, a := range h.actions {
		if a.Kind != Switch {
			continue
		}
		if since, ok := failed[at{a.ID, a.Way}]; ok && h.at[i].Sub(since) < failedFirst+cleanFor {
			t.Errorf("node %d takes %v to %d %v after it failed", h.id, a.Way, a.ID, h.at[i].Sub(since))
		}
		for _, by := range []string{"no answer", "packets of 1", "IPv"} {
			if a.From != UDP && strings.HasPrefix(a.Why, by) && !strings.Contains(a.Why, " pass by ") {
				failed[at{a.ID, a.From}] = h.at[i]
			}
		}
		if strings.Contains(a.Why, "has become") { // another way
			delete(failed, at{a.ID, a.From})
		}
	}
}

// Many peers share what a host may send; all are proven, watched, and left when they fail.
func TestMany(t *testing.T) {
	const n = 200
	if most := watchRate + watchBurst + proveRate + proveBurst; most > 200 {
		t.Errorf("%d probes may leave in a second", most)
	}
	m := New(Config{Rand: source{newSim(t, 0, 11).rng}})
	now := time.Unix(1e9, 0)
	var cs []Candidate
	for i := range n {
		c := candidateOf(2, VXLAN)
		c.ID = uint64(i + 2)
		cs = append(cs, c)
	}
	m.Set(cs, now)
	h := &simHost{m: m}
	dead := false
	busy := 30
	var left []time.Duration
	var broken time.Time
	type answer struct {
		at       time.Time
		id, echo uint64
	}
	var answers []answer
	steps := 0
	run := func(d time.Duration) {
		end, tick := now.Add(d), now
		for now.Before(end) {
			do, next := m.Step(now)
			steps++
			for _, a := range do {
				h.actions, h.at = append(h.actions, a), append(h.at, now)
				switch {
				case a.Kind == Switch && a.Way == UDP && int(a.ID) < busy+2:
					left = append(left, now.Sub(broken))
				case a.Kind == Send && !dead:
					answers = append(answers, answer{now.Add(time.Millisecond), a.ID, a.Echo})
				}
			}
			if len(answers) > 0 && answers[0].at.Before(next) {
				now = answers[0].at
				for len(answers) > 0 && !answers[0].at.After(now) {
					m.Proof(answers[0].id, answers[0].echo, now)
					answers = answers[1:]
				}
				continue
			}
			if !next.After(now) {
				t.Fatalf("at %v it is to be called again at %v", now, next)
			}
			if now = next; tick.Before(now) {
				for id := range busy {
					m.Active(uint64(id+2), now)
				}
				tick = now.Add(500 * time.Millisecond)
			}
		}
	}
	proven := func() (n int) {
		for _, c := range cs {
			if m.Status(c.ID).Path == VXLAN {
				n++
			}
		}
		return n
	}
	run(30 * time.Second)
	if got := proven(); got != n {
		t.Errorf("%d of %d are proven in 30 s", got, n)
	}
	steps = 0
	run(10 * time.Second)
	if steps > 10*1000 {
		t.Errorf("%d steps in 10 s", steps)
	}
	dead, broken = true, now
	run(2100 * time.Millisecond)
	if late := slices.ContainsFunc(left, func(d time.Duration) bool { return d > 1900*time.Millisecond }); late || len(left) < busy {
		t.Errorf("of %d that have traffic %d are left in 2 s: %v", busy, len(left), left)
	}
	run(20 * time.Second)
	if got := proven(); got != 0 {
		t.Errorf("%d are in use that do not answer", got)
	}
	if got := h.busiest(); got > 200 {
		t.Errorf("%d probes in a second", got)
	}

	// Even if there is traffic with all of them: by small probes.
	dead, busy = false, n
	for since := now; proven() < n && now.Sub(since) < 4*time.Minute; {
		run(5 * time.Second)
	}
	if got := proven(); got != n {
		t.Errorf("%d of %d are proven again", got, n)
	}
	dead, broken, left = true, now, nil
	run(3 * time.Second)
	if slices.Sort(left); len(left) != n || left[n-1] > 2*time.Second {
		t.Errorf("of %d that have traffic %d are left: %v", n, len(left), left)
	}
	if got := h.busiest(); got > 200 {
		t.Errorf("%d probes in a second", got)
	}
}

// Whatever it is told, and whenever: what it takes was answered often enough, the rest is bounded, and it is never to be called at once for ever.
func TestMachineRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(Config{Rand: source{rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))}, Asks: rapid.Bool().Draw(t, "asks")})
		now := time.Unix(1e9, 0)
		h := &simHost{}
		type way struct {
			id uint64
			k  Kind
		}
		answered := map[way]map[string]int{}
		adopted := map[way]bool{}
		var open []Action
		ms := rapid.IntRange(0, 3000)
		id := rapid.Uint64Range(2, 4)
		for range rapid.IntRange(1, 150).Draw(t, "n") {
			switch what := rapid.IntRange(0, 9).Draw(t, "what"); what {
			case 0:
				var cs []Candidate
				for _, id := range rapid.SliceOfNDistinct(id, 0, 3, rapid.ID[uint64]).Draw(t, "ids") {
					c := candidateOf(id, rapid.SliceOfNDistinct(rapid.SampledFrom(kernelKinds()), 0, 2, rapid.ID[Kind]).Draw(t, "kinds")...)
					c.Want = Want{rapid.Bool().Draw(t, "forced"), rapid.SampledFrom(Kinds()).Draw(t, "want")}
					for i := range c.Ways {
						c.Ways[i].MTU -= 50 * rapid.IntRange(0, 1).Draw(t, "mtu")
					}
					cs = append(cs, c)
				}
				m.Set(cs, now)
			case 1:
				a, k := id.Draw(t, "id"), rapid.SampledFrom(Kinds()).Draw(t, "kind")
				m.Adopt(a, k, now)
				adopted[way{a, k}] = true
			case 2:
				m.Active(id.Draw(t, "id"), now)
			case 3:
				m.Proof(id.Draw(t, "id"), rapid.Uint64().Draw(t, "echo"), now)
			case 4:
				if len(open) > 0 {
					m.Unsent(rapid.SampledFrom(open).Draw(t, "which").Echo, errUnreachable, now)
				}
			case 5, 6:
				for _, a := range open {
					if rapid.IntRange(0, 9).Draw(t, "answered") > 0 {
						m.Proof(a.ID, a.Echo, now)
						w := way{a.ID, a.Way}
						if answered[w] == nil {
							answered[w] = map[string]int{}
						}
						if a.Size > SmallProbe {
							answered[w][a.To.String()]++
						}
					}
				}
				open = nil
			}
			now = now.Add(time.Duration(ms.Draw(t, "ms")) * time.Millisecond)
			for range 3 {
				do, next := m.Step(now)
				if !next.IsZero() && next.Before(now.Add(-time.Nanosecond)) {
					t.Fatalf("at %v it is to be called at %v", now, next)
				}
				for _, a := range do {
					h.actions, h.at = append(h.actions, a), append(h.at, now)
					switch {
					case a.Kind == Send && a.Way == UDP && m.asks && a.Echo != 0:
						open = append(open, a)
					case a.Kind == Send:
						if a.Echo == 0 || a.Way == UDP || a.Size != SmallProbe && a.Size < 1400 {
							t.Fatalf("%+v", a)
						}
						open = append(open, a)
					case a.Why == "" || a.From == a.Way || m.Status(a.ID).Why == "":
						t.Fatalf("%+v, %+v", a, m.Status(a.ID))
					case a.Way != UDP:
						w := way{a.ID, a.Way}
						for to, n := range answered[w] {
							if n < inRow && !adopted[w] {
								t.Fatalf("%+v, and %s has answered %d times", a, to, n)
							}
						}
						if len(answered[w]) < 2 && !adopted[w] {
							t.Fatalf("%+v, and %d families have answered", a, len(answered[w]))
						}
					}
				}
				if next.IsZero() || rapid.Bool().Draw(t, "late") {
					break
				}
				now = later(now, next)
			}
			if n := len(m.echoes); n > (4*2+1)*3*maxUnanswered {
				t.Fatalf("%d probes are kept in mind", n)
			}
			for id, p := range m.peers {
				if st := m.Status(id); st.Path != p.path || len(st.Kinds) != 2 {
					t.Fatalf("%+v", st)
				}
			}
		}
		if n := h.busiest(); n > 200 {
			t.Fatalf("%d probes in a second", n)
		}
		if fmt.Sprint(m.Status(99)) != fmt.Sprint(Status{}) {
			t.Fatal("of one that is not known there is something to say")
		}
	})
}
