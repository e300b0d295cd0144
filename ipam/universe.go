// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/ipam/ring"
)

// Limits of a universe.
const (
	// MaxSlots is the most slots that a universe has. Of a range with more addresses (an IPv6 /64, say) the first
	// MaxSlots are handed out; the rest belong to the universe but to no slot.
	MaxSlots = 1 << 31

	minSlotBits = 3  // a /29, or an IPv6 /125
	minBits4    = 8  // the largest IPv4 range
	minBits6    = 16 // the largest IPv6 range
)

// Universe is the range of addresses that a mesh hands out: an IPv4 prefix, an IPv6 prefix or both. A prefix that is
// not used is the zero Prefix. Slot s stands for the s-th address of each prefix; with both, the smaller one decides how
// many slots there are. The first slot (the network's address, and IPv6's subnet-router anycast) and the last one
// (IPv4's broadcast) are never handed out. The value can be compared with ==.
type Universe struct{ V4, V6 netip.Prefix }

// ParseUniverse reads "v4", "v6" or "v4,v6" (in either order), in CIDR notation. IPv4 ranges are /8 to /29, IPv6
// ranges /16 to /125, of unicast addresses, without host bits.
func ParseUniverse(s string) (Universe, error) {
	var u Universe
	for part := range strings.SplitSeq(s, ",") {
		p, err := parseRange(strings.TrimSpace(part))
		if err != nil {
			return Universe{}, err
		}
		family, name := &u.V6, "IPv6"
		if p.Addr().Is4() {
			family, name = &u.V4, "IPv4"
		}
		if family.IsValid() {
			return Universe{}, fmt.Errorf("range %s names two %s ranges; give at most one of each family", s, name)
		}
		*family = p
	}
	return u, nil
}

func parseRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("range %q is not in CIDR notation; write it like 10.32.0.0/12 or fd00:10:32::/64", s)
	}
	a := p.Addr()
	smallest, largest := 32-minSlotBits, minBits4
	if !a.Is4() {
		smallest, largest = 128-minSlotBits, minBits6
	}
	switch {
	case a.Is4In6():
		return netip.Prefix{}, fmt.Errorf("range %s is IPv4 written as IPv6; write it as IPv4", s)
	case p.Bits() > smallest:
		return netip.Prefix{}, fmt.Errorf("range %s is too small; choose a /%d or larger", s, smallest)
	case p.Bits() < largest:
		return netip.Prefix{}, fmt.Errorf("range %s is too large; choose a /%d or smaller", s, largest)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("range %s has host bits set; write %s", s, p.Masked())
	case a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a.IsUnspecified(), a.Is4() && a.As4()[0]>>4 == 15:
		return netip.Prefix{}, fmt.Errorf("range %s holds no addresses that workloads can have; choose a private one such as 10.32.0.0/12", s)
	}
	return p, nil
}

// Prefixes returns the prefixes that are in use, IPv4 first.
func (u Universe) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{u.V4, u.V6} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// String returns what ParseUniverse reads: "10.32.0.0/12,fd00::/64".
func (u Universe) String() string {
	var parts []string
	for _, p := range u.Prefixes() {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

// Size returns the number of slots, a power of two up to MaxSlots; 0 for the zero Universe.
func (u Universe) Size() uint64 {
	var size uint64
	for _, p := range u.Prefixes() {
		n := uint64(1) << min(p.Addr().BitLen()-p.Bits(), bits.Len(MaxSlots)-1)
		if size == 0 || n < size {
			size = n
		}
	}
	return size
}

// Addrs returns the addresses of a slot, the zero Addr for a family that is not used. The slot must be less than Size.
func (u Universe) Addrs(slot uint32) (v4, v6 netip.Addr) {
	return ring.Addr(u.V4, slot), ring.Addr(u.V6, slot)
}

// Slot returns the slot that an address of either family stands for, and whether there is one.
func (u Universe) Slot(a netip.Addr) (uint32, bool) {
	a = a.Unmap().WithZone("")
	p := u.V6
	if a.Is4() {
		p = u.V4
	}
	if !p.IsValid() || !p.Contains(a) {
		return 0, false
	}
	from, to := p.Masked().Addr().As16(), a.As16()
	lo := binary.BigEndian.Uint64(to[8:]) - binary.BigEndian.Uint64(from[8:])
	if binary.BigEndian.Uint64(to[:8]) != binary.BigEndian.Uint64(from[:8]) || lo >= u.Size() {
		return 0, false
	}
	return uint32(lo), true
}

// Contains reports whether an address lies in one of the prefixes. With two prefixes of different size, or a large IPv6
// one, that does not mean that it has a slot.
func (u Universe) Contains(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return u.V4.IsValid() && u.V4.Contains(a) || u.V6.IsValid() && u.V6.Contains(a)
}

// reserved reports whether a slot is never handed out.
func (u Universe) reserved(slot uint32) bool { return slot == 0 || uint64(slot) == u.Size()-1 }

// UniverseID tells meshes apart: nodes merge their rings only if their IDs are equal.
type UniverseID [16]byte

// String returns 32 hexadecimal digits.
func (id UniverseID) String() string { return hex.EncodeToString(id[:]) }

// ID returns the first 16 bytes of the SHA-256 over the range, the seed and, if there is one, the reserve. The encoding below
// is part of what nodes agree on and must never change.
func (u Universe) ID(s Seed, r Reserve) UniverseID {
	h := []byte("weft universe 1\x00")
	if text := r.String(); text != "" {
		h = binary.BigEndian.AppendUint16([]byte("weft universe 2\x00"), uint16(len(text)))
		h = append(h, text...)
	}
	for _, p := range []netip.Prefix{u.V4, u.V6} {
		text := ""
		if p.IsValid() {
			text = p.String()
		}
		h = append(h, byte(len(text)))
		h = append(h, text...)
	}
	sum := sha256.Sum256(append(h, s.Encode()...))
	return UniverseID(sum[:16])
}
