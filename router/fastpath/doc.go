// SPDX-License-Identifier: Apache-2.0

// Package fastpath decides which peers are reached by the kernel alone,
// without a seal: by routes to their underlay addresses, or by VXLAN.
//
// [Plan] says by which ways a peer may be reached, [Machine] which of them is used: one that was proven by probes, and is
// proven again and again while it carries traffic.
//
// Invariants: a way exists only if both nodes trust each other's underlay
// address, or the mesh was founded without encryption; a way is used only after
// it was proven at its full MTU in every family it carries.
//
// It is pure: time and randomness are arguments, it starts no goroutine, logs nothing, does no I/O, and is not safe for
// concurrent use. internal/node imports it, and its own sub-packages do.
package fastpath
