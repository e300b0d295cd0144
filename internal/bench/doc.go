// SPDX-License-Identifier: Apache-2.0

// Package bench measures the way between two nodes of a mesh: a load generator
// and a sink, which talk to each other from overlay address to overlay address,
// so that what they send goes the way of workloads' packets.
//
// The way through it is the way of a measurement. The asking node draws a
// session (rendezvous.go) and sends it to the other node by a channel that the
// caller provides and that only members can use; the other node opens its
// sockets ([Open]) and answers with their ports. [Measure] connects to them and
// runs the phases of [Plan] one by one, [Target.Run] does the other half: streams.go
// sends and takes TCP streams, packets.go small datagrams, latency.go requests
// and responses. control.go is the connection by which both agree on the
// beginning and the end of each phase and see each other alive.
//
// Invariants. Every connection begins with the session's secret, every datagram
// with a tag that is derived from it, and both are taken from the other node's
// overlay address only; anything else is closed or dropped, counted, and
// disturbs nothing. Both ends enforce the session's limits in time, bytes and
// streams on their own. A side that hears nothing of the other for [Silence]
// ends the session. When Measure or Run returns, every socket of the session is
// closed and every goroutine has ended.
//
// internal/node imports the package, and nothing else. It imports nothing of
// the module.
package bench
