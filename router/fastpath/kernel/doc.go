// SPDX-License-Identifier: Apache-2.0

// Package kernel puts kernel paths in place: VXLAN devices, forwarding entries,
// neighbours, routes and rules.
//
// The caller states the whole that should exist ([Kernel.Apply]). The package
// knows what it has put into the kernel and sends the difference, so the change
// of one peer is a few messages about that peer. [Kernel.Reconcile] compares all
// of it with what the kernel has, puts right what others have changed, and says
// what that was; [Kernel.Watch] tells when that is worth while. The first Apply
// compares as well: it leaves alone what an earlier run has left and is still
// right, so that packets go on.
//
// Everything is marked: the devices by their names with the alias "weft: vxlan"
// or this node's hardware address, routes and rules by [RouteProtocol]. What does
// not bear these marks is never changed or removed.
//
// There are three kinds of routes to a peer's prefixes. Those in [TableDirect] and
// [TableVXLAN] exist for each way that may be tried; only packets with
// [MarkDirect] and [MarkVXLAN], which are probes, are looked up there. Those of
// the main table carry the traffic of the peers that are reached by a kernel path
// now. To change from one path to another is to replace these, and nothing else;
// the kernel does it without losing a packet.
//
// As soon as a family has one rule the kernel goes through rules for each packet
// that it routes, for good. So probes of IPv4 by VXLAN need none: they are sent by
// the device itself (IP_PKTINFO), for which the kernel takes what it has no route
// for as a neighbour, and the peer's own address is one there.
//
// On the VXLAN devices nothing is learned or asked: the next hops are addresses
// that mean something on this host only, made of the peers' NodeIDs, with
// permanent neighbour entries that lead to hardware addresses, made of the
// NodeIDs as well, with permanent forwarding entries that lead to the underlay.
//
// It is an edge: it talks to the kernel by netlink and /proc/sys and runs no
// programs. Linux only; root (CAP_NET_ADMIN). internal/node imports it, nothing
// else.
package kernel
