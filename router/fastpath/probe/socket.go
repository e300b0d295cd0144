// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
)

// controlSpace is room for what the kernel tells of where a datagram has arrived; IPv6 needs the most.
const controlSpace = 64

// open makes the sockets for one address.
func open(a netip.Addr, port uint16) (*end, error) {
	e := &end{addr: a, send: map[fastpath.Kind]int{}}
	err := e.open(port)
	if err == nil {
		return e, nil
	}
	at := netip.AddrPortFrom(a, port)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		err = fmt.Errorf("UDP port %v is taken by another process; stop it, or choose --port: %w", at, err)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("probes of kernel paths at %v need root (CAP_NET_ADMIN): %w", at, err)
	default:
		err = fmt.Errorf("opening sockets for probes of kernel paths at %v: %w", at, err)
	}
	return nil, errors.Join(err, e.close())
}

// option is a socket option that is a number.
type option struct{ level, name, value int }

func set(fd int, options []option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("socket option %d/%d: %w", o.level, o.name, err)
		}
	}
	return nil
}

func (e *end) open(port uint16) error {
	network, options := "udp4", []option{
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}, {unix.SOL_IP, unix.IP_FREEBIND, 1}, {unix.SOL_IP, unix.IP_PKTINFO, 1},
	}
	if e.addr.Is6() {
		network, options = "udp6", []option{
			{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}, {unix.SOL_IPV6, unix.IPV6_FREEBIND, 1}, {unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1},
		}
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = set(int(fd), options) }), err)
	}}
	conn, err := lc.ListenPacket(context.Background(), network, netip.AddrPortFrom(e.addr, port).String())
	if err != nil {
		return err
	}
	e.listen = conn.(*net.UDPConn)
	for _, k := range []fastpath.Kind{fastpath.VXLAN, fastpath.Direct} {
		if e.send[k], err = sender(e.addr, k); err != nil {
			delete(e.send, k)
			return err
		}
	}
	return nil
}

// sender makes a socket whose datagrams leave from an address by a kind of path. Its port is its own, so that nothing comes in there.
func sender(a netip.Addr, k fastpath.Kind) (fd int, err error) {
	family, options := unix.AF_INET, []option{
		{unix.SOL_IP, unix.IP_FREEBIND, 1}, {unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
	}
	if a.Is6() {
		family, options = unix.AF_INET6, []option{
			{unix.SOL_IPV6, unix.IPV6_FREEBIND, 1}, {unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE}, {unix.SOL_IPV6, unix.IPV6_DONTFRAG, 1},
		}
	}
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP); err != nil {
		return -1, err
	}
	options = append(options, option{unix.SOL_SOCKET, unix.SO_MARK, int(k.Mark())}, option{unix.SOL_SOCKET, unix.SO_RCVBUF, 0})
	if err = set(fd, options); err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(a, 0)))
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// close closes what is open.
func (e *end) close() error {
	var errs []error
	if e.listen != nil {
		errs = append(errs, e.listen.Close())
	}
	for _, fd := range e.send {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// control is what has a datagram leave by a device, without a look at the routes; nil for 0.
func (e *end) control(by int) []byte {
	if by == 0 || e.addr.Is6() {
		return nil
	}
	return unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(by), Spec_dst: e.addr.As4()})
}

func sendTo(fd int, b, control []byte, to netip.AddrPort) error {
	for {
		err := unix.Sendmsg(fd, b, control, sockaddr(to), unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// arrived returns the index of the device by which a datagram came, by what the kernel told of it; 0 if it did not tell.
func arrived(control []byte) int {
	for len(control) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return int((*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Ifindex)
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return int((*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])).Ifindex)
		}
		control = rest
	}
	return 0
}
