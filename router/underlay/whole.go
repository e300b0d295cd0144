// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// alwaysWhole is the payload in bytes that passes every IPv4 path without fragments in practice: 576 bytes less the headers (RFC 1122
// §3.3.3). IPv6 paths pass 1232.
const alwaysWhole = 548

// How a socket treats datagrams that are too large for their path (ip(7), ipv6(7)). The usual way sets don't-fragment and
// believes no ICMP. Where fragments are allowed, IPv4 routers make them as needed, so the kernel needs to know nothing of the path;
// IPv6 routers do not, so it has to.
const (
	wholeV4, fragmentsV4 = unix.IP_PMTUDISC_PROBE, unix.IP_PMTUDISC_OMIT
	wholeV6, fragmentsV6 = unix.IPV6_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_DONT
)

// allowFragments changes between the two. The caller holds mode for writing. These options cannot fail on a socket on which Listen has
// set them; of one that is closed the call that follows tells.
func (c *Conn) allowFragments(allow bool) {
	v4, v6 := int32(wholeV4), int32(wholeV6)
	if allow {
		v4, v6 = fragmentsV4, fragmentsV6
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return
	}
	c.setOption(unix.SOL_IP, unix.IP_MTU_DISCOVER, v4)
	if c.family == unix.AF_INET6 {
		c.setOption(unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, v6)
	}
}

// setOption is setsockopt(2) without telling the Go scheduler; see call.
func (c *Conn) setOption(level, name uintptr, value int32) {
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(c.fd), level, name, uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
}

// transmit sends what is loaded, n entries.
func (c *Conn) transmit(n int, fragment bool) (int, unix.Errno) {
	if !fragment {
		return c.call(unix.SYS_SENDMMSG, &c.tx, n, unix.MSG_DONTWAIT)
	}
	c.mode.Lock()
	defer c.mode.Unlock()
	c.allowFragments(true)
	defer c.allowFragments(false)
	return c.call(unix.SYS_SENDMMSG, &c.tx, n, unix.MSG_DONTWAIT)
}
