// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Sizes asked for the socket buffers, in bytes. A receive buffer holds what
// arrives while its thread is busy or not scheduled: 4 MiB are 30 ms at 1 Gb/s. A full
// send buffer holds back the readers of TUN queues, so it should be no deeper than needed.
const (
	receiveBuffer = 4 << 20
	sendBuffer    = 2 << 20
)

// ErrPortTaken means that another socket of this host is bound to the port.
var ErrPortTaken = errors.New("port taken")

// Error is what Listen and EgressMTU return. Its text is one line: what happened, to
// what, and what to do.
type Error struct {
	Kind error // ErrPortTaken or nil
	Err  error // what the kernel said

	text string
}

// Error returns the line.
func (e *Error) Error() string { return e.text }

// Unwrap returns Kind and Err, as far as they are there.
func (e *Error) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}

// Listen opens n (at least 1) sockets on the UDP port of all addresses, in the
// network namespace of the calling thread. Port 0 lets the kernel choose one, the
// same for all. They are bound in the order in which they are returned. Where there is no IPv6 the sockets speak IPv4 only. Errors hold an *Error
// (errors.As).
func Listen(port uint16, n int, o Options) ([]*Conn, error) {
	family := unix.AF_INET6
	first, err := open(family, port, false)
	if noIPv6(err) {
		family = unix.AF_INET
		first, err = open(family, port, false)
	}
	if err != nil {
		return nil, listenError(port, err)
	}
	if n <= 1 {
		first.probe(o)
		first.gso.tell = o.Fallback
		return []*Conn{first}, nil
	}
	// The first socket, opened to itself, has shown that the port is free:
	// with SO_REUSEPORT another process of the same user could have it too.
	port = first.Port()
	if err := first.Close(); err != nil {
		return nil, listenError(port, err)
	}
	var conns []*Conn
	for range n {
		c, err := open(family, port, true)
		if err != nil {
			errs := []error{listenError(port, err)}
			for _, c := range conns {
				errs = append(errs, c.Close())
			}
			return nil, errors.Join(errs...)
		}
		conns = append(conns, c)
	}
	shared := &gso{tell: o.Fallback}
	for _, c := range conns {
		c.gso = shared
		c.probe(o)
	}
	return conns, nil
}

func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EPROTONOSUPPORT)
}

func listenError(port uint16, err error) *Error {
	e := &Error{Err: err}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		e.Kind = ErrPortTaken
		e.text = fmt.Sprintf("UDP port %d is taken by another process; stop it or choose --port", port)
	case errors.Is(err, unix.EACCES):
		e.text = fmt.Sprintf("UDP port %d may be used by root only (CAP_NET_BIND_SERVICE): run as root or choose --port above 1023", port)
	default:
		e.text = fmt.Sprintf("listening on UDP port %d: %v", port, err)
	}
	return e
}

// open makes one socket. Its errors are those of the kernel.
func open(family int, port uint16, shared bool) (*Conn, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return nil, err
	}
	c := &Conn{fd: fd, family: family, gso: new(gso)}
	if err := c.configure(port, shared); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Conn) configure(port uint16, shared bool) error {
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	options := []struct{ level, name, value int }{
		{unix.SOL_IP, unix.IP_MTU_DISCOVER, wholeV4},
		{unix.SOL_IP, unix.IP_RECVTOS, 1}, // also of a socket that speaks IPv6
	}
	if c.family == unix.AF_INET6 {
		addr = &unix.SockaddrInet6{Port: int(port)}
		options = append(options, []struct{ level, name, value int }{
			{unix.SOL_IPV6, unix.IPV6_V6ONLY, 0},
			{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, wholeV6},
			{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1},
		}...)
	}
	if shared {
		options = append(options, struct{ level, name, value int }{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(c.fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("socket option %d/%d: %w", o.level, o.name, err)
		}
	}
	if err := enlarge(c.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return fmt.Errorf("receive buffer: %w", err)
	}
	if err := enlarge(c.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer); err != nil {
		return fmt.Errorf("send buffer: %w", err)
	}
	if err := unix.Bind(c.fd, addr); err != nil {
		return err
	}
	bound, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	switch a := bound.(type) {
	case *unix.SockaddrInet4:
		c.port = uint16(a.Port)
	case *unix.SockaddrInet6:
		c.port = uint16(a.Port)
	}
	return nil
}

// enlarge sets a buffer size, past the limit of the host (net.core.rmem_max, wmem_max)
// where that is allowed, and up to it otherwise.
func enlarge(fd, force, plain, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
}
