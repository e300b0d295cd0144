// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"
)

// How the lists of members come together that memberlist keeps.
//
// A process that is dead in somebody's list stays so until it has said with a higher
// incarnation that it is alive. After a partition all processes of the other
// side are dead in every list, so that all of them have to say so and all have to
// hear all of it, for which gossip is slow and suspicion, by which memberlist lets them
// know, is slower. So whoever finds by a sync that more than splitNodes processes
// which it believes dead are alive for another node raises the alarm: it reaches all
// members within a few packets' time, and each of them says at once that it is alive,
// knocks a little later at one node that it believes dead, and compares digests
// every healInterval for healTime.
//
// Other differences are few, and for those that outlive a digest's patience the two nodes exchange their lists as
// memberlist does when a node joins; processes believed dead are called on first.
const (
	splitNodes    = 8
	maxCalls      = 4 // processes believed dead that are called on after one sync
	alarmFanout   = 8
	alarmAgain    = 30 * time.Second // an alarm raised sooner after another is the same one
	healTime      = 20 * time.Second
	healInterval  = time.Second
	knockLeast    = 1500 * time.Millisecond
	knockSpread   = 2 * time.Second
	pullAgain     = 10 * time.Second // between exchanges of lists, by this node's will
	pullAgainHeal = 3 * time.Second
)

// reconcile acts on what a sync with another node found about the members. began: this side opened the stream, and is
// the one that exchanges lists if need be.
func (m *Mesh) reconcile(ctx context.Context, with NodeID, f found, began bool) {
	if m.noteMissing(f) {
		m.raise()
	}
	if began && len(f.missing)+len(f.ahead) > 0 && m.mayPull() {
		m.pull(ctx, with)
	}
}

// noteMissing has processes that are believed dead here and alive elsewhere called on, and tells whether there are so many
// that the mesh must have been split.
func (m *Mesh) noteMissing(f found) (split bool) {
	now := time.Now()
	died := 0
	var call []NodeID
	m.mu.Lock()
	for _, is := range f.missing {
		p := m.peers[is.id]
		if p == nil || p.lost != is.boot {
			continue
		}
		if died++; len(call) < maxCalls && p.status == Failed && !p.retry.busy {
			p.retry.restart(now)
			p.retry.busy, p.retry.tried = true, now
			call = append(call, is.id)
		}
	}
	m.mu.Unlock()
	for _, id := range call {
		m.spawn(func(ctx context.Context) { m.rejoin(ctx, id) })
	}
	return died > splitNodes
}

func (m *Mesh) mayPull() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	again := pullAgain
	if now.Sub(m.alarmed) < healTime {
		again = pullAgainHeal
	}
	if now.Sub(m.pulled) < again {
		return false
	}
	m.pulled = now
	return true
}

// pull exchanges lists of members.
func (m *Mesh) pull(ctx context.Context, with NodeID) {
	ml := m.member.Load()
	name, ok := m.memberNameOf(with)
	if ml == nil || !ok || ctx.Err() != nil {
		return
	}
	if _, err := ml.Join([]string{name + "/" + memberAddr(with).String()}); err != nil {
		m.log.Debug("an exchange of members broke off", zap.Stringer("with", with), zap.Error(err))
	}
}

// raise does what an alarm asks for, unless there was one a moment ago.
func (m *Mesh) raise() {
	now := time.Now()
	m.mu.Lock()
	again := !m.alarmed.IsZero() && now.Sub(m.alarmed) < alarmAgain
	if !again {
		m.alarmed = now
	}
	m.mu.Unlock()
	if !again {
		m.announce()
		m.spawn(m.heal)
	}
}

func (m *Mesh) isHealing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.alarmed.IsZero() && time.Since(m.alarmed) < healTime
}

// heal passes an alarm on and knocks at the other side.
func (m *Mesh) heal(ctx context.Context) {
	m.log.Info("parts of the mesh that were cut off from each other find together again")
	m.sendDigests(alarmFanout, func(d *digest) { d.Alarm = true })
	if !sleep(ctx, knockLeast+rand.N(knockSpread)) {
		return
	}
	m.mu.Lock()
	var to NodeID
	n := 0
	for id, p := range m.away {
		if p.status == Failed && !p.retry.busy {
			if n++; rand.N(n) == 0 {
				to = id
			}
		}
	}
	if n > 0 {
		m.peers[to].retry.busy, m.peers[to].retry.tried = true, time.Now()
	}
	m.mu.Unlock()
	if n > 0 {
		m.rejoin(ctx, to)
	}
	m.nudge()
}

// digestPause is the time between two digests.
func (m *Mesh) digestPause() time.Duration {
	if m.isHealing() {
		return min(healInterval, m.tuning.DigestInterval)
	}
	return m.tuning.DigestInterval
}
