// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"
)

// Failure detection: a member is probed about once a second by somebody; without
// an answer, direct, indirect or by TCP, it is suspected, and dead 4 s later, at
// most 8 s if nobody confirms it. The numbers grow with the logarithm of
// the mesh beyond 10 nodes. A node that loses everybody finds them dead one after
// the other.
const (
	retransmitMult     = 4
	suspicionMult      = 4
	manySuspicionMult  = 3   // so that a failure in a mesh of a thousand is known in less than 15 s, and not in 18
	manyNodes          = 400 // from here on
	suspicionMaxMult   = 2
	awarenessMax       = 3
	leaveTime          = 1500 * time.Millisecond
	stopTime           = 2 * time.Second
	farewells          = 256 // members told directly that this node stops
	announceTimeout    = time.Second
	gossipToTheDead    = 30 * time.Second
	memberlistHandoffs = 1024
)

func (m *Mesh) memberlistConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = memberName(m.id, m.boot)
	c.Transport = m.transport
	c.BindPort, c.AdvertisePort = memberPort, memberPort
	c.EnableCompression = false // streams are small; what leaves here is sealed by the router and by the hello
	c.Delegate, c.Events, c.Alive = delegate{m}, delegate{m}, delegate{m}
	c.Logger = memberlistLogger(m.log, &m.oddities)

	c.TCPTimeout = m.tuning.StreamTimeout
	c.ProbeInterval, c.ProbeTimeout = m.tuning.ProbeInterval, m.tuning.ProbeTimeout
	c.GossipInterval = m.tuning.GossipInterval
	c.PushPullInterval = m.tuning.PushPullInterval
	c.RetransmitMult = retransmitMult
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, suspicionMaxMult
	c.AwarenessMaxMultiplier = awarenessMax
	c.GossipToTheDeadTime = gossipToTheDead
	c.HandoffQueueDepth = memberlistHandoffs
	c.UDPBufferSize = maxPacket - memberOverhead
	return c
}

// tuneSuspicion adapts the time for which a member is suspected to the size of the mesh, as memberlist's logarithm
// alone does not do. memberlist reads this of its configuration under the lock with which it calls its
// delegates of events, and there alone; this is called by these.
func (m *Mesh) tuneSuspicion() {
	if m.memberConfig.SuspicionMult = suspicionMult; m.Alive() >= manyNodes {
		m.memberConfig.SuspicionMult = manySuspicionMult
	}
}

// Run takes part in the mesh until ctx ends or Stop has done its work, then waits
// for every goroutine it started. It may be called once. Ending ctx tells nobody:
// the others find out as if the process had been killed.
func (m *Mesh) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := m.begin(ctx, cancel); err != nil {
		return err
	}
	defer close(m.ended)
	m.memberConfig = m.memberlistConfig()
	ml, err := memberlist.Create(m.memberConfig)
	if err != nil {
		m.closeDown(nil)
		return fmt.Errorf("start the mesh: %w", err)
	}
	m.member.Store(ml)
	loops := []func(context.Context){m.acceptLoop, m.mergeLoop, m.notifyLoop, m.rejoinLoop, m.digestLoop, m.changesLoop}
	for _, f := range loops {
		m.spawn(f)
	}
	m.runTargets()
	m.log.Info("mesh is running", zap.Stringer("node", m.id), zap.String("name", m.cfg.Name),
		zap.Stringer("at", m.addr), zap.Stringer("universe", m.Universe()))
	<-ctx.Done()
	m.closeDown(ml)
	return nil
}

func (m *Mesh) begin(ctx context.Context, cancel context.CancelFunc) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.misuse != nil:
		return fmt.Errorf("start the mesh: %w", m.misuse)
	case m.phase != idle:
		return fmt.Errorf("start the mesh: it ran or was stopped already: %w", ErrNotRunning)
	}
	m.phase, m.run, m.cancel = running, ctx, cancel
	return nil
}

// closeDown closes everything and waits.
func (m *Mesh) closeDown(ml *memberlist.Memberlist) {
	m.mu.Lock()
	m.phase = over
	m.cancel()
	conns := m.conns
	m.conns = nil
	m.mu.Unlock()
	close(m.closing)
	m.closeQuietly(m.listener)
	for c := range conns {
		m.closeQuietly(*c)
	}
	m.closeStreams()
	if ml != nil {
		m.leaving <- struct{}{}
		if err := ml.Shutdown(); err != nil {
			m.log.Warn("closing membership", zap.Error(err))
		}
		<-m.leaving
	}
	m.wg.Wait()
}

// Stop tells the others that this node stops for a while or (left) for good, and
// ends Run. It takes at most about 2 s, less if ctx ends before; Run then
// ends in any case.
func (m *Mesh) Stop(ctx context.Context, left bool) error {
	m.mu.Lock()
	cancel := m.cancel
	switch m.phase {
	case idle:
		m.phase = over
		m.mu.Unlock()
		close(m.ended)
		m.closeStreams()
		return m.listener.Close()
	case over:
		cancel = nil
	}
	m.mu.Unlock()
	if cancel == nil {
		return m.awaitEnd(ctx)
	}
	ctx, done := context.WithTimeout(ctx, stopTime)
	defer done()
	m.sayGoodbye(ctx, left)
	cancel()
	return m.awaitEnd(ctx)
}

func (m *Mesh) awaitEnd(ctx context.Context) error {
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the mesh is still closing down: %w", ctx.Err())
	}
}

// sayGoodbye tells the members directly, then by gossip, that this node stops.
func (m *Mesh) sayGoodbye(ctx context.Context, left bool) {
	select {
	case m.leaving <- struct{}{}:
		defer func() { <-m.leaving }()
	case <-ctx.Done():
		return
	}
	ml := m.member.Load()
	m.mu.Lock()
	if ml == nil || m.phase != running {
		m.mu.Unlock()
		return
	}
	err := m.rewrite(0, func(r *Record) {
		if r.State = StateStopped; left {
			r.State = StateLeft
		}
	})
	own, _ := m.records.get(m.id)
	m.mu.Unlock()
	if err != nil {
		m.log.Error("cannot rewrite this node's record", zap.Error(err))
	}
	m.spreadOwn()
	m.tellDirectly(ml, own)
	wait := leaveTime
	if d, ok := ctx.Deadline(); ok {
		wait = min(wait, max(time.Until(d), time.Millisecond))
	}
	if err := ml.Leave(wait); err != nil {
		m.log.Debug("not everybody may have heard that this node stops", zap.Error(err))
	}
}

// tellDirectly sends the record in one packet to each member.
func (m *Mesh) tellDirectly(ml *memberlist.Memberlist, own *storedRecord) {
	u := m.Universe()
	b, err := encodeRecords([]*storedRecord{own})
	if err == nil {
		b, err = encodeChange(u.ID, recordsName, b)
	}
	if err != nil || len(b) > maxGossip {
		return // by gossip or the exchange of states, then
	}
	to := m.aliveOthers()
	for _, id := range to[:min(len(to), farewells)] {
		if err := ml.SendBestEffort(memberOf(id), b); err != nil {
			m.log.Debug("a goodbye was not sent", zap.Stringer("to", id), zap.Error(err))
		}
	}
}

// announce tells the members which universe this node has come to belong to.
func (m *Mesh) announce() {
	m.spawn(func(context.Context) {
		if ml := m.member.Load(); ml != nil {
			if err := ml.UpdateNode(announceTimeout); err != nil {
				m.log.Debug("announcing the universe takes its time", zap.Error(err))
			}
		}
	})
}

// notifyLoop calls OnChange.
func (m *Mesh) notifyLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.changes:
			if m.cfg.OnChange != nil {
				m.cfg.OnChange()
			}
		}
	}
}

// changed has OnChange called soon.
func (m *Mesh) changed() {
	m.version.Add(1)
	select {
	case m.changes <- struct{}{}:
	default:
	}
}

// spawn starts a goroutine that Run waits for, unless Run is closing down. f must
// return soon after its context ends.
func (m *Mesh) spawn(f func(context.Context)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spawnLocked(f)
}

func (m *Mesh) spawnLocked(f func(context.Context)) bool {
	if m.phase != running {
		return false
	}
	run := m.run
	m.wg.Go(func() { f(run) })
	return true
}

// runContext returns the context that ends with Run, nil unless running.
func (m *Mesh) runContext() context.Context {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != running {
		return nil
	}
	return m.run
}

// track has c closed when Run closes down; the result ends that.
func (m *Mesh) track(c io.Closer) (untrack func()) {
	key := &c
	m.mu.Lock()
	open := m.conns != nil
	if open {
		m.conns[key] = struct{}{}
	}
	m.mu.Unlock()
	if !open {
		m.closeQuietly(c)
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.conns, key)
	}
}

// closeQuietly closes what is of no more use.
func (m *Mesh) closeQuietly(c io.Closer) {
	if err := ignoreClosed(c.Close()); err != nil {
		m.log.Debug("closing", zap.Error(err))
	}
}

// sleep waits for d; false: ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}
