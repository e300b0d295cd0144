// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// cniReport is all that a run tells, for a reader who was not there.
type cniReport struct {
	date        time.Time
	machine     string
	versions    []string
	notes       []string
	options     cniOptions
	took        time.Duration
	contenders  []*cniContender // Weft's first
	full, alone cniTimes
}

// cniIntroduction is the beginning of the document, up to what differs from run to run.
const cniIntroduction = `# Benchmarks of the CNI plugin

Written by ` + "`make benchcni`" + `: one run, on one machine, in which the plugins take turns.

`

// cniMethod says how it was measured.
const cniMethod = `## Method

* The time is what a container runtime waits: from the start of the plugin's process, with the configuration on its standard input, to its
  end, with the result. The network has both families.
* Weft's plugin asks the daemon of its node, which keeps its state on disk. ptp + host-local are the reference plugins of the CNI project: ptp makes a veth pair to
  the host and runs host-local, which keeps addresses as files. Nothing is encrypted or made known to other nodes by them.
* The nodes are network namespaces of one machine, and share the processors with the program that measures. The plugins take turns, pod by pod; of those with several at
  a time, by four times as many pods; who is first changes. Pods are namespaces that were made before, with nothing but lo.
* After the ADDs the first pod and the last have to reach each other, and after the DELs nothing may be left.
* The first and the last pods of a node are apart by the whole run, so what else the machine does at either time is in their ratio. A full node
  and an empty one are compared pod by pod: pods come and go on the node that has all of the others, and on another one that has none, in turns.
* Before each round the processors are watched for 2 s while nothing of this runs; the head of this document says so if others used a tenth of them
  or more.
`

// sheets lays the results out.
func (r cniReport) sheets() []sheet {
	several := fmt.Sprintf("%d pods, %d at a time", r.options.pods, r.options.atOnce)
	return []sheet{
		r.compare(fmt.Sprintf("%d pods, one after the other", r.options.pods), func(c *cniContender) cniTimes { return c.one }),
		r.compare(several, func(c *cniContender) cniTimes { return c.many }),
		r.scale(),
	}
}

// compare is a sheet of two verbs' times.
func (r cniReport) compare(title string, of func(*cniContender) cniTimes) sheet {
	s := sheet{title: title, head: []string{""}}
	columns := []struct {
		v verb
		p int
	}{{verbAdd, 50}, {verbAdd, 99}, {verbDel, 50}, {verbDel, 99}}
	for _, k := range columns {
		s.head = append(s.head, fmt.Sprintf("%s p%d, ms", k.v, k.p))
	}
	values := make([][]float64, len(r.contenders))
	for i, c := range r.contenders {
		line := []string{c.name}
		times := of(c)
		for _, k := range columns {
			v := millis(percentile(slices.Sorted(slices.Values(*times.of(k.v))), k.p))
			values[i] = append(values[i], v)
			line = append(line, fmt.Sprintf("%.1f", v))
		}
		s.lines = append(s.lines, line)
	}
	for i, c := range r.contenders[1:] {
		line := []string{r.contenders[0].name + " / " + c.name}
		for k := range columns {
			line = append(line, fmt.Sprintf("%.2f", ratio(values[0][k], values[i+1][k])))
		}
		s.lines = append(s.lines, line)
	}
	return s
}

// scale is a sheet of what the number of pods on a node costs.
func (r cniReport) scale() sheet {
	s := sheet{title: "The pods that are on a node already", head: []string{"", "ADD, ms", "DEL, ms"}}
	row := func(name string, digits int, values ...float64) {
		line := []string{name}
		for i := range s.head[1:] {
			line = append(line, orDash(fmt.Sprintf("%.*f", digits, values[min(i, len(values)-1)]), i < len(values)))
		}
		s.lines = append(s.lines, line)
	}
	for _, c := range r.contenders {
		var first, last []time.Duration
		for round := range slices.Chunk(c.one.add, r.options.pods) {
			first = append(first, round[:few]...)
			last = append(last, round[len(round)-few:]...)
		}
		row(fmt.Sprintf("%s, first %d", c.name, few), 1, median(first))
		row(fmt.Sprintf("%s, last %d", c.name, few), 1, median(last))
		row(c.name+", last / first", 2, ratio(median(last), median(first)))
	}
	full := [2]float64{median(r.full.add), median(r.full.del)}
	alone := [2]float64{median(r.alone.add), median(r.alone.del)}
	row(weftName+", in turns: empty node", 1, alone[:]...)
	row(fmt.Sprintf("%s, in turns: node with %d", weftName, r.options.pods), 1, full[:]...)
	row(weftName+", full / empty", 2, ratio(full[0], alone[0]), ratio(full[1], alone[1]))
	return s
}

// median returns that of times, in milliseconds.
func median(list []time.Duration) float64 {
	return millis(percentile(slices.Sorted(slices.Values(list)), 50))
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func (r cniReport) head() []string {
	head := append([]string{r.date.UTC().Format("2 January 2006"), r.machine}, r.versions...)
	return append(append(head, r.notes...), fmt.Sprintf("%d rounds, %v in all", r.options.rounds, r.took.Round(time.Second)))
}

// markdown returns the document.
func (r cniReport) markdown() string {
	var b strings.Builder
	b.WriteString(cniIntroduction)
	for _, line := range r.head() {
		fmt.Fprintf(&b, "* %s\n", line)
	}
	b.WriteString("\n")
	for _, s := range r.sheets() {
		fmt.Fprintf(&b, "## %s\n\n%s\n", s.title, s.markdown())
	}
	b.WriteString(cniMethod)
	return b.String()
}

// terminal returns the document's figures for a terminal.
func (r cniReport) terminal() string {
	var b strings.Builder
	for _, s := range r.sheets() {
		fmt.Fprintf(&b, "%s\n%s\n", s.title, s.terminal())
	}
	b.WriteString(strings.Join(r.head(), "\n"))
	return b.String()
}
