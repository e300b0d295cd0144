// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"time"
)

// Pace of joining a target.
const (
	firstWait  = 500 * time.Millisecond
	maxWait    = 10 * time.Second
	slowAfter  = 10 * time.Minute // without success, and the waits grow on
	slowWait   = 5 * time.Minute
	tellAgain  = time.Minute // between lines of the log on errors of one target
	checkEvery = time.Second // how soon a target whose node is gone is tried again
)

// errNoExchange: the hello went well, the rest did not.
var errNoExchange = errors.New("answered, but the exchange of states broke off: is the network between slow or filtered?")

// joinLoop keeps one target joined: it looks the name up anew for each try, and
// tries again whenever the node found there is no longer alive.
func (m *Mesh) joinLoop(ctx context.Context, t *target) {
	wait := firstWait
	for {
		them, err := m.joinTarget(ctx, t.Host)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrSelf) {
			wait = maxWait // a name may come to mean somebody else
		}
		pause, slow := m.noteTarget(t, them, err, wait)
		if err != nil {
			limit := maxWait
			if slow {
				limit = slowWait
			}
			wait = min(2*wait, limit)
			m.rest(ctx, t, pause)
		} else {
			wait = firstWait
			for sleep(ctx, checkEvery) && m.isAlive(them.id) {
				m.noteTarget(t, them, nil, 0) // what is blocked may have changed
			}
			if ctx.Err() == nil {
				m.noteTarget(t, them, errors.New("the node found there is not alive"), 0)
			}
		}
		if ctx.Err() != nil {
			return
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

// isAlive tells whether a node is a living member.
func (m *Mesh) isAlive(id NodeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[id]
	return p != nil && p.living.len() > 0
}
