// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

const (
	// deviceAlias marks the VXLAN devices.
	deviceAlias = "weft: vxlan"
	// macOUI begins the hardware addresses: locally administered, unicast (IEEE 802-2014, 8.4), and another than those of workloads.
	macOUI = 0x0e
	// hopBits is how much of the NodeID is in a next hop of IPv4: what 240.0.0.0/4, which is nobody's, leaves.
	hopBits = 28
	hopMask = 1<<hopBits - 1
)

// A mac is a hardware address.
type mac [6]byte

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

func macOf(id uint64) mac {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id)
	return mac{macOUI, b[3], b[4], b[5], b[6], b[7]}
}

// MAC returns the hardware address of a node's VXLAN devices: the low five bytes of its NodeID follow a first one that marks
// them. Two nodes may have the same.
func MAC(id uint64) net.HardwareAddr {
	m := macOf(id)
	return m[:]
}

// hop6 is the next hop of IPv6 inside VXLAN: a link-local address whose interface identifier is the NodeID.
func hop6(id uint64) netip.Addr {
	b := [16]byte{0: 0xfe, 1: 0x80}
	binary.BigEndian.PutUint64(b[8:], id)
	return netip.AddrFrom16(b)
}

// hop4 is the n-th choice for the next hop of IPv4 inside VXLAN: of 240.0.0.0/4, beginning with the low bits of the NodeID.
func hop4(id uint64, n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], ^uint32(hopMask)|(uint32(id)+n)&hopMask)
	return netip.AddrFrom4(b)
}

// assignHops gives each of the peers a next hop of IPv4 of its own: the one it has, or its first choice that is free.
func assignHops(ids []uint64, have map[uint64]netip.Addr) map[uint64]netip.Addr {
	out := make(map[uint64]netip.Addr, len(ids))
	taken := make(map[netip.Addr]bool, len(ids)+1)
	taken[netip.AddrFrom4([4]byte{255, 255, 255, 255})] = true
	for _, id := range ids {
		if a, ok := have[id]; ok {
			out[id], taken[a] = a, true
		}
	}
	for _, id := range ids {
		if _, ok := out[id]; ok {
			continue
		}
		for n := uint32(0); ; n++ {
			if a := hop4(id, n); !taken[a] {
				out[id], taken[a] = a, true
				break
			}
		}
	}
	return out
}

// halves returns p, or its two halves if it is one of the universe: the whole universe has a route already, to the router.
func halves(p netip.Prefix, universe []netip.Prefix) []netip.Prefix {
	for _, u := range universe {
		if p == u && p.Bits() < p.Addr().BitLen() {
			b := p.Addr().AsSlice()
			b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
			upper, _ := netip.AddrFromSlice(b)
			return []netip.Prefix{netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(upper, p.Bits()+1)}
		}
	}
	return []netip.Prefix{p}
}

// deviceFor returns the VXLAN device for an underlay address.
func deviceFor(a netip.Addr) string {
	if a.Is4() {
		return Device4
	}
	return Device6
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

func tableName(table uint32) string {
	switch table {
	case TableDirect:
		return fmt.Sprintf(" by direct (table %d)", table)
	case TableVXLAN:
		return fmt.Sprintf(" by vxlan (table %d)", table)
	case mainTable:
		return ""
	}
	return fmt.Sprintf(" (table %d)", table)
}
