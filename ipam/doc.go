// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out the addresses of a mesh, each node for itself, so that no two nodes ever hand out the same one,
// whatever messages are lost, repeated, delayed or reordered, and whichever nodes are cut off, crash and come back, as long
// as a node that was declared gone is gone.
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
// free, up to half, and no more than an equal part where several nodes that answer own nothing yet. It writes into its
// ring that they are granted to the other (pending), stores that, and asks others to record it (Confirm); they answer with
// the slots that they speak for (Ack). Once the slots that have recorded it are more than half of the universe, the donor
// hands the blocks over: it sends them with its whole ring (Grant), again and again until the recipient has said that it
// has stored both (Received). The recipient claims them in its ring, in the same commit, and allocates from then on.
//
// Slots are counted and not nodes, because slots are conserved: any two majorities share a slot, however many nodes there
// are. It takes three rules for that to hold:
//
//   - At any time one node at most speaks for a slot: who has claimed it; when it is pending, the donor until it hands it
//     over; then nobody until the recipient claims it.
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
// Without a majority on its side of a partition a node goes on allocating from what it has; nothing is granted.
//
// # The way of what a dead node had
//
// The ring carries a log of retirements: who is gone for good, and who is the heir. Each entry is decided by single-decree
// Paxos in which the slots are the acceptors (Vote, Voted): a node votes with the slots that it speaks for, and the state of
// its vote is part of its ring, so it moves with the slots, too. Logs are therefore prefixes of each other, and there is one
// heir of a node, ever. The dead node's own slots do not vote.
//
// The heir that the last entry names, alone, takes over for all who are retired. It asks everybody what they know (Survey),
// and takes over a slot, claimed or pending, of which the owner or the donor is retired, when
//
//   - a majority has answered, so that it knows all that retired nodes have granted with effect;
//   - the slot's owner and its donor have answered, if they are not retired: neither has it, nor will;
//   - so have all earlier heirs since that retirement, which may have taken it over.
//
// Answers, and acks of grants too, count only between nodes whose logs have the same length. Who knows of a retirement
// has a longer log than the retired node can have, so it records nothing more for that; and a retired node's slots, whose new
// speaker need not know all that they had recorded, do not count any more. The takeover is written in the epoch that is
// the length of the log, which is greater than that of anything a retired node can have written, should it surface late.
// Nobody hands over anything to a node that it knows to be retired (the donor takes it back instead, if it has not), nor
// claims what one hands over.
//
// A node that finds itself retired speaks for nothing and hands out nothing. If more than half of the universe is gone,
// nothing can be decided; who then retires a node by force has to be sure that nobody on another side does the same.
//
// Adopting a seeded share takes no majority; that of a name that nobody has adopted can be retired like a node.
//
// # Who does what
//
// All state is in Allocator, under one lock that is never held during I/O; a second lock makes commits one after
// another. The package starts no goroutine: Run is called by the owner and ends with its context. The core of it, ledger,
// space and pickBlocks, is free of locks, clocks and I/O. Only internal/node imports this package, which imports ring and no
// other part of Weft.
package ipam
