// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"math"
	"time"
)

// What gossip may take up. A state that changes too often, or a member that
// floods, so delays its own changes and nobody else's: what is beyond the bounds is
// not gossiped but made up for by digests, which compare, so that however many changes there
// were, only what came of them travels.
const (
	maxQueued   = 512       // changes of at most maxGossip bytes waiting to be gossiped; of more, those sent most often are dropped
	budgetRate  = 8 << 10   // bytes of changes that are gossiped per second, of each state
	budgetBurst = 128 << 10 // bytes of them at once
)

// budget is what a state may still gossip, a token bucket. The zero value is full. Guarded by Mesh.sumsMu.
type budget struct {
	spent int // bytes
	at    time.Time
}

// take tells whether n bytes are within the budget, and spends them.
func (b *budget) take(n int, now time.Time) bool {
	if d := now.Sub(b.at); d > 0 {
		if back := int64(budgetRate) * int64(min(d, time.Minute)) / int64(time.Second); back > 0 {
			b.spent = max(0, b.spent-int(back))
			b.at = now
		}
	}
	if b.spent+n > budgetBurst {
		return false
	}
	b.spent += n
	return true
}

// mayGossip tells whether the state may gossip a change of n bytes now. If not, digests are sent instead, soon.
func (m *Mesh) mayGossip(name string, n int) bool {
	m.sumsMu.Lock()
	b := m.budgets[name]
	if b == nil {
		b = &budget{}
		m.budgets[name] = b
	}
	ok := b.take(n, time.Now())
	m.sumsMu.Unlock()
	if !ok {
		m.dropped.Add(1)
		m.nudge()
	}
	return ok
}

// transmissions is how often each node sends a change in a mesh of n nodes: so often that one node in twenty meshes
// is missed on average, as e^-k of the nodes are by k rounds. It gets the change by a digest.
func transmissions(n int) int { return int(math.Ceil(math.Log(float64(n)))) + 3 }
