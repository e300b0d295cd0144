// SPDX-License-Identifier: Apache-2.0

// Package mesh keeps the nodes of one Weft mesh in touch: who they are, which
// of them are alive, and the replicated state that they share.
//
// It is an engine over hashicorp/memberlist with a transport of its own. Packets
// leave through Config.Packets, for a node and not for an address, and come in by
// [Mesh.Deliver]: the router seals them and finds the path, through relays if need be.
// Streams are TCP on the same port number, or QUIC over such packets where TCP does not
// get through (dial.go). Every stream begins with a hello (hello.go) that proves knowledge
// of the token both ways before a byte of it reaches any other decoder, and is sealed from
// then on.
//
// What it guarantees:
//
//   - Replicated state is a set of state-based CRDTs (see [State]), the node
//     records among them. A change travels as gossip if it fits a packet, else
//     by reliable sends to a bounded number of members, and whoever learns
//     something new passes it on. Whatever is lost is repaired by digests: each node
//     compares hashes with another one every few seconds, and where they differ
//     both get what they lack and no more. A node that joins gets what it has
//     not got from an earlier run, once.
//   - A node record has one writer, the node itself; the highest Seq wins.
//   - Meshes of different universe never mix: hello, membership, gossip and
//     state exchange each check the universe's ID.
//   - Liveness is advice: a failed node's record stays, so that whoever computes
//     routes may keep them.
//   - Join targets and known nodes that are not alive are tried for as long as
//     the mesh runs.
//   - No caller is ever blocked on the network, apart from Run, Stop and Probe.
//     Every goroutine is owned by Run, which waits for it; memberlist's own end
//     within seconds of that and find every door closed.
//   - Memory is bounded whatever strangers send, and whatever members send (flood.go, larder.go, inspect.go). What a
//     member sends that makes no sense is logged with its id, once in a while.
//
// State.Merge and Config.OnChange are called from one goroutine each,
// Config.OnMessage from one goroutine per sending node.
//
// Among the engines only this package knows memberlist, and only internal/node
// imports it. It imports no other engine and nothing internal.
package mesh
