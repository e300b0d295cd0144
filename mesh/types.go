// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// NodeID identifies a node for as long as its data directory lives. It is a digest of the key
// that the node signs with (see [Identity]), never zero, and its top bit is clear.
type NodeID uint64

// ParseNodeID reads the 16 hex digits that String writes.
func ParseNodeID(s string) (NodeID, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 || NodeID(v).String() != s || !NodeID(v).Valid() {
		return 0, fmt.Errorf("%q is no node id: expected 16 hex digits", s)
	}
	return NodeID(v), nil
}

// String returns 16 lower-case hex digits.
func (id NodeID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Valid tells whether id can be a node's: not zero, top bit clear.
func (id NodeID) Valid() bool { return id != 0 && id>>63 == 0 }

// MarshalText writes the form of String, so that JSON carries ids as strings.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the form of String.
func (id *NodeID) UnmarshalText(b []byte) error {
	v, err := ParseNodeID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// UniverseInfo names the address range that a mesh hands out. The mesh compares
// IDs and passes the rest on to joiners without reading it.
type UniverseInfo struct {
	ID     [16]byte // zero: not known yet
	Ranges string   // for people and for joiners, at most 256 bytes
	Seed   []byte   // how the universe was first divided, at most 16 KiB

	// Reserve is the part that is kept for static use, for people and for joiners, at most 3 KiB; empty: none.
	Reserve string

	// Plain tells that the mesh was founded without encryption: hosts trust whatever network is between them.
	Plain bool
}

// Known tells whether the universe is known (its ID is not zero).
func (u UniverseInfo) Known() bool { return u.ID != [16]byte{} }

// String returns "mesh <id in hex> (range <ranges>)", or "... (range <ranges>, reserve <reserve>, encryption off)".
func (u UniverseInfo) String() string {
	if !u.Known() {
		return "no mesh yet"
	}
	ranges := u.Ranges
	if u.Reserve != "" {
		ranges += ", reserve " + u.Reserve
	}
	if u.Plain {
		ranges += ", encryption off"
	}
	return fmt.Sprintf("mesh %s (range %s)", hex.EncodeToString(u.ID[:]), ranges)
}

// Keys are the secrets that the mesh derives from the token. Hello keys the greeting
// with which each stream begins. Packets are sealed by the router.
type Keys struct {
	Hello [32]byte
}

// String hides the keys.
func (Keys) String() string { return "(hidden)" }

// GoString hides the keys.
func (Keys) GoString() string { return "mesh.Keys(hidden)" }

// Addr is where a packet goes to or came from: a node, by whichever path there is to it, or, while the node is not known,
// an address of the network below.
type Addr struct {
	Node NodeID         // 0: not known
	Addr netip.AddrPort // not valid: whatever the path of Node says
}

// Packets sends gossip packets; the router implements it. Its methods may be
// called from many goroutines and must not block on the network.
type Packets interface {
	// SendControl sends b to a node, or to an address if the node is not known to the router. It does not keep b.
	SendControl(b []byte, to Addr) error
	// Examine tells that a node did not answer by its present path.
	Examine(NodeID)
}

// State is a replicated state-based CRDT. Both methods may be called from
// several goroutines, Merge only from one; Merge may take its time (a disk
// write), Encode should not.
type State interface {
	// Encode returns the whole state, of equal states the same bytes. The mesh does
	// not write to it. A state that changes other than by Merge is to be followed
	// by Broadcast: the mesh hashes it anew then, else within a minute.
	Encode() []byte
	// Merge takes in a whole state or a delta, made by Encode or Broadcast
	// anywhere in the mesh, and returns what was new here in the same encoding,
	// nil if nothing was. It does not keep b.
	Merge(b []byte) (delta []byte, err error)
}

// An Exchanger is a State that wants to know when the whole of another node's
// state, and not only a change of it, was merged without an error. It is called
// from the goroutine that calls Merge. States with equal digests are not
// exchanged, nor are those that encode as nothing.
type Exchanger interface {
	Exchanged()
}

// Status is how this node sees another one.
type Status uint8

// The states of a node.
const (
	Self    Status = iota // this node
	Alive                 // answers, or somebody whom we hear says so
	Failed                // does not answer; it is tried again and again
	Stopped               // said that it stops for a while (an upgrade, a reboot)
	Left                  // said that it left for good
)

// String returns the status in one lower-case word.
func (s Status) String() string {
	switch s {
	case Self:
		return "self"
	case Alive:
		return "alive"
	case Failed:
		return "failed"
	case Stopped:
		return "stopped"
	case Left:
		return "left"
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// MarshalText writes the form of String.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Node is a node as seen from here. Its slices must not be written to.
type Node struct {
	Record
	Signed []byte // the record as its node signed it, for Config.Known of a later run
	Status Status
	Since  time.Time      // when this process saw the status begin
	Heard  time.Time      // of a failed node: when its last packet came, by whichever path; zero: none did in this process
	Addr   netip.AddrPort // where streams reach it, or its first endpoint
	// Blocked says which of TCP and UDP does not get through to it, and what to do; empty: neither is known to be blocked.
	Blocked string
}

// Target is the state of one configured join target.
type Target struct {
	Host    string    // as configured
	State   string    // "joined", "joined; <what is blocked>", "this node" or "waiting: <reason>"
	Joined  bool      // true while the node found there is alive
	Node    NodeID    // who was found there last; 0: nobody yet
	Err     error     // why the last try failed, nil after a success
	NextTry time.Time // zero while joined
}

// Hello is what a peer says of itself in an authenticated greeting.
type Hello struct {
	ID       NodeID
	Boot     uint64
	Name     string
	Universe UniverseInfo // zero if that node waits to join, too
}
