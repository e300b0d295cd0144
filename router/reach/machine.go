// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"time"
)

const (
	// MaxCandidates bounds the addresses of one node that are asked.
	MaxCandidates = 16
	// MaxLinks is how many links a node keeps.
	MaxLinks = 8

	// answerWithin is how long an answer is waited for at most; what comes later says nothing.
	answerWithin = 3 * time.Second
	// maxPings bounds how many pings may be unanswered at a time; further ones are not sent. All but those by which paths in use and links are watched have half of
	// that: what others make us ask must not leave us without a way to anybody.
	maxPings = 1 << 14
	// Punches of others are followed punchRate times per second at most, after punchBurst at once: each may lead to some hundred pings.
	punchRate, punchBurst = 20, 100
	// Examinations of nodes that are not in use are examineRate per second at most, after examineBurst at once.
	examineRate, examineBurst = 50, 200
)

// Config is what a Machine is made of.
type Config struct {
	// Self is this node.
	Self uint64
	// Rand is where all that is left to chance comes from.
	Rand io.Reader
}

// Node is what is known of another node from its record.
type Node struct {
	ID uint64
	// Boot changes when the node is started anew.
	Boot uint64
	// Candidates are the addresses where it may be, best first.
	Candidates []netip.AddrPort
	// Links are the nodes that it reaches directly, as it says.
	Links []uint64
	// NoRelay tells that it does not pass on what is for others.
	NoRelay bool
}

// Kind tells what an Action is.
type Kind uint8

// The kinds.
const (
	Ping    Kind = iota + 1 // send a ping with Echo by Path
	Punch                   // send a punch with Echo and Candidates by Path, which leads through relays
	Changed                 // the path has changed: From, Path, Proven and Why
	Renewed                 // Own has changed
)

// Action is something to be done.
type Action struct {
	Kind Kind
	// To is the node that it is about; 0 if it is about none.
	To uint64
	// Path is how to send, or the path from now on; not valid if there is none.
	Path Path
	// Echo identifies a ping.
	Echo uint64
	// Candidates are addresses of this node.
	Candidates []netip.AddrPort
	// From is the path until now; not valid if there was none.
	From Path
	// Proven tells of the path from now on that an answer came back over it.
	Proven bool
	// Lost tells that all was tried, and that nothing answers.
	Lost bool
	// Why says for people why the path was changed.
	Why string
}

// Machine is the reachability of all nodes, as one of them sees it. The zero Machine is not usable; see New.
type Machine struct {
	self uint64
	rand io.Reader
	echo uint64 // of the last ping, before it was mixed

	nodes  map[uint64]*node
	list   []*node // the same, in an order that is left to chance
	round  uint64  // of SetNodes
	back   map[uint64][]*node
	bad    map[edge]verdict // links that somebody says there are and that lead nowhere
	passed map[edge]moment  // links that a ping was to prove, and when the last one was sent that did

	due     queue
	pings   map[uint64]ping
	sent    []sentPing // in the order of time
	out     []Action
	examine bucket
	punches bucket

	links    links
	observed observed
}

// ping is one that was sent.
type ping struct {
	id   uint64
	path Path
	at   moment
	hop  edge // not zero: it was sent to learn whether that leads on
}

type sentPing struct {
	echo uint64
	at   moment
}

// New makes a machine that knows no nodes.
func New(c Config) (*Machine, error) {
	if c.Rand == nil {
		return nil, errors.New("reachability needs a source of randomness: set Config.Rand")
	}
	m := &Machine{
		self: c.Self, rand: c.Rand,
		nodes: map[uint64]*node{}, back: map[uint64][]*node{}, bad: map[edge]verdict{}, passed: map[edge]moment{}, pings: map[uint64]ping{},
		examine: bucket{rate: examineRate, burst: examineBurst}, punches: bucket{rate: punchRate, burst: punchBurst},
	}
	m.observed.init()
	return m, nil
}

// SetNodes makes the given nodes the only ones. Nothing of the slice itself is kept, but the slices in it are, and must not be changed.
func (m *Machine) SetNodes(nodes []Node, at time.Time) {
	now := momentOf(at)
	m.round++
	links := false
	for i := range nodes {
		d := &nodes[i]
		if d.ID == m.self || d.ID == 0 {
			continue
		}
		n := m.nodes[d.ID]
		if n == nil {
			n = &node{id: d.ID}
			m.nodes[d.ID] = n
			m.shuffleIn(n)
			m.links.fresh(now)
		}
		n.round = m.round
		links = m.update(n, d, now) || links
	}
	var gone []*node
	m.list = slices.DeleteFunc(m.list, func(n *node) bool {
		if n.round != m.round {
			gone = append(gone, n)
		}
		return n.round != m.round
	})
	for _, n := range gone {
		m.remove(n, now)
	}
	if links {
		m.hope(now)
	}
}

// update makes what is known of n what d says, and reports whether there may be other routes now.
func (m *Machine) update(n *node, d *Node, now moment) (links bool) {
	moved := n.boot != d.Boot || !slices.Equal(n.candidates, d.Candidates)
	if !slices.Equal(n.links, d.Links) || n.noRelay != d.NoRelay {
		for _, l := range n.links {
			m.back[l] = slices.DeleteFunc(m.back[l], func(o *node) bool { return o == n })
			if len(m.back[l]) == 0 {
				delete(m.back, l)
			}
		}
		for _, l := range d.Links {
			if !slices.Contains(m.back[l], n) {
				m.back[l] = append(m.back[l], n)
			}
			delete(m.bad, edgeOf(n.id, l))
		}
		links = true
	}
	if moved {
		m.forgive(n.id)
		links = true
	}
	reboot, before := n.boot != 0 && n.boot != d.Boot, len(n.listed())
	n.boot, n.candidates, n.links, n.noRelay = d.Boot, d.Candidates, d.Links, d.NoRelay
	if s := n.state; s != nil && moved {
		m.moved(s, before, reboot, now)
	}
	return links
}

// remove forgets a node.
func (m *Machine) remove(n *node, now moment) {
	for _, l := range n.links {
		m.back[l] = slices.DeleteFunc(m.back[l], func(o *node) bool { return o == n })
		if len(m.back[l]) == 0 {
			delete(m.back, l)
		}
	}
	delete(m.nodes, n.id)
	if s := n.state; s != nil {
		m.unlink(s, now)
		if s.index >= 0 {
			heap.Remove(&m.due, int(s.index))
		}
		n.state = nil
		m.cut(n.id, now)
	}
}

// shuffleIn puts a node into the list at a random place.
func (m *Machine) shuffleIn(n *node) {
	m.list = append(m.list, n)
	i := m.random(len(m.list))
	last := len(m.list) - 1
	m.list[i], m.list[last] = m.list[last], m.list[i]
}

// Used tells that packets are exchanged with a node: once for all that happens in a while, of which a fifth of a second is a good measure.
func (m *Machine) Used(id uint64, at time.Time) {
	now := momentOf(at)
	if s := m.state(id); s != nil {
		m.attend(s, usedFor, now)
	}
}

// Wanted tells that something is sent to a node now and then, and that it is not known whether it arrives.
func (m *Machine) Wanted(id uint64, at time.Time) {
	now := momentOf(at)
	s := m.state(id)
	if s == nil || s.proven || s.exam != nil || now.Before(s.retryAt) || !m.examine.take(now) {
		return
	}
	m.begin(s, false, now)
}

// Examine tells that somebody could not reach a node.
func (m *Machine) Examine(id uint64, at time.Time) {
	now := momentOf(at)
	s := m.state(id)
	if s == nil || s.exam != nil || now.Sub(s.heard) < hearWithin/2 || now.Sub(s.examined) < hearWithin || !m.examine.take(now) {
		return
	}
	if s.proven {
		m.attend(s, examineFor, now)
		m.askPath(s, now)
	}
	m.begin(s, s.proven, now)
}

// Heard tells that something authentic came from a node, other than a ping or pong. A path through relays is that which leads back.
func (m *Machine) Heard(id uint64, by Path, at time.Time) {
	now := momentOf(at)
	if s := m.state(id); s != nil && by.Valid() {
		m.hear(s, by, now)
	}
}

// Pinged tells that a ping came from a node; the pong is not the machine's matter. A path through relays is that which leads back.
func (m *Machine) Pinged(id uint64, by Path, at time.Time) {
	now := momentOf(at)
	if s := m.state(id); s != nil && by.Valid() {
		m.pinged(s, by, now)
	}
}

// Pong tells that a pong came from a node. A path through relays is that by which the ping went. observed is where the ping came from as the
// other side has seen it; not valid if it was relayed.
func (m *Machine) Pong(id uint64, by Path, echo uint64, observed netip.AddrPort, at time.Time) {
	now := momentOf(at)
	p, ok := m.pings[echo]
	if !ok || p.id != id || now.Sub(p.at) > answerWithin {
		return
	}
	delete(m.pings, echo)
	if p.hop != (edge{}) && p.path == by {
		m.leads(p.hop, p.at)
	}
	s := m.state(id)
	if s == nil {
		return
	}
	if p.path != by {
		m.pinged(s, by, now) // it answers from elsewhere
		return
	}
	if !by.Relayed() && m.observed.note(id, observed, now) {
		m.renewed()
	}
	m.answered(s, p, now)
}

// Answered tells that a pong came of which it is not certain who has sent it: the node, which does not know us yet, or anybody else. It proves no path and
// takes the place of none, but is a reason to ask again soon.
func (m *Machine) Answered(id uint64, by Path, echo uint64, at time.Time) {
	now := momentOf(at)
	p, ok := m.pings[echo]
	if !ok || p.id != id || p.path != by || now.Sub(p.at) > answerWithin {
		return
	}
	if s := m.state(id); s != nil && !s.proven {
		m.perhaps(s, by, now)
	}
}

// Punched tells that a node asks for pings, now, to where it is.
func (m *Machine) Punched(id uint64, candidates []netip.AddrPort, at time.Time) {
	now := momentOf(at)
	if s := m.state(id); s != nil {
		m.punched(s, candidates, now)
	}
}

// Moved tells that the addresses of this host have changed: whatever is in use, or a link, is asked at once.
func (m *Machine) Moved(at time.Time) {
	now := momentOf(at)
	m.observed.clear()
	clear(m.bad)
	for _, n := range m.list {
		s := n.state
		if s == nil || !s.proven || !s.linked && !now.Before(s.attended) {
			continue
		}
		m.askPath(s, now)
		if s.linked {
			s.link.again(now)
		}
		m.wake(s, now)
	}
}

// Current returns the path to a node, or that which is used on trust while none is proven; not valid if nothing is known.
func (m *Machine) Current(id uint64) (p Path, proven bool) {
	n := m.nodes[id]
	if n == nil {
		return Path{}, false
	}
	if n.state == nil {
		return n.guess(), false
	}
	return n.state.path, n.state.proven
}

// Own returns what others should know of this node: its links, the addresses from which others have seen it, and whether it is behind a NAT that gives
// it another port for each of them.
func (m *Machine) Own() (linked []uint64, seen []netip.AddrPort, symmetric bool) {
	seen, symmetric = m.observed.list()
	return slices.Clone(m.links.published), seen, symmetric
}

// Tick returns what is to be done, in order, and the time of the next Tick; zero if something has to happen first. Every other method that changes
// anything may bring that forward: Tick after it. The slice is valid until the next call of a method.
func (m *Machine) Tick(at time.Time) (todo []Action, next time.Time) {
	now := momentOf(at)
	m.expire(now)
	due := m.tendLinks(now)
	for len(m.due) > 0 && !now.Before(m.due[0].due) {
		m.step(m.due[0], now)
	}
	if len(m.due) > 0 {
		due = sooner(due, m.due[0].due)
	}
	old, changed := m.observed.expire(now)
	if changed {
		m.renewed()
	}
	todo, m.out = m.out, nil
	return todo, sooner(due, old).time()
}

// expire forgets pings that are too old.
func (m *Machine) expire(now moment) {
	n := 0
	for n < len(m.sent) && now.Sub(m.sent[n].at) > answerWithin {
		delete(m.pings, m.sent[n].echo)
		n++
	}
	m.sent = slices.Delete(m.sent, 0, n)
}

// ask sends a ping. hop is what it is to prove, if not the path.
func (m *Machine) ask(id uint64, p Path, hop edge, now moment) {
	if len(m.sent) >= maxPings/2 {
		if n := m.nodes[id]; len(m.sent) >= maxPings || n == nil || n.state == nil || !n.state.proven || n.state.path != p {
			return
		}
	}
	echo := m.nextEcho()
	m.pings[echo] = ping{id, p, now, hop}
	m.sent = append(m.sent, sentPing{echo, now})
	m.out = append(m.out, Action{Kind: Ping, To: id, Path: p, Echo: echo})
}

// nextEcho returns a number that was not used before, and is not 0.
func (m *Machine) nextEcho() uint64 {
	for {
		m.echo++
		if e := m.number() ^ m.echo; e != 0 {
			if _, used := m.pings[e]; !used {
				return e
			}
		}
	}
}

func (m *Machine) renewed() { m.out = append(m.out, Action{Kind: Renewed}) }

// number returns a random number, or 0 if randomness fails, which makes choices worse and nothing wrong.
func (m *Machine) number() uint64 {
	var b [8]byte
	if _, err := io.ReadFull(m.rand, b[:]); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

// random returns a number below n, which is positive.
func (m *Machine) random(n int) int { return int(m.number() % uint64(n)) }

// about returns d, or up to a tenth more or less.
func (m *Machine) about(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(m.random(int(d/5)))
}

// bucket is a token bucket.
type bucket struct {
	rate, burst float64 // per second; at once
	tokens      float64
	last        moment
}

func (b *bucket) take(now moment) bool {
	if b.last.IsZero() {
		b.tokens = b.burst
	} else if d := now.Sub(b.last); d > 0 {
		b.tokens = min(b.burst, b.tokens+b.rate*d.Seconds())
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// queue is the states for which something is due, the first one first.
type queue []*state

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = int32(i), int32(j)
}

// Push is that of heap.Interface.
func (q *queue) Push(x any) {
	s, _ := x.(*state)
	s.index = int32(len(*q))
	*q = append(*q, s)
}

// Pop is that of heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	s := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	s.index = -1
	return s
}
