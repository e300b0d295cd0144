// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"
)

// How changes travel.
//
// A change of at most maxGossip bytes, wrapped, is gossip: it rides on memberlist's
// packets until it has been sent often enough for everybody to have it, and whoever
// finds something new in it gossips that on. A larger one goes by Send to
// largeFanout members chosen at random, each of which sends on what was new to it to
// as many; in meshes up to that size all get it directly, in larger ones a few in
// ten thousand may be missed and get it by the next digest (digest.go). Much that was new in
// a sync is not sent on: whoever asks gets what it lacks of it.
const (
	recordsName = "nodes" // the state that this package itself replicates
	maxPacket   = 1152    // bytes; sealed and with its headers it fits any path that carries IPv6
	maxGossip   = 1024
	largeFanout = 8

	mergeQueue   = 1024
	maxExchange  = 19 << 20 // memberlist refuses 20 MiB
	recordsAlone = 16       // up to so many new records are gossiped one by one
)

// incoming is something for the merging goroutine: a change, or the states of a node.
type incoming struct {
	from   NodeID // who sent it, be it another one's
	gossip []byte // not nil: a change as it came by gossip, not decoded yet
	change change
	states map[string][]byte // not nil: states, whole or in part, by a sync
	to     audience
	eaten  func() // called when it has been taken in or dropped; nil: nothing is to be
}

func (in incoming) drop() {
	if in.eaten != nil {
		in.eaten()
	}
}

// audience is who is told much that was new here; of little, all are.
type audience uint8

const (
	everybody audience = iota
	askers             // by digest, and what they lack by sync
	nobody             // it came from the only node known, which knows it
)

// gossip is one queued change. A later one of the same key replaces it.
type gossip struct {
	key string
	msg []byte
}

func (g *gossip) Finished()                                   {}
func (g *gossip) Message() []byte                             { return g.msg }
func (g *gossip) Invalidates(other memberlist.Broadcast) bool { return false }

// keyedGossip is gossip that replaces an earlier one of its key.
type keyedGossip struct{ gossip }

// Name is the key.
func (g *keyedGossip) Name() string { return g.key }

// uniqueGossip is gossip that replaces nothing.
type uniqueGossip struct{ gossip }

// UniqueBroadcast marks it for memberlist.
func (g *uniqueGossip) UniqueBroadcast() {}

// Register adds a replicated state under a name (1 to 32 bytes, the same on all
// nodes; "nodes" is taken). It must be called before Run, once per name; Run
// fails if it was not.
func (m *Mesh) Register(name string, s State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !validName(name, maxStateName), name == recordsName, m.states[name] != nil, s == nil, len(m.states) >= maxStates-1:
		m.misuse = fmt.Errorf("the state %q cannot be registered: its name is too long, empty or taken, or there are too many", clip(name))
	case m.phase != idle:
		m.misuse = fmt.Errorf("the state %q was registered after Run", name)
		m.log.Error(m.misuse.Error())
	default:
		m.states[name] = s
	}
}

// Broadcast tells all members a change of the state registered as name; delta
// is what their Merge gets, at most 8 MiB. It is copied. It never blocks. What
// cannot be told now is made up for by the next exchange of states.
func (m *Mesh) Broadcast(name string, delta []byte) {
	m.pass(name, delta, 0)
}

// pass tells a change of a state to all but the node that has told it, 0 for none.
func (m *Mesh) pass(name string, delta []byte, from NodeID) {
	m.touched(name)
	m.spread(name, "", delta, from)
}

// spread gossips a change, or sends it if it is large, but not to the node that has told it. Under a key only the
// latest change is of interest.
func (m *Mesh) spread(name, key string, delta []byte, from NodeID) {
	u := m.Universe()
	if len(delta) == 0 || !u.Known() {
		return
	}
	m.stir()
	if len(delta) <= maxGossip {
		b, err := encodeChange(u.ID, name, delta)
		if err != nil {
			m.log.Error("cannot encode a change", zap.String("state", name), zap.Error(err))
			return
		}
		if len(b) <= maxGossip {
			if !m.mayGossip(name, len(b)) {
				return
			}
			if g := (gossip{key: key, msg: m.tuning.Shared.change(b)}); key != "" {
				m.gossip.QueueBroadcast(&keyedGossip{g})
			} else {
				m.gossip.QueueBroadcast(&uniqueGossip{g})
			}
			m.gossip.Prune(maxQueued)
			m.gossipSoon()
			return
		}
	}
	to := slices.DeleteFunc(m.aliveOthers(), func(id NodeID) bool { return id == from })
	rand.Shuffle(len(to), func(i, j int) { to[i], to[j] = to[j], to[i] })
	for _, id := range to[:min(len(to), largeFanout)] {
		if err := m.enqueue(id, message{State: name, Payload: delta}); err != nil {
			m.log.Debug("a large change is not sent", zap.String("state", name), zap.Stringer("to", id), zap.Error(err))
		}
	}
}

// spreadRecords passes on records that were new here.
func (m *Mesh) spreadRecords(rs []*storedRecord) {
	if len(rs) == 0 {
		return
	}
	if len(rs) > recordsAlone {
		b, err := encodeRecords(rs)
		if err != nil {
			m.log.Error("cannot encode node records", zap.Error(err))
			return
		}
		m.spread(recordsName, "", b, 0)
		return
	}
	for _, r := range rs {
		b, err := encodeRecords([]*storedRecord{r})
		if err != nil {
			m.log.Error("cannot encode a node record", zap.Error(err))
			return
		}
		m.spread(recordsName, recordsName+"/"+r.ID.String(), b, 0)
	}
}

// takeChange queues a change that a node gossips for merging. b is copied; nothing blocks.
func (m *Mesh) takeChange(b []byte, from NodeID) {
	if m.echoes.note(b, time.Now()) {
		return
	}
	select {
	case m.merges <- &incoming{from: from, gossip: append([]byte{}, b...)}:
	default:
		m.dropped.Add(1) // the next exchange brings it
		m.echoes.forget(b)
	}
}

// mergeGossip takes in a change that was gossiped.
func (m *Mesh) mergeGossip(b []byte, from NodeID) {
	c, err := m.tuning.Shared.decodeChange(b)
	if err != nil {
		m.oddity(from, "a change that makes no sense was dropped", err)
		return
	}
	if [16]byte(c.Universe) == m.Universe().ID {
		m.merge(c.State, c.Delta, everybody, from)
	}
}

// queueMerge waits for room in the queue. Without any, in is dropped.
func (m *Mesh) queueMerge(in incoming) bool {
	t := time.NewTimer(m.tuning.StreamTimeout)
	defer t.Stop()
	select {
	case m.merges <- &in:
		return true
	case <-m.closing:
	case <-t.C:
		m.dropped.Add(1)
	}
	in.drop()
	return false
}

// mergeLoop is the only caller of State.Merge.
func (m *Mesh) mergeLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case in := <-m.merges:
			switch {
			case in.gossip != nil:
				m.mergeGossip(in.gossip, in.from)
			case in.states == nil:
				m.merge(in.change.State, in.change.Delta, everybody, in.from)
			default:
				m.mergeStates(*in)
			}
			in.drop()
		}
	}
}

// mergeStates takes in what a sync has brought.
func (m *Mesh) mergeStates(in incoming) {
	// Who is who comes first, then what they have.
	m.merge(recordsName, in.states[recordsName], in.to, in.from)
	for name, b := range in.states {
		if name == recordsName || !m.merge(name, b, in.to, in.from) {
			continue
		}
		if s, ok := m.states[name].(Exchanger); ok {
			s.Exchanged()
		}
	}
	m.joinedOnce.Do(func() { close(m.joined) })
	m.changed()
}

// merge takes a state or a delta in that a node has sent and passes on what was new. It returns whether a state has merged it.
func (m *Mesh) merge(name string, b []byte, to audience, from NodeID) bool {
	if len(b) == 0 {
		return false
	}
	if name == recordsName {
		m.mergeRecords(b, to, from)
		return false
	}
	s := m.states[name]
	if s == nil {
		return false // of a newer release
	}
	delta, err := s.Merge(b)
	if err != nil {
		m.oddity(from, fmt.Sprintf("the state %q that another node sent was not merged", name), err)
	}
	switch {
	case len(delta) == 0 || to == nobody:
		m.touched(name)
	case to == askers && len(delta) > maxGossip:
		m.touched(name)
		m.nudge()
	default:
		m.pass(name, delta, from)
	}
	return err == nil
}

// oddity logs something that should not come from a node of this mesh, once in a while for each node that sends such things. 0: this node.
func (m *Mesh) oddity(from NodeID, text string, err error) {
	ok, muted := m.oddities.pass(from.String()+text, time.Now())
	if !ok {
		return
	}
	f := []zap.Field{zap.Error(err)}
	if from != 0 {
		m.mu.Lock()
		r, _ := m.records.get(from)
		m.mu.Unlock()
		f = append(f, zap.Stringer("from", from), zap.String("name", r.Name))
	}
	m.log.Warn(text, append(f, zap.Uint64("like it before", muted))...)
}
