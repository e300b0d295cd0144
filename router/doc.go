// SPDX-License-Identifier: Apache-2.0

// Package router is the dataplane: it carries packets between the TUN device
// of this host and the peers, sealed, over UDP.
//
// # A packet's way
//
// Out (outbound.go): a shard reads a packet, or a superpacket of up to 64 KiB of one flow, from
// its TUN queue; finds the peer that owns the destination; splits the superpacket; seals each
// packet for the peer and sends the lot. In (inbound.go): a shard receives datagrams; opens
// each; checks that its inner source belongs to the peer that sealed it and its
// destination to this host; joins those of one flow that follow each other, and writes the
// superpacket to the TUN device. Each is opened directly behind the one before, so no payload is copied.
//
// # Checksums
//
// What a sender's kernel leaves open of a TCP or UDP checksum stays open between two nodes in suite weft: the seal protects
// the bytes, and a flag in the header of the data message, under the seal too, says so. The receiver tells its kernel, with
// offsets and a sum of its own reckoning, or completes the checksum where its TUN device has no offloads. In suite
// wireguard the sender completes it.
//
// # Congestion marks
//
// A datagram bears the ECN field of the packet in it, and a mark that it gets on the way is passed on to that packet (RFC 6040,
// normal mode; ecn.go): transports inside learn of congestion between the hosts as if there were no tunnel. The DSCP stays inside unless
// Config.CopyDSCP says otherwise.
//
// # Light flows
//
// A request that comes behind a stream would wait at the other host until all is opened that waits there. So datagrams of flows that send little
// are marked as light (flows.go), by a code point of the DSCP that networks take for the default one; the receiver has a queue of its own for them,
// handles it first, and once more before each batch of others, so that no flow overtakes itself. With Config.CopyDSCP nothing is marked.
//
// # Path MTUs
//
// How large a packet may be that shall reach a peer, is found out by probes that the peer acknowledges under the seal
// (package pathmtu, path.go); ICMP is not believed. A size is used from the start and confirmed by and by: datagrams
// of a size that is known to pass go out with don't-fragment set, larger ones leave it to the network to fragment them, which
// goes for everything to a peer that answers no probes. What is too large for the path is answered with the ICMP error that
// a router owes, or fragmented where IPv4 allows that, before it is sealed. IPv6 packets of up to 1280 bytes must pass whatever the path
// is: they go in pieces, which the router of the peer joins.
//
// # Relays
//
// What is for a peer that is not reached directly goes through up to four others (carriage.go, message.go): sealed for that peer, then put into a frame
// (package relay) that is sealed for the first of them, which opens that, seals it for the next, and so on (relaying.go): at the price of one more seal at either end, and
// without copying at a relay. All that a session sends goes that way, also handshakes and probes of path MTUs; the destination answers by the way
// that a message came. Congestion marks, the DSCP and don't-fragment are carried on from stretch to stretch. When the way changes, sessions stay, and a larger packet is not sent before it is
// known to pass.
//
// # Control datagrams
//
// What is not in a session is a control datagram (package envelope, control.go): the gossip of the mesh, which the router carries but
// does not read, pings, and the answers to probes that came by kernel paths (Config.OnProof). They are sealed with a key of the mesh, may go through other nodes, and are passed on for others: only
// for members, only to who is reached directly, and no more than Config.RelayLimit allows.
//
// They have a socket of their own (Config.ControlConn) and a goroutine that reads it (apart.go), as far as the kernel can tell datagrams
// apart: so they do not wait behind data, nor are lost for it, and a storm of them takes nothing from the shards but a bounded share of
// a processor. What it sends goes first on this host, and is marked as network control (DSCP CS6) for others.
//
// # Ways to nodes
//
// Package reach decides how each node is reached: directly at one of its addresses, or through relays. The timer goroutine drives it (reaching.go),
// and whoever handles a control datagram, or data from where none was expected, tells it, under a mutex; the shards read the way of a peer
// (way.go) from an atomic pointer. Whoever is exchanging packets with a node is found by the counters of those that were touched, so
// idle nodes cost nothing. When a way turns out to work, or is replaced, a handshake that may have gone astray begins anew at once.
//
// # Threads and ownership
//
// One shard per TUN queue and UDP socket, one locked thread per shard, which does all of the above
// itself (shard.go): no packet changes hands between goroutines. Shards share immutable
// snapshots behind an atomic pointer, the sessions, which are safe for that, and atomic counters.
// One more goroutine drives the timers of the sessions (timers.go), and one reads control datagrams. Run owns all of them and
// returns when all have ended. Nothing on the packet path allocates, blocks or logs.
//
// # Desired state
//
// SetPeers and SetLocal take the whole of what shall be, any number of times, before and
// during Run. Peers that stay keep their sessions. What happens to the mesh or to the liveness of a peer
// never takes its routes away: only SetPeers does.
//
// # Invariants
//
//   - A packet leaves only sealed for the peer that owns its destination, or not at all.
//   - A packet enters only if its source belongs to the peer whose key opened it, and its destination to
//     this host: nobody speaks for another, nobody routes through us but external peers, who have no other
//     way (external.go).
//   - What is relayed is sealed by the ends for each other. It is taken from members only, passed on directly or not at all, and never back; see relaying.go.
//   - A peer that is no node of the mesh is where the last datagram came from that it authenticated. How a node is reached is for
//     package reach to say: a way is proven by the answer to a ping, and only data that authenticates moves it without one.
//
// The package imports router/envelope, router/packet, router/pathmtu, router/reach, router/relay, router/session, router/route, router/tun and
// router/underlay, and no other engine. Only the composition root imports it.
package router
