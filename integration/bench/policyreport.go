// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// policyReport is all that a run tells, for a reader who was not there.
type policyReport struct {
	date     time.Time
	machine  string
	versions []string
	notes    []string
	options  policyOptions
	took     time.Duration
	times    enactTimes
	elements [hosts]int
	changes  []labelChange
	variants []*variant
}

// policyIntroduction is the beginning of the document, up to what differs from run to run.
const policyIntroduction = `# Benchmarks of network policies

Written by ` + "`make benchpolicy`" + `: one run, on one machine, in which meshes with and without policies take turns.

`

// policyMethod says how it was measured.
const policyMethod = `## Method

* Two meshes of two hosts each run at the same time, network namespaces of one machine that share its processors. All hosts have as many workloads, with labels and a named
  port, in 10 namespaces. One mesh has the policies, the other none.
* One policy for each namespace isolates all in it, in both directions. Two allow the connections that are measured: 8 single ports, a range, and UDP. The others
  select one of 5 applications in their namespace each, in seven shapes: peers by podSelector, namespaceSelector, both, matchExpressions, ipBlock with and without except, in both families; single
  ports, several, ranges, named ones; TCP, UDP and SCTP. Client and servers are selected in both directions, each by a fifth of their namespace's policies.
* Putting in force: from the start of ` + "`weft policy apply`" + ` on the first host with all policies in one file, where there are none, until the last transaction of nftables on each host, after which
  ` + "`weft status`" + ` must say that all are in force. CPU is what the daemons use, system calls included.
* Labels: ` + "`weft label`" + ` for a workload of the first host, to labels that others have too (and back), and to some that nobody has, which makes a new kind of peer. The time is from the command's
  start to the transaction. What it touches the kernel tells of every element, in changes of their own, as telling takes time: those of the workload's own addresses, those of the addresses of others, and
  verdicts and blocks, which kinds of workloads have in common: they come and go with a kind. What is replaced counts twice. Elements that say which of the two copies of the rules judges, four for each
  transaction, are left out.
* Each round gives each variant one turn, beginning with another one each time. The kernel tracks connections on all hosts, as Weft translates the addresses of what leaves the overlay;
  policies need that, too. For what that alone costs, "none, untracked" has a rule that leaves all packets out of it.
* A stream, and datagrams of 64 bytes as fast as the sender can, as in ` + "`make bench`" + `; of the latter the first one is answered, by which the kernel takes them for a connection, or none is. Connections: 8 threads, each to a port of its own, connect, send a byte, get one back and close, one connection after the
  other. CPU is all time of the processors for it, with both ends' and the daemons'. Between hosts the daemons encrypt.
* Cells are the median of the rounds, and the least and the most in parentheses. Ratios are of the two variants' turns in the same round: their median, the least and the most.
* Before the turns a connection to a port that no policy allows must fail with policies, and must not without; after them the policies' counters must have all connections. In each turn
  the kernel must track connections, or not, as the variant says.
* Before each round the processors are watched for 2 s while nothing of this runs; the head of this document says so if others used a tenth of them
  or more.
`

func (b *policyBench) report() policyReport {
	r := policyReport{
		date: time.Now(), machine: machine(), notes: busy(b.looks, "Rates are too low"), options: b.policyOptions, took: b.Elapsed(),
		times: b.times, elements: b.elements, changes: b.changes, variants: b.variants,
	}
	if v := b.with.hosts[0].Weft("version"); v.Code == 0 {
		r.versions = append(r.versions, firstLine(v.Stdout))
	}
	return r
}

// sheets lays the results out.
func (r policyReport) sheets() []sheet {
	out := []sheet{r.goals(), r.enacting(), r.labels()}
	if len(r.variants) > 0 {
		for _, p := range r.variants[0].pairs {
			out = append(out, r.forwarding(p.name))
		}
	}
	return out
}

// goals are the figures that were to be reached.
func (r policyReport) goals() sheet {
	s := sheet{title: "In short", head: []string{"", "goal", "measured"}}
	row := func(name, goal string, value string) { s.lines = append(s.lines, []string{name, goal, value}) }
	row(fmt.Sprintf("%d policies in force, s", r.options.policies), "< 2", summarize(r.slowest()).text(2))
	var here, there []float64
	foreign := 0
	for _, c := range r.changes {
		if !c.watched {
			here, there = noted(here, c.inForce[0]), noted(there, c.inForce[1])
		}
		for _, t := range c.touched {
			foreign += t.foreign
		}
	}
	row("one label, in force on the workload's host, ms", "< 50", summarize(here).text(0))
	row("on the other host, ms", "-", summarize(there).text(0))
	row("elements of other workloads' addresses touched by labels", "0", fmt.Sprint(foreign))
	for _, p := range []string{acrossName, nearName} {
		row("throughput, policies / none, "+p, "≥ 0.95", r.compare(p, wayStream, policiesName, noneName))
		row("connections, policies / none, "+p, "≥ 0.9", r.compare(p, wayCalls, policiesName, noneName))
	}
	return s
}

// slowest is when the slower host had everything, each time.
func (r policyReport) slowest() []float64 {
	var out []float64
	for i, v := range r.times.inForce[0] {
		out = append(out, max(v, r.times.inForce[1][i]))
	}
	return out
}

// enacting is a sheet of what it takes to put all policies in force.
func (r policyReport) enacting() sheet {
	s := sheet{title: fmt.Sprintf("%d policies, %d workloads on each host", r.options.policies, r.options.workloads), head: []string{"", "first host", "second host"}}
	row := func(name string, digits int, values ...[]float64) {
		line := []string{name}
		for i := range hosts {
			ok := i < len(values) && len(values[i]) > 0
			text := ""
			if ok {
				text = summarize(values[i]).text(digits)
			}
			line = append(line, orDash(text, ok))
		}
		s.lines = append(s.lines, line)
	}
	row("weft policy apply returns, s", 2, r.times.returned)
	row("in force, s", 2, r.times.inForce[:]...)
	row("CPU of the daemon, s", 2, r.times.cpu[:]...)
	if len(r.times.withdrawn) > 0 {
		row("deleted, on both, s", 2, r.times.withdrawn)
	}
	s.lines = append(s.lines, []string{"elements of sets", fmt.Sprint(r.elements[0]), fmt.Sprint(r.elements[1])})
	return s
}

// labels is a sheet of what a label's change takes, and touches.
func (r policyReport) labels() sheet {
	s := sheet{title: "One label", head: []string{
		"", "weft label returns, ms", "in force here, ms", "there, ms", "elements touched: its own addresses'", "verdicts and blocks", "of other workloads",
	}}
	for _, k := range []struct {
		name  string
		fresh bool
	}{{"to labels that others have", false}, {"to labels that nobody has", true}} {
		columns := make([][]float64, len(s.head)-1)
		for _, c := range r.changes {
			if c.fresh != k.fresh {
				continue
			}
			if !c.watched {
				for i, d := range []time.Duration{c.returned, c.inForce[0], c.inForce[1]} {
					columns[i] = noted(columns[i], d)
				}
				continue
			}
			for _, t := range c.touched { // both hosts alike
				for i, n := range []int{t.own, t.verdicts, t.foreign} {
					columns[3+i] = append(columns[3+i], float64(n))
				}
			}
		}
		line := []string{k.name}
		for _, v := range columns {
			line = append(line, summarize(v).text(0))
		}
		s.lines = append(s.lines, line)
	}
	return s
}

// noted appends milliseconds, unless nothing had to be done.
func noted(to []float64, d time.Duration) []float64 {
	if d == 0 {
		return to
	}
	return append(to, millis(d))
}

// forwarding is a sheet of what policies cost what is forwarded.
func (r policyReport) forwarding(way string) sheet {
	s := sheet{title: strings.ToUpper(way[:1]) + way[1:], head: []string{""}}
	for _, m := range wayMetrics() {
		s.head = append(s.head, m.title)
	}
	for _, v := range r.variants {
		line := []string{v.name}
		for _, m := range wayMetrics() {
			line = append(line, summarize(v.samples[way][m.key]).text(m.digits))
		}
		s.lines = append(s.lines, line)
	}
	for _, p := range [][2]string{{policiesName, noneName}, {noneName, untrackedName}, {policiesName, untrackedName}} {
		line := []string{p[0] + " / " + p[1]}
		for _, m := range wayMetrics() {
			line = append(line, r.compare(way, m.key, p[0], p[1]))
		}
		s.lines = append(s.lines, line)
	}
	return s
}

// compare returns the ratios of two variants in the same rounds.
func (r policyReport) compare(way, key, a, b string) string {
	of := func(name string) []float64 {
		i := slices.IndexFunc(r.variants, func(v *variant) bool { return v.name == name })
		if i < 0 {
			return nil
		}
		return r.variants[i].samples[way][key]
	}
	ratios := roundRatios(of(a), of(b))
	return orDash(summarize(ratios).text(2), len(ratios) > 0)
}

// roundRatios returns the ratio of each round.
func roundRatios(a, b []float64) []float64 {
	var out []float64
	for i := range min(len(a), len(b)) {
		out = append(out, ratio(a[i], b[i]))
	}
	return out
}

func (r policyReport) head() []string {
	head := append([]string{r.date.UTC().Format("2 January 2006"), r.machine}, r.versions...)
	return append(append(head, r.notes...), fmt.Sprintf("%d rounds, %v a measurement, %v in all", r.options.rounds, r.options.length, r.took.Round(time.Second)))
}

// markdown returns the document.
func (r policyReport) markdown() string {
	var b strings.Builder
	b.WriteString(policyIntroduction)
	for _, line := range r.head() {
		fmt.Fprintf(&b, "* %s\n", line)
	}
	b.WriteString("\n")
	for _, s := range r.sheets() {
		fmt.Fprintf(&b, "## %s\n\n%s\n", s.title, s.markdown())
	}
	b.WriteString(policyMethod)
	return b.String()
}

// terminal returns the document's figures for a terminal.
func (r policyReport) terminal() string {
	var b strings.Builder
	for _, s := range r.sheets() {
		fmt.Fprintf(&b, "%s\n%s\n", s.title, s.terminal())
	}
	b.WriteString(strings.Join(r.head(), "\n"))
	return b.String()
}
