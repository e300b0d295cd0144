// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// fault is what a fakeStore does with a commit.
type fault int

const (
	healthy    fault = iota
	failBefore       // error, nothing was written
	failAfter        // error, everything was written
)

var errDisk = errors.New("disk full")

// fakeStore is a Store in memory that applies transactions and refuses those that no allocator may write.
type fakeStore struct {
	size  uint32
	self  ring.Owner           // 0: anybody's
	fault func(c Change) fault // nil: healthy

	mu      sync.Mutex
	ring    []byte
	grants  []byte
	allocs  map[string]uint32
	resting map[uint32]time.Time
	used    map[uint32]string // for whom a slot was stored last
	saves   int
	read    *ledger // what ring and grants say; nil: not read since they were written
	broken  error   // the first violation
}

func newFakeStore(size uint64) *fakeStore {
	return &fakeStore{size: uint32(size), allocs: make(map[string]uint32), resting: make(map[uint32]time.Time), used: make(map[uint32]string)}
}

func (s *fakeStore) LoadIPAM() (State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := State{Ring: slices.Clone(s.ring), Grants: slices.Clone(s.grants)}
	for _, o := range slices.Sorted(maps.Keys(s.allocs)) {
		st.Allocations = append(st.Allocations, Allocation{o, s.allocs[o]})
	}
	for _, slot := range slices.Sorted(maps.Keys(s.resting)) {
		st.Resting = append(st.Resting, Resting{slot, s.resting[slot]})
	}
	return st, nil
}

func (s *fakeStore) SaveIPAM(c Change) error {
	if !s.mu.TryLock() {
		return errors.New("concurrent SaveIPAM")
	}
	defer s.mu.Unlock()
	s.saves++
	f := healthy
	if s.fault != nil {
		f = s.fault(c)
	}
	if f == failBefore {
		return errDisk
	}
	if c.Ring != nil || c.Grants != nil {
		s.read = nil
	}
	if c.Ring != nil {
		s.ring = slices.Clone(c.Ring)
	}
	if c.Grants != nil {
		s.grants = slices.Clone(c.Grants)
	}
	for _, o := range c.Delete {
		delete(s.allocs, o)
	}
	for _, slot := range c.Wake {
		delete(s.resting, slot)
	}
	for _, p := range c.Put {
		s.allocs[p.Owner] = p.Slot
	}
	for _, r := range c.Rest {
		s.resting[r.Slot] = r.Until
	}
	if err := s.check(c); err != nil && s.broken == nil {
		s.broken = fmt.Errorf("%w after %+v", err, c)
	}
	if f == failAfter {
		return errDisk
	}
	return nil
}

// check verifies what must hold after every transaction, as far as the last one can have broken it.
func (s *fakeStore) check(c Change) error {
	if c.Ring != nil || c.Grants != nil {
		if s.current(); s.broken != nil {
			return s.broken
		}
	}
	for _, p := range c.Put {
		if p.Owner == "" || p.Slot == 0 || p.Slot >= s.size-1 {
			return fmt.Errorf("slot %d stored for %q", p.Slot, p.Owner)
		}
		if o, ok := s.used[p.Slot]; ok && o != p.Owner && s.allocs[o] == p.Slot {
			return fmt.Errorf("slot %d stored for %q and for %q", p.Slot, o, p.Owner)
		}
		s.used[p.Slot] = p.Owner
		if _, ok := s.resting[p.Slot]; ok {
			return fmt.Errorf("slot %d is stored for %q and as resting", p.Slot, p.Owner)
		}
	}
	for _, r := range c.Rest {
		if o, ok := s.used[r.Slot]; ok && s.allocs[o] == r.Slot {
			return fmt.Errorf("slot %d is stored for %q and as resting", r.Slot, o)
		}
	}
	return nil
}

// ledger reads the stored ledger of a node.
func (s *fakeStore) ledger(self ring.Owner) (*ledger, error) {
	if s.ring == nil {
		return &ledger{self: self, ring: ring.New(s.size)}, nil
	}
	r, err := ring.Decode(s.ring)
	if err != nil {
		return nil, err
	}
	l := &ledger{self: self, ring: r}
	return l, l.decode(s.grants)
}

// current returns the stored ledger of the node whose store it is. It must not be modified.
func (s *fakeStore) current() *ledger {
	if s.read == nil {
		l, err := s.ledger(s.self)
		if err != nil && s.broken == nil {
			s.broken = err
		}
		s.read = l
	}
	return s.read
}
