// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"time"
)

// Bounds against a member that floods.
//
// memberlist's list of processes has no bound, and anybody can say of any process that it is alive. So it takes only so many
// in a while, which is plenty for all the nodes that there may be to come at once, and fewer of those that the signed record of
// their node does not speak of: the news that a process lives may be faster than its record. A process that has introduced itself here, with its
// signature, does not have to wait for the others. Nor does one that was on the list before and is the one that the record speaks of: after a
// cut, each list that is exchanged names half of the mesh, before memberlist has heard what makes it believe that they live. What is
// turned away comes in later, by the comparison of digests.
//
// Of each node a record is taken now and then; what comes sooner is left to the next comparison.
const (
	processBurst  = 2 * maxRecords
	processRate   = 4 // a second
	unvouchedRate = 8 // a second
	maxUnvouched  = 2048
	metBurst      = 1024
	metRate       = 16 // a second
	maxProcesses  = 4  // of one node at the same time; beside that of its record
	recordBurst   = 16
	recordRate    = 1 // a second

	crowdedPart = 256 << 10 // instead of maxSyncPart, where not all records have room
)

// flood is how much has come in. Guarded by Mesh.mu.
type flood struct {
	processes, unvouched, met tokens
}

// tokens is a token bucket: when it will be full again. The zero value is full.
type tokens moment

// left tells whether there is one.
func (b *tokens) left(now moment, burst int, rate time.Duration) bool {
	return *b+tokens(time.Second/rate) <= tokens(now)+tokens(time.Duration(burst)*time.Second/rate)
}

// spend takes one, be there one or not.
func (b *tokens) spend(now moment, rate time.Duration) {
	*b = max(*b, tokens(now)) + tokens(time.Second/rate)
}

// take takes one, if there is one.
func (b *tokens) take(now moment, burst int, rate time.Duration) bool {
	if !b.left(now, burst, rate) {
		return false
	}
	b.spend(now, rate)
	return true
}

var (
	errFlood = errors.New("too many processes are said to be alive in a short time")
	errHasty = errors.New("more than one change a second, for a while")
)

// admit tells whether memberlist may have a process on its list.
func (m *Mesh) admit(id NodeID, boot uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[id]
	if p != nil && p.runs(boot) { // nearly always
		return nil
	}
	now := m.momentOf(time.Now())
	r := m.records.byID[id]
	vouched := r != nil && r.Boot == boot
	switch {
	case vouched && p != nil && p.wasLost(boot):
		return nil
	case m.ways.met(id) == boot && m.flood.met.take(now, metBurst, metRate):
		return nil
	case p != nil && p.living.len() >= maxProcesses && !vouched, p != nil && p.living.len() >= 2*maxProcesses,
		!vouched && !m.flood.unvouched.left(now, maxUnvouched, unvouchedRate), !m.flood.processes.take(now, processBurst, processRate):
		return errFlood
	case !vouched:
		m.flood.unvouched.spend(now, unvouchedRate)
	}
	return nil
}

// mayChange tells whether another record of a node may be taken in. Called with mu held, as the next is.
func (m *Mesh) mayChange(id NodeID) bool {
	p := m.peers[id]
	return p == nil || p.taken.left(m.momentOf(time.Now()), recordBurst, recordRate)
}

func (m *Mesh) noteChange(id NodeID) { m.peer(id).taken.spend(m.momentOf(time.Now()), recordRate) }

// crowded tells whether there is no room for all nodes that others know.
func (m *Mesh) crowded() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records.full()
}

// syncPart is how many bytes of records one frame of a sync carries. Called with mu held.
func (m *Mesh) syncPart() int {
	if m.records.full() {
		return crowdedPart
	}
	return maxSyncPart
}
