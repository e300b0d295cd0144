// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Bounds of syncs: a node has one of its own under way, apart from those by which it
// joins, and takes part in maxSyncs that others began.
const (
	maxSyncs   = 32
	syncFactor = 4 // times StreamTimeout: how long one may take
)

// found is what a sync came to on this side.
type found struct {
	missing []member // alive there, not here
	ahead   []member // alive here, not there
}

// member is one process of one node.
type member struct {
	id   NodeID
	boot uint64
}

// position is what this node has, all at one time.
type position struct {
	universe [16]byte
	buckets  [buckets]uint64
	members  uint64
	sums     map[string]uint64
}

func (m *Mesh) position() position {
	p := position{sums: m.stateSums()}
	delete(p.sums, recordsName)
	m.mu.Lock()
	defer m.mu.Unlock()
	p.universe, p.buckets, p.members = m.universe.ID, m.records.buckets, m.memberSum
	return p
}

// syncWith opens a stream to a member and makes the two of them equal.
func (m *Mesh) syncWith(ctx context.Context, id NodeID) {
	var f found
	c, err := m.dialNode(id, purposeSync, m.tuning.StreamTimeout)
	if err == nil {
		var in incoming
		f, in, err = m.beginSync(c, id)
		m.closeQuietly(c)
		if err == nil {
			in.to = askers
			m.queueMerge(in)
		}
	}
	if err != nil {
		if errors.Is(err, errWire) {
			m.oddity(id, "a sync made no sense", err)
		}
		m.log.Debug("a sync broke off", zap.Stringer("with", id), zap.Error(err))
		return
	}
	m.reconcile(ctx, id, f, true)
}

// beginSync is the dialler's half. It returns what came from there, for the caller to merge.
func (m *Mesh) beginSync(c *peerConn, with NodeID) (f found, in incoming, err error) {
	if err := c.within(syncFactor * m.tuning.StreamTimeout); err != nil {
		return f, in, err
	}
	p := m.position()
	offer := syncOffer{Version: syncVersion, Universe: p.universe[:], Sums: p.sums, Members: p.members}
	for _, b := range p.buckets {
		offer.Buckets = binary.BigEndian.AppendUint64(offer.Buckets, b)
	}
	if err := writeSync(c, offer); err != nil {
		return f, in, err
	}
	answer, eaten, err := readSync(m, c, with, decodeSyncAnswer)
	defer func() {
		if err != nil {
			eaten()
		}
	}()
	if err != nil {
		return f, in, err
	}
	rest := syncRest{Version: syncVersion, States: make(map[string][]byte)}
	var records []*storedRecord
	records, rest.Want = m.compare(answer.Differ, answer.Entries)
	if rest.States[recordsName], err = encodeRecords(records); err != nil {
		return f, in, err
	}
	size := 0
	for name := range answer.States {
		if s := m.states[name]; s != nil {
			m.addState(rest.States, name, s, &size)
		}
	}
	if len(answer.Members) > 0 {
		rest.Members = m.memberEntries()
		f.missing, f.ahead = m.compareMembers(answer.Members)
	}
	if err := writeSync(c, rest); err != nil {
		return f, in, err
	}
	last, eatenToo, err := readSync(m, c, with, decodeSyncRecords)
	if err != nil {
		return f, in, err
	}
	states := answer.States
	if states == nil {
		states = make(map[string][]byte)
	}
	states[recordsName] = last.Records
	in.from, in.states = with, states
	in.eaten = func() {
		eaten()
		eatenToo()
	}
	return f, in, nil
}

// serveSync is the acceptor's half.
func (m *Mesh) serveSync(ctx context.Context, c *peerConn, them introduction) {
	select {
	case m.syncs <- struct{}{}:
		defer func() { <-m.syncs }()
	default:
		m.dropped.Add(1)
		return // it comes again
	}
	f, err := m.answerSync(c, them.id)
	m.closeQuietly(c)
	if err != nil {
		if errors.Is(err, errWire) {
			m.oddity(them.id, "a sync made no sense", err)
		}
		return
	}
	m.reconcile(ctx, them.id, f, false)
}

func (m *Mesh) answerSync(c *peerConn, with NodeID) (f found, err error) {
	if err := c.within(syncFactor * m.tuning.StreamTimeout); err != nil {
		return f, err
	}
	offer, eaten, err := readSync(m, c, with, decodeSyncOffer)
	eaten()
	if err != nil {
		return f, err
	}
	p := m.position()
	if [16]byte(offer.Universe) != p.universe {
		return f, fmt.Errorf("node %v is of another universe: %w", with, ErrNoUniverse)
	}
	answer := syncAnswer{Version: syncVersion, States: make(map[string][]byte)}
	for i, b := range p.buckets {
		if b != binary.BigEndian.Uint64(offer.Buckets[8*i:]) {
			answer.Differ = append(answer.Differ, byte(i))
		}
	}
	answer.Entries = m.recordEntries(answer.Differ)
	size := 0
	for name, sum := range offer.Sums {
		if mine, ok := p.sums[name]; ok && mine != sum {
			m.addState(answer.States, name, m.states[name], &size)
		}
	}
	differ := offer.Members != p.members
	if differ {
		answer.Members = m.memberEntries()
	}
	if err := writeSync(c, answer); err != nil {
		return f, err
	}
	rest, eaten, err := readSync(m, c, with, decodeSyncRest)
	if err != nil {
		return f, err
	}
	wanted := m.wantedRecords(rest.Want)
	last := syncRecords{Version: syncVersion}
	if last.Records, err = encodeRecords(wanted); err == nil {
		err = writeSync(c, last)
	}
	if err != nil {
		eaten()
		return f, err
	}
	if differ {
		f.missing, f.ahead = m.compareMembers(rest.Members)
	}
	if rest.States == nil {
		rest.States = make(map[string][]byte)
	}
	if !m.queueMerge(incoming{from: with, states: rest.States, to: askers, eaten: eaten}) {
		return f, errors.New("this node is behind with merging what others sent")
	}
	return f, nil
}

// addState adds a whole state unless all of them would be too large.
func (m *Mesh) addState(to map[string][]byte, name string, s State, size *int) {
	b := s.Encode()
	if *size += len(b); *size > maxExchange-maxSyncPart {
		*size -= len(b)
		m.log.Error("a state is too large for the mesh to exchange", zap.String("state", name), zap.Int("bytes", len(b)))
		return
	}
	to[name] = b
}

// recordEntries lists the records in some of the buckets.
func (m *Mesh) recordEntries(differ []byte) (b []byte) {
	if len(differ) == 0 {
		return nil
	}
	in := bucketSet(differ)
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, r := range m.records.byID {
		if in[bucketOf(id)] {
			b = appendEntry(b, id, r.sum)
		}
	}
	return b
}

func bucketSet(differ []byte) (in [buckets]bool) {
	for _, i := range differ {
		in[i] = true
	}
	return in
}

// compare returns which records in buckets that differ the other side, which has
// the entries, lacks, and which are to be had from it.
func (m *Mesh) compare(differ, theirs []byte) (lacks []*storedRecord, want []byte) {
	if len(differ) == 0 {
		return nil, nil
	}
	in := bucketSet(differ)
	have := make(map[NodeID]uint64, len(theirs)/entrySize)
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(theirs) > 0 {
		var id NodeID
		var sum uint64
		id, sum, theirs = entry(theirs)
		have[id] = sum
		if r, known := m.records.byID[id]; !known || r.sum != sum {
			want = binary.BigEndian.AppendUint64(want, uint64(id))
		}
	}
	size, most := 0, m.syncPart()
	for id, r := range m.records.byID {
		if sum, known := have[id]; in[bucketOf(id)] && (!known || sum != r.sum) {
			if size += len(r.raw); size > most {
				break
			}
			lacks = append(lacks, r)
		}
	}
	return lacks, want
}

// wantedRecords returns the records with these ids, as many as one frame carries.
func (m *Mesh) wantedRecords(want []byte) (rs []*storedRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	most := m.syncPart()
	for size := 0; len(want) > 0; want = want[idSize:] {
		r, known := m.records.byID[NodeID(binary.BigEndian.Uint64(want))]
		if !known {
			continue
		}
		if size += len(r.raw); size > most {
			break
		}
		rs = append(rs, r)
	}
	return rs
}

// memberEntries lists the members that are alive, this process among them.
func (m *Mesh) memberEntries() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := make([]byte, 0, entrySize*(len(m.peers)+1))
	b = appendEntry(b, m.id, m.boot)
	for id, p := range m.peers {
		for is := range p.living.all() {
			b = appendEntry(b, id, is.boot)
		}
	}
	return b
}

// compareMembers returns who is alive there only, and who here only.
func (m *Mesh) compareMembers(theirs []byte) (missing, ahead []member) {
	there := make(map[member]bool, len(theirs)/entrySize)
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(theirs) > 0 {
		var is member
		is.id, is.boot, theirs = entry(theirs)
		there[is] = true
		if is.id == m.id {
			continue
		}
		if p := m.peers[is.id]; p == nil || !p.runs(is.boot) {
			missing = append(missing, is)
		}
	}
	for id, p := range m.peers {
		for run := range p.living.all() {
			if is := (member{id, run.boot}); !there[is] {
				ahead = append(ahead, is)
			}
		}
	}
	slices.SortFunc(missing, func(a, b member) int { return cmp.Compare(a.id, b.id) })
	return missing, ahead
}

func (p *peer) runs(boot uint64) bool {
	return p.living.has(boot)
}

// settle follows up on having joined: what was on its way through the mesh while
// this node came in may have passed it by, so it compares with two members more.
func (m *Mesh) settle(ctx context.Context) {
	for _, pause := range []time.Duration{settleFirst, settleSecond} {
		if !sleep(ctx, jitter(pause)) {
			return
		}
		for _, id := range m.someAlive(1) {
			m.syncWith(ctx, id)
		}
	}
}
