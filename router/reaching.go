// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weftnet/weft/router/envelope"
	"github.com/weftnet/weft/router/reach"
	"github.com/weftnet/weft/router/session"
)

const (
	// strayGap, wantedGap and hintGap are how often the same is told at most: that packets come by another way than they go, that a way is wanted,
	// and by which way a control datagram came.
	strayGap  = 200 * time.Millisecond
	wantedGap = 200 * time.Millisecond
	hintGap   = time.Second
	// doubtfulGap is how often at most it is told that a control datagram has come, by whichever way, of which it is not certain who has made it.
	doubtfulGap = 100 * time.Millisecond
	// renewAfter is after how long without an answer a handshake begins anew when its way turns out to work.
	renewAfter = 250 * time.Millisecond
)

// Reach is what others should know of how this host is reached.
type Reach struct {
	// Observed are the addresses, ascending, at which others have seen it lately: beyond a NAT they are not its own.
	Observed []netip.AddrPort
	// Symmetric tells that it is behind a NAT that gives it another port for each of them.
	Symmetric bool
	// Links are the IDs, ascending, of nodes that it reaches directly and that pass on what is for others: it can be reached by them.
	Links []uint64
}

// PathEvent tells that a node is reached in another way from now on.
type PathEvent struct {
	At   time.Time
	Node uint64
	Name string // of the peer
	Path string // one of the constants PathUDP, PathRelay and PathNone
	Via  []uint64
	Addr netip.AddrPort // with PathUDP
	Why  string         // one line, for people
}

// How a peer is reached.
const (
	PathUDP   = "udp"   // directly
	PathRelay = "relay" // through other nodes
	PathNone  = "none"  // not, as far as is known
)

// reaching finds the ways to the nodes: it is what connects package reach with the network, a reacher. Everything happens under its mutex but for sending
// and for the calls of Config.OnReach and Config.OnPath, which the timer goroutine makes, in order.
type reaching struct {
	r   *Router
	off bool // without an ID or keys nobody can be asked

	mu      sync.Mutex
	machine *reach.Machine
	next    time.Time // of its next Tick; zero: none
	renewed bool      // Config.OnReach is to be called
	events  []PathEvent
	told    map[uint64]way // the last of the events of each node
}

func (x *reaching) init(r *Router) error {
	m, err := reach.New(reach.Config{Self: r.config.ID, Rand: r.config.Rand})
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	x.r, x.machine, x.told = r, m, map[uint64]way{}
	x.off = r.config.ID == 0 || !r.config.Keys.Envelope.Primary.Valid()
	return nil
}

// do calls f with the machine, and does what that asks for.
func (x *reaching) do(now time.Time, f func(m *reach.Machine)) {
	var renew []*peer
	x.mu.Lock()
	f(x.machine)
	todo, next := x.machine.Tick(now)
	nudge := !next.IsZero() && (x.next.IsZero() || next.Before(x.next))
	x.next = next
	for _, a := range todo {
		switch a.Kind {
		case reach.Changed:
			if p := x.changed(a, now); p != nil {
				renew = append(renew, p)
			}
			nudge = true
		case reach.Renewed:
			x.renewed, nudge = true, true
		}
	}
	x.mu.Unlock()
	for _, a := range todo {
		switch a.Kind {
		case reach.Ping:
			x.send(envelope.KindPing, a, envelope.Ping{Echo: a.Echo}.Append(nil), now)
		case reach.Punch:
			if len(a.Candidates) > 0 {
				x.send(envelope.KindPunch, a, envelope.Punch{Echo: a.Echo, Candidates: a.Candidates}.Append(nil), now)
			}
		}
	}
	for _, p := range renew {
		x.r.prepare(p, now)
		x.r.renew(p, now)
	}
	if nudge {
		x.r.timers.nudge()
	}
}

// send sends what the machine wants. What cannot leave is not answered, as what does not arrive, and that is all it has to know.
func (x *reaching) send(kind envelope.Kind, a reach.Action, body []byte, now time.Time) {
	_ = x.r.sendControl(kind, a.To, way(a.Path), body, now)
}

// changed publishes a way, and returns the peer if its handshake, if one is under way, should begin anew. Called under mu.
func (x *reaching) changed(a reach.Action, now time.Time) *peer {
	p := x.r.current.Load().byID[a.To]
	if p == nil {
		return nil
	}
	x.tell(p, a, now)
	return x.publish(p, way(a.Path), a.Proven)
}

// publish makes w the way to p, and returns p if that was another one, or has been proven now. Called under mu.
func (x *reaching) publish(p *peer, w way, proven bool) *peer {
	c := &p.course
	was := c.proven.Swap(proven)
	old := c.way.Load()
	same := old != nil && *old == w
	if !same {
		c.way.Store(&w)
		c.heard.Store(false)
		x.r.forgetPath(p)
	}
	if same && (was || !proven) {
		return nil
	}
	return p
}

// tell notes an event for OnPath: that a node is reached by another way than before, or not any more. That it is reached directly is no news
// as long as there was no other way. Called under mu.
func (x *reaching) tell(p *peer, a reach.Action, now time.Time) {
	last, told := x.told[a.To]
	w := way(a.Path)
	if !a.Proven {
		w = way{}
	}
	if !a.Proven && !a.Lost || told && last == w || !told && a.Proven && w.N == 0 {
		if a.Proven {
			x.told[a.To] = w
		}
		return
	}
	x.told[a.To] = w
	e := PathEvent{At: now, Node: a.To, Name: p.config.Load().Name, Path: kindOf(w), Via: a.Path.Via(), Addr: w.Addr, Why: a.Why}
	if !a.Proven {
		e.Via = nil
	}
	x.events = append(x.events, e)
}

// kindOf returns what the way is called.
func kindOf(w way) string {
	switch {
	case w.N > 0:
		return PathRelay
	case w.Addr.IsValid():
		return PathUDP
	}
	return PathNone
}

// prepare sees to a key of the first relay on the way to p, so that packets need not wait for one later.
func (r *Router) prepare(p *peer, now time.Time) {
	w := p.relayed()
	if w == nil {
		return
	}
	if via := r.current.Load().firstRelay(w); via != nil && via.sess.Key(now) == nil && (p.sess.Key(now) != nil || p.pending.busy.Load()) {
		r.timers.greet(via, now)
	}
}

// renew begins a handshake anew that was sent where it may not have arrived, or begins one that packets wait for.
func (r *Router) renew(p *peer, now time.Time) {
	after := time.Duration(0)
	if w := p.course.way.Load(); w != nil && w.N == 0 && p.sentTo(w.Addr) {
		after = renewAfter
	}
	buf := make([]byte, 0, session.InitiationSize)
	msg, ok := p.sess.Again(buf, after, now)
	if !ok && p.pending.busy.Load() && p.sess.Key(now) == nil {
		msg, ok = p.sess.Initiate(buf, now)
	}
	if ok {
		r.post(r.shards[0], p, msg)
	}
	r.timers.touch(p)
	if w := p.relayed(); w != nil && (p.pending.busy.Load() || p.sess.Key(now) != nil) {
		// What goes by the first relay has to wait as long as there is no key for it.
		if via := r.current.Load().firstRelay(w); via != nil && via.sess.Key(now) == nil {
			r.initiate(r.shards[0], via, buf[:0], now)
		}
	}
}

// set makes the nodes among the peers those that the machine knows.
func (x *reaching) set(desired []Peer, now time.Time) {
	var nodes []reach.Node
	if !x.off {
		for i := range desired {
			d := &desired[i]
			if d.ID != 0 && d.ID != x.r.config.ID {
				nodes = append(nodes, reach.Node{ID: d.ID, Boot: d.Boot, Candidates: d.Endpoints, Links: d.Links, NoRelay: d.NoRelay})
			}
		}
	}
	x.do(now, func(m *reach.Machine) {
		for id := range x.told {
			if x.r.current.Load().byID[id] == nil {
				delete(x.told, id)
			}
		}
		m.SetNodes(nodes, now)
	})
}

// tick does what is due, makes the calls that are owed, and returns when to look again; zero: something has to happen first. It is for the timer
// goroutine.
func (x *reaching) tick(now time.Time) time.Time {
	x.mu.Lock()
	due := !x.next.IsZero() && !now.Before(x.next)
	x.mu.Unlock()
	if due {
		x.do(now, func(*reach.Machine) {})
	}
	x.mu.Lock()
	next, events, renewed := x.next, x.events, x.renewed
	x.events, x.renewed = nil, false
	x.mu.Unlock()
	if f := x.r.config.OnPath; f != nil {
		for _, e := range events {
			f(e)
		}
	}
	if f := x.r.config.OnReach; f != nil && renewed {
		f()
	}
	return next
}

// due returns when tick has something to do; zero: not before something happens.
func (x *reaching) due() time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.next
}

// sample tells the machine what has happened to a peer that was touched: whether packets have gone to it, or wait, or have come from it. It is for
// the timer goroutine.
func (x *reaching) sample(p *peer, now time.Time) {
	id := p.config.Load().ID
	if id == 0 || x.off {
		return
	}
	c := &p.course
	tx, rx := p.tx.packets.Load(), p.rx.packets.Load()
	used := tx != c.txSeen || rx != c.rxSeen || p.pending.busy.Load() || c.frames.Swap(false)
	c.txSeen, c.rxSeen = tx, rx
	heard := c.heard.Swap(false)
	w := c.way.Load()
	if !used && !heard {
		return
	}
	x.do(now, func(m *reach.Machine) {
		if heard && w != nil {
			m.Heard(id, reach.Path(*w), now)
		}
		if used {
			m.Used(id, now)
		}
	})
}

// came tells that something authentic has come from a peer, by a way that is given as the way back. It costs little while all comes by the way by which
// this host sends, too.
func (x *reaching) came(p *peer, by way, now time.Time) {
	id := p.config.Load().ID
	if id == 0 || x.off {
		return
	}
	c := &p.course
	if w := c.way.Load(); w != nil && *w == by {
		if !c.heard.Load() {
			c.heard.Store(true)
		}
		return
	}
	if c.stray.Load().again(by, strayGap, now) {
		return
	}
	c.stray.Store(&stray{by, now})
	x.do(now, func(m *reach.Machine) { m.Heard(id, reach.Path(by), now) })
}

// use is that of reacher.
func (x *reaching) use(node uint64, now time.Time) (way, bool) {
	p := x.r.current.Load().byID[node]
	if p == nil {
		return way{}, false
	}
	c := &p.course
	if !c.proven.Load() {
		if last := c.wanted.Load(); now.UnixNano()-last >= int64(wantedGap) && c.wanted.CompareAndSwap(last, now.UnixNano()) {
			x.do(now, func(m *reach.Machine) { m.Wanted(node, now) })
		}
	}
	if w := c.way.Load(); w != nil {
		return *w, true
	}
	a, ok := p.target()
	return way{Addr: a}, ok
}

// direct is that of reacher.
func (x *reaching) direct(node uint64, _ time.Time) (netip.AddrPort, bool) {
	p := x.r.current.Load().byID[node]
	if p == nil || !p.course.proven.Load() {
		return netip.AddrPort{}, false
	}
	return p.straight()
}

// heard is that of reacher.
func (x *reaching) heard(node uint64, back way, sure bool, now time.Time) {
	p := x.r.current.Load().byID[node]
	if p == nil {
		return
	}
	last := p.course.hint.Load()
	if last.again(back, hintGap, now) || !sure && last != nil && now.Sub(last.at) < doubtfulGap {
		return
	}
	p.course.hint.Store(&stray{back, now})
	x.do(now, func(m *reach.Machine) { m.Pinged(node, reach.Path(back), now) })
}

// ponged is that of reacher.
func (x *reaching) ponged(node uint64, back way, p envelope.Pong, sure bool, now time.Time) {
	x.do(now, func(m *reach.Machine) {
		if sure {
			m.Pong(node, reach.Path(back), p.Echo, p.Seen, now)
		} else {
			m.Answered(node, reach.Path(back), p.Echo, now)
		}
	})
}

// punched is that of reacher.
func (x *reaching) punched(node uint64, p envelope.Punch, now time.Time) {
	x.do(now, func(m *reach.Machine) { m.Punched(node, p.Candidates, now) })
}

// examine is that of reacher.
func (x *reaching) examine(node uint64, now time.Time) {
	x.do(now, func(m *reach.Machine) { m.Examine(node, now) })
}

// Reach returns what others should know of how this host is reached, as it is now.
func (r *Router) Reach() Reach {
	r.reaching.mu.Lock()
	defer r.reaching.mu.Unlock()
	links, seen, symmetric := r.reaching.machine.Own()
	return Reach{Observed: seen, Symmetric: symmetric, Links: links}
}

// Moved tells that the addresses of this host have changed, so that others are told at once, by pings, where it is now.
func (r *Router) Moved() {
	now := r.config.Now()
	r.reaching.do(now, func(m *reach.Machine) { m.Moved(now) })
}

// explain fills in how a peer is reached.
func (x *reaching) explain(s *PeerStats, p *peer, now time.Time) {
	id := p.config.Load().ID
	if id == 0 || x.off {
		s.Path = PathNone
		if s.Heard {
			s.Path = PathUDP
		}
		return
	}
	x.mu.Lock()
	e := x.machine.Explain(id, now)
	x.mu.Unlock()
	s.Path = PathNone
	if e.Proven {
		s.Path = kindOf(way(e.Path))
		s.Via = slices.Clone(e.Path.Via())
	}
	s.RTT, s.Why, s.PathSince = e.RTT, e.Why, e.Since
}
