// SPDX-License-Identifier: Apache-2.0

package pathmtu

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// sim is a path and the Machine that explores it, under a clock of its own.
type sim struct {
	m     *Machine
	now   time.Time
	next  time.Time // of the Machine; zero: none
	width int       // largest that passes, silently; 0: nothing does
	local int       // largest that this host sends; 0: any
	rtt   time.Duration
	loss  float64 // each way
	late  float64 // of acknowledgements that come up to 100 ms later than others
	busy  bool    // large packets are being sent all the time
	full  bool    // nothing can leave
	rng   *rand.Rand

	way     []ack
	probes  int
	changes []Change
}

type ack struct {
	id uint64
	at time.Time
}

func newSim(maximum, width int) *sim {
	s := &sim{m: New(maximum, time.Minute), now: time.Unix(1e9, 0), width: width, rtt: 10 * time.Millisecond, rng: rand.New(rand.NewPCG(1, 2))}
	s.m.Restart()
	return s
}

// tick does what the router does.
func (s *sim) tick() {
	for busy := s.busy; ; busy = false {
		var requests []Request
		requests, s.next = s.m.Tick(s.now, busy)
		refused := false
		for _, r := range requests {
			if s.full {
				s.m.Postponed(s.now)
				_, s.next = s.m.Tick(s.now, false)
				return
			}
			s.probes++
			switch {
			case s.local != 0 && r.Size > s.local:
				s.m.Refused(r.Size)
				refused = true
			case s.width < r.Size || s.rng.Float64() < s.loss || s.rng.Float64() < s.loss:
			default:
				d := s.rtt
				if s.rng.Float64() < s.late {
					d += time.Duration(s.rng.Int64N(int64(100 * time.Millisecond)))
				}
				s.way = append(s.way, ack{r.ID, s.now.Add(d)})
			}
		}
		if c, ok := s.m.Changed(); ok {
			s.changes = append(s.changes, c)
		}
		if !refused {
			return
		}
	}
}

// run lets time pass, or until done.
func (s *sim) run(d time.Duration, done func() bool) time.Duration {
	start := s.now
	s.tick()
	for end := s.now.Add(d); s.now.Before(end) && (done == nil || !done()); s.now = s.now.Add(5 * time.Millisecond) {
		news := false
		s.way = slices.DeleteFunc(s.way, func(a ack) bool {
			if s.now.Before(a.at) {
				return false
			}
			if _, urgent := s.m.Acked(a.id, s.now); urgent {
				news = true
			}
			return true
		})
		// The router looks 200 ms after packets were sent.
		if due := !s.next.IsZero() && !s.now.Before(s.next); news || due || s.busy && s.now.UnixMilli()%200 == 0 {
			s.tick()
		}
	}
	return s.now.Sub(start)
}

// best is the largest size that the Machine can be expected to find.
func (s *sim) best() int {
	w := s.width
	if s.local != 0 {
		w = min(w, s.local)
	}
	if w >= s.m.max {
		return s.m.max
	}
	return w &^ (step - 1)
}

func (s *sim) settled() bool {
	l := s.m.Limits()
	return s.m.phase <= verify && l.Confirmed && l.MTU == s.best() && l.Whole == l.MTU
}

func TestFirstSearch(t *testing.T) {
	for _, c := range []struct {
		name              string
		max, width, local int
		within            time.Duration
	}{
		{"all passes", 1408, 9000, 0, 20 * time.Millisecond},
		{"exactly", 1408, 1408, 0, 20 * time.Millisecond},
		{"a little less", 1408, 1407, 0, time.Second},
		{"VXLAN below", 1408, 1370, 0, time.Second},
		{"an odd size", 1408, 1341, 0, 2 * time.Second},
		{"1280 below, IPv6", 1280, 1200, 0, time.Second},
		{"jumbo frames, 1500 between", 8912, 1440, 0, 2 * time.Second},
		{"jumbo frames, 5000 between", 8912, 4920, 0, 4 * time.Second},
		{"narrow", 1408, 600, 0, 4 * time.Second},
		{"an odd maximum", 1300, 1299, 0, 2 * time.Second},
		{"narrow link of this host", 1408, 9000, 1360, 700 * time.Millisecond},
		{"narrow link of this host, odd", 1408, 9000, 1351, time.Second},
		{"narrow link, path narrower", 1408, 1200, 1360, 2 * time.Second},
	} {
		s := newSim(c.max, c.width)
		s.local = c.local
		took := s.run(10*time.Second, s.settled)
		if !s.settled() || took > c.within {
			t.Errorf("%s: %+v after %v, want %d within %v", c.name, s.m.Limits(), took, s.best(), c.within)
		}
		want := []Change{{c.max, s.best()}}
		if s.best() == c.max {
			want = nil
		}
		s.run(time.Minute, nil)
		if fmt.Sprint(s.changes) != fmt.Sprint(want) {
			t.Errorf("%s: changes %v, want %v", c.name, s.changes, want)
		}
		if s.probes > 60 {
			t.Errorf("%s: %d probes", c.name, s.probes)
		}
		if !s.next.IsZero() {
			t.Errorf("%s: an idle path wants to be looked at again in %v", c.name, s.next.Sub(s.now))
		}
	}
}

// Until a size is known to pass, packets go such that the network may fragment them, and nobody is told a smaller one.
func TestOptimism(t *testing.T) {
	s := newSim(1408, 9000)
	s.rtt = 250 * time.Millisecond
	if l := s.m.Limits(); l != (Limits{MTU: 1408}) {
		t.Errorf("at first %+v", l)
	}
	s.tick()
	s.run(2*time.Second, func() bool {
		if l := s.m.Limits(); l.MTU != 1408 {
			t.Fatalf("%+v", l)
		}
		return false
	})
	if l := s.m.Limits(); l != (Limits{MTU: 1408, Whole: 1408, Confirmed: true, Answers: true}) {
		t.Errorf("in the end %+v", l)
	}
}

// A peer that never answers keeps the MTU that it has, whatever this host is told to send, and is asked ever more rarely.
func TestMute(t *testing.T) {
	s := newSim(1408, 0)
	s.busy = true
	s.run(10*time.Minute, nil)
	if l := s.m.Limits(); l != (Limits{MTU: 1408}) || len(s.changes) != 0 {
		t.Errorf("%+v, changes %v", l, s.changes)
	}
	if s.probes > 400 {
		t.Errorf("%d probes in ten minutes", s.probes)
	}
	s.m.SetMax(1300)
	s.m.SetMax(1350)
	if l := s.m.Limits(); l != (Limits{MTU: 1350}) {
		t.Errorf("%+v", l)
	}
}

// A path that dies says nothing of sizes; when it lives again it is confirmed.
func TestDeadPath(t *testing.T) {
	s := newSim(1408, 1376)
	s.busy = true
	s.run(3*time.Second, nil)
	s.width = 0
	s.run(time.Minute, nil)
	if l := s.m.Limits(); l.MTU != 1376 || l.Confirmed || l.Whole != 0 {
		t.Errorf("dead: %+v", l)
	}
	s.width = 1376
	if took := s.run(time.Minute, s.settled); took > mostQuiet+time.Second {
		t.Errorf("confirmed after %v", took)
	}
	if len(s.changes) != 1 {
		t.Errorf("changes %v", s.changes)
	}
}

// Under traffic a black hole is found soon enough for TCP, whose attempts come at 0.2, 0.6, 1.4 and 3 s at the latest.
func TestBlackHole(t *testing.T) {
	for _, rtt := range []time.Duration{0, time.Millisecond, 80 * time.Millisecond, 250 * time.Millisecond} {
		for offset := time.Duration(0); offset < checkGap; offset += 110 * time.Millisecond {
			for _, width := range []int{1392, 1350, 1200, 1100, 700} {
				s := newSim(1408, 9000)
				s.rtt, s.busy = rtt, true
				s.run(5*time.Second+offset, nil)
				s.width = width
				took := s.run(20*time.Second, func() bool { return s.m.Limits().MTU <= width })
				if took > 2200*time.Millisecond {
					t.Errorf("RTT %v, %v after a check, %d: found after %v", rtt, offset, width, took)
				}
				if took := s.run(10*time.Second, s.settled); took > 6*time.Second {
					t.Errorf("RTT %v, %d: not settled after %v: %+v", rtt, width, took, s.m.Limits())
				}
				// While it is searched, what is not known to pass is not sent whole.
				if c := s.changes; len(c) != 1 || c[0] != (Change{1408, s.best()}) {
					t.Errorf("changes %v", c)
				}
			}
		}
	}
}

func TestRaise(t *testing.T) {
	s := newSim(8912, 1440)
	s.busy = true
	s.run(10*time.Minute, nil)
	if !s.settled() {
		t.Fatalf("%+v", s.m.Limits())
	}
	before := s.probes
	s.run(10*time.Minute, nil)
	if n := s.probes - before; n > 1200+10*2*8 {
		t.Errorf("%d probes in ten minutes of traffic", n)
	}
	for _, width := range []int{1472, 3000, 9000} {
		s.width = width
		if took := s.run(3*time.Minute, s.settled); took > time.Minute+5*time.Second {
			t.Errorf("raised to %+v after %v, want %d", s.m.Limits(), took, width)
		}
	}
	if got := fmt.Sprint(s.changes); got != "[{8912 1440} {1440 1472} {1472 2992} {2992 8912}]" {
		t.Errorf("changes %s", got)
	}
	// A new path is explored at once, without traffic.
	s.busy = false
	s.width = 1440
	s.m.Restart()
	s.tick()
	if took := s.run(10*time.Second, s.settled); took > 3*time.Second {
		t.Errorf("lowered after %v", took)
	}
	s.width = 9000
	s.m.Restart()
	s.tick()
	if took := s.run(10*time.Second, s.settled); took > time.Second {
		t.Errorf("raised after %v", took)
	}
}

// Of another path nothing is known, whatever was: also not by what is still acknowledged of the old one.
func TestForget(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(s *sim) // in the middle of what the path changes
	}{
		{"idle", func(s *sim) { s.run(2*time.Second, nil) }},
		{"verifying", func(s *sim) { s.run(2*time.Second, nil); s.m.Restart(); s.tick() }},
		{"verifying, all lost", func(s *sim) {
			s.run(2*time.Second, nil)
			s.loss, s.busy = 1, true
			s.run(2*time.Second, nil)
			s.loss = 0
		}},
		{"at first", func(s *sim) { s.tick() }},
		{"raising", func(s *sim) {
			s.width = 1200
			s.run(10*time.Second, nil)
			s.width = 1408
			s.m.Restart()
			s.run(10*time.Second, func() bool { return s.m.phase == raise })
		}},
		{"refining", func(s *sim) { s.width = 1250; s.run(10*time.Second, func() bool { return s.m.phase == refine }) }},
	} {
		for _, width := range []int{1360, 1100} {
			s := newSim(1408, 1408)
			s.rtt = 250 * time.Millisecond
			c.before(s)
			s.m.Forget()
			s.width, s.busy = width, true
			late := s.way
			s.way = nil
			for range 3 {
				if l := s.m.Limits(); l.Whole != 0 || l.Confirmed {
					t.Errorf("%s: %+v", c.name, l)
				}
				s.tick()
			}
			for _, a := range late {
				if ok, _ := s.m.Acked(a.id, s.now); ok {
					t.Errorf("%s: a probe on the old path counts", c.name)
				}
			}
			if took := s.run(20*time.Second, func() bool { return s.settled() }); took > 8*time.Second {
				t.Errorf("%s: after %v: %+v, want %d", c.name, took, s.m.Limits(), width)
			}
		}
	}
}

// However often it is told to, the Machine does not probe faster, and Restart does not keep it from finding out.
func TestRestartAllTheTime(t *testing.T) {
	for _, again := range []func(m *Machine){(*Machine).Restart, (*Machine).Forget} {
		s := newSim(1408, 9000)
		s.run(2*time.Second, nil)
		s.width, s.busy, s.rtt = 1200, true, time.Millisecond
		before := s.probes
		for range 2000 {
			again(s.m)
			s.tick()
			s.run(5*time.Millisecond, nil)
			if l := s.m.Limits(); l.Whole > s.width && s.now.After(time.Unix(1e9+4, 0)) {
				t.Fatalf("%+v", l)
			}
		}
		if n := s.probes - before; n > 10*34+60 {
			t.Errorf("%d probes in ten seconds", n)
		}
		if took := s.run(10*time.Second, s.settled); took > 4*time.Second {
			t.Errorf("settled after %v", took)
		}
	}
	// A verification that is under way finds what it would have found.
	s := newSim(1408, 1200)
	for range 300 {
		s.m.Restart()
		s.tick()
		s.run(5*time.Millisecond, nil)
	}
	if l := s.m.Limits(); l.Whole > 1200 || l.Whole == 0 {
		t.Errorf("after 1.5 s of restarts %+v", l)
	}
}

// A socket that is full for a while is no reason to believe anything.
func TestPostponed(t *testing.T) {
	s := newSim(1408, 1408)
	s.busy = true
	s.run(3*time.Second, nil)
	s.full = true
	s.run(30*time.Second, nil)
	if l := s.m.Limits(); l.MTU != 1408 || !l.Confirmed {
		t.Errorf("%+v", l)
	}
	s.full = false
	if took := s.run(time.Minute, s.settled); took > time.Second {
		t.Errorf("confirmed after %v: %+v", took, s.m.Limits())
	}
}

func TestForeignAcks(t *testing.T) {
	s := newSim(1408, 0)
	s.tick()
	for id := range uint64(1000) {
		if ok, _ := s.m.Acked(id+100, s.now); ok {
			t.Fatalf("an acknowledgement of probe %d was taken, which was never sent", id+100)
		}
	}
	for i := range 2 {
		if ok, _ := s.m.Acked(1, s.now); ok != (i == 0) {
			t.Errorf("an acknowledgement counts %v when it comes for the %d. time", ok, i+1)
		}
	}
}

func TestSetMax(t *testing.T) {
	s := newSim(1408, 1376)
	s.run(5*time.Second, nil)
	for _, c := range []struct{ max, mtu int }{{1300, 1300}, {1408, 1376}, {9000, 1376}} {
		s.m.SetMax(c.max)
		s.tick()
		s.run(10*time.Second, nil)
		if l := s.m.Limits(); l.MTU != c.mtu || !l.Confirmed {
			t.Errorf("at most %d: %+v, want %d", c.max, l, c.mtu)
		}
	}
}

// With loss that is the same for all sizes a path that is wide enough is hardly ever taken for a narrow one, and not for long.
func TestLoss(t *testing.T) {
	for _, c := range []struct {
		loss  float64
		wrong float64 // the part of the time that the size may be too small
	}{{0.01, 0}, {0.05, 0.005}, {0.1, 0.03}} {
		s := newSim(1408, 9000)
		s.busy, s.loss, s.late = true, c.loss, 0.3
		wrong, steps := 0, 0
		for range 3600 * 2 { // an hour
			s.run(500*time.Millisecond, nil)
			steps++
			if s.m.Limits().MTU != 1408 {
				wrong++
			}
		}
		if part := float64(wrong) / float64(steps); part > c.wrong {
			t.Errorf("loss %v: too small for %v of the time; %d changes", c.loss, part, len(s.changes))
		}
	}
}

// Whatever happens to a path, a while after the last change of it the Machine knows it, and never is above the maximum or
// below the smallest size.
func TestAnyPath(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width := func(l string) int { return rapid.IntRange(Floor, 10000).Draw(t, l) }
		s := newSim(rapid.IntRange(Floor, 9000).Draw(t, "max"), width("width"))
		s.rng = rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		s.busy = true
		check := func() bool {
			if l := s.m.Limits(); l.MTU > s.m.max || l.MTU < Floor || l.Whole > l.MTU || l.Confirmed && l.Whole != l.MTU {
				t.Fatalf("%+v, at most %d", l, s.m.max)
			}
			return false
		}
		for range rapid.IntRange(1, 8).Draw(t, "events") {
			switch rapid.SampledFrom([]string{"width", "loss", "rtt", "dead", "restart", "forget", "max", "local", "idle", "full"}).Draw(t, "event") {
			case "width":
				s.width = width("width")
			case "loss":
				s.loss = rapid.Float64Range(0, 0.5).Draw(t, "loss")
				s.late = rapid.Float64Range(0, 1).Draw(t, "late")
			case "rtt":
				s.rtt = time.Duration(rapid.IntRange(0, 700).Draw(t, "rtt")) * time.Millisecond
			case "dead":
				s.width = 0
			case "restart":
				s.m.Restart()
			case "forget":
				s.m.Forget()
			case "max":
				s.m.SetMax(width("max"))
			case "local":
				s.local = rapid.SampledFrom([]int{0, 1200, 1408, 3000}).Draw(t, "local")
			case "idle":
				s.busy = !s.busy
			case "full":
				s.full = !s.full
			}
			s.run(time.Duration(rapid.IntRange(0, 20000).Draw(t, "ms"))*time.Millisecond, check)
		}
		s.loss, s.late, s.busy, s.full = 0, 0, true, false
		s.rtt = min(s.rtt, 200*time.Millisecond)
		s.width = width("last width")
		s.run(3*time.Minute, check)
		if !s.settled() && s.run(10*time.Second, s.settled) >= 10*time.Second {
			t.Fatalf("%+v, phase %d, want %d; changes %v", s.m.Limits(), s.m.phase, s.best(), s.changes)
		}
	})
}
