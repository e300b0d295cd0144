// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"fmt"
	"net/netip"
)

// Kind is how packets reach a peer. The greater one is the better one.
type Kind uint8

// The kinds.
const (
	UDP    Kind = iota // sealed, by the router, directly or through relays
	VXLAN              // by the kernel's VXLAN device
	Direct             // by a route of the kernel to the peer's underlay address
)

// Kinds are all kinds, best first.
func Kinds() []Kind { return []Kind{Direct, VXLAN, UDP} }

// String returns the name: "udp", "vxlan", "direct".
func (k Kind) String() string {
	switch k {
	case UDP:
		return "udp"
	case VXLAN:
		return "vxlan"
	case Direct:
		return "direct"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind reads what String wrote.
func ParseKind(s string) (Kind, error) {
	for _, k := range Kinds() {
		if k.String() == s {
			return k, nil
		}
	}
	return UDP, fmt.Errorf("%q is no path; choose direct, vxlan or udp", s)
}

// A Hop is how the kernel reaches an underlay address.
type Hop struct {
	Source netip.Addr // of this host, that the kernel chooses for it
	Device string
	MTU    int  // of the device, in bytes
	OnLink bool // not through a gateway
}

// Mark is the firewall mark of probes of a kernel path, by which the kernel finds the table of its routes, if it has one, and nftables knows them; 0 for UDP.
func (k Kind) Mark() uint32 {
	switch k {
	case Direct:
		return 0x57650001
	case VXLAN:
		return 0x57650002
	}
	return 0
}
