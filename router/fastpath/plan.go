// SPDX-License-Identifier: Apache-2.0

package fastpath

import "net/netip"

// Self is this node, as far as planning needs to know.
type Self struct {
	Kinds   []Kind         // that are allowed and that this host can do
	Trusted []netip.Prefix // underlay
	Plain   bool           // the mesh was founded without encryption: everybody trusts everybody
	VNI     uint32
	V4, V6  bool // families of the overlay
	// Overlay are the ranges of the overlay, of which no address is one of the underlay.
	Overlay []netip.Prefix
	// Route tells how the kernel reaches an underlay address; false: not.
	Route func(to netip.Addr) (Hop, bool)
}

// Peer is another node.
type Peer struct {
	ID        uint64
	Name      string
	Current   netip.AddrPort   // where it is reached directly now; zero: it is not
	Endpoints []netip.AddrPort // of its record
	Trusted   []netip.Prefix   // of its record
	Kinds     []Kind           // that it offers
	VNI       uint32
	VXLANPort uint16
	Hosts     []netip.Addr // its own addresses on the overlay, at most one of each family
	Want      Want
	MTU       int // of its workloads in bytes; 0: not known
}

// Want is what the user wants of a peer. The zero value is the best.
type Want struct {
	Forced bool
	Kind   Kind // if Forced
}

// Candidate is what can be tried to reach a peer.
type Candidate struct {
	ID           uint64
	Want         Want
	Ways         []Way        // best first
	Accept       []netip.Addr // outer sources by which its packets may come, by VXLAN
	AcceptDirect []Segment    // where its packets may come from without a tunnel
	Why          map[Kind]string
}

// Way is a kernel path to a peer.
type Way struct {
	Kind       Kind
	Remote     netip.AddrPort // of VXLAN
	Device     string         // of Direct
	Hop4, Hop6 netip.Addr     // of Direct: next hops of packets of each family; Hop4 may be v6
	MTU        int            // largest inner packet in bytes
	Probe      []netip.Addr   // overlay addresses of the peer, one of each family that the way carries
}

// Segment is a neighbour on a network of this host.
type Segment struct {
	Device string
	Hop    netip.Addr // its address there; the hardware address is looked up
}
