// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/internal/rotation"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/envelope"
	"github.com/weftnet/weft/router/session"
)

const (
	channelToken  = "token"    // of mesh.Send: a new token, sealed
	stateRotation = "rotation" // of mesh.Register: rotation.Register

	keyRotation   = "rotation" // in the store's Meta bucket: rotation.Register
	keyPastTokens = "tokens"   // in the store's Meta bucket: names of tokens that were given up, the newest last, 4 bytes each
	maxPastTokens = 32

	// giveInterval is how often it is looked who lacks the new token, and lateInterval how often once all who were there have it.
	giveInterval = 500 * time.Millisecond
	lateInterval = 2 * time.Second
	// hearsayGap is how often a register is taken in that cannot be checked here, and hearsayLogged how often the log has one.
	hearsayGap    = time.Second
	hearsayLogged = time.Minute
	// untakenLogged is how often the log says at most that a token that was given to this node was not taken.
	untakenLogged = 10 * time.Second
)

// rotor is this node's part in the rotation of the token. The rules are those of package rotation; here they are made true: on disk
// first, then in mesh and router, then in this node's record. It is the mesh's state "rotation".
type rotor struct {
	n *Node
	e *engines // set before the mesh runs

	hearsay time.Time // when a register was last taken in that cannot be checked here; Merge's own

	changing sync.Mutex // held by whoever changes state, from the disk to the record
	hearsaid time.Time  // when the log had one of these; under changing
	mu       sync.Mutex
	state    rotation.State // under mu
	untaken  string         // why a token was not taken the last time, as the log has it; under mu

	untakenAt time.Time // when the log had it; under mu
}

// newRotor reads what is known of rotations; ts are the tokens found.
func newRotor(n *Node, ts []token.Token) (*rotor, error) {
	r := &rotor{n: n}
	for _, t := range ts {
		k, err := rotation.NewKey(t)
		if err != nil {
			return nil, err
		}
		r.state.Tokens = append(r.state.Tokens, k)
	}
	err := n.store.View(func(tx *store.Tx) (err error) {
		r.state.Register, err = rotation.Decode(tx.Get(store.Meta, keyRotation))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading how far the rotation of the token is: %w", err)
	}
	settled := r.state.Settle() // a crash may have come in between
	if settled.Equal(r.state) {
		return r, nil
	}
	if err := token.WriteKept(n.cfg.DataDir, settled.Kept()); err != nil {
		return nil, err
	}
	r.state = settled
	return r, nil
}

// snapshot returns the present state.
func (r *rotor) snapshot() rotation.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// update changes the state by f. begins tells that f may bring a token that nobody else has: it goes to disk before the register
// that names it.
func (r *rotor) update(begins bool, f func(rotation.State) (rotation.State, error)) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	before := r.snapshot()
	next, err := f(before)
	if err != nil || next.Equal(before) {
		return err
	}
	writes := []func() error{
		func() error { return r.saveRegister(before, next) },
		func() error { return token.WriteKept(r.n.cfg.DataDir, next.Kept()) },
	}
	if begins {
		slices.Reverse(writes)
	}
	for _, write := range writes {
		if err := write(); err != nil {
			r.n.setWarning("rotation", "the rotation of the token does not get on here: "+err.Error())
			return err
		}
	}
	r.n.setWarning("rotation", "")
	r.mu.Lock()
	r.state = next
	r.mu.Unlock()
	r.apply(before, next)
	return nil
}

// saveRegister keeps the register, and the names of the tokens that are given up.
func (r *rotor) saveRegister(before, next rotation.State) error {
	return r.n.store.Update(func(tx *store.Tx) error {
		past := tx.Get(store.Meta, keyPastTokens)
		for _, id := range before.Accepted() {
			if _, ok := next.Holds(id); !ok {
				past = binary.BigEndian.AppendUint32(past, uint32(id))
			}
		}
		past = past[max(0, len(past)-4*maxPastTokens):]
		if err := tx.Put(store.Meta, keyPastTokens, past); err != nil {
			return err
		}
		return tx.Put(store.Meta, keyRotation, next.Register.Encode())
	})
}

// apply makes a state that is on disk true in the engines.
func (r *rotor) apply(before, next rotation.State) {
	reg := next.Register
	switch news := reg.Phase != before.Register.Phase || reg.Key != before.Register.Key; {
	case next.Certain() && (news || !before.Certain()):
		r.n.log.Info("the rotation of the mesh's token", zap.Stringer("phase", reg.Phase), zap.Uint64("generation", reg.Generation),
			zap.Stringer("by", mesh.NodeID(reg.By)))
		r.note(reg)
	case news && time.Since(r.hearsaid) >= hearsayLogged: // any member may have invented it
		r.hearsaid = time.Now()
		r.n.log.Info("another node says that the mesh's token is rotated; this one does not have the new token", zap.Stringer("phase", reg.Phase),
			zap.Uint64("generation", reg.Generation), zap.Stringer("by", mesh.NodeID(reg.By)))
	}
	if r.e == nil || slices.Equal(before.Accepted(), next.Accepted()) {
		return
	}
	r.e.mesh.SetKeys(meshKeys(next))
	if sealing, err := planeKeys(next); err != nil {
		r.n.log.Error("the keys of control datagrams cannot be made", zap.Error(err))
	} else {
		r.e.plane.SetKeys(sealing)
	}
	// Before the record says that a token is accepted, the sessions have to know it.
	if err := r.n.connectPeers(r.e); err != nil {
		r.n.log.Error("the router refused the mesh's peers", zap.Error(err))
	}
	if err := r.e.mesh.SetRecord(func(rec *mesh.Record) { rec.Keys = tokenNames(next) }); err != nil {
		r.n.log.Error("this node's record cannot say which tokens it accepts", zap.Error(err))
	}
	r.e.kernel.wake.raise() // who shares none of them is reached by no kernel path any more
}

// note makes an event of a new phase.
func (r *rotor) note(reg rotation.Register) {
	text := map[rotation.Phase]string{
		rotation.Distributing: "the mesh gets a new token",
		rotation.Switched:     "the mesh goes over to the new token; the old one is accepted, too",
		rotation.Revoked:      "the old token is revoked",
	}[reg.Phase]
	if text == "" {
		return
	}
	by := mesh.NodeID(reg.By).String()
	ev := events.Event{Kind: events.Rotate, Node: by, NodeID: by, Text: text}
	if r.e != nil {
		ev.Node = r.n.nameOf(r.e.mesh)(ring.Owner(reg.By))
	}
	ev.Cause = "a command on " + ev.Node
	r.n.history.log.Add(ev)
}

// Encode implements [mesh.State].
func (r *rotor) Encode() []byte { return r.snapshot().Register.Encode() }

// Merge implements [mesh.State].
func (r *rotor) Merge(b []byte) ([]byte, error) {
	register, err := rotation.Decode(b)
	if err != nil {
		return nil, err
	}
	if s := r.snapshot(); register.Beats(s.Register) {
		if _, ok := s.Holds(register.Key); !ok {
			if time.Since(r.hearsay) < hearsayGap {
				return nil, nil // the comparison of states brings it again
			}
			r.hearsay = time.Now()
		}
	}
	var news []byte
	err = r.update(false, func(s rotation.State) (rotation.State, error) {
		next, err := s.Merge(register)
		if err == nil && !next.Register.Equal(s.Register) {
			news = next.Register.Encode()
		}
		return next, err
	})
	if err != nil {
		return nil, err
	}
	return news, nil
}

// tell passes the register on after a change that was made here.
func (r *rotor) tell() { r.e.mesh.Broadcast(stateRotation, r.Encode()) }

// take takes in a new token that another node gives.
func (r *rotor) take(from mesh.NodeID, msg []byte) {
	id := r.n.state.identity
	k, register, err := rotation.Open(msg, uint64(id.ID), [32]byte(id.Private))
	if err == nil {
		err = r.update(false, func(s rotation.State) (rotation.State, error) { return s.Take(k, register) })
	}
	text := ""
	if err != nil && !errors.Is(err, rotation.ErrStale) {
		text = from.String() + ": " + err.Error()
	}
	r.mu.Lock()
	news := text != "" && text != r.untaken && time.Since(r.untakenAt) >= untakenLogged
	if news {
		r.untaken, r.untakenAt = text, time.Now()
	}
	r.mu.Unlock()
	if news { // it is given again and again
		r.n.log.Warn("a new token that was given to this node was not taken", zap.Stringer("from", from), zap.Error(err))
	}
}

// run gives the new token to those who lack it, and looks whether this node is refused, until ctx ends.
func (r *rotor) run(ctx context.Context, e *engines) {
	var giver rotation.Giver
	var looked time.Time
	tick := time.NewTicker(giveInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s := r.snapshot()
		if p := s.Register.Phase; p == rotation.Distributing || p == rotation.Switched && time.Since(looked) >= lateInterval {
			looked = time.Now()
			r.give(e, s, giver.Due(s, uint64(r.n.state.identity.ID), r.sight(e), time.Now()))
		}
		r.n.setWarning("token", r.refusedWarning(e, s))
	}
}

func (r *rotor) give(e *engines, s rotation.State, to []rotation.Node) {
	for _, node := range to {
		msg, err := s.Give(node)
		if err == nil {
			err = e.mesh.Send(mesh.NodeID(node.ID), channelToken, msg)
		}
		if err != nil {
			r.n.log.Warn("the new token could not be given to a node; trying again", zap.Stringer("node", mesh.NodeID(node.ID)), zap.Error(err))
		}
	}
}

// sight is what is known here of the nodes that take part.
func (r *rotor) sight(e *engines) []rotation.Node {
	s := r.snapshot()
	var nodes []rotation.Node
	for _, m := range e.members() {
		if m.Status == mesh.Left {
			continue
		}
		node := rotation.Node{ID: uint64(m.ID), Public: m.PublicKey, Alive: m.Status == mesh.Alive || m.Status == mesh.Self}
		if m.Status == mesh.Self {
			node.Public, node.Keys = r.n.state.identity.key().Public(), s.Accepted()
		} else {
			for _, id := range m.Keys {
				node.Keys = append(node.Keys, token.ID(id))
			}
		}
		nodes = append(nodes, node)
	}
	return nodes
}

// refusedWarning says how a node comes back that nobody takes in any more, "" if it is none.
func (r *rotor) refusedWarning(e *engines, s rotation.State) string {
	by, since := e.mesh.TurnedAway()
	if since.IsZero() {
		return ""
	}
	host := by.Addr().String()
	for _, m := range e.members() {
		if m.Status == mesh.Alive {
			return ""
		}
		if m.Status != mesh.Self && m.Name != "" && (m.Addr.Addr() == by.Addr() || len(m.Endpoints) > 0 && m.Endpoints[0].Addr() == by.Addr()) {
			host = m.Name
		}
	}
	if _, ok := s.New(); !ok && s.Register.Phase != rotation.None {
		return fmt.Sprintf("the mesh's token was rotated at %s; launch again with the new token, which `weft token --raw` prints on %s",
			s.Register.Begun.Format(time.DateTime), host)
	}
	return fmt.Sprintf("the mesh's token was rotated while this node was away: its token is refused since %s; launch again with the new token, which `weft token --raw` prints on %s",
		since.Format(time.DateTime), host)
}

// newTokenKey makes a token.
func newTokenKey() (rotation.Key, error) {
	t, err := token.New(rand.Reader)
	if err != nil {
		return rotation.Key{}, err
	}
	return rotation.NewKey(t)
}

// meshKeys are the keys of streams, the preferred first.
func meshKeys(s rotation.State) (keys []mesh.Keys) {
	for _, k := range s.Tokens {
		keys = append(keys, mesh.Keys{Hello: k.Keys().Hello})
	}
	return keys
}

// planeKeys are the keys of control datagrams.
func planeKeys(s rotation.State) (k router.Keys, err error) {
	for i, t := range s.Tokens {
		key, err := envelope.NewKey(t.Keys().Control)
		if err != nil {
			return router.Keys{}, err
		}
		if i == 0 {
			k.Envelope.Primary = key
		} else {
			k.Envelope.Accept = append(k.Envelope.Accept, key)
		}
	}
	return k, nil
}

func tokenNames(s rotation.State) (ids []uint32) {
	for _, id := range s.Accepted() {
		ids = append(ids, uint32(id))
	}
	return ids
}

func (n *Node) prober(s rotation.State) mesh.Prober {
	keys := meshKeys(s)
	return mesh.Prober{Network: n.sys.network(), Keys: keys[0], Accept: keys[1:], Identity: n.state.signer, Name: n.cfg.Name}
}

// withPreshared gives each peer the pre-shared keys of the tokens: first those of the tokens that its record names, the newest of
// them before all. A node of an earlier release names none; it has one, and that is not the new one.
func withPreshared(peers []router.Peer, nodes []mesh.Node, s rotation.State) []router.Peer {
	if len(s.Tokens) == 1 {
		only := []session.PresharedKey{session.PresharedKey(s.Tokens[0].Keys().Preshared)}
		for i := range peers {
			peers[i].Keys = only
		}
		return peers
	}
	names := make(map[uint64][]uint32, len(nodes))
	for _, m := range nodes {
		names[uint64(m.ID)] = m.Keys
	}
	newest := slices.Clone(s.Tokens)
	if k, ok := s.New(); ok {
		newest = append([]rotation.Key{k}, slices.DeleteFunc(newest, func(o rotation.Key) bool { return o.ID == k.ID })...)
	}
	preshared := func(k rotation.Key) session.PresharedKey { return session.PresharedKey(k.Keys().Preshared) }
	for i := range peers {
		var has, others []session.PresharedKey
		for _, k := range newest {
			if slices.Contains(names[peers[i].ID], uint32(k.ID)) {
				has = append(has, preshared(k))
			}
		}
		for _, k := range s.Tokens {
			if p := preshared(k); !slices.Contains(has, p) {
				others = append(others, p)
			}
		}
		if len(names[peers[i].ID]) == 0 && len(others) > 1 && others[0] == preshared(newest[0]) {
			others = append(others[1:], others[0])
		}
		peers[i].Keys = append(has, others...)
		peers[i].Keys = peers[i].Keys[:min(len(peers[i].Keys), session.MaxPreshared)]
	}
	return peers
}
