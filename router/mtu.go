// SPDX-License-Identifier: Apache-2.0

package router

import "github.com/weftnet/weft/router/session"

const (
	// maxDatagram is the largest datagram that a shard takes.
	maxDatagram = 16 << 10
	// minMTU is the least that IPv6 asks of a link (RFC 8200 §5).
	minMTU = 1280
	// headers of the underlay: IPv6, the larger one, and UDP.
	underlayHeaders = 40 + 8
)

// MaxMTU is the largest inner MTU in bytes that the router carries.
const MaxMTU = (maxDatagram - session.Overhead) &^ (session.Padding - 1)

// InnerMTU returns the MTU in bytes for a TUN device whose packets shall fit, sealed, into packets of the
// underlay of link bytes, IPv4 or IPv6. It is never less than 1280, which IPv6 needs: over links too narrow
// for that IPv6 packets go in pieces; see path.go.
func InnerMTU(link int) int {
	return min(max(session.MaxPlaintext(link-underlayHeaders), minMTU), MaxMTU)
}
