// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"fmt"
	"net/netip"
	"slices"
)

// MaxRelays is the largest number of nodes that a path leads through.
const MaxRelays = 4

// Path is a way to a node. Paths are comparable with ==; the zero Path is none.
type Path struct {
	Addr   netip.AddrPort    // of the node, if the path is direct; otherwise not valid
	Relays [MaxRelays]uint64 // in the order in which they are passed; zeros behind the first N
	N      uint8             // number of relays; 0: direct
}

// Direct returns the direct path to an address.
func Direct(a netip.AddrPort) Path { return Path{Addr: a} }

// Through returns the path through the relays in that order, at most MaxRelays; more make no path.
func Through(relays ...uint64) Path {
	var p Path
	if len(relays) <= MaxRelays {
		p.N = uint8(copy(p.Relays[:], relays))
	}
	return p
}

// Valid tells whether p is a path at all.
func (p Path) Valid() bool { return p.N > 0 || p.Addr.IsValid() }

// Relayed tells whether p leads through relays.
func (p Path) Relayed() bool { return p.N > 0 }

// Via returns the relays in order, nil if there are none.
func (p Path) Via() []uint64 {
	if p.N == 0 {
		return nil
	}
	return slices.Clone(p.Relays[:p.N])
}

// Reversed returns the path through the same relays the other way round, which leads back. A direct path stays as it is.
func (p Path) Reversed() Path {
	slices.Reverse(p.Relays[:p.N])
	return p
}

// String returns the address, or the relays.
func (p Path) String() string {
	switch {
	case p.N > 0:
		return fmt.Sprintf("via %x", p.Relays[:p.N])
	case p.Addr.IsValid():
		return p.Addr.String()
	}
	return "none"
}
