// SPDX-License-Identifier: Apache-2.0

package ipam

import "time"

// Store keeps an allocator's State on disk. Its methods are not called concurrently.
//
// SaveIPAM applies a Change as one transaction and returns nil once it is durable. After an error the change may have
// been applied or not, but not in part: the allocator then writes whatever it needs to be sure of again, with the next
// change.
type Store interface {
	LoadIPAM() (State, error)
	SaveIPAM(c Change) error
}

// State is all that an allocator keeps. The zero State is that of a new node.
type State struct {
	Ring        []byte // what the mesh knows about ownership, opaque; empty if the node is new
	Grants      []byte // what this node may use of that, opaque
	Allocations []Allocation
	Resting     []Resting
}

// Allocation is an allocated slot. Owner is the key: at most 512 bytes, not empty.
type Allocation struct {
	Owner string
	Slot  uint32
}

// Resting is a freed slot that is not handed out again before Until. Slot is the key. Until has no finer than
// millisecond meaning.
type Resting struct {
	Slot  uint32
	Until time.Time
}

// Change is one transaction on a State. Deletions come before writes: a slot may go from one key to another in it.
type Change struct {
	Ring   []byte       // replaces State.Ring unless nil
	Grants []byte       // replaces State.Grants unless nil
	Delete []string     // the owners of allocations to remove; one that is not there is no error
	Put    []Allocation // to write under their owners, replacing what is there
	Wake   []uint32     // the slots whose resting ends; one that is not there is no error
	Rest   []Resting    // to write under their slots, replacing what is there
}
