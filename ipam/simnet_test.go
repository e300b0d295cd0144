// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// packet is a message on its way.
type packet struct {
	at       time.Time
	from, to int // indexes of nodes
	msg      []byte
	gossip   bool
}

// partition cuts the nodes into groups, or some directions between them, or undoes all that.
func (s *sim) partition() {
	groups := 1 + s.rng.IntN(3)
	for _, n := range s.nodes {
		n.group = s.rng.IntN(groups)
	}
	clear(s.deaf)
	one := s.rng.IntN(len(s.nodes))
	kind := s.rng.IntN(6)
	for i := range s.nodes {
		switch kind {
		case 0: // one is heard by nobody
			s.deaf[[2]int{one, i}] = true
		case 1: // one hears nobody
			s.deaf[[2]int{i, one}] = true
		case 2: // one is heard by some and hears others
			s.deaf[[2]int{one, i}] = s.rng.IntN(2) == 0
			s.deaf[[2]int{i, one}] = s.rng.IntN(2) == 0
		}
	}
	s.logf("partition into %d, of kind %d around node %d", groups, kind, one+1)
}

// hears reports whether what one node sends reaches another.
func (s *sim) hears(from, to *simNode) bool {
	return s.calm || from.group == to.group && !s.deaf[[2]int{from.index, to.index}]
}

// transmit puts a packet on the wire, or not.
func (n *simNode) transmit(p packet) {
	s := n.sim
	if !s.calm && s.cut > 0 && s.rng.IntN(s.cut) == 0 && !n.crash {
		s.logf("node %d: crash while sending", n.id)
		n.crash = true
	}
	if n.crash || p.to < 0 || p.to >= len(s.nodes) {
		return
	}
	if s.sniff {
		s.inFlight(n, p)
	}
	copies := 1
	if !s.calm {
		if s.rng.IntN(100) < s.loss {
			copies = 0
		} else if s.rng.IntN(100) < s.twice {
			copies = 2
		}
	}
	for range copies {
		p.at = s.now.Add(time.Duration(1+s.rng.IntN(50)) * time.Millisecond)
		if !s.calm && s.rng.IntN(100) < s.late {
			p.at = p.at.Add(time.Duration(s.rng.IntN(5000)) * time.Millisecond)
		}
		i := len(s.wire)
		for i > 0 && s.wire[i-1].at.After(p.at) {
			i--
		}
		s.wire = slices.Insert(s.wire, i, p)
	}
}

// The network as one node sees it.

func (n *simNode) Send(to ring.Owner, msg []byte) error {
	n.transmit(packet{from: n.index, to: int(to) - 1, msg: msg})
	return nil
}

func (n *simNode) Broadcast(delta []byte) {
	for _, o := range n.sim.nodes {
		if o != n && o.met {
			n.transmit(packet{from: n.index, to: o.index, msg: delta, gossip: true})
		}
	}
}

func (n *simNode) Peers() []Peer {
	s := n.sim
	var out []Peer
	for _, o := range s.nodes {
		if o == n || !o.met {
			continue
		}
		alive := o.alloc != nil && s.hears(o, n)
		if !s.calm {
			// Failure detectors err, now and then, or for long.
			wrong := s.misjudged > 0 && n.misjudge>>(o.index%64)&7 == 0
			alive = alive != (wrong || s.rng.IntN(100) < s.misjudged)
		}
		left := o.gone && n.parted[o.index]
		out = append(out, Peer{Owner: o.id, Alive: alive && !left, Left: left})
	}
	return out
}

// deliver hands over a packet, if the two nodes are still connected.
func (s *sim) deliver(i int) {
	p := s.wire[i]
	s.wire = slices.Delete(s.wire, i, i+1)
	s.advance(p.at.Sub(s.now))
	from, to := s.nodes[p.from], s.nodes[p.to]
	if to.alloc == nil || !s.hears(from, to) {
		return
	}
	if s.trace != nil {
		s.logf("node %d to %d: %s", from.id, to.id, s.describe(p))
	}
	if p.gossip {
		s.merge(to, p.msg)
	} else {
		to.alloc.HandleMessage(from.id, p.msg)
	}
	to.reap()
}

// merge has a node take in what it hears, and pass on what was new to it.
func (s *sim) merge(n *simNode, b []byte) {
	news, err := n.alloc.Merge(b)
	if err != nil && !errors.Is(err, errDisk) {
		s.fail("node %d: %w", n.id, err)
	}
	if to := s.rng.IntN(len(s.nodes)); news != nil && to != n.index {
		n.transmit(packet{from: n.index, to: to, msg: news, gossip: true})
	}
}

// gossip has one node tell another all that it knows.
func (s *sim) gossip(from, to *simNode) {
	if from == to || from.alloc == nil || to.alloc == nil || !s.hears(from, to) {
		return
	}
	for i := range from.parted {
		to.parted[i] = true
	}
	if from.alloc.ledger.ring.Equal(to.alloc.ledger.ring) {
		return
	}
	s.logf("node %d tells %d all", from.id, to.id)
	s.merge(to, from.alloc.Encode())
	to.reap()
}

var kindNames = map[kind]string{
	kindRequest: "request", kindDeny: "deny", kindConfirm: "confirm", kindAck: "ack", kindNews: "news", kindGrant: "grant",
	kindReceived: "received", kindVote: "vote", kindVoted: "voted", kindSurvey: "survey", kindSurveyed: "surveyed",
}

// describe puts a packet into words.
func (s *sim) describe(p packet) string {
	if p.gossip {
		r, err := ring.Decode(p.msg)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("gossip %s", brief(r))
	}
	m, err := decodeMessage(p.msg, uint32(s.universe.Size()))
	if err != nil {
		return err.Error()
	}
	out := kindNames[m.kind]
	switch m.kind {
	case kindRequest:
		out += fmt.Sprintf(" exact %v slot %d have %d last %v", m.exact, m.slot, m.have, m.last)
	case kindDeny:
		out += fmt.Sprintf(" reason %d", m.reason)
	case kindAck:
		out += fmt.Sprintf(" log %d", m.length)
	case kindVote, kindVoted:
		out += fmt.Sprintf(" votes %+v", m.ring.Votes())
	}
	if len(m.slots) > 0 {
		out += fmt.Sprintf(" slots %v", m.slots)
	}
	if m.grants != nil {
		out += " of " + brief(m.grants)
	}
	if m.ring != nil {
		out += fmt.Sprintf(" log %d", len(m.ring.Log()))
	}
	return out
}

// brief is a delta in few words.
func brief(r *ring.Ring) string {
	out := ""
	for i, x := range r.All() {
		if x != (ring.Register{}) {
			out += fmt.Sprintf("%v %d>%d @%d.%d ", i, x.From, x.Owner, x.Version.Epoch, x.Version.Count)
		}
	}
	return out + fmt.Sprintf("log %d", len(r.Log()))
}
