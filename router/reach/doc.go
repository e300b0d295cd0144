// SPDX-License-Identifier: Apache-2.0

// Package reach decides by which path each node of the mesh is reached: directly, at one of the addresses where it may be, or through
// up to [MaxRelays] other nodes.
//
// # What is believed
//
// Only answers. A path is proven when a pong came back over it, so that both directions work; what records say of addresses and links is
// a reason to ask, and no more. Until a path is proven the most likely one is used on trust, so that the first packet does not wait.
//
// # What is asked
//
// Nodes that are in use (Used) are watched: when nothing comes from one for a second it is pinged, and given up on that path after a
// second without an answer; the search for another path begins before that. The same happens when it pings us, as it does when it hears nothing: what
// comes from there tells of one direction only. A path through relays is pinged all the time that it is used, and
// the direct way is tried again with growing patience. Nodes that are only written to now and then (Wanted) are examined once, and again when
// somebody says that they do not answer (Examine). All others cost nothing.
//
// Besides each node keeps up to [MaxLinks] links: direct neighbours that are pinged every few seconds. Their names go into its record. From
// everybody's links the routes through relays are found, by search on demand, and the best of those that answer is taken. What a relay
// reaches it has a link to, or the other way round.
//
// # Behind NAT
//
// Pongs tell where the ping came from; that goes into the record, too. Two nodes of which neither can be reached from outside ask each other,
// through the first relay that works, to ping at the same time.
//
// # Use
//
// [Machine] is pure: no I/O, no clock, no goroutine, nothing is logged; with the same Rand the same happens. Its methods note what has happened, and
// Tick returns what is to be done. It is used by one goroutine at a time. What it is told by pings and pongs must be authentic. Imports the
// standard library only; package router imports it.
package reach
