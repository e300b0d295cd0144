// SPDX-License-Identifier: Apache-2.0

// Package bypass takes packets of established flows around the host's stack,
// where the stack has let one of the same flow pass less than a second ago.
//
// Between a workload and a kernel path a packet meets routing, connection
// tracking and every nftables rule of whoever on both hosts, which takes longer
// than all the rest of its way. Two programs (BPF, at the tcx hooks) shorten
// that. The entry, where packets come in by a device, knows flows by the device,
// both addresses, both ports and the protocol. If it knows the packet's, it does
// what the stack did with the last one: it takes one off the TTL, writes the
// ethernet header and hands the packet to the same device, or straight to the
// workload at that device's other end. If it does not, it
// takes a note and lets the packet go its way through the stack. The exit, where
// packets leave by a device, looks at the note: if what leaves is what came in it
// refreshes the flow, or counts, and asks for a flow that is worth it.
//
// By a tunnel of VXLAN over IPv4 a packet meets the stack once more on its way out.
// So the exit follows the noted packet to the link by which the tunnel leaves the host
// and learns what was put ahead of it; the entry puts the same ahead of the others, and hands
// them to the link (tunnel.go).
//
// Follow a flow: entry.go and exit.go are the programs, ring.go hears what the
// exit asks for, admit.go answers, tracking.go tells connection tracking, and
// kept.go how long it is to remember. devices.go and watch.go look after the
// devices and the host, rules.go after rules that stand in the way.
//
// # Invariants
//
// The stack decides. A flow is made by packets that the stack has let through, to
// the device by which they left, and counts for [fresh]; then a packet goes the
// slow way again. Whoever forbids it by whatever rule, changes its route or its
// translation, is obeyed within that time, and at once by [Bypass.Forget].
//
// Connection tracking is not made to bear more than it is told of. A flow that
// has shown itself to be [big] is admitted one by one: its entry must be there and
// established, without translation, without a helper; if it is of TCP the entry
// is marked, as the kernel's own flowtables mark theirs, so that tracking bears
// not to see each of its packets. Settings of the whole host are left alone, and
// whatever is not admitted is tracked as strictly as without. Of a flow that
// tracking does not know nothing goes around the stack, unless it knows of none.
// A packet of each flow passes it every second. As it misses the others it may
// believe that something was never acknowledged: entries of connections that have
// gone quiet get back the time that they should have, also those that an earlier
// run has marked. It sees how connections end.
//
// Only what leaves as it came is a flow: addresses, ports, length, class, mark and
// sequence numbers are the same, the TTL is one less. Who is translated, marked, put
// into another tunnel, cut or answered by this host never becomes one. The number
// by which entry and exit know a packet is taken from each that comes in, as its
// sender may have set it.
//
// A packet is no larger, after segmentation, than the one that refreshed its flow,
// and came from the same hardware address by the same device. Only TCP without SYN,
// FIN and RST and UDP are taken, without IP options, extension headers and
// fragments, between addresses of the universe; all else goes through the stack,
// as do packets whose TTL ends. SYN, FIN and RST end the flow of their direction, so
// that connection tracking sees what follows them.
//
// What was noted, asked for or admitted before a Forget or a Pause makes no flow
// after it: all of it bears the epoch in which the packet came in. Who deletes
// entries of connection tracking calls Forget afterwards. The epoch has a lock of its
// own, which nobody holds who waits for the kernel.
//
// What cannot be looked after is off: where devices are not watched, tracking
// cannot be told, a program has an nfqueue or a rule copies packets, and when Run
// has ended, nothing is taken around the stack, and [Bypass.State] says why.
//
// What is put ahead of a packet is what the stack has put ahead of the last one that it
// let pass: the same tunnel, the same link, the same class of service; else the packet goes
// by the tunnel's device. Only what must not be fragmented is put into a tunnel so, as
// identifications are not those of the host; UDP's checksum is zero there (RFC 7348, 5).
//
// Order is kept: a packet that bypasses the stack is queued at the device behind
// those that went through it. Past the queue of a workload's device it goes only when none of its flow has been put there for
// as long as the processor may need to empty it ([quiet]), and only where that queue is the kernel's own: nobody shapes, filters or reads
// there what leaves. What counts packets in nftables counts about one for
// each flow and second.
//
// The programs are at devices as long as the process lives. Programs and filters of
// others are left alone, and a device on which somebody has one for what comes in
// is not served: it would come too late. The package talks to the kernel by bpf(2), netlink and
// /proc and runs no programs. Linux only; root (CAP_NET_ADMIN and CAP_SYS_ADMIN).
// internal/node imports it, nothing else.
package bypass
