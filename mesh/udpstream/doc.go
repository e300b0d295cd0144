// SPDX-License-Identifier: Apache-2.0

// Package udpstream carries streams over the datagrams that a router takes from node to
// node: QUIC, for pairs of nodes between which TCP does not get through, or that reach each
// other by relays only.
//
// An [Endpoint] is both ends. It has no state until the first stream is dialled or the first
// datagram comes in, and none again a while after the last connection is gone.
//
// Who may use it: only members, as datagrams come from and go to the router, which opens and
// seals them under the token's key. So the TLS inside of QUIC authenticates nobody: its
// certificate is made up on the spot and not looked at. That is enough because nothing relies on
// it. The streams' user greets on each and seals what follows under keys of its own; a member
// that steps between the two ends of a QUIC connection gains what one between the ends of a
// TCP connection does, that is, it can break it. TLS stays because QUIC has no mode without.
//
// Bounds, as a member may be hostile: see [Limits]. Only package mesh imports it, and among all
// packages only this one knows quic-go.
package udpstream
