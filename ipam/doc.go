// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out the addresses of a mesh, each node for itself, so that no two nodes ever hand out the same one,
// whatever messages are lost, repeated, delayed or reordered, and whichever nodes are cut off, crash and come back.
//
// # The way of an address
//
// An address is a slot of the Universe. The ring (package ring) says which node owns it; the ledger says whether that
// node may use it already; the space finds one that is free; the Store keeps the allocation. Allocate is memory and one
// commit, which concurrent calls share, as long as a free slot is left on the node.
//
// # The way of a block
//
// A node that runs low asks the richest node that answers (Request). That one picks CIDR-aligned blocks out of what it has
// free, up to half, writes into its ring that they are the other's, stores that, and asks others to record it (Confirm);
// they answer with the slots that they speak for (Ack). Once the slots that have recorded it are more than half of the
// universe, the donor hands the blocks over: it sends them with its whole ring (Grant), again and again until the recipient
// has said that it has stored both (Received). The recipient allocates from then on.
//
// Slots are counted and not nodes, because slots are conserved: any two majorities share a slot, however many nodes there
// are. It takes three rules for that to hold:
//
//   - At any time one node at most speaks for a slot: the donor until it hands it over, the recipient once it has it.
//   - Knowledge moves with the slots: the recipient merges the donor's whole ring first. So what the speaker of a slot
//     has recorded once, every later one knows.
//   - The donor's own slots count, those included that it is granting: it speaks for them when it records the grant. So a
//     donor that speaks for more than half hands over at once.
//
// Since the donor goes on speaking for what it has granted, any number of grants may be under way at the same time
// without the slots that could record them running out.
//
// Nothing is said or handed out before it is durable. After a commit that failed it is not known what the store holds; it
// is then written again along with the next one, before anything that depends on it is said.
//
// Without a majority on its side of a partition a node goes on allocating from what it has; nothing is granted. What is
// granted to a node that never comes to have it stays where it is until the slots of that node are reclaimed.
//
// # Who does what
//
// All state is in Allocator, under one lock that is never held during I/O; a second lock makes commits one after
// another. The package starts no goroutine: Run is called by the owner and ends with its context. The core of it, ledger,
// space and pickBlocks, is free of locks, clocks and I/O. Only internal/node imports this package, which imports ring and no
// other part of Weft.
package ipam
