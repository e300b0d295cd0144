// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Known nodes that are not alive, and have not left for good, are tried again and
// again. A round every RejoinInterval tries those that are due, those that failed
// lately first; each waits longer after every failure, up to maxRetry, after slowAfter
// up to goneRetry, and starts over at any sign of life. But where no more are alive than
// failed, this node may be on the smaller side of a partition: if none is due there, the one
// that has waited longest is tried all the same. So the smaller side of a partition knocks at
// the other in every round, however long it lasts, while a few that are gone for good cost the
// others next to nothing. In large meshes a node leaves a share of its rounds to the others.
const (
	maxRetry    = 30 * time.Second
	goneRetry   = 10 * time.Minute
	perRound    = 8 // nodes tried at the same time, one more after an alarm
	maxDials    = 4 // addresses of one node tried at the same time
	fullEffort  = 8 // with more nodes alive, rounds are shared
	retryGrowth = 2

	settleFirst, settleSecond = 700 * time.Millisecond, 1500 * time.Millisecond
)

// retry is when a node is to be tried next. The zero value: now. Guarded by Mesh.mu.
type retry struct {
	wait  time.Duration // after the next failure
	next  time.Time
	tried time.Time
	busy  bool
	slow  bool // it has been said that it is tried rarely
}

// restart makes the node due at once.
func (r *retry) restart(now time.Time) { r.wait, r.next, r.slow = 0, now, false }

// callOn has a node tried of which a new record has come, if it is not alive, and tells whether that is due at once. One that was never alive here has just
// come, most likely: in a mesh with many others word that it is alive is on its way, too, at the latest with the next exchange of lists, and if all
// that hear of a node called on it they would keep it, and each other, busy. Called with mu held.
func (m *Mesh) callOn(p *peer) (due bool) {
	if p.status == Alive {
		return false
	}
	at := time.Now()
	if due = p.seen || len(m.alive) <= fullEffort; !due {
		at = at.Add(jitter(pullAgain))
	}
	p.lost().retry.restart(at)
	return due
}

// beginTry notes that a node is being tried, unless it is already; rejoin notes the end. Called with mu held.
func (m *Mesh) beginTry(p *peer, now time.Time) bool {
	l := p.lost()
	if l.retry.busy {
		return false
	}
	m.tries++
	l.retry.busy, l.retry.tried = true, now
	return true
}

// fail puts the next try off, the further the longer the node has been gone; slow: further than ever from now on.
func (r *retry) fail(now time.Time, interval, gone time.Duration) (slow bool) {
	limit := maxRetry
	if gone >= slowAfter {
		limit = goneRetry
		slow, r.slow = !r.slow, true
	}
	r.wait = min(max(r.wait*retryGrowth, interval), limit)
	r.next = now.Add(jitter(r.wait))
	return slow
}

// jitter returns d give or take a fifth.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}

// heardFrom notes a sign of life of a node that is not a member (yet).
func (m *Mesh) heardFrom(id NodeID) {
	m.mu.Lock()
	if p := m.peers[id]; p != nil {
		p.seen = true
		if p.status != Alive {
			p.lost().retry.restart(time.Now())
		}
	}
	m.mu.Unlock()
}

// pokeRejoin starts a round at once.
func (m *Mesh) pokeRejoin() {
	select {
	case m.rejoinNow <- struct{}{}:
	default:
	}
}

// rejoinLoop runs the rounds.
func (m *Mesh) rejoinLoop(ctx context.Context) {
	for {
		for _, id := range m.due(time.Now()) {
			m.spawn(func(ctx context.Context) { m.rejoin(ctx, id) })
		}
		t := time.NewTimer(jitter(m.tuning.RejoinInterval))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-m.rejoinNow:
			t.Stop()
			if !sleep(ctx, 50*time.Millisecond) { // signs of life come in flocks
				return
			}
		case <-t.C:
		}
	}
}

// due returns the nodes to be tried now and marks them busy.
func (m *Mesh) due(now time.Time) []NodeID {
	type candidate struct {
		id NodeID
		p  *peer
		*retry
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var ready []candidate
	var patient *candidate // failed, not due, waiting longest
	failed := 0
	for id, p := range m.away {
		if p.status == Failed {
			failed++
		}
		switch r := &p.lost().retry; {
		case r.busy:
		case !r.next.After(now):
			ready = append(ready, candidate{id, p, r})
		case p.status == Failed && (patient == nil || r.tried.Before(patient.tried)):
			patient = &candidate{id, p, r}
		}
	}
	slices.SortFunc(ready, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.wait, b.wait), a.tried.Compare(b.tried), cmp.Compare(a.id, b.id))
	})
	switch alive := int(m.aliveCount.Load()); {
	case alive > fullEffort && rand.N(alive) >= fullEffort:
		return nil
	case len(ready) == 0 && m.tries == 0 && patient != nil && failed > alive:
		ready = append(ready, *patient)
	}
	var ids []NodeID
	for _, c := range ready[:min(len(ready), max(0, perRound-m.tries))] {
		if m.beginTry(c.p, now) {
			ids = append(ids, c.id)
		}
	}
	return ids
}

// rejoin tries one node.
func (m *Mesh) rejoin(ctx context.Context, id NodeID) {
	_, err := m.joinAny(ctx, [][]try{m.triesOf(id)})
	now, slow := time.Now(), false
	m.mu.Lock()
	r, _ := m.records.get(id)
	name := r.Name
	m.tries--
	if p := m.peers[id]; p != nil {
		l := p.lost()
		l.retry.busy = false
		if err != nil || p.status != Alive {
			slow = l.retry.fail(now, m.tuning.RejoinInterval, now.Sub(p.since)) && p.status == Failed
		}
		p.forgetLoss()
	}
	m.mu.Unlock()
	if slow {
		m.log.Warn(fmt.Sprintf("node has not answered for %v and is tried more and more rarely from now on, in the end every %v; "+
			"if it is gone for good, run `weft forget %s`", slowAfter, goneRetry, name), zap.String("name", name), zap.Stringer("node", id))
	}
	if err == nil {
		return
	}
	m.cfg.Packets.Examine(id)
	if !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrNotRunning) && ctx.Err() == nil {
		if ok, _ := m.oddities.pass("rejoin|"+err.Error(), time.Now()); ok {
			m.log.Warn("a node that this one knows cannot be joined", zap.Stringer("node", id), zap.Error(err))
		}
		return
	}
	m.log.Debug("a node that is not alive cannot be joined", zap.Stringer("node", id), zap.Error(err))
}

// joinAny greets in all ways at the same time, in each by the first try that
// succeeds, and joins the first that answers. It returns who that was, or what went wrong.
func (m *Mesh) joinAny(ctx context.Context, ways [][]try) (introduction, error) {
	if len(ways) == 0 {
		return introduction{}, errNoWay
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		by   try
		them introduction
		err  error
	}
	results := make(chan result, len(ways))
	tickets := make(chan struct{}, perRound)
	for _, tries := range ways {
		if !m.spawn(func(context.Context) {
			select {
			case tickets <- struct{}{}:
			case <-ctx.Done():
				results <- result{err: ctx.Err()}
				return
			}
			by, them, err := m.greetBy(ctx, tries)
			<-tickets
			results <- result{by, them, err}
		}) {
			return introduction{}, ErrNotRunning
		}
	}
	var errs []error
	for range ways {
		r := <-results
		if r.err == nil {
			if r.err = m.join(ctx, r.by.addr(), r.them); r.err == nil {
				return r.them, nil
			}
		}
		errs = append(errs, r.err)
	}
	return introduction{}, worst(errs)
}

// greetBy probes for a join.
func (m *Mesh) greetBy(ctx context.Context, tries []try) (try, introduction, error) {
	ctx, cancel := context.WithTimeout(ctx, m.tuning.StreamTimeout)
	defer cancel()
	g, err := m.greet(ctx, tries, purposeProbe, 0)
	if err != nil {
		return try{}, introduction{}, err
	}
	m.closeQuietly(g)
	if !m.Universe().Known() && !g.them.universe.Known() {
		return try{}, introduction{}, dialError(g.by.addr(), ErrNoUniverse)
	}
	return g.by, g.them, nil
}

// join makes this node and the one at addr, which has just introduced itself, equal
// and exchanges lists of members with it.
func (m *Mesh) join(ctx context.Context, addr netip.AddrPort, them introduction) error {
	ml := m.member.Load()
	if ml == nil {
		return ErrNotRunning
	}
	alone := m.aliveCount.Load() == 0
	c, err := m.dialNode(them.id, purposeSync, m.tuning.StreamTimeout)
	if err != nil {
		return err
	}
	f, in, err := m.beginSync(c, them.id)
	m.closeQuietly(c)
	if err == nil {
		if m.noteMissing(them.id, f) && !m.isHealing() {
			m.raise()
			sleep(ctx, knockLeast) // the lists say more when the members have heard the alarm
		}
		_, err = ml.Join([]string{memberName(them.id, them.boot) + "/" + memberAddr(them.id).String()})
	}
	if err != nil {
		in.drop()
		m.log.Debug("the exchange of states broke off", zap.Stringer("with", them.id), zap.Error(err))
		return &DialError{Addr: addr, Err: errNoExchange}
	}
	// Merged only now: whoever acts on what it learns, be it by leaving again, is a member by then.
	if in.to = askers; alone {
		in.to = nobody
		m.spawn(m.settle)
	}
	m.queueMerge(in)
	return nil
}

// worst picks the error that tells most: what somebody answered counts more
// than that nobody did, and this node itself counts least.
func worst(errs []error) error {
	rank := func(err error) int {
		switch {
		case errors.Is(err, ErrSelf):
			return 0
		case errors.Is(err, context.Canceled):
			return 1
		case errors.Is(err, errNoRoute):
			return 2
		case errors.Is(err, ErrUnreachable):
			return 3
		}
		return 4
	}
	return slices.MaxFunc(errs, func(a, b error) int { return cmp.Compare(rank(a), rank(b)) })
}
