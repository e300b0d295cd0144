// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"

	"github.com/weftnet/weft/policy"
)

// An Identity is a class of addresses that no rule in use can tell apart. [World] is that of all addresses without another one.
type Identity uint32

// The identities that are always there.
const (
	World    Identity = 0           // of all addresses without another one
	Unsorted Identity = 1           // of addresses that are beyond [Limits]; what depends on who they are is denied
	OwnNode  Identity = ownNode | 1 // of this node, by an address that no block in use contains or that is not known to be its own
)

// ownNode is set in the numbers of this node's identities.
const ownNode Identity = 1 << 31

// IsOwnNode says whether it is an identity of this node's own addresses: of all of them [OwnNode], unless blocks tell them apart.
func (i Identity) IsOwnNode() bool { return i&ownNode != 0 }

// A TableID names a table of verdicts. It is never used again for another one.
type TableID uint64

// A Cell is where one verdict is: an identity, and either one protocol with a range of ports, or (Protocol zero) everything that has no
// verdict of its own, protocols without ports among it.
type Cell struct {
	Identity    Identity
	Protocol    policy.Protocol
	First, Last uint16 // inclusive; zero both if Protocol is zero, 0 and 65535 for all ports
}

// A Verdict is what is done with a connection, and to which policy that is put down. Two that are == are equal; equal ones from
// different compilers, or for policies that have changed, need not be ==: see [Verdict.Equal].
type Verdict struct {
	Allow bool
	By    *policy.Verdict // shared, never changed, never nil; Endpoint is not set: endpoints share tables
}

// A Table holds the verdicts for one direction of the endpoints that share it. A connection has the verdict of the narrowest cell of the
// other end's identity that it is in: one with its protocol and port, else one with Protocol zero; if there is none of that identity,
// it is judged as one of World, and if there is none there either, by Default. Cells of one identity and protocol never overlap, and World has none
// with Protocol zero.
//
// It stays the same table, and is patched, while policies come and go, as long as there are endpoints that keep to it.
type Table struct {
	ID      TableID
	Default Verdict
	Cells   map[Cell]Verdict

	// ranges are the cells of some of a protocol's ports, but not of a single one, by identity and protocol and sorted; indexed says that
	// they are up to date, as in all tables that come from a Compiler or from Apply. Who changes Cells takes a new Table.
	ranges  map[Cell][]Cell
	indexed bool
}

// A Side is an address of a local endpoint and a direction.
type Side struct {
	Addr      netip.Addr
	Direction policy.Direction
}

// A State is all that the kernel is to look up. Endpoints without a side in it are open in that direction.
//
// What reaches an address that is its own, through a Service, is allowed, but where Selves has that address: then the tables are asked, with the
// identity that is there. This node's ingress is not judged: what it sends to its own endpoints passes no table. What they send to it passes
// that of their egress with the identity in Identities if it is one of the node ([Identity.IsOwnNode]), and else OwnNode. To what is forwarded those
// identities do not apply: see [State.Forwarded].
type State struct {
	Tables     map[TableID]*Table
	Sides      map[Side]TableID
	Identities map[netip.Addr]Identity   // of single addresses, endpoints' and nodes', if Blocks has not the same one for them; all of this node's
	Blocks     map[netip.Prefix]Identity // of all other addresses; the longest prefix counts, and may be of World
	Selves     map[netip.Addr]Identity   // of addresses with sides, as they see themselves
}

// A Delta is what changes a state into the next one. Its maps and slices belong to the receiver.
type Delta struct {
	AddTables  []*Table
	Patches    map[TableID]Patch // of tables that stay
	DropTables []TableID

	SetSides  map[Side]TableID
	DropSides []Side

	SetIdentities  map[netip.Addr]Identity
	DropIdentities []netip.Addr
	SetBlocks      map[netip.Prefix]Identity
	DropBlocks     []netip.Prefix
	SetSelves      map[netip.Addr]Identity
	DropSelves     []netip.Addr
}

// A Patch changes the cells of a table. No cell is in both Set and Drop. What is dropped may overlap with what is set: drop first.
type Patch struct {
	Default *Verdict // nil: as before
	Set     map[Cell]Verdict
	Drop    []Cell
}
