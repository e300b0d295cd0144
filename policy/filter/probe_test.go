// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// An outcome is what becomes of an attempt to connect.
type outcome string

const (
	reached outcome = "reached"
	refused outcome = "refused"
	lost    outcome = "lost"
)

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// socket opens one that is bound to an address.
func (s *space) socket(kind int, a netip.Addr, port uint16) (fd int, err error) {
	domain := unix.AF_INET
	if a.Is6() {
		domain = unix.AF_INET6
	}
	err = s.do(func() (err error) {
		fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err = unix.Bind(fd, sockaddr(a, port)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind to %v port %d: %w", a, port, err)
	}
	return fd, nil
}

// A server answers at all ports of TCP, by the refusal of the kernel, and counts nothing. To tell a refusal from a loss is enough to know whether
// a packet came through: what is denied is dropped without a word.
//
// tcp tries to connect, and says refused if it was the far host that did.
func (s *space) tcp(from, to netip.Addr, port uint16, patience time.Duration) outcome {
	fd, err := s.socket(unix.SOCK_STREAM|unix.SOCK_NONBLOCK, from, 0)
	if err != nil {
		return outcome(err.Error())
	}
	defer func() { _ = unix.Close(fd) }()
	if err = unix.Connect(fd, sockaddr(to, port)); errors.Is(err, unix.EINPROGRESS) {
		if err = ready(fd, unix.POLLOUT, patience); err == nil {
			var code int
			if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
				err = unix.Errno(code)
			}
		}
	}
	switch {
	case err == nil:
		return reached
	case errors.Is(err, unix.ECONNREFUSED):
		return refused
	case errors.Is(err, unix.ETIMEDOUT):
		return lost
	}
	return outcome(err.Error())
}

// udp sends a datagram, and waits for the answer that no such port is there.
func (s *space) udp(from, to netip.Addr, port uint16, patience time.Duration) outcome {
	fd, err := s.socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, from, 0)
	if err != nil {
		return outcome(err.Error())
	}
	defer func() { _ = unix.Close(fd) }()
	if err = unix.Connect(fd, sockaddr(to, port)); err == nil {
		if _, err = unix.Write(fd, []byte("?")); err == nil {
			if err = ready(fd, unix.POLLIN, patience); err == nil {
				_, err = unix.Read(fd, make([]byte, 1))
			}
		}
	}
	switch {
	case err == nil:
		return reached
	case errors.Is(err, unix.ECONNREFUSED):
		return refused
	case errors.Is(err, unix.ETIMEDOUT):
		return lost
	}
	return outcome(err.Error())
}

func ready(fd int, events int16, patience time.Duration) error {
	for end := time.Now().Add(patience); ; {
		left := time.Until(end)
		if left <= 0 {
			return unix.ETIMEDOUT
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}
