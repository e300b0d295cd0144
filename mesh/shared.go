// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"slices"
	"sync"
)

// Shared lets the meshes of one process, as simulations have them, keep one copy of
// what they all have, and decode once what they all get. The zero value is ready and safe for concurrent use. What no
// mesh has any more stays: it is for tests.
type Shared struct {
	mu      sync.RWMutex
	records map[uint64]*storedRecord // by sum
	changes shelf[[]byte]
	decoded shelf[change]
	listed  shelf[[]*storedRecord] // by what encodeRecords made of them
	parsed  shelf[*storedRecord]
}

// shelf is what was made of some bytes. The zero value is empty.
type shelf[T any] struct {
	mu  sync.RWMutex
	all map[string]T
}

// get returns what there is, which is what f makes of b if there was nothing, unless that is an error.
func (s *shelf[T]) get(b []byte, f func() (T, error)) (T, error) {
	s.mu.RLock()
	v, ok := s.all[string(b)]
	s.mu.RUnlock()
	if ok {
		return v, nil
	}
	v, err := f()
	if err != nil {
		return v, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.all[string(b)]; ok {
		return old, nil
	}
	if s.all == nil {
		s.all = make(map[string]T)
	}
	s.all[string(b)] = v
	return v, nil
}

// change returns the copy that all have of a change that is gossiped.
func (s *Shared) change(b []byte) []byte {
	if s == nil {
		return b
	}
	b, _ = s.changes.get(b, func() ([]byte, error) { return b, nil })
	return b
}

// decodeChange is decodeChange, for each change once.
func (s *Shared) decodeChange(b []byte) (change, error) {
	if s == nil {
		return decodeChange(b)
	}
	return s.decoded.get(b, func() (change, error) { return decodeChange(b) })
}

// decodeRecords is decodeRecords, once for each record, and for each change that is gossiped.
func (s *Shared) decodeRecords(b []byte) (rs []*storedRecord, insane int, err error) {
	if s == nil {
		return decodeRecords(b, parseRecord)
	}
	parse := func(raw []byte) (*storedRecord, error) {
		return s.parsed.get(raw, func() (*storedRecord, error) { return parseRecord(raw) })
	}
	if len(b) > maxGossip {
		return decodeRecords(b, parse)
	}
	rs, err = s.listed.get(b, func() ([]*storedRecord, error) {
		rs, n, err := decodeRecords(b, parse)
		if insane = n; err == nil && n > 0 {
			err = errWire // it is not kept
		}
		return rs, err
	})
	if insane > 0 {
		err = nil
	}
	return slices.Clone(rs), insane, err
}

// one returns the copy that all have of r.
func (s *Shared) one(r *storedRecord) *storedRecord {
	if s == nil {
		return r
	}
	s.mu.RLock()
	old := s.records[r.sum]
	s.mu.RUnlock()
	if old != nil && bytes.Equal(old.raw, r.raw) {
		return old
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records == nil {
		s.records = make(map[uint64]*storedRecord)
	}
	s.records[r.sum] = r
	return r
}
