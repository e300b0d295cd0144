// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// memberlist knows its members by addresses and takes a change of one for news of
// the member. Here the router finds the way to a node and changes it at will, so memberlist
// gets a constant instead: an address of a private prefix that is never seen on any network, made
// of the NodeID. All processes of a node have the same one; their names differ.
const memberPort = 1

// memberPrefix is fd, "weft" and three zero bytes.
var memberPrefix = [8]byte{0xfd, 'w', 'e', 'f', 't'}

func memberAddr(id NodeID) netip.AddrPort {
	var b [16]byte
	copy(b[:], memberPrefix[:])
	binary.BigEndian.PutUint64(b[8:], uint64(id))
	return netip.AddrPortFrom(netip.AddrFrom16(b), memberPort)
}

// nodeAt returns the node to which memberAddr gave the address.
func nodeAt(a netip.AddrPort) (NodeID, bool) {
	b := a.Addr().As16()
	id := NodeID(binary.BigEndian.Uint64(b[8:]))
	return id, [8]byte(b[:8]) == memberPrefix && a.Port() == memberPort && id.Valid()
}

// parseMemberAddr reads an address as memberlist writes it.
func parseMemberAddr(s string) (NodeID, error) {
	a, err := netip.ParseAddrPort(s)
	if err == nil {
		if id, ok := nodeAt(a); ok {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%q is no member's address", clip(s))
}

// memberMeta is what a process says of itself to memberlist: its universe, zeros while it knows
// none, and where it is reached at its start, for those who have not got its record yet.
func memberMeta(u [16]byte, at netip.AddrPort) []byte {
	b := u[:]
	if a, err := at.MarshalBinary(); err == nil && at.IsValid() {
		b = append(b, a...)
	}
	return b
}

// parseMeta reads what memberMeta wrote.
func parseMeta(b []byte) (u [16]byte, at netip.AddrPort, ok bool) {
	if len(b) < len(u) {
		return u, at, false
	}
	copy(u[:], b)
	if b = b[len(u):]; len(b) == 0 {
		return u, at, true
	}
	err := at.UnmarshalBinary(b)
	return u, at, err == nil && sendable(at)
}

// memberOf returns what memberlist needs in order to send a packet to the node.
func memberOf(id NodeID) *memberlist.Node {
	a := memberAddr(id)
	return &memberlist.Node{Addr: a.Addr().AsSlice(), Port: a.Port()}
}

func memberUDP(id NodeID) net.Addr { return net.UDPAddrFromAddrPort(memberAddr(id)) }
