// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/ipam/ring"
)

// MaxReserve is the most prefixes that a Reserve has.
const MaxReserve = 64

// minLeft is how many slots a Reserve has to leave: the host itself needs one, and so does a workload.
const minLeft = 2

// Reserve is the part of a universe that nobody gets unasked: AllocateExact hands it out, Allocate does not. It is a property
// of the mesh, and part of its UniverseID. The zero Reserve is empty.
type Reserve struct {
	text  string
	slots ring.Set // neither the first of the universe nor the last, which nobody gets at all
}

// ParseReserve reads prefixes in CIDR notation, of either family of the universe: what they hold is kept in reserve in both.
// It is an error if one of them lies outside the range, or has host bits, or too little of the range is left.
func (u Universe) ParseReserve(prefixes []string) (Reserve, error) {
	var all ring.Set
	for _, s := range prefixes {
		i, err := u.reserve(strings.TrimSpace(s))
		if err != nil {
			return Reserve{}, err
		}
		all = all.Union(ring.Set{i})
	}
	if len(all) == 0 {
		return Reserve{}, nil
	}
	var parts []string
	for _, p := range ring.Prefixes(all, u.Prefixes()[0]) {
		parts = append(parts, p.String())
	}
	if len(parts) > MaxReserve {
		return Reserve{}, fmt.Errorf("the reserve is made of %d blocks; give at most %d", len(parts), MaxReserve)
	}
	last := uint32(u.Size() - 1)
	r := Reserve{text: strings.Join(parts, ","), slots: all.Subtract(ring.Set{{First: 0, Last: 0}, {First: last, Last: last}})}
	if left := u.Size() - 2 - r.slots.Len(); left < minLeft {
		return Reserve{}, fmt.Errorf("the reserve %s leaves %d of the %d addresses of range %v; leave at least %d, for the host and a workload",
			r.text, left, u.Size()-2, u, minLeft)
	}
	return r, nil
}

// reserve returns the slots of a prefix.
func (u Universe) reserve(s string) (ring.Interval, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return ring.Interval{}, fmt.Errorf("reserve %q is not in CIDR notation; write it like %v", s, u.Prefixes()[0])
	}
	if p != p.Masked() {
		return ring.Interval{}, fmt.Errorf("reserve %s has host bits set; write %s", s, p.Masked())
	}
	base := u.V6
	if p.Addr().Is4() {
		base = u.V4
	}
	if !base.IsValid() || !base.Contains(p.Addr()) || p.Bits() < base.Bits() {
		return ring.Interval{}, fmt.Errorf("reserve %s lies outside the mesh's range %v; choose a part of it", s, u)
	}
	first, ok := u.Slot(p.Addr())
	hostBits := p.Addr().BitLen() - p.Bits()
	if !ok || hostBits > 31 || uint64(first)+1<<hostBits > u.Size() {
		return ring.Interval{}, fmt.Errorf("reserve %s reaches beyond the first %d addresses of range %v, and no others are handed out; choose a part of those", s, u.Size(), u)
	}
	return ring.Interval{First: first, Last: first + uint32(uint64(1)<<hostBits-1)}, nil
}

// String returns the prefixes, the fewest that hold all that is in reserve, ascending and separated by commas; IPv4 ones if the
// universe has IPv4. Equal reserves of one universe have equal strings.
func (r Reserve) String() string { return r.text }

// Len returns the number of addresses in reserve that may be handed out.
func (r Reserve) Len() uint64 { return r.slots.Len() }
