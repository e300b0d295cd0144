// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Addr returns the address of a slot: base's first address plus slot. The sum must lie in base; it is the zero Addr if
// base is not valid.
func Addr(base netip.Prefix, slot uint32) netip.Addr {
	first := base.Masked().Addr()
	switch {
	case !first.IsValid():
		return netip.Addr{}
	case first.Is4():
		b := first.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+slot)
		return netip.AddrFrom4(b)
	default:
		b := first.As16()
		binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+uint64(slot))
		return netip.AddrFrom16(b)
	}
}

// Prefixes returns the fewest CIDR prefixes that cover the slots of the intervals and nothing else, in ascending order.
// base is the universe's prefix, in which all of the slots must lie; the intervals may overlap and come in any order.
func Prefixes(in []Interval, base netip.Prefix) []netip.Prefix {
	if !base.IsValid() {
		return nil
	}
	var out []netip.Prefix
	for _, i := range NewSet(in...) {
		for b := range i.Blocks() {
			out = append(out, netip.PrefixFrom(Addr(base, b.First), base.Addr().BitLen()-bits.TrailingZeros64(b.Len())))
		}
	}
	return out
}
