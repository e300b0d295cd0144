// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// indexTable maps receiver indices of this node to the handshake or session that they belong to.
// Look-ups take no lock and allocate nothing.
//
// An index is random, but its low bits are also its place in the table, and only indices with a
// free place are given out. So a look-up is one load, and doubling the table cannot make two
// entries collide: indices that differ in k low bits differ in k+1.
type indexTable struct {
	slots atomic.Pointer[indexSlots]
	mu    sync.Mutex // writers
	used  int        // under mu; at most half of the slots
}

// indexSlots are the places of one size of the table: mask+1 of them, a power of two.
type indexSlots struct {
	mask  uint32
	place []atomic.Pointer[indexEntry]
}

func newIndexSlots(mask uint32) *indexSlots {
	return &indexSlots{mask: mask, place: make([]atomic.Pointer[indexEntry], int(mask)+1)}
}

// of returns the place of an index.
func (s *indexSlots) of(index uint32) *atomic.Pointer[indexEntry] { return &s.place[index&s.mask] }

// indexEntry is immutable.
type indexEntry struct {
	index   uint32
	peer    *Peer
	keypair *Keypair // nil while the handshake runs
}

const minIndexMask = 63

func (t *indexTable) init() { t.slots.Store(newIndexSlots(minIndexMask)) }

// get returns the entry of an index, nil if there is none.
func (t *indexTable) get(index uint32) *indexEntry {
	e := t.slots.Load().of(index).Load()
	if e == nil || e.index != index {
		return nil
	}
	return e
}

// reserve enters a handshake of p under a new random index.
func (t *indexTable) reserve(rand io.Reader, p *Peer) (uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slots := t.slots.Load()
	if 2*(t.used+1) > len(slots.place) {
		slots = t.grow(slots)
	}
	var b [4]byte
	for {
		if _, err := io.ReadFull(rand, b[:]); err != nil {
			return 0, fmt.Errorf("choose a session index: read randomness: %w", err)
		}
		index := binary.LittleEndian.Uint32(b[:])
		slot := slots.of(index)
		if slot.Load() != nil {
			continue // at least every other try succeeds
		}
		slot.Store(&indexEntry{index: index, peer: p})
		t.used++
		return index, nil
	}
}

func (t *indexTable) grow(old *indexSlots) *indexSlots {
	slots := newIndexSlots(2*old.mask + 1)
	for i := range old.place {
		if e := old.place[i].Load(); e != nil {
			slots.of(e.index).Store(e)
		}
	}
	t.slots.Store(slots)
	return slots
}

// publish gives a reserved index to the session that came out of the handshake.
func (t *indexTable) publish(k *Keypair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slot := t.slots.Load().of(k.local)
	if e := slot.Load(); e != nil && e.index == k.local {
		slot.Store(&indexEntry{index: k.local, peer: k.peer, keypair: k})
	}
}

// remove frees an index; one that is not in the table is left alone.
func (t *indexTable) remove(index uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slot := t.slots.Load().of(index)
	if e := slot.Load(); e != nil && e.index == index {
		slot.Store(nil)
		t.used--
	}
}
