// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PacketConn is the part of [net.UDPConn] that a session uses.
type PacketConn interface {
	ReadFromUDPAddrPort(b []byte) (n int, from netip.AddrPort, err error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	LocalAddr() net.Addr
	Close() error
}

// Network opens a session's sockets on a node's own overlay address.
type Network interface {
	// Listen takes TCP connections on a port that the kernel chooses.
	Listen(ctx context.Context, on netip.Addr) (net.Listener, error)
	// ListenPacket takes datagrams likewise.
	ListenPacket(ctx context.Context, on netip.Addr) (PacketConn, error)
	// Dial connects from the address to another node's.
	Dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error)
}

// SystemNetwork is the kernel's.
type SystemNetwork struct{}

// packetBuffer is what a datagram socket may hold, in bytes: what the way
// carries is measured, not how soon the sink gets its turn.
const packetBuffer = 4 << 20

// Listen implements [Network].
func (SystemNetwork) Listen(ctx context.Context, on netip.Addr) (net.Listener, error) {
	lc := net.ListenConfig{Control: limitPatience, KeepAlive: -1} // the connections inherit it
	return lc.Listen(ctx, "tcp", netip.AddrPortFrom(on, 0).String())
}

// ListenPacket implements [Network].
func (SystemNetwork) ListenPacket(ctx context.Context, on netip.Addr) (PacketConn, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(on, 0).String())
	if err != nil {
		return nil, err
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		_ = pc.Close()
		return nil, fmt.Errorf("a %T is no UDP socket", pc)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			// Without CAP_NET_ADMIN it has the size that every socket has.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer)
		})
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Dial implements [Network].
func (SystemNetwork) Dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), KeepAlive: -1, Control: limitPatience}
	return d.DialContext(ctx, "tcp", to.String())
}

// limitPatience makes the kernel give up a connection to a host that is gone
// soon after a session does, also after it was closed.
func limitPatience(_, _ string, c syscall.RawConn) (err error) {
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patience/time.Millisecond))
	})
	return errors.Join(err, cerr)
}

// ProcessTime is what this process has used of the processors, user and system.
func ProcessTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0 // it has no other reason than a bad argument
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// addrPort is the address of a listener or socket of ours.
func addrPort(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
