// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"
)

// Config is what a Machine is made of.
type Config struct {
	Rand io.Reader // cryptographic: who cannot see a probe must not guess its echo
	// Asks tells that the caller takes Actions to Send by UDP: they ask the peer, by the router's path, to answer the echo if it answers probes. Then a path in use is left for
	// UDP only if the peer is there; if it is not, UDP leads nowhere, and the kernel may still pass packets on.
	Asks bool
}

// Machine decides by which kind of path each peer is reached. It is told what happens, and what is to be done is what Step returns, which is to be called
// after all else and at the time that it has returned.
type Machine struct {
	asks    bool
	rand    io.Reader
	peers   map[uint64]*peer
	adopted map[uint64]Kind // of peers that Set has not named yet
	echoes  map[uint64]sent
	queue   queue
	watch   bucket // of probes of full size that traffic depends on
	prove   bucket // of all others of full size
	small   bucket
}

// sent says what was asked by the probe of an echo.
type sent struct {
	peer   *peer
	trial  *trial // nil: by an ask
	family int
	full   bool
}

// ActionKind says what an Action is.
type ActionKind uint8

// The kinds of actions.
const (
	Send   ActionKind = iota // a probe, or by UDP an ask
	Switch                   // the path of a peer to another
)

// Action is what the caller has to do.
type Action struct {
	Kind ActionKind
	ID   uint64
	Way  Kind       // of Send: to be proven; of Switch: to be used from now on
	To   netip.Addr // of Send, unless by UDP
	Via  netip.Addr // of Send by VXLAN: of the underlay, where the tunnel ends
	Size int        // of Send, unless by UDP: of the IP packet in bytes
	Echo uint64     // of Send
	From Kind       // of Switch
	Why  string     // of Switch: one line, for people
}

// Status is how things stand with a peer.
type Status struct {
	Path  Kind
	Since time.Time       // zero: always
	Why   string          // one line, for people; empty: there is nothing to say
	Kinds map[Kind]string // of each other kind why it is not used, "" if it could be
}

// New makes a Machine that knows no peers.
func New(c Config) *Machine {
	return &Machine{
		asks: c.Asks, rand: c.Rand, peers: map[uint64]*peer{}, adopted: map[uint64]Kind{}, echoes: map[uint64]sent{},
		watch: bucket{rate: watchRate, most: watchBurst}, prove: bucket{rate: proveRate, most: proveBurst}, small: bucket{rate: smallRate, most: smallBurst},
	}
}

// Set makes the peers those of the candidates. A way that leads elsewhere now, or is wider, has to be proven anew; if it is in use it is left at
// once. Peers that are not named any more are forgotten without an Action: that their kernel paths go is clear.
func (m *Machine) Set(cs []Candidate, now time.Time) {
	named := make(map[uint64]bool, len(cs))
	for i := range cs {
		c := &cs[i]
		named[c.ID] = true
		p := m.peers[c.ID]
		if p == nil {
			p = &peer{id: c.ID, index: -1}
			m.peers[c.ID] = p
		}
		ordered := p.cand.Want != c.Want
		p.cand = *c
		if ordered && p.path == UDP {
			p.why = ""
		}
		for _, k := range kernelKinds() {
			m.setWay(p, k, now)
			if t := p.trials[k]; t != nil && ordered && c.Want == (Want{true, k}) && t.state == resting {
				t.retry = now
			}
		}
		if k, ok := m.adopted[c.ID]; ok {
			delete(m.adopted, c.ID)
			p.adopt(k)
		}
		m.wake(p, now)
	}
	for id, p := range m.peers {
		if !named[id] {
			for _, t := range p.trials {
				m.forget(t)
			}
			m.calm(p)
			heap.Remove(&m.queue, p.index)
			delete(m.peers, id)
		}
	}
}

// Leave returns the switches from paths whose ways Set has changed so that they have to be proven anew. It is for the caller that puts what it has
// set in place before the next Step.
func (m *Machine) Leave(now time.Time) (do []Action) {
	for _, p := range m.peers {
		if p.path == UDP || p.trials[p.path].usable() {
			continue
		}
		if a, ok := p.choose(now); ok {
			do = append(do, a)
			m.wake(p, now)
		}
	}
	slices.SortFunc(do, func(a, b Action) int { return cmp.Compare(a.ID, b.ID) })
	return do
}

// setWay makes the way of a kind what the candidate says.
func (m *Machine) setWay(p *peer, k Kind, now time.Time) {
	w, ok := p.cand.Way(k)
	t := p.trials[k]
	switch {
	case !ok && t == nil:
	case !ok:
		m.forget(t)
		p.trials[k] = nil
	case t == nil:
		p.trials[k] = newTrial(w, now)
	case !t.way.same(w) || t.way.MTU < w.MTU || !slices.Equal(t.way.Probe, w.Probe):
		m.forget(t)
		fresh := newTrial(w, now)
		if t.way.same(w) && t.fails > 0 { // which is no reason to trust it more
			fresh.fails = t.fails
			if t.state == resting {
				fresh.retry = t.retry
			}
		}
		p.trials[k] = fresh
		fresh.why = fmt.Sprintf("%v with packets of %d bytes has become %v with packets of %d bytes, which is being proven", t.way, t.way.MTU, w, w.MTU)
	default:
		t.way = w
	}
}

// forget forgets the probes of a trial.
func (m *Machine) forget(t *trial) {
	if t == nil {
		return
	}
	for i := range t.families {
		for _, x := range []*track{&t.families[i].full, &t.families[i].small} {
			for _, q := range x.pending {
				delete(m.echoes, q.echo)
			}
			x.pending = nil
		}
	}
}

// wake makes the next Step look at a peer.
func (m *Machine) wake(p *peer, now time.Time) {
	p.next = now
	if p.index < 0 {
		heap.Push(&m.queue, p)
	} else {
		heap.Fix(&m.queue, p.index)
	}
}

// Proof tells that a peer has answered the probe with that echo.
func (m *Machine) Proof(id, echo uint64, now time.Time) {
	s, ok := m.echoes[echo]
	if !ok || s.peer.id != id {
		return
	}
	if s.trial == nil {
		m.answered(s.peer, echo, now)
		return
	}
	f := &s.trial.families[s.family]
	x := &f.small
	if s.full {
		x = &f.full
	}
	overtaken, ok := x.answer(echo)
	if !ok {
		return
	}
	lost := len(overtaken) > 0
	if s.full {
		overtaken = append(overtaken, f.small.drop(f.full.heard)...) // where large ones pass small ones do
	}
	for _, e := range append(overtaken, echo) {
		delete(m.echoes, e)
	}
	if s.full {
		f.fault = ""
		if lost {
			f.streak = 0
			s.trial.lossy = true
		}
		f.streak++
	}
	m.wake(s.peer, now)
}

// Unsent tells that the probe with that echo could not leave, which is as if it was not answered; the error is for people to read.
func (m *Machine) Unsent(echo uint64, err error, now time.Time) {
	s, ok := m.echoes[echo]
	if !ok || err == nil || s.trial == nil {
		return
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	if s.full {
		s.trial.families[s.family].fault = err.Error()
	}
	m.wake(s.peer, now)
}

// Active tells that there is traffic with a peer, by whatever path.
func (m *Machine) Active(id uint64, now time.Time) {
	p := m.peers[id]
	if p == nil {
		return
	}
	was := p.busy(now)
	p.active = now
	if !was {
		m.wake(p, now)
	}
}

// Adopt tells that a path was found in the kernel that an earlier run has left: it is in use, on trust until it is proven, or not answered for some seconds.
// Of a peer that is not known yet it is kept in mind until Set names it.
func (m *Machine) Adopt(id uint64, k Kind, now time.Time) {
	if k != VXLAN && k != Direct {
		return
	}
	p := m.peers[id]
	if p == nil {
		m.adopted[id] = k
		return
	}
	p.adopt(k)
	m.wake(p, now)
}

// Step returns what is to be done, in this order, and when to call it again; zero: not before something happens.
func (m *Machine) Step(now time.Time) (do []Action, next time.Time) {
	var due []*peer
	for len(m.queue) > 0 && !m.queue[0].next.After(now) {
		p := heap.Pop(&m.queue).(*peer)
		due = append(due, p)
	}
	var asks []ask
	for _, p := range due {
		for _, t := range p.trials {
			if t != nil && p.judge(t, now, m.asks) {
				m.forget(t)
			}
		}
		if a, ok := p.choose(now); ok {
			do = append(do, a)
		}
		asks = append(asks, p.asks(now)...)
		do = m.wonder(do, p, now)
	}
	slices.SortStableFunc(asks, func(a, b ask) int { return a.rank.Compare(b.rank) })
	for _, a := range asks {
		do = m.probe(do, a, now)
	}
	for _, p := range due {
		p.next = p.wakeAt(now, now.Add(starvedWait))
		heap.Push(&m.queue, p)
	}
	if len(m.queue) == 0 {
		return do, time.Time{}
	}
	return do, m.queue[0].next
}

// probe appends the probes of one trial to what is to be done, as far as the bounds allow.
func (m *Machine) probe(do []Action, a ask, now time.Time) []Action {
	t := a.trial
	small := a.small
	if m.grant(a, now) {
		if t.state == resting {
			m.forget(t)
			t.begin(now)
		}
		t.last = now
		for i := range t.families {
			do = m.send(do, a.peer, t, i, true, now)
		}
	} else {
		// Small ones show at least whether there is anything at the other end.
		small = a.urgent && now.Sub(t.lastSmall) >= a.gap
	}
	if small && m.small.take(len(t.families), 0, now) {
		t.lastSmall = now
		for i := range t.families {
			do = m.send(do, a.peer, t, i, false, now)
		}
	}
	return do
}

// grant takes what the probes of one trial need out of the buckets. Of what is for others only the half is taken, and what is to begin leaves
// a quarter: what has begun goes on.
func (m *Machine) grant(a ask, now time.Time) bool {
	own, other := &m.prove, &m.watch
	if a.urgent {
		own, other = other, own
	}
	n, keep := len(a.trial.families), 0.0
	if a.trial.state == resting {
		keep = own.most / 4
	}
	return own.take(n, keep, now) || other.take(n, other.most/2, now)
}

func (m *Machine) send(do []Action, p *peer, t *trial, family int, full bool, now time.Time) []Action {
	f := &t.families[family]
	x, size := &f.small, SmallProbe
	if full {
		x, size = &f.full, t.way.MTU
	}
	echo := m.echo()
	if old, over := x.ask(echo, now); over {
		delete(m.echoes, old)
	}
	if echo == 0 { // not to be sent, and so not answered
		return do
	}
	m.echoes[echo] = sent{p, t, family, full}
	return append(do, Action{Kind: Send, ID: p.id, Way: t.way.Kind, To: f.to, Via: t.way.Remote.Addr(), Size: size, Echo: echo})
}

// echo returns a number that no other probe has, or 0 if there is no randomness.
func (m *Machine) echo() uint64 {
	for {
		var b [8]byte
		if _, err := io.ReadFull(m.rand, b[:]); err != nil {
			return 0
		}
		n := binary.BigEndian.Uint64(b[:])
		if _, used := m.echoes[n]; !used && n != 0 {
			return n
		}
	}
}

// Status tells how things stand with a peer. One that is not known is reached by UDP.
func (m *Machine) Status(id uint64) Status {
	p := m.peers[id]
	if p == nil {
		return Status{Path: UDP}
	}
	s := Status{Path: p.path, Since: p.since, Why: p.explain(), Kinds: map[Kind]string{}}
	if p.life.mute != "" {
		s.Why = p.life.mute
	}
	for _, k := range Kinds() {
		if k != p.path {
			s.Kinds[k] = p.whyNot(k)
		}
	}
	return s
}

// queue is a heap of peers by when to look at them.
type queue []*peer

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next.Before(q[j].next) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push is for package heap.
func (q *queue) Push(x any) {
	p := x.(*peer)
	p.index = len(*q)
	*q = append(*q, p)
}

// Pop is for package heap.
func (q *queue) Pop() any {
	old := *q
	p := old[len(old)-1]
	p.index = -1
	*q = old[:len(old)-1]
	return p
}

// bucket bounds a rate.
type bucket struct {
	rate, most float64
	used       float64 // tokens that are not there
	last       time.Time
}

func (b *bucket) flow(now time.Time) {
	if d := now.Sub(b.last); d > 0 {
		b.used = max(0, b.used-b.rate*d.Seconds())
		b.last = now
	}
}

// take takes tokens, if as many as are to be kept are left.
func (b *bucket) take(n int, keep float64, now time.Time) bool {
	b.flow(now)
	if b.used+float64(n) > b.most-keep {
		return false
	}
	b.used += float64(n)
	return true
}
