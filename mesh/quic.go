// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"net"
	"net/netip"

	"go.uber.org/zap"

	"github.com/weftnet/weft/mesh/udpstream"
)

// Streams over the router's packets. What begins with the hello is the same as over
// TCP, and as with TCP nothing below it is relied on.

// newStreams returns the endpoint of this node, which has no state until it is needed.
func (m *Mesh) newStreams() *udpstream.Endpoint {
	return udpstream.New(udpstream.Config{
		ResetKey: resetKey(m.cfg.Keys.Hello, m.id),
		Send: func(b []byte, to udpstream.Addr) error {
			a := Addr{Node: NodeID(to.Node), Addr: to.Addr}
			if at := m.ways.udp(a.Node); a.Node != 0 && at.IsValid() {
				a.Addr = at
			}
			return m.sendPacketTo(kindStream, b, a)
		},
		Accept: func(c net.Conn) { m.takeIn(c) },
	})
}

// resetKey is the same in every life of a node, see udpstream.Config.
func resetKey(key [32]byte, id NodeID) [32]byte {
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte("weft quic reset 1 " + id.String())) // never fails
	return [32]byte(h.Sum(nil))
}

// dialUDP opens a stream over packets.
func dialUDP(e *udpstream.Endpoint) func(ctx context.Context, to Addr) (net.Conn, error) {
	return func(ctx context.Context, to Addr) (net.Conn, error) {
		return e.Dial(ctx, udpstream.Addr{Node: uint64(to.Node), Addr: to.Addr})
	}
}

// takeIn greets whoever opened conn, unless there are too many already.
func (m *Mesh) takeIn(conn net.Conn) {
	source := sourceOf(conn)
	if !m.letIn(source) {
		m.closeQuietly(conn)
		return
	}
	if !m.spawn(func(ctx context.Context) { m.serve(ctx, conn, source) }) {
		m.letOut(source)
		m.closeQuietly(conn)
	}
}

// closeStreams ends all streams over packets.
func (m *Mesh) closeStreams() {
	if err := ignoreClosed(m.streams.Close()); err != nil {
		m.log.Debug("closing the streams over UDP", zap.Error(err))
	}
}

// sourceOf returns the source of conn for counting and logging.
func sourceOf(conn net.Conn) string {
	if a, ok := conn.RemoteAddr().(udpstream.Addr); ok && a.Node != 0 {
		return NodeID(a.Node).String()
	}
	if a := addrOf(conn).Addr(); a.IsValid() {
		return sourceKey(a)
	}
	return "unknown"
}

// addrOf returns where conn comes from; not valid: through a relay.
func addrOf(conn net.Conn) netip.AddrPort {
	if a, ok := conn.RemoteAddr().(udpstream.Addr); ok {
		return netip.AddrPortFrom(a.Addr.Addr().Unmap(), a.Addr.Port())
	}
	ap, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
