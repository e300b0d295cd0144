// SPDX-License-Identifier: Apache-2.0

// Package replica is what plain hosts, without Kubernetes, share of network policies: the manifests that were applied, and the endpoints
// that each node has. A [Set] is a state-based CRDT. internal/node registers two with the mesh, one for the manifests, which any node writes, and one
// for the endpoints, of which each node writes its own.
//
// # What is replicated
//
// A Set has items, each written once, by one node, under a key, and known by its [Dot]: the writer and the number that it gave the item. And it knows
// which dots it has seen. Of an item whose dot was seen and that is not there it is certain that it was replaced or deleted. So
//
//	merged = what both have, and what one has and the other has not seen
//
// which is commutative, associative and idempotent. A write replaces all items of its key that the writer knew of; a delete leaves nothing but
// the dots. Items of one key that were written without knowing of each other stay all, until the next write; of these the last one counts: the one
// with the greatest version, which is one more than any that the writer knew of, then the greatest writer. [Set.Get] returns that.
//
// # Deleting, and nodes that were away
//
// There are no tombstones, so that there is nothing that could be forgotten too early: however long a node was away, what was deleted meanwhile does not
// come back with it, as all others have seen its dots. What is kept for that does not grow with what was deleted: dots are seen in ranges, in
// the end one for each node that has ever written, some 20 bytes ([Limits].Writers bounds them). A delete concerns what its writer knew of: what was written
// on the other side of a partition at the same time stays.
//
// A delta says the same as a state, of fewer dots, and is merged alike. Deltas may be lost, come twice or in any order.
//
// Numbers are never used twice: a node goes on after the greatest that was ever seen of it, and not before a floor that the caller takes from
// the clock, for the case that its disk was put back to an earlier time.
//
// Decoders are bounded. Pure: no I/O, no clock, no goroutine, nothing is logged. A Set is used by one goroutine at a time. It imports
// policy, whose endpoints it encodes.
package replica
