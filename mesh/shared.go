// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"sync"
)

// Shared lets the meshes of one process, as simulations have them, keep one copy of
// what they all have. The zero value is ready and safe for concurrent use. Records that no
// mesh has any more stay: it is for tests.
type Shared struct {
	mu      sync.Mutex
	records map[uint64]*storedRecord // by sum
	changes map[string][]byte
}

// change returns the copy that all have of a change that is gossiped.
func (s *Shared) change(b []byte) []byte {
	if s == nil {
		return b
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.changes[string(b)]; ok {
		return old
	}
	if s.changes == nil {
		s.changes = make(map[string][]byte)
	}
	s.changes[string(b)] = b
	return b
}

// one returns the copy that all have of r.
func (s *Shared) one(r *storedRecord) *storedRecord {
	if s == nil {
		return r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.records[r.sum]; old != nil && bytes.Equal(old.raw, r.raw) {
		return old
	}
	if s.records == nil {
		s.records = make(map[uint64]*storedRecord)
	}
	s.records[r.sum] = r
	return r
}
