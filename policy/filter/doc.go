// SPDX-License-Identifier: Apache-2.0

// Package filter makes the kernel enforce a compile.State: by one nftables table, inet weft-policy, which is its own. It touches no other.
//
// The table has a constant number of chains and rules, and one small chain for each table of verdicts; endpoints, identities and cells are elements of
// a few maps. A packet of an established connection, or one related to such, meets one rule. The first packet of a new connection is judged like this:
//
//	phase      which copy of the rules judges (see below)
//	sides      source address -> chain of the table of its egress; destination address -> that of its ingress
//	identity   address of the other end -> number: by a hash map, else by a map of intervals, else World. The table's chain puts its number above it
//	cells      (table and identity, protocol, port) -> verdict: by a hash map; else (table and identity, protocol) -> list, and list and
//	           port -> verdict: by a map of intervals; else table and identity -> verdict: by a hash map
//	World      the same once more with the identity World, of which each table has a last cell: its default
//	verdict    its counter counts; it returns to the other end's table, or leads to the log and to drop
//
// Three hooks lead there. What is forwarded is judged at both ends, as somebody else's, even if it has an address of the host. What reaches the host is judged at its source's
// end, with the host's own identities, where IPVS has already taken what it hands on. What leaves the host is judged like what is forwarded if its source is
// no address of the host, as that of what IPVS hands on, or transparent proxies; the host's own packets are not judged.
//
// What is found is kept in the packet's priority, which is 0 when the packet leaves. All of it is such that nft(8) can list the table, and load the listing.
//
// Guarantees:
//
//   - A change is one transaction, and a packet is judged by the state before or by the state after, never by a mixture: the look-ups of one packet
//     may fall into two generations of the kernel's sets, so the rules are there twice, each change makes the other copy the current one, and what
//     finds at its end that its copy is not current any more is judged again.
//   - On error the kernel keeps the state that it had, or judges by the new one.
//   - A table that has to be made anew is removed only when another one, weft-policy-standby, judges in its place. What does not fit into one transaction is
//     made in stages, of which the last has packets meet it.
//   - An equal table is left alone, whoever has made it; numbers that an earlier run has given are taken over.
//   - What is missing closes: every way through the rules that finds nothing ends in drop.
//
// A connection that a new state forbids is cut: its entry of connection tracking is deleted, and TCP that comes without one, and is no plain SYN, is
// answered with a reset at the endpoints that have rules. What is not TCP is barred by a second table, [CutTable], as long as there is such a flow.
//
// A [Filter] is safe for concurrent use. internal/enforce and internal/node import it; it imports policy and policy/compile.
package filter
