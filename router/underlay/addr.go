// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// encode writes the socket address of a into name and returns its length. The address
// must be one that a socket of the family can reach.
func encode(name *unix.RawSockaddrInet6, family int, a netip.AddrPort) (uint32, unix.Errno) {
	addr := a.Addr()
	if !addr.IsValid() {
		return 0, unix.EDESTADDRREQ
	}
	if family == unix.AF_INET {
		if addr = addr.Unmap(); !addr.Is4() {
			return 0, unix.EAFNOSUPPORT
		}
		name4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*name4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swapped(a.Port()), Addr: addr.As4()}
		return unix.SizeofSockaddrInet4, 0
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swapped(a.Port()), Addr: addr.As16()}
	if zone := addr.Zone(); zone != "" {
		index, errno := scope(zone)
		if errno != 0 {
			return 0, errno
		}
		name.Scope_id = index
	}
	return unix.SizeofSockaddrInet6, 0
}

// scope returns the interface index of a zone, which is a number, as decode
// makes it, or the name of an interface.
func scope(zone string) (uint32, unix.Errno) {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), 0
	}
	link, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, unix.ENODEV
	}
	return uint32(link.Index), 0
}

// zones remembers the spelling of the last zone, so that link-local peers cost
// no allocation per packet.
type zones struct {
	index uint32
	zone  string
}

// decode reads a socket address that the kernel wrote.
func (z *zones) decode(name *unix.RawSockaddrInet6) netip.AddrPort {
	if name.Family == unix.AF_INET {
		name4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(name4.Addr), swapped(name4.Port))
	}
	addr := netip.AddrFrom16(name.Addr).Unmap()
	if name.Scope_id != 0 && addr.Is6() {
		if name.Scope_id != z.index {
			z.index, z.zone = name.Scope_id, strconv.FormatUint(uint64(name.Scope_id), 10)
		}
		addr = addr.WithZone(z.zone)
	}
	return netip.AddrPortFrom(addr, swapped(name.Port))
}

// swapped converts a port between the byte order of the host, in which Go reads
// the field, and that of the network, in which the kernel has it.
func swapped(port uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}
