// SPDX-License-Identifier: Apache-2.0

// Package underlay sends and receives datagrams on the network between hosts.
//
// Listen opens any number of UDP sockets on one port, one for each thread that
// shall receive; the kernel spreads the senders over them. They speak IPv4 and
// IPv6 alike, and addresses are always given in their plain form: IPv4 is
// never IPv4-mapped. The don't-fragment bit is set, so that whoever sends learns by
// probes how wide the path is, but for single datagrams that say otherwise (Message.Fragment).
//
// ListenApart opens one more, to which the kernel gives all datagrams with a certain first byte, by a program that is attached to the group
// of sockets: what must not wait. And it gives each of the others a second queue, for what its sender has marked as light.
//
// A run of datagrams of one size to one peer crosses the system call and the stack below as one (UDP_SEGMENT,
// UDP_GRO), where the kernel and the device can.
//
// Every datagram is sent with the type of service, or traffic class, that its Message names, and arrives with the one that it had
// last on the way: that is how congestion marks (ECN) come through.
//
// Nothing on the packet path blocks, allocates or takes a contended lock. There is no
// goroutine. Linux only. Imported by package router and by the composition root.
package underlay
