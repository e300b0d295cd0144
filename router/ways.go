// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"time"

	"github.com/weftnet/weft/router/envelope"
)

// way is how a node is reached: at an address, or through relays, in the order in which they pass a datagram on. The way that
// something came is given as the way back.
type way struct {
	Addr   netip.AddrPort             // without relays only
	Relays [envelope.MaxRelays]uint64 // those that are not used are 0
	N      uint8                      // how many are used
}

// reacher knows the ways to the nodes and finds new ones. The router tells it what it sees, and asks it when it sends. Its methods are called
// by shards and others, concurrently, and do not block. Nodes that are no peers may be named to it.
//
// What it is told of was sealed by a holder of the token, who need not be the node that is named unless it is sure, and may have been recorded and sent again
// by anybody from anywhere: only the answer to a ping of our own, by the node itself, proves a way.
type reacher interface {
	// use returns the way by which something is sent to a node now; false if there is none.
	use(node uint64, now time.Time) (way, bool)
	// direct returns the address at which a node is reached without relays, for what it is to pass on; false if it is not.
	direct(node uint64, now time.Time) (netip.AddrPort, bool)
	// heard tells that a control datagram of any kind has come from a node; sure tells that it was that node.
	heard(node uint64, back way, sure bool, now time.Time)
	// ponged tells of an answer to a ping, after heard.
	ponged(node uint64, back way, p envelope.Pong, sure bool, now time.Time)
	// punched tells that a node, for sure, asks for pings to its addresses, after heard. p.Candidates may be kept.
	punched(node uint64, p envelope.Punch, now time.Time)
	// examine tells that somebody could not reach a node.
	examine(node uint64, now time.Time)
}
