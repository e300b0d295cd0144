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
// know, is slower. So whoever meets a node that it believes dead, and finds that more than splitNodes
// others which it believes dead are alive for that one, raises the alarm: it reaches all
// members within a few packets' time, and each of them says at once that it is alive,
// knocks a little later at one node that it believes dead, and compares digests
// every healInterval for healTime. What a node says that was there all the time raises none: while a part of the mesh
// is being lost, one learns of each death before the other.
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
	pullAgain     = 5 * time.Second // between exchanges of lists, by this node's will
	pullAgainHeal = 3 * time.Second
)

// reconcile acts on what a sync with another node found about the members. began: this side opened the stream, and is
// the one that exchanges lists if need be.
func (m *Mesh) reconcile(ctx context.Context, with NodeID, f found, began bool) {
	if m.noteMissing(with, f) {
		m.raise()
	}
	if began && len(f.missing)+len(f.ahead) > 0 && m.mayPull() {
		m.pull(ctx, with)
	}
}

// noteMissing has some of the processes called on that are believed dead here and alive for another node, and tells whether that one was
// itself believed dead, and there are so many that the mesh must have been split. Then none is called on, nor of so many after an
// alarm: all say by themselves that they live, and each call would bring the same list once more.
func (m *Mesh) noteMissing(with NodeID, f found) (split bool) {
	now := time.Now()
	back := false
	var dead, call []NodeID
	m.mu.Lock()
	for _, is := range f.missing {
		if p := m.peers[is.id]; p != nil && p.wasLost(is.boot) {
			back = back || is.id == with
			dead = append(dead, is.id)
		}
	}
	many := len(dead) > splitNodes
	split = back && many && !m.alarmedWithin(alarmAgain)
	if !split && !(many && m.alarmedWithin(healTime)) {
		for _, id := range dead {
			if p := m.peers[id]; len(call) < maxCalls && m.tries < perRound && p.status == Failed && m.beginTry(p, now) {
				p.lost().retry.restart(now)
				call = append(call, id)
			}
		}
	}
	m.mu.Unlock()
	for _, id := range call {
		m.spawn(func(ctx context.Context) { m.rejoin(ctx, id) })
	}
	return split
}

func (m *Mesh) mayPull() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	again := pullAgain
	if m.alarmedWithin(healTime) {
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
	m.mu.Lock()
	again := m.alarmedWithin(alarmAgain)
	if !again {
		m.alarmed = time.Now()
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
	return m.alarmedWithin(healTime)
}

// alarmedWithin tells whether there was an alarm so lately. Called with mu held.
func (m *Mesh) alarmedWithin(d time.Duration) bool {
	return !m.alarmed.IsZero() && time.Since(m.alarmed) < d
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
		if p.status == Failed && !p.lost().retry.busy {
			if n++; rand.N(n) == 0 {
				to = id
			}
		}
	}
	knock := n > 0 && m.beginTry(m.peers[to], time.Now())
	m.mu.Unlock()
	if knock {
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
