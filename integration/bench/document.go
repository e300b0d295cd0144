// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"
)

// document is all that a run tells, for a reader who was not there.
type document struct {
	date     time.Time
	machine  string
	versions []string
	notes    []string
	rounds   int
	length   time.Duration
	took     time.Duration
	rows     []result
}

// introduction is the beginning of the document, up to what differs from run to run.
const introduction = `# Benchmarks

Written by ` + "`make bench`" + `: one run, on one machine, in which all contenders take turns.

`

// method says how it was measured.
const method = `## Method

* Two hosts are network namespaces of one machine, joined by a switch (a bridge and veth pairs), MTU 1500. Senders, receivers,
  both daemons and the kernel share the processors: a figure is what all of that costs together, and comparisons hold
  for this machine only.
* The contenders: the bare link (` + "`veth`" + `); kernel VXLAN, not encrypted; wireguard-go and Nebula, each with one process on
  each host, from host to host (with their defaults, but for Nebula's socket buffers, 10 MiB, which speed it up); Weft, from workload to workload, so through one veth pair more on each
  side and the hosts' forwarding, and in ` + "`weft-host`" + ` and ` + "`weft-wireguard-host`" + ` from host to host as they do. ` + "`weft`" + ` uses AES-256-GCM; ` + "`weft-wireguard`" + ` WireGuard's own suite (the nodes are told that their processors
  have no AES); the others are launched with the flags in their names.
* ` + "`weft-vxlan`" + ` and ` + "`weft-direct`" + ` are Weft's kernel paths, which are not encrypted; each line is shown once the nodes say that they use that path. Their measure is what an administrator
  would make by hand of the same parts: ` + "`routed-vxlan`" + ` and ` + "`routed-veth`" + ` lead from a workload by a veth pair to its host, which forwards, by a VXLAN device or the bare link to
  the other host, and from there to the other workload, by hosts of their own on which nothing else is set up.
* "Kernel paths by the same made by hand" has ratios of short turns, of one stream for half a second each, which the two take one after the other; what slows the machine
  down for longer slows both down. Processor time is all that the machine uses, with the daemons' for the kernel path alone.
* Every round gives each contender one turn, beginning with another one each time. Processes are started for the turn and
  ended after it. Each cell is the median of the rounds, and the least and the most in parentheses.
* Before each round the processors are watched for 2 s while nothing of this runs; the head of this document says so if others
  used a tenth of them or more.
* TCP: two processes for each stream, one of which writes blocks of 128 KiB as fast as the connection takes them, and the other reads; what is read
  counts, after a warm-up of 0.3 s. CPU is what the daemons of both hosts use, system calls included, not what the kernel does elsewhere; "all CPU" is
  all time of the processors for one stream, with the sender's, the receiver's and whatever else ran.
* UDP: a process on the first host hands datagrams to a connected socket, 32 a call (sendmmsg), as many as the kernel takes,
  none joined (no UDP_SEGMENT); what a thread on the second host gets counts by the second. The loss is the share that never
  arrives. The paced figures are the most a second of which less than 1% is lost, found by halving seven times, the sender
  waking up every 100 µs.
* Latency: one byte to and fro over TCP between two processes, which only wait for it; first alone, then beside one stream in the same direction.
* Loss: the switch drops single frames at random, in both directions; the hosts cut what they send to frames of 1500
  bytes before it (segmentation by the device is off, for all contenders, also in the figure without loss), and nothing joins them before the drop.
* A flood beside others: a workload of the first host floods one of the second with 64 B datagrams, and other workloads of the
  first and of a third host exchange a stream, then bytes to and fro. Floods also take processor time from what is measured,
  as the line of the bare link shows.
* Memory is what is resident of the larger of the two processes, 2 s after the start and then at its most after each measurement.
`

// about is a sheet's heading and what its columns need to be understood.
func (k kind) about() string {
	return map[kind]string{
		tcpKind:     "TCP streams",
		udpKind:     "UDP, as fast as the sender can",
		pacedKind:   "UDP, the highest rate with less than 1% loss",
		latencyKind: "Latency of request and response",
		lossKind:    "One TCP stream over a network that loses packets",
		fairKind:    "Others beside one workload's flood",
		memoryKind:  "Memory",
		byHandKind:  "Kernel paths by the same made by hand",
	}[k]
}

// markdown returns the document.
func (d document) markdown() string {
	var b strings.Builder
	b.WriteString(introduction)
	fmt.Fprintf(&b, "* %s\n* %s\n", d.date.UTC().Format("2 January 2006"), d.machine)
	for _, v := range append(d.versions, d.notes...) {
		fmt.Fprintf(&b, "* %s\n", v)
	}
	fmt.Fprintf(&b, "* %d rounds, %v a measurement, %v in all\n\n", d.rounds, d.length, d.took.Round(time.Second))
	if s, ok := against(d.rows); ok {
		b.WriteString("## Weft by the others\n\nRatios of the medians; of latencies and processor time less is better, of all else more.\n\n" + s.markdown() + "\n")
	}
	for _, s := range sheets(d.rows) {
		fmt.Fprintf(&b, "## %s\n\n%s\n", s.title, s.markdown())
	}
	b.WriteString(method)
	return b.String()
}

// terminal returns the document's figures for a terminal.
func (d document) terminal() string {
	var b strings.Builder
	for _, s := range sheets(d.rows) {
		fmt.Fprintf(&b, "%s\n%s\n", s.title, s.terminal())
	}
	if s, ok := against(d.rows); ok {
		fmt.Fprintf(&b, "Weft by the others\n%s\n", s.terminal())
	}
	fmt.Fprintf(&b, "%s\n", d.machine)
	for _, v := range append(d.versions, d.notes...) {
		fmt.Fprintf(&b, "%s\n", v)
	}
	fmt.Fprintf(&b, "%d rounds, %v a measurement; median (min-max). All in %v.", d.rounds, d.length, d.took.Round(time.Second))
	return b.String()
}

// against compares Weft with everybody else, and its suite of WireGuard with wireguard-go; false if there is nobody.
func against(rows []result) (sheet, bool) {
	at := map[string]result{}
	for _, r := range rows {
		at[r.Name] = r
	}
	type pair struct{ ours, theirs string }
	var pairs []pair
	for _, p := range []pair{
		{weftName, wgName},
		{weftWG, wgName},
		{weftHost, wgName},
		{weftWGHost, wgName},
		{weftName, nebulaName},
		{weftHost, nebulaName},
		{weftName, vxlanName},
		{weftName, plainName},
		{weftVXLAN, routedVXLAN},
		{weftDirect, routedVeth},
	} {
		if at[p.ours].Name != "" && at[p.theirs].Name != "" {
			pairs = append(pairs, p)
		}
	}
	s := sheet{head: []string{""}}
	for _, p := range pairs {
		s.head = append(s.head, p.ours+" / "+p.theirs)
	}
	for _, m := range metrics() {
		line, used := []string{m.kind.about() + ": " + m.title}, false
		for _, p := range pairs {
			base := at[p.theirs].Metrics[m.key].Median
			v, ok := at[p.ours].Metrics[m.key]
			ok = ok && base != 0
			line, used = append(line, orDash(fmt.Sprintf("%.2f", ratio(v.Median, base)), ok)), used || ok
		}
		if m.ratio && used {
			s.lines = append(s.lines, line)
		}
	}
	return s, len(s.lines) > 0
}
