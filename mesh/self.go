// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"math"
	"time"

	"go.uber.org/zap"
)

// maxOutbids is how often a process outbids records of its node before it takes them
// for the work of a living copy; see outbid.
const maxOutbids = 4

// rewrite replaces this node's record by what edit makes of it, with the next
// Seq, at least atLeast. Called with mu held.
func (m *Mesh) rewrite(atLeast uint64, edit func(*Record)) error {
	old, _ := m.records.get(m.id)
	r := old.clone()
	edit(&r)
	r.ID, r.Boot, r.Universe = m.id, m.boot, m.universe.ID
	r.Seq = max(old.Seq, atLeast)
	if r.Seq < math.MaxUint64 {
		r.Seq++
	}
	s, err := m.cfg.Identity.signRecord(r)
	if err != nil {
		return err
	}
	m.records.set(s)
	return nil
}

// SetRecord edits this node's record and spreads it. ID, Seq, Boot, State and
// Universe are the mesh's own and stay as they are, whatever edit does to them. An
// insane result is refused and changes nothing; an edit that changes nothing
// spreads nothing. edit must not call the mesh.
func (m *Mesh) SetRecord(edit func(*Record)) error {
	m.mu.Lock()
	old, _ := m.records.get(m.id)
	would := old.clone()
	edit(&would)
	would.ID, would.Seq, would.Boot, would.State, would.Universe = old.ID, old.Seq, old.Boot, old.State, old.Universe
	raw, err := would.MarshalBinary()
	if err == nil && string(raw) != string(old.raw[signedHead:]) {
		err = m.rewrite(0, func(r *Record) { *r = would })
	} else if err == nil {
		m.mu.Unlock()
		return nil
	}
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("edit this node's record: %w", err)
	}
	m.spreadOwn()
	m.changed()
	return nil
}

// spreadOwn gossips this node's record.
func (m *Mesh) spreadOwn() {
	m.mu.Lock()
	own, _ := m.records.get(m.id)
	m.mu.Unlock()
	m.spreadRecords([]*storedRecord{own})
}

// outbid answers a record of this node that is not the one it wrote last, and not
// older: it comes from before a backup was restored, or from a copy of this node.
// The own record moves above it. A living copy does the same: who is outbid again
// and again says so, and from then on the process with the smaller Boot yields, so that
// the records come to rest. Called with mu held.
func (m *Mesh) outbid(r *storedRecord) bool {
	own, _ := m.records.get(m.id)
	if r.Seq < own.Seq || string(r.raw) == string(own.raw) {
		return false
	}
	if m.outbids++; m.outbids > maxOutbids {
		if ok, _ := m.oddities.pass("copy", time.Now()); ok {
			m.log.Error("another process writes this node's record: is one data directory a copy of the other's? run `weft reset` on one of them",
				zap.Stringer("node", r.ID), zap.String("name there", r.Name), zap.Stringers("endpoints there", r.Endpoints))
		}
		if m.boot < r.Boot {
			return false
		}
	}
	if err := m.rewrite(r.Seq, func(*Record) {}); err != nil {
		m.log.Error("cannot rewrite this node's record", zap.Error(err))
		return false
	}
	return true
}

// Universe returns what this node knows of the universe by now.
func (m *Mesh) Universe() UniverseInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.universe
}

// adopt takes over the universe of a node that was met, if none is known here.
func (m *Mesh) adopt(u UniverseInfo) {
	m.mu.Lock()
	if m.universe.Known() || !u.Known() {
		m.mu.Unlock()
		return
	}
	m.universe = u
	err := m.rewrite(0, func(*Record) {})
	m.mu.Unlock()
	if err != nil {
		m.log.Error("cannot rewrite this node's record", zap.Error(err))
	}
	m.log.Info("joining", zap.Stringer("universe", u))
	m.spreadOwn()
	m.changed()
	m.announce()
}

// introduce returns this node's introduction.
func (m *Mesh) introduce(why purpose) introduction {
	return introduction{
		purpose: why, identity: m.cfg.Identity, id: m.id, boot: m.boot, name: m.cfg.Name, universe: m.Universe(), advertise: m.addr,
	}
}
