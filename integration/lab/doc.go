// SPDX-License-Identifier: Apache-2.0

// Package lab builds networks of hosts out of network namespaces, on one Linux machine, for integration tests and the
// demo: hosts on switches, behind routers and NATs, with workloads; faults on their links; the weft daemon of each host;
// captures, pings and transfers.
//
// It needs root and a kernel with veth, bridge and nftables, and no programs: namespaces are made by unshare(2), links,
// addresses and routes by netlink, faults by nftables, and probes are sockets that this process opens inside a namespace
// (a socket stays in the namespace in which it was made).
//
// What a lab makes cannot outlive it. Its namespaces have no name in the file system: open descriptors of this process hold
// them, so the kernel removes them with all their devices however the process ends, and the processes that the lab starts
// in them are killed by the kernel when the process dies (PR_SET_PDEATHSIG). What remains is one directory, weftlab-PID-* in
// the directory for temporary files, which also has the links to /proc/PID/fd by which daemons find the namespaces:
// [Lab.Close] removes it, so does an interrupt (SIGINT, SIGTERM, SIGHUP), and what a killed process left is removed when
// the next lab starts.
//
// Methods that build something or inject a fault end the test when they fail ([TB.Fatalf]), so they belong in the test's own
// goroutine. Methods that measure something, or run something that may fail on purpose, return what happened and can be
// called from any goroutine.
//
// Integration tests and the demo may import it, nothing else. It knows weft as a built binary only.
package lab
