// SPDX-License-Identifier: Apache-2.0

// Package tun opens TUN devices: network devices whose packets are read and
// written by this process.
//
// A Device has one or more queues. Each Queue belongs to one reader and
// writer, usually a thread of its own, and the kernel spreads flows over them, by a hash of addresses and ports: a
// flow comes out of one queue as long as the device is open, whichever its answers are written to, so its packets keep their order.
// A persistent device outlives the process together with its addresses and
// routes: packets that nobody reads are dropped by the kernel, never routed
// elsewhere, and the next Open takes the device over as it stands. Devices are
// therefore always opened with IFF_MULTI_QUEUE, even for one queue, because the
// kernel refuses to change that of a device that exists, and it is never
// deleted to get out of that: that would drop the routes.
//
// A portable device (Config.Portable) is one without offloads that github.com/songgao/water has opened, for
// kernels that have less. It is otherwise the same, and either kind takes over what the other left behind.
//
// Linux only. Imported by package router and by the composition root.
package tun
