// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// EgressMTU returns how many bytes an IP packet to that address may have on its first
// link, or on its whole path where the kernel knows that to be narrower. It sends nothing. It works in the
// network namespace of the calling thread. Errors hold an *Error; no route is one.
func EgressMTU(to netip.Addr) (int, error) {
	mtu, err := egressMTU(to.Unmap())
	if err != nil {
		return 0, &Error{Err: err, text: fmt.Sprintf("asking for the MTU towards %v: %v; check the route (ip route get %v)", to, err, to)}
	}
	return mtu, nil
}

func egressMTU(to netip.Addr) (mtu int, err error) {
	family, level, option := unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_MTU
	if to.Is4() {
		family, level, option = unix.AF_INET, unix.SOL_IP, unix.IP_MTU
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var name unix.RawSockaddrInet6
	if _, errno := encode(&name, family, netip.AddrPortFrom(to, 9)); errno != 0 {
		return 0, errno
	}
	var addr unix.Sockaddr = &unix.SockaddrInet6{Port: 9, ZoneId: name.Scope_id, Addr: to.As16()}
	if to.Is4() {
		addr = &unix.SockaddrInet4{Port: 9, Addr: to.As4()}
	}
	if err := unix.Connect(fd, addr); err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(fd, level, option)
}
