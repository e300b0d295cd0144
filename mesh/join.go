// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// Pace of joining a target.
const (
	firstWait  = 500 * time.Millisecond
	maxWait    = 10 * time.Second
	checkEvery = time.Second // how soon a target whose node is gone is tried again
)

// errNoExchange: the hello went well, the rest did not.
var errNoExchange = errors.New("answered, but the exchange of states broke off: is the network between slow or filtered?")

// target is a configured join target. Guarded by Mesh.mu.
type target struct {
	Target
	self bool // all its addresses are this node's
}

// joinLoop keeps one target joined: it looks the name up anew for each try, and
// tries again whenever the node found there is no longer alive.
func (m *Mesh) joinLoop(ctx context.Context, t *target) {
	wait := firstWait
	for {
		them, err := m.joinTarget(ctx, t.Host)
		if ctx.Err() != nil {
			return
		}
		pause := checkEvery
		if err == nil {
			wait = firstWait
		} else {
			if errors.Is(err, ErrSelf) {
				wait = maxWait // a name may come to mean somebody else
			}
			pause = jitter(wait)
			wait = min(2*wait, maxWait)
		}
		m.noteTarget(t, them, err, pause)
		for sleep(ctx, pause) && err == nil && m.isAlive(them.id) {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			m.noteTarget(t, them, errors.New("the node found there is not alive"), 0)
		}
	}
}

// joinTarget tries a target once.
func (m *Mesh) joinTarget(ctx context.Context, host string) (introduction, error) {
	look, cancel := context.WithTimeout(ctx, m.tuning.StreamTimeout)
	defer cancel()
	addrs, err := Resolve(look, m.network, host, m.cfg.Port)
	if err != nil {
		return introduction{}, err
	}
	var ways [][]try
	for _, a := range addrs {
		ways = append(ways, m.ways.triesAt(a))
	}
	them, err := m.joinAny(ctx, ways)
	var mismatch *UniverseMismatchError
	if errors.As(err, &mismatch) {
		mismatch.Host = host
	}
	return them, err
}

// noteTarget records how a try ended; the log says so when it is news.
func (m *Mesh) noteTarget(t *target, them introduction, err error, pause time.Duration) {
	m.mu.Lock()
	before := t.State
	t.Err, t.NextTry, t.Joined, t.self = err, time.Time{}, err == nil, errors.Is(err, ErrSelf)
	switch {
	case err == nil:
		t.State, t.Node, t.self = "joined", them.id, false
	case t.self:
		t.State, t.NextTry = "this node", time.Now().Add(pause)
	default:
		t.State, t.NextTry = "waiting: "+err.Error(), time.Now().Add(pause)
	}
	news := t.State != before
	state := t.State
	m.mu.Unlock()
	if !news {
		return
	}
	f := []zap.Field{zap.String("peer", t.Host), zap.String("state", state)}
	if err == nil {
		f = append(f, zap.Stringer("node", them.id), zap.String("name", them.name))
	}
	m.log.Info("join", f...)
	m.changed()
}

// isAlive tells whether a node is a living member.
func (m *Mesh) isAlive(id NodeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[id]
	return p != nil && len(p.alive) > 0
}

// Targets returns the configured targets in their order.
func (m *Mesh) Targets() []Target {
	m.mu.Lock()
	defer m.mu.Unlock()
	ts := make([]Target, len(m.targets))
	for i, t := range m.targets {
		ts[i] = t.Target
	}
	return ts
}
