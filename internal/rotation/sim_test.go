// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"encoding/binary"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/token"
)

// A step of the simulation is a tenth of a second.
const (
	step      = 100 * time.Millisecond
	aliveFor  = 12 // steps without a sign of life after which a node counts as dead
	settleFor = 1200
)

// simRecord is what a node says of itself.
type simRecord struct {
	seq  int
	keys []token.ID
}

// simNode is one node: its disk, and, while it is up, what it has in memory.
type simNode struct {
	id       uint64
	tokens   []Key    // on disk
	register Register // on disk
	backup   *State   // of the disk
	up       bool
	state    State // in memory, as acted upon
	seq      int
	view     map[uint64]simRecord
	heard    map[uint64]int // step
	giver    Giver

	goal Phase // of the command that runs here; None: no command runs

	member   bool // there from the beginning
	restored bool // a backup took tokens away for which others were revoked
}

type simMail struct {
	at   int
	to   *simNode
	open func(to *simNode) bool // whether the receiver can open it
	take func(to *simNode)
}

// sim is a mesh in virtual time with loss, crashes at every place where something is written, and partitions.
type sim struct {
	t       *testing.T
	dice    *mrand.Rand
	now     int
	nodes   []*simNode
	mail    []simMail
	side    map[uint64]int // of a partition
	loss    int            // percent
	log     []string
	revoked map[token.ID]map[uint64]bool // key -> who was cut off by its revocation
	saw     map[token.ID]map[uint64]bool // key -> who answered the one who revoked
	random  *mrand.ChaCha8
}

func (s *sim) time() time.Time { return time.UnixMilli(int64(s.now) * step.Milliseconds()) }

func (s *sim) notef(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf("%4d: ", s.now)+fmt.Sprintf(format, args...))
}

func (s *sim) failf(format string, args ...any) {
	s.t.Helper()
	for _, l := range s.log {
		s.t.Log(l)
	}
	for _, n := range s.nodes {
		s.t.Logf("node %d up=%v accepts %v register %v %v.%d gen %d, goal %v", n.id, n.up, n.state.Accepted(), n.state.Register.Key, n.state.Register.Phase, n.state.Register.Version, n.state.Register.Generation, n.goal)
	}
	s.t.Fatalf(format, args...)
}

func (s *sim) newKey() Key {
	t, err := token.New(s.random)
	if err != nil {
		s.t.Fatal(err)
	}
	k, err := NewKey(t)
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

func newSim(t *testing.T, seed uint64, nodes int) *sim {
	var b [32]byte
	binary.BigEndian.PutUint64(b[:], seed)
	s := &sim{
		t: t, dice: mrand.New(mrand.NewPCG(seed, 7)), random: mrand.NewChaCha8(b), side: map[uint64]int{},
		revoked: map[token.ID]map[uint64]bool{}, saw: map[token.ID]map[uint64]bool{},
	}
	old := s.newKey()
	for i := range nodes {
		n := &simNode{id: uint64(i + 1), tokens: []Key{old}, member: true}
		s.nodes = append(s.nodes, n)
		s.start(n)
	}
	return s
}

func (n *simNode) public() [32]byte { return [32]byte{byte(n.id), 9} }

func (s *sim) start(n *simNode) {
	n.up, n.goal = true, None
	n.view, n.heard, n.giver = map[uint64]simRecord{}, map[uint64]int{}, Giver{}
	if n.id == 1 || len(s.nodes) > 0 {
		for _, o := range s.nodes { // records are kept over restarts
			n.view[o.id] = simRecord{}
		}
	}
	n.state = State{Tokens: n.tokens, Register: n.register}.Settle()
	n.tokens = n.state.Tokens
	s.publish(n)
}

// publish renews the node's own record.
func (s *sim) publish(n *simNode) {
	n.seq = s.now*1000 + n.seq%1000 + 1
	n.view[n.id] = simRecord{seq: n.seq, keys: n.state.Accepted()}
}

// update changes a node's state as internal/node does: on disk, in two writes, then in memory, then in the record. It may crash in between.
func (s *sim) update(n *simNode, next State, tokensFirst bool) {
	if next.Equal(n.state) {
		return
	}
	writes := []func(){func() { n.register = next.Register }, func() { n.tokens = next.Tokens }}
	if tokensFirst {
		slices.Reverse(writes)
	}
	for _, w := range writes {
		if s.dice.IntN(400) == 0 {
			s.notef("node %d dies while it writes", n.id)
			n.up = false
			return
		}
		w()
	}
	if s.dice.IntN(400) == 0 {
		s.notef("node %d dies before it acts", n.id)
		n.up = false
		return
	}
	n.state = next
	s.publish(n)
}

func (s *sim) connected(a, b *simNode) bool { return s.side[a.id] == s.side[b.id] }

func (s *sim) send(from, to *simNode, open func(*simNode) bool, take func(*simNode)) {
	if from == to || !s.connected(from, to) || s.dice.IntN(100) < s.loss {
		return
	}
	s.mail = append(s.mail, simMail{s.now + 1 + s.dice.IntN(3), to, open, take})
}

// gossip is a packet under the one token that the sender sends under, stream a connection that any shared token opens.
func (s *sim) gossip(from, to *simNode) {
	key := from.state.Tokens[0].ID
	s.tell(from, to, func(to *simNode) bool { _, ok := to.state.Holds(key); return ok })
}

func (s *sim) stream(from, to *simNode) {
	open := func(to *simNode) bool {
		return slices.ContainsFunc(from.state.Accepted(), func(k token.ID) bool { _, ok := to.state.Holds(k); return ok })
	}
	s.tell(from, to, open)
	if open(to) && to.up {
		s.tell(to, from, open)
	}
}

func (s *sim) tell(from, to *simNode, open func(*simNode) bool) {
	register := from.state.Register
	records := map[uint64]simRecord{}
	for id, r := range from.view {
		records[id] = r
	}
	s.send(from, to, open, func(to *simNode) {
		to.heard[from.id] = s.now
		for id, r := range records {
			if r.seq > to.view[id].seq {
				to.view[id] = r
			}
		}
		next, err := to.state.Merge(register)
		if err != nil {
			s.failf("node %d takes the register of node %d for a bad one: %v", to.id, from.id, err)
		}
		s.update(to, next, false)
	})
}

// sight is what a node knows of all.
func (s *sim) sight(n *simNode) []Node {
	var all []Node
	for _, o := range s.nodes {
		r, known := n.view[o.id]
		if !known {
			continue
		}
		heard, ever := n.heard[o.id]
		all = append(all, Node{ID: o.id, Public: o.public(), Keys: r.keys, Alive: o == n || ever && s.now-heard < aliveFor})
	}
	return all
}

func (s *sim) node(id uint64) *simNode { return s.nodes[id-1] }

// act is what a node does in a step.
func (s *sim) act(n *simNode) {
	for range 2 {
		s.gossip(n, s.nodes[s.dice.IntN(len(s.nodes))])
	}
	if s.dice.IntN(5) == 0 {
		s.stream(n, s.nodes[s.dice.IntN(len(s.nodes))])
	}
	for _, to := range n.giver.Due(n.state, n.id, s.sight(n), s.time()) {
		key, _ := n.state.New()
		register := n.state.Register
		o := s.node(to.ID)
		if !o.member {
			s.failf("node %d gives the new token to node %d, which came later", n.id, o.id)
		}
		s.send(n, o, func(o *simNode) bool {
			return slices.ContainsFunc(n.state.Accepted(), func(k token.ID) bool { _, ok := o.state.Holds(k); return ok })
		}, func(o *simNode) {
			if next, err := o.state.Take(key, register); err == nil {
				s.update(o, next, false)
			}
		})
	}
	if n.goal != None {
		s.drive(n)
	}
}

// drive is the command that runs on a node.
func (s *sim) drive(n *simNode) {
	nodes := s.sight(n)
	r := n.state.Register
	if r.Phase == None || r.Phase == Revoked && n.goal == Switched {
		if s.dice.IntN(2) == 0 {
			return
		}
		next, err := n.state.Begin(s.newKey(), n.id, s.time(), members(nodes, s), nil, false)
		if err == nil {
			s.notef("node %d begins a rotation to %v", n.id, next.Register.Key)
			s.update(n, next, true)
		}
		return
	}
	if _, ok := n.state.New(); !ok {
		anybody := slices.ContainsFunc(nodes, func(o Node) bool { return o.Alive && o.has(r.Key) })
		if !anybody && s.dice.IntN(50) == 0 {
			if next, err := n.state.Begin(s.newKey(), n.id, s.time(), members(nodes, s), nil, true); err == nil {
				s.notef("node %d begins anew with %v", n.id, next.Register.Key)
				s.update(n, next, true)
			}
		}
		return
	}
	p := ProgressOf(r, nodes)
	switch {
	case !p.Complete():
	case r.Phase >= n.goal:
		s.notef("node %d has %v done", n.id, n.goal)
		n.goal = None
	default:
		next, err := n.state.Advance(r.Phase+1, n.id, s.time())
		if err != nil {
			s.failf("node %d cannot advance: %v", n.id, err)
		}
		s.notef("node %d: %v %v", n.id, next.Register.Key, next.Register.Phase)
		if next.Register.Phase == Revoked {
			s.cut(n, r.Key, nodes)
		}
		s.update(n, next, false)
	}
}

func members(nodes []Node, s *sim) (m []Node) {
	for _, n := range nodes {
		if s.node(n.ID).member {
			m = append(m, n)
		}
	}
	return m
}

// cut notes whom a revocation cuts off, and who was there.
func (s *sim) cut(by *simNode, key token.ID, nodes []Node) {
	if s.revoked[key] == nil {
		s.revoked[key], s.saw[key] = map[uint64]bool{}, map[uint64]bool{}
	}
	for _, n := range s.nodes {
		if !slices.ContainsFunc(n.tokens, func(k Key) bool { return k.ID == key }) {
			s.revoked[key][n.id] = true
		}
	}
	for _, n := range nodes {
		if n.Alive {
			s.saw[key][n.ID] = true
		}
	}
	s.notef("node %d revokes all but %v; cut off are %v", by.id, key, s.revoked[key])
}

// check looks at the invariants.
func (s *sim) check() {
	for i, a := range s.nodes {
		if !a.up {
			continue
		}
		if r := a.state.Register; r.Phase == Revoked {
			if k, ok := a.state.New(); ok && !slices.Equal(a.state.Accepted(), []token.ID{k.ID}) {
				s.failf("node %d accepts %v after the revocation", a.id, a.state.Accepted())
			}
		}
		for _, b := range s.nodes[i+1:] {
			if b.up && a.member && b.member && !s.share(a, b) && !s.exempt(a, b) {
				s.failf("nodes %d and %d share no token", a.id, b.id)
			}
		}
		key := a.state.Tokens[0].ID
		for _, b := range s.nodes {
			if _, ok := b.state.Holds(key); ok || a == b || !b.up || !slices.Contains(a.view[b.id].keys, key) || a.restored || b.restored {
				continue
			}
			// b accepted it once. Only a revocation takes it away, and that waits for all who answer to have gone over.
			if s.unseen(a) {
				continue
			}
			s.failf("node %d sends to node %d under %v, which that one accepted once and does not any more", a.id, b.id, key)
		}
	}
}

// unseen tells whether somebody revoked without the node: it was away, or came later and was given nothing.
func (s *sim) unseen(n *simNode) bool {
	for _, saw := range s.saw {
		if !saw[n.id] || !n.member {
			return true
		}
	}
	return false
}

func (s *sim) share(a, b *simNode) bool {
	return slices.ContainsFunc(a.state.Accepted(), func(k token.ID) bool { _, ok := b.state.Holds(k); return ok })
}

// exempt tells whether a revocation has cut one of the two off from the other.
func (s *sim) exempt(a, b *simNode) bool {
	if a.restored || b.restored {
		return true
	}
	for key, cut := range s.revoked {
		_, ha := a.state.Holds(key)
		_, hb := b.state.Holds(key)
		if (cut[a.id] || cut[b.id]) && (ha || hb) {
			return true
		}
	}
	return false
}

func (s *sim) pick(ok func(*simNode) bool) *simNode {
	var some []*simNode
	for _, n := range s.nodes {
		if ok(n) {
			some = append(some, n)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[s.dice.IntN(len(some))]
}

func isUp(n *simNode) bool { return n.up }

// happen is one event at random.
func (s *sim) happen() {
	switch s.dice.IntN(16) {
	case 0, 1:
		if n := s.pick(isUp); n != nil {
			s.notef("node %d dies", n.id)
			n.up = false
		}
	case 2, 3, 4:
		if n := s.pick(func(n *simNode) bool { return !n.up }); n != nil {
			s.notef("node %d starts", n.id)
			s.start(n)
		}
	case 5:
		for _, n := range s.nodes {
			s.side[n.id] = s.dice.IntN(2)
		}
		s.notef("partition %v", s.side)
	case 6, 7:
		s.side = map[uint64]int{}
		s.notef("heal")
	case 8, 9, 10:
		if n := s.pick(isUp); n != nil {
			s.notef("rotate on node %d", n.id)
			n.goal = Switched
		}
	case 11:
		if n := s.pick(func(n *simNode) bool { return n.up && n.state.Register.Phase >= Switched }); n != nil {
			s.notef("revoke-old on node %d", n.id)
			n.goal = Revoked
		}
	case 12:
		if n := s.pick(isUp); n != nil {
			n.backup = &State{Tokens: n.tokens, Register: n.register}
		}
	case 13:
		n := s.pick(func(n *simNode) bool { return n.backup != nil })
		if n == nil || s.dice.IntN(3) > 0 {
			return
		}
		s.notef("node %d restores a backup", n.id)
		for _, k := range n.tokens {
			if _, ok := n.backup.Holds(k.ID); !ok {
				n.restored = true
			}
		}
		n.tokens, n.register = n.backup.Tokens, n.backup.Register
		s.start(n)
	case 14:
		contact := s.pick(isUp)
		if contact == nil || len(s.nodes) > 9 {
			return
		}
		n := &simNode{id: uint64(len(s.nodes) + 1), tokens: contact.state.Tokens[:1]}
		s.notef("node %d joins with %v", n.id, n.tokens[0].ID)
		s.nodes = append(s.nodes, n)
		s.start(n)
	case 15:
		s.loss = s.dice.IntN(60)
	}
}

func (s *sim) run(steps int) {
	for range steps {
		s.now++
		mail := s.mail
		s.mail = nil
		for _, m := range mail {
			switch {
			case m.at > s.now:
				s.mail = append(s.mail, m)
			case m.to.up && m.open(m.to):
				m.take(m.to)
			}
		}
		for _, n := range s.nodes {
			if n.up {
				s.act(n)
			}
		}
		s.check()
	}
}
