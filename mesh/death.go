// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"math/rand/v2"
	"time"
)

// Word of a death is checked. Whoever was cut off, or got no processor, takes others for dead,
// and memberlist spreads that as soon as it can be heard again; the dead deny it, but until that
// has gone round they would be seen as failed, and change back a second later. So a process that
// memberlist calls dead is asked once more, and stays alive for as long as it answers and the
// denial may take. Some denials do not get through: a process whose higher incarnation all the others know does not deny anew. So one that still
// answers when that should have come is asked for its list of members, in which it is alive. Many deaths at the same time, as in a partition, are believed.
const (
	deathAsks   = 2 // packets in vain, ProbeTimeout apart
	deathDenial = 10 * time.Second
	deathGossip = 2 * time.Second // what gossip may take to bring the denial, and half as long again
	deathChecks = 8               // at the same time
)

// noteDead is memberlist's word that a process does not answer, or has left.
func (m *Mesh) noteDead(id NodeID, boot uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[id]
	if p == nil {
		return
	}
	r, _ := m.records.get(id)
	said := r.Boot == boot && r.State != StateRunning // that it goes
	if !said && p.runs(boot) && p.living.len() == 1 && m.deathChecks < deathChecks {
		if m.spawnLocked(func(ctx context.Context) { m.checkDeath(ctx, id, boot) }) {
			m.deathChecks++
			p.lost().rumour = boot
			return
		}
	}
	m.bury(id, boot)
}

// bury notes that a process is dead. Called with mu held.
func (m *Mesh) bury(id NodeID, boot uint64) {
	if p := m.peers[id]; p != nil {
		m.drop(id, p, boot)
		m.refresh(id)
	}
	m.changed()
}

// drop takes a process out of those that are alive. Called with mu held.
func (m *Mesh) drop(id NodeID, p *peer, boot uint64) {
	if p.runs(boot) {
		m.countMember(id, boot, -1)
		if p.living.len() == 1 {
			m.aliveCount.Add(-1)
		}
	}
	l := p.lost()
	if at := p.living.addr(boot); at.IsValid() {
		l.last = at
	}
	p.living.remove(boot)
	l.boot = boot
}

// checkDeath asks a process that memberlist calls dead, until memberlist calls it alive again or it is
// to be believed.
func (m *Mesh) checkDeath(ctx context.Context, id NodeID, boot uint64) {
	deaf, pulled := 0, false
	begin := time.Now()
	patience := deathGossip + rand.N(deathGossip/2)
	for deaf < deathAsks && time.Since(begin) < deathDenial && m.rumoured(id, boot) {
		if m.answersAs(id, boot, memberUDP(id)) != nil {
			deaf++
			continue
		}
		deaf = 0
		if !pulled && time.Since(begin) > patience {
			pulled = true
			m.pull(ctx, id)
			continue
		}
		if !sleep(ctx, m.tuning.ProbeTimeout) {
			break
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deathChecks--
	if p := m.peers[id]; p != nil && p.rumoured(boot) {
		p.loss.rumour = 0
		m.bury(id, boot)
	}
}

// rumoured tells whether memberlist still calls the process dead.
func (m *Mesh) rumoured(id NodeID, boot uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[id]
	return p != nil && p.rumoured(boot)
}
