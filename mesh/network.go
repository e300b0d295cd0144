// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Network is the TCP network and the name service under the mesh. [SystemNetwork]
// is the real one; mesh/memnet has one in memory for tests under virtual time.
type Network interface {
	// Listen opens a stream listener on all local addresses. Port 0 = any.
	Listen(port uint16) (net.Listener, error)
	// Dial connects to addr, for as long as ctx allows.
	Dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// Lookup returns all v4 and v6 addresses of a host name.
	Lookup(ctx context.Context, host string) ([]netip.Addr, error)
}

// SystemNetwork is the operating system's network. The zero value is ready.
type SystemNetwork struct{}

// Listen implements [Network].
func (SystemNetwork) Listen(port uint16) (net.Listener, error) {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("TCP port %d is taken: stop what listens there, or choose another with --port: %w", port, err)
	}
	return l, err
}

// Dial implements [Network].
func (SystemNetwork) Dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr.String())
}

// Lookup implements [Network].
func (SystemNetwork) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// egress chooses the address to advertise: the source address that the host's
// routes give towards the first hint that has a route, else towards anywhere,
// else any global unicast address of an interface that is up. Tunnels
// (point-to-point devices, Weft's own among them) come last. No packet is sent.
func egress(hints []netip.Addr) (netip.Addr, error) {
	// Documentation addresses (RFC 5737, RFC 3849): nobody's, so they follow the default route.
	hints = append(hints[:len(hints):len(hints)], netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 1}))
	for _, h := range hints {
		conn, err := net.Dial("udp", netip.AddrPortFrom(h, 9).String())
		if err != nil {
			continue
		}
		ap, ok := conn.LocalAddr().(*net.UDPAddr)
		if err := conn.Close(); err != nil || !ok {
			continue
		}
		a := ap.AddrPort().Addr().Unmap()
		if h.IsLoopback() == a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsUnspecified() {
			return a, nil
		}
	}
	return interfaceAddr()
}

func interfaceAddr() (netip.Addr, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list interfaces: %w", err)
	}
	var tunnel netip.Addr
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // the interface went away meanwhile
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || !p.Addr().IsGlobalUnicast() {
				continue
			}
			if i.Flags&net.FlagPointToPoint == 0 {
				return p.Addr().Unmap(), nil
			}
			if !tunnel.IsValid() {
				tunnel = p.Addr().Unmap()
			}
		}
	}
	if tunnel.IsValid() {
		return tunnel, nil
	}
	return netip.Addr{}, errors.New("no address to advertise: this host has no global unicast address; set one with --advertise")
}
