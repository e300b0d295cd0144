// SPDX-License-Identifier: Apache-2.0

// Package fastpath decides which peers are reached by the kernel alone,
// without a seal: by routes to their underlay addresses, or by VXLAN.
//
// [Plan] says by which ways a peer may be reached, [Machine] which of them is used: one that was proven by probes, and is
// proven again and again while it carries traffic.
//
// # Consent
//
// A node sends to an underlay address of a peer only if it trusts that address itself, and the peer trusts the address that this node
// sends from; or if the mesh was founded without encryption. What a peer says of itself can widen what it receives and what is taken from it, and
// nothing else. Both sides take what is consented at all times, whatever they use, so nobody has to agree on when to switch.
//
// # Invariants
//
// A way exists only by consent; a way is used only after it was proven at its full MTU in every family it carries, but for one that was found in
// place at the start.
//
// What is in use is left for UDP only if the peer is there and answers otherwise, if the caller can ask that (Config.Asks): where its daemon is down, its
// kernel still passes packets on.
//
// It is pure: time and randomness are arguments, it starts no goroutine, logs nothing, does no I/O, and is not safe for
// concurrent use. internal/node imports it, and its own sub-packages do.
package fastpath
