// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Anti-entropy. Every DigestInterval a node sends a digest, a hash per state and
// one of who is alive, to one member chosen at random. Whoever gets one that
// differs from its own waits for what gossip may bring, and if that does not make
// them equal opens a stream to the sender (sync.go), over which both get what they
// lack and no more. So a mesh at rest costs one small packet per node and interval,
// whatever its size.
//
// Who has just learnt much at once has nobody to expect gossip from: it sends
// digests to epidemicNodes members at once, marked fresh, and these need not wait.
//
// Gossip misses one node now and then (budget.go). So each node that has passed on changes sends digests to calmNodes members once no more have come for
// as long as gossip takes to everybody, marked fresh, too: whoever was missed knows it a moment later, and not by its turn.
const (
	digestVersion = 1

	digestPatience = 2 * time.Second        // what gossip may take to everybody
	freshPatience  = 200 * time.Millisecond // give or take a half
	freshPause     = time.Second            // at least between two rounds of fresh digests, and between two syncs
	epidemicNodes  = 3
	calmNodes      = 2
	maxFruitless   = 5 // doublings of the pause after syncs that did not change the difference
	digestQueue    = 16
)

// digest is what anti-entropy compares first.
type digest struct {
	Version  uint8             `cbor:"1,keyasint"`
	Universe []byte            `cbor:"2,keyasint"` // 16 bytes
	Sums     map[string]uint64 `cbor:"3,keyasint"` // by state, the records among them
	Members  uint64            `cbor:"4,keyasint"`
	Fresh    bool              `cbor:"5,keyasint,omitempty"`
	Alarm    bool              `cbor:"6,keyasint,omitempty"` // see heal.go

	from NodeID // as the router has authenticated it
}

// decodeDigest reads what follows the kind of a packet.
func decodeDigest(b []byte) (digest, error) {
	var d digest
	if err := decodeCBOR(b, &d); err != nil {
		return digest{}, fmt.Errorf("decode a digest: %w", err)
	}
	if d.Version != digestVersion || len(d.Universe) != 16 || len(d.Sums) > maxStates {
		return digest{}, fmt.Errorf("decode a digest of version %d: %w", d.Version, errWire)
	}
	return d, nil
}

// Digester is a State that can hash itself for less than it takes to encode it.
// States for which Encode returns the same have the same digest, others, but for
// chance, not.
type Digester interface {
	Digest() uint64
}

// sumOf hashes bytes, for comparison alone.
func sumOf(b []byte) uint64 {
	h := sha256.Sum256(b)
	return binary.BigEndian.Uint64(h[:])
}

// stateSum is the hash of a state as it was last worked out. Guarded by Mesh.sumsMu.
type stateSum struct {
	sum   uint64
	at    time.Time
	stale bool
}

// maxSumAge bounds how long a hash is believed without a sign of a change.
const maxSumAge = time.Minute

// touched notes that the state may have changed.
func (m *Mesh) touched(name string) {
	m.sumsMu.Lock()
	defer m.sumsMu.Unlock()
	if s := m.sums[name]; s != nil {
		s.stale = true
	}
}

// stateSums returns the hashes of all states, working out those alone that may have changed.
func (m *Mesh) stateSums() map[string]uint64 {
	sums := make(map[string]uint64, len(m.states)+1)
	now := time.Now()
	for name, s := range m.states { // fixed since Run
		m.sumsMu.Lock()
		c := m.sums[name]
		if c == nil {
			c = &stateSum{stale: true}
			m.sums[name] = c
		}
		old := c.stale || now.Sub(c.at) > maxSumAge
		c.stale = false // a change from here on makes it stale again
		sum := c.sum
		m.sumsMu.Unlock()
		if old {
			if d, ok := s.(Digester); ok {
				sum = d.Digest()
			} else {
				sum = sumOf(s.Encode())
			}
			m.sumsMu.Lock()
			c.sum, c.at = sum, now
			m.sumsMu.Unlock()
		}
		sums[name] = sum
	}
	m.mu.Lock()
	sums[recordsName] = m.records.total
	m.mu.Unlock()
	return sums
}

// digest returns this node's digest.
func (m *Mesh) digest() digest {
	u := m.Universe()
	d := digest{Version: digestVersion, Universe: u.ID[:], Sums: m.stateSums()}
	m.mu.Lock()
	d.Members = m.memberSum
	m.mu.Unlock()
	return d
}

// differs tells whether what d says is neither what this node has nor, of records
// and members, what it had a moment ago. Names that only one of them has are of another release.
func (m *Mesh) differs(d digest) bool {
	for name, sum := range m.stateSums() {
		if theirs, ok := d.Sums[name]; ok && theirs != sum && (name != recordsName || !m.had(&m.records.past, theirs)) {
			return true
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return d.Members != m.memberSum && !m.memberPast.has(d.Members, time.Now())
}

// difference is a hash of what this node has and what d says.
func (m *Mesh) difference(d digest) (sum uint64) {
	for name, mine := range m.stateSums() {
		b := binary.BigEndian.AppendUint64([]byte(name), mine)
		sum += sumOf(binary.BigEndian.AppendUint64(b, d.Sums[name]))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return sum + sumOf(appendEntry(nil, NodeID(d.Members), m.memberSum))
}

func (m *Mesh) had(p *past, sum uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.has(sum, time.Now())
}

// past holds the latest of a row of sums, and when they ceased to be right.
type past struct {
	sums  [16]uint64
	until [16]time.Time
	next  int
}

// add notes that sum, which was right, has been replaced now.
func (p *past) add(sum uint64, now time.Time) {
	p.sums[p.next%len(p.sums)], p.until[p.next%len(p.sums)] = sum, now
	p.next++
}

// has tells whether sum was right a moment ago, so that gossip may yet bring what has changed since to whoever has it.
func (p *past) has(sum uint64, now time.Time) bool {
	for i, s := range p.sums[:min(p.next, len(p.sums))] {
		if s == sum && now.Sub(p.until[i]) < digestPatience {
			return true
		}
	}
	return false
}

// rawDigest is a digest that is not decoded yet.
type rawDigest struct {
	from NodeID
	b    []byte
}

// takeDigest queues another node's digest. b is copied; nothing blocks.
func (m *Mesh) takeDigest(b []byte, from NodeID) {
	select {
	case m.digests <- rawDigest{from, bytes.Clone(b)}:
	default: // one of the others will do
	}
}

// readDigest returns a digest if it is of this mesh.
func (m *Mesh) readDigest(s rawDigest) (digest, bool) {
	d, err := decodeDigest(s.b)
	if err != nil {
		m.oddity(s.from, "a digest that makes no sense was dropped", err)
		return digest{}, false
	}
	d.from = s.from
	return d, [16]byte(d.Universe) == m.Universe().ID
}

// sendDigests sends a digest to n members chosen at random.
func (m *Mesh) sendDigests(n int, edit func(*digest)) {
	if u := m.Universe(); !u.Known() {
		return
	}
	d := m.digest()
	if edit != nil {
		edit(&d)
	}
	b, err := cbor.Marshal(d)
	if err != nil {
		m.oddity(0, "cannot encode a digest", err)
		return
	}
	for _, id := range m.someAlive(n) {
		if err := m.sendPacket(kindDigest, b, id); err != nil {
			m.dropped.Add(1)
		}
	}
}

// nudge has digests sent soon to say that much has changed here.
func (m *Mesh) nudge() {
	select {
	case m.nudged <- struct{}{}:
	default:
	}
}

// stir notes that a change has come which others have to get, too.
func (m *Mesh) stir() {
	select {
	case m.stirred <- struct{}{}:
	default:
	}
}

// digestLoop sends digests and acts on those of others, so that this node has no
// more than one sync of its own under way.
func (m *Mesh) digestLoop(ctx context.Context) {
	send := time.NewTimer(rand.N(m.tuning.DigestInterval))
	defer send.Stop()
	look := time.NewTimer(time.Hour)
	defer look.Stop()
	calm := time.NewTimer(time.Hour)
	defer calm.Stop()
	var pending *digest
	var told, synced, rest time.Time // when fresh digests were sent, a sync of this node's own ended, and when the next is due
	fresh, busy, fruitless, last := false, false, 0, uint64(0)
	done := make(chan struct{}, 1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-send.C:
			if fresh {
				m.sendDigests(epidemicNodes, func(d *digest) { d.Fresh = true })
				fresh, told = false, time.Now()
			} else {
				m.sendDigests(1, nil)
			}
			send.Reset(jitter(m.digestPause()))
		case <-m.nudged:
			if !fresh {
				fresh = true
				send.Reset(time.Until(told.Add(freshPause)))
			}
		case <-m.stirred:
			calm.Reset(digestPatience + rand.N(freshPause))
		case <-calm.C:
			m.sendDigests(calmNodes, func(d *digest) { d.Fresh = true })
		case s := <-m.digests:
			d, ok := m.readDigest(s)
			if !ok {
				continue
			}
			if d.Alarm {
				m.raise()
			}
			hurry := d.Fresh || m.isHealing()
			if now := time.Now(); busy || now.Before(rest) && (!hurry || now.Sub(synced) < freshPause) || pending != nil && (pending.Fresh || !d.Fresh) || !m.differs(d) {
				continue
			}
			pending = &d
			wait := digestPatience
			if hurry {
				wait = freshPatience
			}
			look.Reset(wait/2 + rand.N(wait))
		case <-look.C:
			d := pending
			if pending = nil; d == nil || !m.differs(*d) {
				continue
			}
			// The same two that differed before: it may be that they cannot become equal.
			before := last
			if last = m.difference(*d); last == before {
				fruitless = min(fruitless+1, maxFruitless)
			} else {
				fruitless = 0
			}
			busy = m.spawn(func(ctx context.Context) {
				m.syncWith(ctx, d.from)
				done <- struct{}{}
			})
		case <-done:
			if m.crowded() { // no two may ever have the same records
				fruitless = maxFruitless
			}
			busy, synced = false, time.Now()
			rest = synced.Add(jitter(freshPause << fruitless))
		}
	}
}
