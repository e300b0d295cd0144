// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// NodeState is what a node says of itself.
type NodeState uint8

// What a node can say of itself. Running is the zero value.
const (
	StateRunning NodeState = iota
	StateStopped           // stopped for a while
	StateLeft              // left for good
)

// String returns the state in one lower-case word.
func (s NodeState) String() string {
	switch s {
	case StateRunning:
		return "running"
	case StateStopped:
		return "stopped"
	case StateLeft:
		return "left"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText writes the form of String.
func (s NodeState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the form of String.
func (s *NodeState) UnmarshalText(b []byte) error {
	for v := StateRunning; v <= StateLeft; v++ {
		if v.String() == string(b) {
			*s = v
			return nil
		}
	}
	return fmt.Errorf("%q is no node state: expected running, stopped or left", b)
}

// Record is what a node tells the mesh about itself. Its node is the only
// writer; of two records of a node the one with the greater Seq is right.
type Record struct {
	ID             NodeID
	Seq            uint64 // grows with every change, across restarts
	Boot           uint64 // random, drawn at each process start
	State          NodeState
	Name           string           // at most 253 bytes of printable UTF-8
	PublicKey      [32]byte         // of the data plane
	Endpoints      []netip.AddrPort // underlay addresses, best first, at most 16
	Suites         []uint8          // cipher suites, best first, at most 8
	Features       []string         // at most 32 of at most 64 bytes
	TrustedSubnets []netip.Prefix   // at most 64
	MTU            uint16           // inner MTU; 0: not known yet, else at least 576
	Build          string           // at most 128 bytes
	Universe       [16]byte
	Keys           []uint32     // names of the tokens that the node accepts, at most 8; the first is the one that it sends under
	Links          []NodeID     // nodes that this one reaches directly and that relay for it, at most 8, ascending
	Hosts          []netip.Addr // the host's own addresses on the overlay, at most one of each family, v4 first
}

// Bounds of a record.
const (
	maxName      = 253
	maxEndpoints = 16
	maxSuites    = 8
	maxFeatures  = 32
	maxFeature   = 64
	maxSubnets   = 64
	maxBuild     = 128
	maxLinks     = 8
	maxTokens    = 8
	maxHosts     = 2
	minMTU       = 576
	maxRecord    = 8 << 10 // encoded bytes
)

// wireRecord is the encoding. Keys are never reused; unknown ones are skipped.
type wireRecord struct {
	ID        uint64   `cbor:"1,keyasint"`
	Seq       uint64   `cbor:"2,keyasint"`
	Boot      uint64   `cbor:"3,keyasint,omitempty"`
	State     uint8    `cbor:"4,keyasint,omitempty"`
	Name      string   `cbor:"5,keyasint"`
	PublicKey []byte   `cbor:"6,keyasint"`
	Endpoints [][]byte `cbor:"7,keyasint,omitempty"`
	Suites    []byte   `cbor:"8,keyasint,omitempty"`
	Features  []string `cbor:"9,keyasint,omitempty"`
	Subnets   [][]byte `cbor:"10,keyasint,omitempty"`
	MTU       uint16   `cbor:"11,keyasint,omitempty"`
	Build     string   `cbor:"12,keyasint,omitempty"`
	Universe  []byte   `cbor:"13,keyasint,omitempty"`
	Links     []uint64 `cbor:"14,keyasint,omitempty"`
	Keys      []uint32 `cbor:"15,keyasint,omitempty"`
	Hosts     [][]byte `cbor:"16,keyasint,omitempty"`
}

// MarshalBinary returns the record as the mesh sends it and as it may be kept
// on disk, at most 8 KiB. An insane record is an error.
func (r Record) MarshalBinary() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	w := wireRecord{
		ID: uint64(r.ID), Seq: r.Seq, Boot: r.Boot, State: uint8(r.State), Name: r.Name,
		PublicKey: r.PublicKey[:], Suites: r.Suites, Features: r.Features, MTU: r.MTU, Build: r.Build, Keys: r.Keys,
	}
	if r.Universe != [16]byte{} {
		w.Universe = r.Universe[:]
	}
	for _, l := range r.Links {
		w.Links = append(w.Links, uint64(l))
	}
	for _, e := range r.Endpoints {
		b, err := e.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("encode endpoint %v: %w", e, err)
		}
		w.Endpoints = append(w.Endpoints, b)
	}
	for _, p := range r.TrustedSubnets {
		b, err := p.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("encode subnet %v: %w", p, err)
		}
		w.Subnets = append(w.Subnets, b)
	}
	for _, a := range r.Hosts {
		w.Hosts = append(w.Hosts, a.AsSlice())
	}
	b, err := cbor.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode the record of node %v: %w", r.ID, err)
	}
	if len(b) > maxRecord {
		return nil, fmt.Errorf("the record of node %v is %d bytes: %w", r.ID, len(b), ErrTooLarge)
	}
	return b, nil
}

// UnmarshalBinary reads what MarshalBinary wrote, and refuses insane records.
// It does not keep b.
func (r *Record) UnmarshalBinary(b []byte) error {
	if len(b) > maxRecord {
		return fmt.Errorf("a node record of %d bytes: %w", len(b), ErrTooLarge)
	}
	var w wireRecord
	if err := decodeCBOR(b, &w); err != nil {
		return fmt.Errorf("decode a node record: %w", err)
	}
	n := Record{
		ID: NodeID(w.ID), Seq: w.Seq, Boot: w.Boot, State: NodeState(w.State), Name: w.Name,
		Suites: w.Suites, Features: w.Features, MTU: w.MTU, Build: w.Build, Keys: w.Keys,
	}
	if len(w.PublicKey) != len(n.PublicKey) || (len(w.Universe) != 0 && len(w.Universe) != len(n.Universe)) {
		return fmt.Errorf("decode a node record: node %v has a key of %d and a universe of %d bytes", n.ID, len(w.PublicKey), len(w.Universe))
	}
	copy(n.PublicKey[:], w.PublicKey)
	copy(n.Universe[:], w.Universe)
	if len(w.Endpoints) > maxEndpoints || len(w.Subnets) > maxSubnets || len(w.Links) > maxLinks || len(w.Hosts) > maxHosts {
		return fmt.Errorf("decode a node record: node %v lists %d endpoints, %d subnets, %d links and %d host addresses",
			n.ID, len(w.Endpoints), len(w.Subnets), len(w.Links), len(w.Hosts))
	}
	for _, b := range w.Hosts {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return fmt.Errorf("decode a host address of node %v: %d bytes: %w", n.ID, len(b), errWire)
		}
		n.Hosts = append(n.Hosts, a)
	}
	for _, l := range w.Links {
		n.Links = append(n.Links, NodeID(l))
	}
	for _, e := range w.Endpoints {
		var a netip.AddrPort
		if err := a.UnmarshalBinary(e); err != nil {
			return fmt.Errorf("decode an endpoint of node %v: %w", n.ID, err)
		}
		n.Endpoints = append(n.Endpoints, a)
	}
	for _, s := range w.Subnets {
		var p netip.Prefix
		if err := p.UnmarshalBinary(s); err != nil {
			return fmt.Errorf("decode a subnet of node %v: %w", n.ID, err)
		}
		n.TrustedSubnets = append(n.TrustedSubnets, p)
	}
	if err := n.check(); err != nil {
		return err
	}
	*r = n
	return nil
}

// check tells whether every field is within its bounds and makes sense.
func (r *Record) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("the record of node %v (%q) %s", r.ID, clip(r.Name), fmt.Sprintf(format, args...))
	}
	switch {
	case !r.ID.Valid():
		return bad("has an impossible id")
	case r.State > StateLeft:
		return bad("has the unknown state %d", r.State)
	case !printable(r.Name, maxName) || r.Name == "":
		return bad("needs a printable name of 1 to %d bytes", maxName)
	case !printable(r.Build, maxBuild):
		return bad("needs a printable build of at most %d bytes", maxBuild)
	case len(r.Endpoints) > maxEndpoints:
		return bad("lists %d endpoints, at most %d are carried", len(r.Endpoints), maxEndpoints)
	case len(r.Suites) > maxSuites:
		return bad("lists %d cipher suites, at most %d are carried", len(r.Suites), maxSuites)
	case len(r.Features) > maxFeatures:
		return bad("lists %d features, at most %d are carried", len(r.Features), maxFeatures)
	case len(r.TrustedSubnets) > maxSubnets:
		return bad("lists %d trusted subnets, at most %d are carried", len(r.TrustedSubnets), maxSubnets)
	case len(r.Links) > maxLinks:
		return bad("lists %d links, at most %d are carried", len(r.Links), maxLinks)
	case len(r.Keys) > maxTokens || slices.Contains(r.Keys, 0):
		return bad("names %d tokens, at most %d are carried, and none is 0", len(r.Keys), maxTokens)
	case r.MTU != 0 && r.MTU < minMTU:
		return bad("has an MTU of %d, at least %d is needed", r.MTU, minMTU)
	}
	if !hostAddrs(r.Hosts) {
		return bad("has the impossible host addresses %v, at most one of each family is carried", r.Hosts)
	}
	for _, e := range r.Endpoints {
		if !sendable(e) {
			return bad("has the impossible endpoint %v", e)
		}
	}
	for i, l := range r.Links {
		if !l.Valid() || l == r.ID || i > 0 && l <= r.Links[i-1] {
			return bad("has links that are no ascending list of other nodes")
		}
	}
	for _, f := range r.Features {
		if !printable(f, maxFeature) || f == "" {
			return bad("has a feature that is not 1 to %d printable bytes", maxFeature)
		}
	}
	for _, p := range r.TrustedSubnets {
		if !p.IsValid() || p != p.Masked() || p.Addr().Zone() != "" {
			return bad("has the impossible trusted subnet %v", p)
		}
	}
	return nil
}

// clone returns a copy that shares no memory with r.
func (r Record) clone() Record {
	r.Endpoints = slices.Clone(r.Endpoints)
	r.Suites = slices.Clone(r.Suites)
	r.Features = slices.Clone(r.Features)
	r.Links = slices.Clone(r.Links)
	r.Keys = slices.Clone(r.Keys)
	r.Hosts = slices.Clone(r.Hosts)
	r.TrustedSubnets = slices.Clone(r.TrustedSubnets)
	return r
}

// hostAddrs tells whether these can be one host's addresses on the overlay: unicast, at most one of each family, v4 first.
func hostAddrs(list []netip.Addr) bool {
	for i, a := range list {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || i > 0 && (list[0].Is6() || a.Is4()) {
			return false
		}
	}
	return len(list) <= maxHosts
}

// sendable tells whether a packet can be addressed to a.
func sendable(a netip.AddrPort) bool {
	ip := a.Addr()
	return a.IsValid() && a.Port() != 0 && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.Is4In6() &&
		ip.Zone() == "" && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// printable tells whether s is UTF-8 without control characters, at most limit bytes.
func printable(s string, limit int) bool {
	if len(s) > limit || !utf8.ValidString(s) {
		return false
	}
	for _, c := range s {
		if c < ' ' || c == 0x7f || (c >= 0x80 && c < 0xa0) || c == utf8.RuneError {
			return false
		}
	}
	return true
}

// clip shortens s for a message.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
