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
	kernel      [2]cniTimes // the same without a plugin
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
  Of such times the median is shown, and between which values the middle half of them lies.
* What the kernel alone takes is a veth pair to the pod's namespace, up, with an address of each family and the routes of both ends, made by the benchmark itself by netlink and
  removed again, without any plugin, process or file. That grows with the interfaces that are there: IPv6 goes through all routes whenever an interface comes up or goes.
  How many milliseconds more it takes on the full node than on the empty one is a part of every plugin's time there. A removal waits until the kernel has freed all; Weft's DEL does not.
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
	times := func(name string, lists ...[]time.Duration) {
		line := []string{name, "-", "-"}
		for i, list := range lists {
			line[i+1] = quartiles(list)
		}
		s.lines = append(s.lines, line)
	}
	ratios := func(name string, over, under cniTimes, verbs ...verb) {
		line := []string{name, "-", "-"}
		for i, v := range verbs {
			line[i+1] = fmt.Sprintf("%.2f", ratio(median(*over.of(v)), median(*under.of(v))))
		}
		s.lines = append(s.lines, line)
	}
	for _, c := range r.contenders {
		var first, last cniTimes
		for round := range slices.Chunk(c.one.add, r.options.pods) {
			first.add = append(first.add, round[:few]...)
			last.add = append(last.add, round[len(round)-few:]...)
		}
		times(fmt.Sprintf("%s, first %d", c.name, few), first.add)
		times(fmt.Sprintf("%s, last %d", c.name, few), last.add)
		ratios(c.name+", last / first", last, first, verbAdd)
	}
	for _, x := range []struct {
		name        string
		full, empty cniTimes
	}{{weftName, r.full, r.alone}, {kernelName, r.kernel[0], r.kernel[1]}} {
		times(x.name+", in turns: empty node", x.empty.add, x.empty.del)
		times(fmt.Sprintf("%s, in turns: node with %d", x.name, r.options.pods), x.full.add, x.full.del)
		ratios(x.name+", full / empty", x.full, x.empty, verbAdd, verbDel)
	}
	return s
}

// quartiles returns the median of times in milliseconds, and between which values the middle half of them lies.
func quartiles(list []time.Duration) string {
	sorted := slices.Sorted(slices.Values(list))
	return fmt.Sprintf("%.1f (%.1f-%.1f)", millis(percentile(sorted, 50)), millis(percentile(sorted, 25)), millis(percentile(sorted, 75)))
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
