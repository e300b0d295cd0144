// SPDX-License-Identifier: Apache-2.0

// Package probe sends probes by kernel paths, and receives those of others.
//
// A probe is a UDP datagram from the overlay address of this host to that of another, at the port of the mesh, as long as what it shall prove. It leaves with
// the mark of its kind ([fastpath.Kind.Mark]), by which the kernel takes the path to be proven whatever the main routing table says, and
// with don't-fragment set, whatever the kernel believes of the path's MTU.
//
//	bytes 0-3    "WftP"
//	byte 4       version (1)
//	byte 5       kind of path: 1 vxlan, 2 direct
//	bytes 6-7    0
//	bytes 8-15   ID of the node that sends it, big endian
//	bytes 16-23  echo, big endian: what the answer repeats
//	then         0, up to the size
//
// Nothing in a probe is authentic. It is answered by a sealed control datagram, which the caller sends, and that only if the probe came by a device of the kind that it
// names, from an overlay address of the node that it names: what may come in there is for the packet filter to say.
//
// Listeners are bound to the overlay addresses of the host, and so go before the sockets of the router, which are bound to the same port of all
// addresses, with SO_REUSEPORT like these.
//
// [Prober.Run] owns all goroutines. Linux only. Imported by internal/node.
package probe
