// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// line is one direction of one kind of path between two hosts.
type line struct {
	down  bool
	down6 bool // for IPv6 packets
	mtu   int  // what is larger vanishes
	loss  float64
	delay time.Duration
	error error // probes cannot leave
}

// simHost is a host of the simulation: a Machine, and what its traffic has met with.
type simHost struct {
	id      uint64
	m       *Machine
	next    time.Time // of Step
	cands   map[uint64]Candidate
	sends   bool // there is traffic to all others
	trace   []string
	actions []Action
	at      []time.Time       // of the actions
	lost    map[uint64]outage // of traffic to others
	worst   time.Duration     // the longest time without any getting through

	// answered has how often the full probes of a way were answered, in each family, since it has changed or failed.
	answered map[key]int
}

// outage is since when nothing gets through; zero: it does.
type outage struct{ since time.Time }

type key struct {
	peer uint64
	kind Kind
	to   netip.Addr
}

// sim is a network of hosts under virtual time.
type sim struct {
	tb     testing.TB
	rng    *rand.Rand
	now    time.Time
	events events
	hosts  []*simHost
	lines  map[[3]uint64]*line // from, to, kind: UDP carries the answers
}

type event struct {
	at time.Time
	n  int
	do func()
}

type events struct {
	all []event
	n   int
}

func (e *events) Len() int { return len(e.all) }
func (e *events) Less(i, j int) bool {
	a, b := e.all[i], e.all[j]
	return a.at.Before(b.at) || a.at.Equal(b.at) && a.n < b.n
}
func (e *events) Swap(i, j int) { e.all[i], e.all[j] = e.all[j], e.all[i] }
func (e *events) Push(x any)    { e.all = append(e.all, x.(event)) }
func (e *events) Pop() any {
	x := e.all[len(e.all)-1]
	e.all = e.all[:len(e.all)-1]
	return x
}

// source is randomness for a Machine.
type source struct{ rng *rand.Rand }

func (s source) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(s.rng.Uint32())
	}
	return len(b), nil
}

// newSim makes n hosts that all have all ways to each other, in both families, and talk.
func newSim(tb testing.TB, n int, seed uint64) *sim {
	tb.Helper()
	s := &sim{tb: tb, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1e9, 0), lines: map[[3]uint64]*line{}}
	for i := range n {
		id := uint64(i + 1)
		h := &simHost{
			id: id, m: New(Config{Rand: source{s.rng}, Asks: seed%2 == 0}), cands: map[uint64]Candidate{}, sends: true,
			lost: map[uint64]outage{}, answered: map[key]int{},
		}
		for j := range n {
			if other := uint64(j + 1); other != id {
				h.cands[other] = candidateOf(other, Direct, VXLAN)
				for _, k := range Kinds() {
					s.lines[[3]uint64{id, other, uint64(k)}] = &line{mtu: 1500, delay: 300 * time.Microsecond}
				}
			}
		}
		s.hosts = append(s.hosts, h)
	}
	return s
}

// candidateOf is that of a node to which there are ways of those kinds.
func candidateOf(id uint64, kinds ...Kind) Candidate {
	c := Candidate{ID: id, Why: map[Kind]string{Direct: "no direct here", VXLAN: "no vxlan here"}}
	a := netip.AddrFrom4([4]byte{192, 0, 2, byte(id)})
	for _, k := range kinds {
		delete(c.Why, k)
		w := Way{Kind: k, MTU: 1450, Probe: []netip.Addr{netip.AddrFrom4([4]byte{10, 32, 0, byte(id)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(id)})}}
		if k == VXLAN {
			w.Remote = netip.AddrPortFrom(a, 6784)
		} else {
			w.Device, w.Hop4, w.Hop6, w.MTU = "eth0", a, netip.AddrFrom16([16]byte{0x20, 1, 15: byte(id)}), 1500
		}
		c.Ways = append(c.Ways, w)
	}
	return c
}

func (s *sim) line(from, to uint64, k Kind) *line { return s.lines[[3]uint64{from, to, uint64(k)}] }

// after does something later.
func (s *sim) after(d time.Duration, do func()) {
	s.events.n++
	heap.Push(&s.events, event{s.now.Add(d), s.events.n, do})
}

// set gives a host its candidates.
func (s *sim) set(h *simHost) {
	cs := []Candidate{}
	for _, id := range slices.Sorted(maps.Keys(h.cands)) {
		cs = append(cs, h.cands[id])
	}
	h.m.Set(cs, s.now)
	s.step(h)
}

// start begins to simulate.
func (s *sim) start() {
	for _, h := range s.hosts {
		s.set(h)
		s.after(time.Duration(h.id)*time.Millisecond, func() { s.traffic(h) })
		s.after(time.Duration(h.id)*37*time.Millisecond, func() { s.notice(h) })
	}
}

// run simulates for a time.
func (s *sim) run(d time.Duration) {
	s.tb.Helper()
	end := s.now.Add(d)
	for {
		next := end
		var due *simHost
		for _, h := range s.hosts {
			if !h.next.IsZero() && h.next.Before(next) {
				next, due = h.next, h
			}
		}
		if len(s.events.all) > 0 && !s.events.all[0].at.After(next) {
			e := heap.Pop(&s.events).(event)
			s.now = later(s.now, e.at)
			e.do()
			continue
		}
		if due == nil {
			s.now = end
			return
		}
		s.now = later(s.now, due.next)
		s.step(due)
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// traffic sends a packet of each family to all others, every 20 ms, and notes what does not arrive.
func (s *sim) traffic(h *simHost) {
	if h.sends {
		for _, other := range s.hosts {
			if other == h {
				continue
			}
			x := s.line(h.id, other.id, h.m.Status(other.id).Path)
			ok := !x.down && !x.down6 && x.mtu >= 1450 && x.error == nil
			o := h.lost[other.id]
			switch {
			case ok:
				h.lost[other.id] = outage{}
			case o.since.IsZero():
				h.lost[other.id] = outage{s.now}
			default:
				h.worst = max(h.worst, s.now.Sub(o.since))
			}
		}
	}
	s.after(20*time.Millisecond, func() { s.traffic(h) })
}

// notice tells the Machine of traffic, as its caller does: every 500 ms.
func (s *sim) notice(h *simHost) {
	if h.sends {
		for id := range h.cands {
			h.m.Active(id, s.now)
		}
		s.step(h)
	}
	s.after(500*time.Millisecond, func() { s.notice(h) })
}

// step does what the Machine of a host wants.
func (s *sim) step(h *simHost) {
	do, next := h.m.Step(s.now)
	if !next.IsZero() && !next.After(s.now) {
		next = s.now.Add(time.Microsecond)
	}
	h.next = next
	for _, a := range do {
		h.actions, h.at = append(h.actions, a), append(h.at, s.now)
		if a.Kind == Switch {
			s.switched(h, a)
			continue
		}
		x := s.line(h.id, a.ID, a.Way) // also of asks, which go by UDP
		if x.error != nil {
			s.after(0, func() { h.m.Unsent(a.Echo, fmt.Errorf("sending a probe: %w", x.error), s.now); s.step(h) })
			continue
		}
		if x.down || x.down6 && a.To.Is6() || a.Size > x.mtu || s.rng.Float64() < x.loss {
			continue
		}
		back := s.line(a.ID, h.id, UDP)
		if back.down || s.rng.Float64() < back.loss {
			continue
		}
		way, _ := wayOf(h, a)
		s.after(x.delay+back.delay, func() {
			if now, ok := wayOf(h, a); ok && a.Way != UDP && now.same(way) && a.Size >= way.MTU {
				h.answered[key{a.ID, a.Way, a.To}]++
			}
			h.m.Proof(a.ID, a.Echo, s.now)
			s.step(h)
		})
	}
}

func wayOf(h *simHost, a Action) (Way, bool) {
	c := h.cands[a.ID]
	return c.Way(a.Way)
}

// switched holds a switch to the rules.
func (s *sim) switched(h *simHost, a Action) {
	h.trace = append(h.trace, fmt.Sprintf("%v: %d: %v to %v: %s", s.now.Sub(time.Unix(1e9, 0)), a.ID, a.From, a.Way, a.Why))
	if a.Why == "" {
		s.tb.Errorf("node %d switches without a word: %+v", h.id, a)
	}
	if a.From != UDP {
		for _, to := range candidateOf(a.ID, VXLAN).Ways[0].Probe {
			if t := h.m.peers[a.ID].trials[a.From]; !t.usable() {
				h.answered[key{a.ID, a.From, to}] = 0
			}
		}
	}
	if a.Way == UDP {
		return
	}
	w, ok := wayOf(h, a)
	if !ok {
		s.tb.Errorf("node %d takes %v, which there is not", h.id, a.Way)
	}
	for _, to := range w.Probe {
		if n := h.answered[key{a.ID, a.Way, to}]; n < 3 {
			s.tb.Errorf("node %d takes %v to %d, of which %d probes were answered by %v", h.id, a.Way, a.ID, n, to)
		}
	}
}

// path returns by which path a host reaches another.
func (s *sim) path(from, to int) Kind { return s.hosts[from-1].m.Status(uint64(to)).Path }

// want fails unless both hosts reach each other by a path.
func (s *sim) want(k Kind) {
	s.tb.Helper()
	if a, b := s.path(1, 2), s.path(2, 1); a != k || b != k {
		s.tb.Fatalf("%v and %v, not %v\n%v\n%v", a, b, k, s.hosts[0].trace, s.hosts[1].trace)
	}
}

// busiest returns the most probes of full size that a host has sent within a second.
func (h *simHost) busiest() (most int) {
	var times []time.Time
	for i, a := range h.actions {
		if a.Kind == Send && a.Size > SmallProbe {
			times = append(times, h.at[i])
		}
	}
	from := 0
	for i := range times {
		for times[i].Sub(times[from]) >= time.Second {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

var errUnreachable = errors.New("network is unreachable")
