// SPDX-License-Identifier: Apache-2.0

// Package pathmtu finds out how large a packet may be that shall reach a peer whole: by probes of the size in question that
// the peer acknowledges (RFC 8899), never by ICMP, which anybody can forge and many networks drop.
//
// A [Machine] decides, for one peer and the direction towards it, what to probe and when; [Message] is what probes and
// their acknowledgements look like; [Split] and [Assembler] carry packets that must not be smaller than the path is.
//
// All sizes are those of inner packets, in bytes: what a session seals. What the seal and the underlay add does not
// matter here, as probes are sealed like packets.
//
// Pure: time is an argument, nothing here blocks, logs or does I/O. Values are used by one goroutine at a time. Imports the
// standard library only; package router imports it.
package pathmtu
