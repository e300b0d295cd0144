// SPDX-License-Identifier: Apache-2.0

// Package compile turns policies into what a kernel looks up for each new connection, and keeps that up to date while objects come and go.
//
// Its result is a [State]. Addresses are sorted into identities: two addresses have the same one if no rule in use on this node can tell them
// apart. All that decides is worked out beforehand, through all tiers, so that the verdict on a connection takes the same few look-ups
// whatever the number of policies:
//
//	address of a local endpoint, direction -> table
//	address of the other end               -> identity
//	(identity, protocol, port)             -> verdict in that table
//
// Endpoints of the same verdicts share a table. A [Compiler] works incrementally: [Compiler.Commit] returns what has changed since the last one, and the
// cost of a change is that of what it touches. Invariants, tested against each other and against policy.World:
//
//   - For every connection [State.Verdict] of the committed state is what policy.World.Judge says of the same objects.
//   - The state after any sequence of changes is, but for the numbers of identities, that of a new compiler with the same objects.
//   - Applying each returned [Delta] to the state before gives the state after.
//
// Pure: no I/O, no clock, no goroutine. A Compiler is used by one goroutine at a time. internal/node imports it, and policy/filter its types.
package compile
