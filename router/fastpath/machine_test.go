// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The best way is taken as soon as it is proven; when it fails the next one is, within two seconds, with the reason; and it is taken
// again after it has worked for a while.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		name   string
		fail   func(x *line)
		kinds  []Kind // that fail
		oneWay bool
		want   Kind
		why    string
	}{
		{"all is lost", func(x *line) { x.down = true }, []Kind{Direct}, false, VXLAN, `^no answer by direct to 192\.0\.2\.2 on eth0 since \d\d:\d\d:\d\d$`},
		{"nothing arrives, in one direction", func(x *line) { x.down = true }, []Kind{Direct}, true, VXLAN, `^no answer by direct to 192\.0\.2\.2 on eth0 since`},
		{"both", func(x *line) { x.down = true }, []Kind{Direct, VXLAN}, false, UDP, `^no answer by direct to 192\.0\.2\.2 on eth0 since`},
		{
			"large packets", func(x *line) { x.mtu = 1400 },
			[]Kind{Direct, VXLAN},
			false, UDP,
			`^packets of 1500 bytes do not pass by direct to 192\.0\.2\.2 on eth0, small ones do$`,
		},
		{"IPv6", func(x *line) { x.down6 = true }, []Kind{Direct}, false, VXLAN, `^no answer to IPv6 packets by direct to 192\.0\.2\.2 on eth0 since`},
		{
			"no route", func(x *line) { x.error = errUnreachable },
			[]Kind{Direct, VXLAN},
			false, UDP,
			`^packets of 1500 bytes cannot leave by direct to 192\.0\.2\.2 on eth0 since \d\d:\d\d:\d\d: network is unreachable$`,
		},
		{"everything is slow", func(x *line) { x.delay = 2 * time.Second }, []Kind{Direct}, false, VXLAN, `^no answer by direct`},
	} {
		for _, idle := range []bool{false, true} {
			s := newSim(t, 2, 1)
			for _, h := range s.hosts {
				h.sends = !idle
			}
			s.start()
			s.run(time.Second)
			s.want(Direct)
			s.run(time.Minute)
			s.want(Direct)
			for _, k := range c.kinds {
				c.fail(s.line(1, 2, k))
				if !c.oneWay {
					c.fail(s.line(2, 1, k))
				}
			}
			s.hosts[0].sends, s.hosts[1].sends = true, true // from now on
			s.run(2100 * time.Millisecond)
			back := s.path(2, 1)
			if a := s.path(1, 2); a != c.want || c.oneWay && back != Direct || !c.oneWay && back != c.want {
				t.Fatalf("%s, idle %v: %v and %v\n%s", c.name, idle, a, back, strings.Join(s.hosts[0].trace, "\n"))
			}
			if w := max(s.hosts[0].worst, s.hosts[1].worst); w > 2*time.Second && c.name != "everything is slow" {
				t.Errorf("%s, idle %v: nothing passes for %v\n%s", c.name, idle, w, strings.Join(s.hosts[0].trace, "\n"))
			}
			st := s.hosts[0].m.Status(2)
			if !regexp.MustCompile(c.why).MatchString(st.Why) {
				t.Errorf("%s, idle %v: %s", c.name, idle, st.Why)
			}
			if (st.Kinds[Direct] == "") || (st.Kinds[VXLAN] == "") != (c.want == VXLAN && st.Path != VXLAN) && st.Path != VXLAN {
				t.Errorf("%s, idle %v: %+v", c.name, idle, st)
			}
			s.run(20 * time.Second)
			if a := s.path(1, 2); a != c.want {
				t.Errorf("%s, idle %v: %v after a while", c.name, idle, a)
			}
			for _, k := range c.kinds {
				*s.line(1, 2, k), *s.line(2, 1, k) = line{mtu: 1500}, line{mtu: 1500}
			}
			s.run(80 * time.Second)
			s.want(Direct)
		}
	}
}

// count returns how many probes of full size a host has sent since then.
func (h *simHost) count(since time.Time, k Kind) (n int) {
	for i, a := range h.actions {
		if a.Kind == Send && a.Size > SmallProbe && a.Way == k && !h.at[i].Before(since) {
			n++
		}
	}
	return n
}

// What nobody uses costs little, and what is used is watched.
func TestHowOften(t *testing.T) {
	for _, c := range []struct {
		busy                   bool
		direct, vxlan, spare10 int // full probes in a minute, two for each time
	}{{true, 2 * 200, 2 * 6, 2}, {false, 2 * 6, 2, 2}} {
		s := newSim(t, 2, 2)
		for _, h := range s.hosts {
			h.sends = c.busy
		}
		s.start()
		s.run(2 * time.Minute)
		from := s.now
		s.run(time.Minute)
		h := s.hosts[0]
		if d, v := h.count(from, Direct), h.count(from, VXLAN); d > c.direct+2 || d < c.direct*9/10 || v > c.vxlan+c.spare10 || v < c.vxlan-c.spare10 {
			t.Errorf("busy %v: %d by direct, %d by vxlan", c.busy, d, v)
		}
		if len(h.m.echoes) > 4 {
			t.Errorf("busy %v: %d probes are kept in mind", c.busy, len(h.m.echoes))
		}
	}

	// A way that has never worked is tried every ten seconds, or every minute.
	for busy, want := range map[bool]int{true: 6, false: 1} {
		s := newSim(t, 2, 3)
		for _, h := range s.hosts {
			h.sends = busy
		}
		s.line(1, 2, Direct).down = true
		s.start()
		s.run(2 * time.Minute)
		if s.path(1, 2) != VXLAN {
			t.Fatal(s.hosts[0].trace)
		}
		from := s.now
		s.run(time.Minute)
		if attempts := s.hosts[0].count(from, Direct) / 12; attempts < want-1 || attempts > want {
			t.Errorf("busy %v: %d attempts in a minute", busy, attempts)
		}
		if why := s.hosts[0].m.Status(2).Kinds[Direct]; !strings.HasPrefix(why, "no answer by direct to 192.0.2.2 on eth0 since ") {
			t.Errorf("%q", why)
		}
	}
}

// A way on which nobody answers yet, as the other node is about to start, is tried twice again soon, also without traffic.
func TestHasty(t *testing.T) {
	for down, most := range map[time.Duration]time.Duration{2 * time.Second: 4 * time.Second, 7 * time.Second: 10 * time.Second, 10 * time.Second: 70 * time.Second} {
		s := newSim(t, 2, 5)
		s.hosts[0].cands[2] = candidateOf(2, VXLAN)
		s.line(1, 2, VXLAN).down = true
		s.start()
		s.run(down)
		s.line(1, 2, VXLAN).down = false
		s.run(most - down)
		if s.path(1, 2) != VXLAN {
			t.Errorf("nobody answered for %v: not in use after %v\n%s", down, most, strings.Join(s.hosts[0].trace, "\n"))
		}
	}
}

// What fails again and again is tried less and less often; what has worked for a minute is trusted again.
func TestPatience(t *testing.T) {
	s := newSim(t, 2, 4)
	s.hosts[0].cands[2] = candidateOf(2, VXLAN)
	s.start()
	s.run(time.Second)
	h, x := s.hosts[0], s.line(1, 2, VXLAN)
	cycle := func() time.Duration {
		t.Helper()
		x.down = true
		for h.m.Status(2).Path == VXLAN {
			s.run(10 * time.Millisecond)
		}
		x.down = false
		since := s.now
		for h.m.Status(2).Path == UDP {
			s.run(10 * time.Millisecond)
			if s.now.Sub(since) > 2*time.Minute {
				t.Fatalf("it is not taken again\n%s", strings.Join(h.trace, "\n"))
			}
		}
		return s.now.Sub(since)
	}
	for i, seconds := range []int{2, 4, 8, 16, 32, 60, 60} {
		want := time.Duration(seconds)*time.Second + cleanFor
		if got := cycle(); got < want || got > want+500*time.Millisecond {
			t.Errorf("failed %d times, it rests for %v, not %v", i+1, got, want)
		}
	}
	s.run(55 * time.Second)
	if got := cycle(); got < time.Minute {
		t.Errorf("after less than a minute it rests for %v", got)
	}
	s.run(time.Minute)
	if got := cycle(); got > 6*time.Second {
		t.Errorf("after a minute it rests for %v", got)
	}

	// A loss while it is to show that it works makes it wait again.
	x.down = true
	s.run(2 * time.Second)
	x.down = false
	for h.m.peers[2].trials[VXLAN].state != proving {
		s.run(10 * time.Millisecond)
	}
	s.run(250 * time.Millisecond)
	x.down = true
	s.run(500 * time.Millisecond)
	x.down = false
	s.run(3500 * time.Millisecond)
	if st := h.m.Status(2); st.Path != UDP || st.Kinds[VXLAN] != "probes are lost by vxlan to 192.0.2.2:6784" {
		t.Errorf("%+v", st)
	}
}

// A way that has failed is not trusted more because it is wider now.
func TestPatienceOfTheSameWay(t *testing.T) {
	s := newSim(t, 2, 12)
	h := s.hosts[0]
	wide := func(mtu int) {
		c := candidateOf(2, VXLAN)
		c.Ways[0].MTU = mtu
		h.cands[2] = c
		s.set(h)
	}
	wide(1400)
	s.start()
	s.run(time.Second)
	s.line(1, 2, VXLAN).down = true
	s.run(2 * time.Second)
	s.line(1, 2, VXLAN).down = false
	wide(1450)
	s.run(4 * time.Second)
	if h.m.Status(2).Path != UDP {
		t.Errorf("%v", h.trace)
	}
	s.run(3 * time.Second)
	if h.m.Status(2).Path != VXLAN {
		t.Errorf("%v", h.trace)
	}
}

// Answers count that come in a row.
func TestInARow(t *testing.T) {
	m := New(Config{Rand: source{newSim(t, 0, 13).rng}})
	now := time.Unix(1e9, 0)
	m.Set([]Candidate{candidateOf(2, VXLAN)}, now)
	n := map[netip.Addr]int{}
	for now.Before(time.Unix(1e9+5, 0)) {
		do, next := m.Step(now)
		for _, a := range do {
			if a.Kind == Switch {
				t.Fatalf("after %v: %+v", now, n)
			}
			if a.Size > SmallProbe {
				if n[a.To]++; n[a.To]%3 != 0 {
					m.Proof(2, a.Echo, now)
				}
			}
		}
		now = next
	}
	if st := m.Status(2); st.Why != "too many probes are lost by vxlan to 192.0.2.2:6784" || n[candidateOf(2, VXLAN).Ways[0].Probe[0]] < 18 {
		t.Errorf("%+v, %v", st, n)
	}
}

// A process that was stopped for a while does not take that for silence.
func TestStopped(t *testing.T) {
	s := newSim(t, 2, 14)
	h := s.hosts[0]
	s.start()
	s.run(10 * time.Second)
	s.want(Direct)
	s.now = s.now.Add(7 * time.Second)
	h.m.Active(2, s.now)
	s.step(h)
	s.run(5 * time.Second)
	s.want(Direct)
	if len(h.trace) != 2 {
		t.Errorf("%v", h.trace)
	}
}

// The user's word holds as far as it can, and at once.
func TestOrders(t *testing.T) {
	s := newSim(t, 2, 5)
	h := s.hosts[0]
	order := func(w Want) {
		c := h.cands[2]
		c.Want = w
		h.cands[2] = c
		s.set(h)
	}
	s.start()
	s.run(30 * time.Second)
	s.want(Direct)
	for range 20 {
		for _, k := range []Kind{VXLAN, UDP, Direct, VXLAN, Direct, UDP} {
			order(Want{true, k})
			if st := h.m.Status(2); st.Path != k || !strings.HasPrefix(st.Why, byOrder) {
				t.Fatalf("ordered %v: %+v\n%s", k, st, strings.Join(h.trace, "\n"))
			}
			s.run(time.Second)
		}
	}
	if h.worst > 0 {
		t.Errorf("nothing passes for %v", h.worst)
	}
	order(Want{})
	if st := h.m.Status(2); st.Path != Direct || st.Why != "packets of 1500 bytes pass by direct to 192.0.2.2 on eth0" {
		t.Errorf("%+v", st)
	}

	order(Want{true, VXLAN})
	s.line(1, 2, VXLAN).down = true
	s.run(2 * time.Second)
	if st := h.m.Status(2); st.Path != UDP || !strings.HasPrefix(st.Why, "no answer by vxlan to 192.0.2.2:6784 since ") || st.Kinds[Direct] != "" {
		t.Errorf("what is ordered does not work: %+v", st)
	}
	order(Want{true, Direct})
	if st := h.m.Status(2); st.Path != Direct || st.Why != byOrder+": packets of 1500 bytes pass by direct to 192.0.2.2 on eth0" {
		t.Errorf("%+v", st)
	}
	order(Want{true, VXLAN})
	if st := h.m.Status(2); st.Path != UDP || !strings.HasPrefix(st.Why, byOrder+": ") {
		t.Errorf("what does not work is ordered: %+v", st)
	}
	s.line(1, 2, VXLAN).down = false
	s.run(8 * time.Second)
	if st := h.m.Status(2); st.Path != VXLAN {
		t.Errorf("what is ordered works again: %+v", st)
	}
	order(Want{true, UDP})
	s.line(1, 2, VXLAN).down, s.line(1, 2, Direct).down = true, true
	s.run(time.Minute)
	order(Want{})
	if st := h.m.Status(2); st.Path != UDP || !strings.HasPrefix(st.Why, "no answer by vxlan to 192.0.2.2:6784 since ") {
		t.Errorf("nothing is ordered any more: %+v", st)
	}
	h.cands[2] = candidateOf(2)
	order(Want{true, Direct})
	if st := h.m.Status(2); st.Path != UDP || st.Why != byOrder+": no direct here" || st.Kinds[VXLAN] != "no vxlan here" {
		t.Errorf("what there is not is ordered: %+v", st)
	}
	order(Want{})
	if st := h.m.Status(2); st.Path != UDP || st.Why != "no vxlan here" {
		t.Errorf("there is nothing: %+v", st)
	}
}

// What an earlier run has left is used until it is known better.
func TestAdopt(t *testing.T) {
	for _, late := range []bool{false, true} {
		s := newSim(t, 2, 6)
		a, b := s.hosts[0], s.hosts[1]
		for _, h := range s.hosts {
			other := 3 - h.id
			if !late {
				h.m.Adopt(other, VXLAN, s.now)
			}
			h.cands[other] = candidateOf(other, VXLAN)
		}
		s.start()
		if late {
			a.m.Adopt(2, VXLAN, s.now)
			b.m.Adopt(1, VXLAN, s.now)
			s.step(a)
			s.step(b)
		}
		s.want(VXLAN)
		if st := a.m.Status(2); st.Why != "found in place at the start" || !st.Since.IsZero() {
			t.Errorf("%+v", st)
		}
		s.run(time.Minute)
		s.want(VXLAN)
		if len(a.trace)+len(b.trace) > 0 {
			t.Errorf("it was left in between: %v %v", a.trace, b.trace)
		}
		s.line(1, 2, VXLAN).down = true
		s.run(2 * time.Second)
		if s.path(1, 2) != UDP || s.path(2, 1) != VXLAN {
			t.Errorf("it does not work any more: %v, %v", a.trace, b.trace)
		}
	}

	s := newSim(t, 2, 7)
	h := s.hosts[0]
	s.line(1, 2, VXLAN).down = true
	h.cands[2] = candidateOf(2, VXLAN)
	h.m.Adopt(2, VXLAN, s.now)
	s.start()
	s.run(4 * time.Second)
	if s.path(1, 2) != VXLAN {
		t.Errorf("it was not given the time: %v", h.trace)
	}
	s.run(2 * time.Second)
	if s.path(1, 2) != UDP {
		t.Errorf("it does not work: %v", h.trace)
	}

	s = newSim(t, 2, 8)
	h = s.hosts[0]
	h.cands[2] = candidateOf(2, VXLAN)
	h.m.Adopt(2, Direct, s.now)
	h.m.Adopt(9, Direct, s.now)
	h.m.Adopt(2, UDP, s.now)
	s.start()
	if len(h.trace) != 1 || !strings.HasSuffix(h.trace[0], "2: direct to udp: no direct here") {
		t.Errorf("what is not consented any more: %v", h.trace)
	}
}

// Ways change under traffic.
func TestSet(t *testing.T) {
	s := newSim(t, 2, 9)
	h := s.hosts[0]
	s.start()
	s.run(10 * time.Second)
	change := func(f func(c *Candidate)) {
		c := candidateOf(2, Direct, VXLAN)
		f(&c)
		h.cands[2] = c
		s.set(h)
	}
	last := func() string { return h.trace[len(h.trace)-1] }
	for _, c := range []struct {
		name   string
		change func(c *Candidate)
		want   Kind // at once
		why    string
	}{
		{"nothing", func(*Candidate) {}, Direct, ""},
		{"narrower", func(c *Candidate) { c.Ways[0].MTU = 1400 }, Direct, ""},
		{
			"wide again", func(c *Candidate) { c.Ways[0].MTU = 1500 }, VXLAN,
			"direct to 192.0.2.2 on eth0 with packets of 1400 bytes has become direct to 192.0.2.2 on eth0 with packets of 1500 bytes, which is being proven",
		},
		{
			"elsewhere", func(c *Candidate) { c.Ways[0].Device = "eth1" }, VXLAN,
			"direct to 192.0.2.2 on eth0 with packets of 1500 bytes has become direct to 192.0.2.2 on eth1 with packets of 1500 bytes, which is being proven",
		},
		{
			"another address of the host", func(c *Candidate) { c.Ways[0].Device, c.Ways[0].Probe = "eth1", addrs("10.32.0.99 fd00::99") }, VXLAN,
			"direct to 192.0.2.2 on eth1 with packets of 1500 bytes has become direct to 192.0.2.2 on eth1 with packets of 1500 bytes, which is being proven",
		},
		{"without consent", func(c *Candidate) { *c = candidateOf(2, VXLAN) }, VXLAN, "no direct here"},
		{"without any", func(c *Candidate) { *c = candidateOf(2) }, UDP, "no vxlan here"},
		{"as before", func(*Candidate) {}, UDP, ""},
	} {
		n := len(h.trace)
		if c.name == "without any" { // from vxlan
			n = len(h.trace)
		}
		change(c.change)
		if h.m.Status(2).Path != c.want {
			t.Errorf("%s: %v\n%s", c.name, h.m.Status(2), strings.Join(h.trace, "\n"))
		}
		if c.why == "" != (len(h.trace) == n) || c.why != "" && !strings.HasSuffix(last(), ": "+c.why) {
			t.Errorf("%s:\n%s", c.name, strings.Join(h.trace[n:], "\n"))
		}
		s.run(5 * time.Second)
	}
	if s.path(1, 2) != Direct || h.worst > 0 {
		t.Errorf("at the end %v, and nothing passed for %v", s.path(1, 2), h.worst)
	}
	delete(h.cands, 2)
	n := len(h.trace)
	s.set(h)
	if st := h.m.Status(2); st.Path != UDP || len(h.trace) != n || len(h.m.echoes) != 0 || len(h.m.queue) != 0 || !h.next.IsZero() {
		t.Errorf("forgotten: %+v, %d echoes, next %v", st, len(h.m.echoes), h.next)
	}
	h.m.Active(2, s.now)
	h.m.Proof(2, 7, s.now)
	h.m.Unsent(7, errUnreachable, s.now)
	s.run(10 * time.Second)
}

// Answers of others, late ones and those to nothing do not count.
func TestProofsOfOthers(t *testing.T) {
	m := New(Config{Rand: source{newSim(t, 0, 10).rng}})
	now := time.Unix(1e9, 0)
	m.Set([]Candidate{candidateOf(2, VXLAN), candidateOf(3, VXLAN)}, now)
	for range 100 {
		do, next := m.Step(now)
		for _, a := range do {
			if a.Kind == Switch {
				t.Fatalf("%+v", a)
			}
			m.Proof(5-a.ID, a.Echo, now)
			m.Proof(a.ID, a.Echo+1, now)
		}
		now = next
	}
	if st := m.Status(2); st.Path != UDP || !strings.HasPrefix(st.Why, "no answer by vxlan to 192.0.2.2:6784 since ") || st.Kinds[UDP] != "" {
		t.Errorf("%+v", st)
	}
	if st := m.Status(9); st.Path != UDP || st.Why != "" {
		t.Errorf("%+v", st)
	}
}
