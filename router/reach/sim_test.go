// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// The simulator: hosts with a Machine each, on a network in virtual time with latencies, loss, pairs that do not reach each other, and NATs. The same seed
// makes the same happen.

// natKind is what a NAT does: whose packets it lets in.
type natKind int

const (
	noNAT           natKind = iota
	fullCone                // everybody's
	addrRestricted          // those of addresses that were written to
	portRestricted          // those of addresses and ports that were written to
	symmetricNAT            // the same, with another port for each of them
	mappingLife     = 40 * time.Second
	simPort         = 6783
	sampleGap       = 200 * time.Millisecond
	simPayloadEvery = 100 * time.Millisecond
)

type message struct {
	kind       string // ping, pong, punch, data
	from, to   uint64
	relays     []uint64
	at         int // index of the next hop in relays and destination
	echo       uint64
	observed   netip.AddrPort
	candidates []netip.AddrPort
	sent       time.Time
}

type mapping struct {
	inside  netip.AddrPort
	dst     netip.AddrPort // of a symmetric one
	outside uint16
	used    time.Time
	allowed map[netip.AddrPort]time.Time // where it has sent to
}

type nat struct {
	kind     natKind
	public   netip.Addr
	mappings []*mapping
}

type simHost struct {
	id     uint64
	m      *Machine
	addrs  []netip.AddrPort // inside the NAT
	nat    *nat
	dead   bool
	noRel  bool
	boot   uint64
	next   time.Time
	talks  map[uint64]bool // those it sends data to
	active map[uint64]bool // data exchanged since the last sample
	got    map[uint64]time.Time
	gap    map[uint64]time.Duration // longest between two data packets received
	count  map[string]int
	change []Action
}

type simEvent struct {
	at  time.Time
	seq int
	f   func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simQueue) Pop() any {
	e := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return e
}

type sim struct {
	t        testing.TB
	rng      *rand.Rand
	now      time.Time
	events   simQueue
	seq      int
	hosts    []*simHost
	byID     map[uint64]*simHost
	owner    map[netip.Addr]*simHost
	nats     map[netip.Addr]*nat
	inside   map[netip.Addr]*simHost
	block    func(from, to *simHost) bool
	latency  func(from, to *simHost) time.Duration
	jitter   time.Duration
	loss     float64
	dirty    bool
	trace    bool
	record   func(n *Node)                 // what hosts say that is not so; nil: nothing
	gossiped time.Duration                 // until a record is known to all
	fast     func(dst netip.AddrPort) bool // what is sent there takes no time to speak of; nil: nothing
}

// randReader is a source of randomness that repeats.
type randReader struct{ *rand.Rand }

func (r randReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return len(b), nil
}

func newSim(t testing.TB, seed uint64) *sim {
	return &sim{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_700_000_000, 0), byID: map[uint64]*simHost{},
		owner: map[netip.Addr]*simHost{}, nats: map[netip.Addr]*nat{}, inside: map[netip.Addr]*simHost{},
		block:   func(_, _ *simHost) bool { return false },
		latency: func(_, _ *simHost) time.Duration { return 5 * time.Millisecond }, gossiped: 300 * time.Millisecond,
	}
}

// add makes host number i, from 1, which is known to the others at once.
func (w *sim) add(i int, kind natKind) *simHost {
	m, err := New(Config{Self: uint64(i), Rand: randReader{rand.New(rand.NewPCG(w.rng.Uint64(), 2))}})
	if err != nil {
		w.t.Fatal(err)
	}
	h := &simHost{
		id: uint64(i), m: m, boot: 1, talks: map[uint64]bool{}, active: map[uint64]bool{}, got: map[uint64]time.Time{},
		gap: map[uint64]time.Duration{}, count: map[string]int{},
	}
	if kind == noNAT {
		a := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		h.addrs = []netip.AddrPort{netip.AddrPortFrom(a, simPort)}
		w.owner[a] = h
	} else {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		h.addrs = []netip.AddrPort{netip.AddrPortFrom(a, simPort)}
		h.nat = &nat{kind: kind, public: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})}
		w.nats[h.nat.public] = h.nat
		w.inside[a] = h
	}
	w.hosts = append(w.hosts, h)
	w.byID[h.id] = h
	w.gossip()
	w.sample(h)
	return h
}

// second gives a host another public address.
func (w *sim) second(h *simHost) netip.AddrPort {
	a := netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 14: byte(h.id >> 8), 15: byte(h.id)})
	w.owner[a] = h
	h.addrs = append(h.addrs, netip.AddrPortFrom(a, simPort))
	w.gossip()
	return h.addrs[len(h.addrs)-1]
}

// move gives a host that is not behind NAT another address in place of its first.
func (w *sim) move(h *simHost, n int) {
	delete(w.owner, h.addrs[0].Addr())
	a := netip.AddrFrom4([4]byte{203, byte(n), byte(h.id >> 8), byte(h.id)})
	w.owner[a] = h
	h.addrs[0] = netip.AddrPortFrom(a, simPort)
}

func (w *sim) after(d time.Duration, f func()) {
	w.seq++
	heap.Push(&w.events, simEvent{w.now.Add(d), w.seq, f})
}

// run lets time pass.
func (w *sim) run(d time.Duration) {
	end := w.now.Add(d)
	for len(w.events) > 0 && !w.events[0].at.After(end) {
		e, _ := heap.Pop(&w.events).(simEvent)
		w.now = e.at
		e.f()
	}
	w.now = end
}

// until lets time pass until ok, at most that long, and returns how long it took.
func (w *sim) until(d time.Duration, ok func() bool) (time.Duration, bool) {
	start := w.now
	for w.now.Sub(start) < d {
		if ok() {
			return w.now.Sub(start), true
		}
		w.run(5 * time.Millisecond)
	}
	return d, ok()
}

// gossip makes the records known to all hosts, soon.
func (w *sim) gossip() {
	if w.dirty {
		return
	}
	w.dirty = true
	w.after(w.gossiped, func() {
		w.dirty = false
		var all []Node
		for _, h := range w.hosts {
			links, seen, _ := h.m.Own()
			cands := slices.Clone(h.addrs)
			for _, a := range seen {
				if !slices.Contains(cands, a) {
					cands = append(cands, a)
				}
			}
			n := Node{ID: h.id, Boot: h.boot, Candidates: cands, Links: links, NoRelay: h.noRel}
			if w.record != nil {
				w.record(&n)
			}
			all = append(all, n)
		}
		for _, h := range w.hosts {
			if !h.dead {
				h.m.SetNodes(all, w.now)
				w.tick(h)
			}
		}
	})
}

// sample tells the machine of a host, again and again, whom it has exchanged data with, and sends data.
func (w *sim) sample(h *simHost) {
	w.after(sampleGap, func() {
		if !h.dead {
			for _, id := range sorted(h.active) {
				h.m.Used(id, w.now)
			}
			clear(h.active)
			w.tick(h)
		}
		w.sample(h)
	})
}

func sorted(set map[uint64]bool) []uint64 {
	var ids []uint64
	for id := range set {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// talk makes two hosts exchange data from now on.
func (w *sim) talk(a, b *simHost) {
	a.talks[b.id] = true
	var send func()
	send = func() {
		if !a.dead {
			w.data(a, b.id)
			w.tick(a)
		}
		w.after(simPayloadEvery, send)
	}
	send()
}

func (w *sim) data(h *simHost, to uint64) {
	h.active[to] = true
	if p, _ := h.m.Current(to); p.Valid() {
		w.send(h, message{kind: "data", from: h.id, to: to, relays: p.Via(), sent: w.now}, p)
	}
}

// tick does what the machine of a host wants.
func (w *sim) tick(h *simHost) {
	todo, next := h.m.Tick(w.now)
	for _, a := range todo {
		switch a.Kind {
		case Ping:
			h.count["ping"]++
			w.send(h, message{kind: "ping", from: h.id, to: a.To, relays: a.Path.Via(), echo: a.Echo, sent: w.now}, a.Path)
		case Punch:
			h.count["punch"]++
			w.send(h, message{kind: "punch", from: h.id, to: a.To, relays: a.Path.Via(), candidates: a.Candidates, sent: w.now}, a.Path)
		case Changed:
			h.change = append(h.change, a)
			if w.trace {
				w.t.Logf("%v %d->%d: %v to %v, proven %v: %s", w.now.Format("05.000"), h.id, a.To, a.From, a.Path, a.Proven, a.Why)
			}
		case Renewed:
			h.count["renewed"]++
			w.gossip()
		}
	}
	if !next.IsZero() && (h.next.IsZero() || next.Before(h.next) || !h.next.After(w.now)) {
		h.next = next
		w.after(max(next.Sub(w.now), 0), func() {
			if h.next.Equal(next) && !h.dead {
				h.next = time.Time{}
				w.tick(h)
			}
		})
	}
}

// send sends by a path.
func (w *sim) send(h *simHost, x message, p Path) {
	if !p.Relayed() {
		w.transmit(h, x, p.Addr)
		return
	}
	x.at = 0
	w.onward(h, x)
}

// onward sends a relayed message to its next hop.
func (w *sim) onward(h *simHost, x message) {
	next := x.to
	if x.at < len(x.relays) {
		next = x.relays[x.at]
	}
	if x.kind == "data" {
		h.active[next] = true
	}
	if p, proven := h.m.Current(next); proven && !p.Relayed() {
		w.transmit(h, x, p.Addr)
	}
}

// transmit sends a datagram to an address.
func (w *sim) transmit(h *simHost, x message, dst netip.AddrPort) {
	src := h.addrs[0]
	for _, a := range h.addrs {
		if a.Addr().Is4() == dst.Addr().Is4() {
			src = a
			break
		}
	}
	if h.nat != nil {
		src = netip.AddrPortFrom(h.nat.public, h.nat.out(src, dst, w))
	}
	to := w.owner[dst.Addr()]
	if to == nil {
		n := w.nats[dst.Addr()]
		if n == nil || n == h.nat {
			return
		}
		inside, ok := n.in(dst.Port(), src, w)
		if !ok {
			return
		}
		to = w.inside[inside.Addr()]
	}
	if w.block(h, to) || w.rng.Float64() < w.loss {
		return
	}
	d := w.latency(h, to)
	if w.fast != nil && w.fast(dst) {
		d = time.Millisecond
	}
	if w.jitter > 0 {
		d += time.Duration(w.rng.Int64N(int64(w.jitter)))
	}
	w.after(d, func() {
		if !to.dead && (w.owner[dst.Addr()] == to || to.nat != nil) {
			w.receive(to, x, src)
			w.tick(to)
		}
	})
}

func (n *nat) out(src, dst netip.AddrPort, w *sim) uint16 {
	var m *mapping
	for _, o := range n.mappings {
		if o.inside == src && (n.kind != symmetricNAT || o.dst == dst) && w.now.Sub(o.used) < mappingLife {
			m = o
		}
	}
	if m == nil {
		m = &mapping{inside: src, dst: dst, outside: src.Port(), allowed: map[netip.AddrPort]time.Time{}}
		if n.kind == symmetricNAT {
			m.outside = uint16(20000 + w.rng.IntN(40000))
		}
		n.mappings = append(n.mappings, m)
	}
	m.used = w.now
	m.allowed[dst] = w.now
	return m.outside
}

func (n *nat) in(port uint16, src netip.AddrPort, w *sim) (netip.AddrPort, bool) {
	for _, m := range n.mappings {
		if m.outside != port || w.now.Sub(m.used) >= mappingLife {
			continue
		}
		if n.kind == fullCone {
			return m.inside, true
		}
		for a, at := range m.allowed {
			if w.now.Sub(at) < mappingLife && (a == src || n.kind == addrRestricted && a.Addr() == src.Addr()) {
				return m.inside, true
			}
		}
	}
	return netip.AddrPort{}, false
}

// receive handles a datagram as a router does.
func (w *sim) receive(h *simHost, x message, src netip.AddrPort) {
	if x.at < len(x.relays) { // for another, by us
		if x.relays[x.at] == h.id && !h.noRel {
			x.at++
			w.onward(h, x)
		}
		return
	}
	if x.to != h.id {
		return
	}
	back := Direct(src)
	if len(x.relays) > 0 {
		back = Through(x.relays...).Reversed()
	}
	switch x.kind {
	case "ping":
		h.count["pinged"]++
		pong := message{kind: "pong", from: h.id, to: x.from, relays: back.Via(), echo: x.echo}
		if !back.Relayed() {
			pong.observed = src
		}
		w.send(h, pong, back)
		h.m.Pinged(x.from, back, w.now)
	case "pong":
		h.m.Pong(x.from, back, x.echo, x.observed, w.now)
	case "punch":
		h.m.Punched(x.from, x.candidates, w.now)
	case "data":
		h.active[x.from] = true
		if last, ok := h.got[x.from]; ok {
			h.gap[x.from] = max(h.gap[x.from], w.now.Sub(last))
		}
		h.got[x.from] = w.now
		h.m.Heard(x.from, back, w.now)
		if !h.talks[x.from] {
			w.data(h, x.from)
		}
	}
}

// path returns how a reaches b.
func (w *sim) path(a, b *simHost) string {
	p, proven := a.m.Current(b.id)
	if !proven {
		return "none"
	}
	if p.Relayed() {
		return fmt.Sprint("relay ", p.Via())
	}
	return "direct"
}

// want fails the test unless a reaches b so within that time.
func (w *sim) want(a, b *simHost, path string, within time.Duration) {
	w.t.Helper()
	d, ok := w.until(within, func() bool { return w.path(a, b) == path })
	if !ok {
		w.t.Fatalf("%d reaches %d by %s after %v, want %s: %+v", a.id, b.id, w.path(a, b), d, path, a.m.Explain(b.id, w.now))
	}
}
