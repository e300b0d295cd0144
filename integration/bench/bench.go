// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/integration/show"
)

const (
	hosts   = 2
	streams = 4 // of the measurement with several
	within  = 15 * time.Second
)

// bench is one run.
type bench struct {
	*show.Show
	options
	ctx    context.Context
	hosts  [hosts]*lab.Host
	answer io.Writer // of -json
	suite  string    // of Weft's nodes
}

// measurement is what one turn of a contender saw.
type measurement struct {
	one, many float64 // Gb/s
	p50, p99  time.Duration
	cpu       float64 // seconds per Gbit, of both stream measurements
	rss       float64 // MiB
}

func (b *bench) run() {
	var all []*contender
	b.Step("build two hosts and five ways between them", func() (result string, err error) {
		l := lab.New(b.Show, lab.Binary(b.weftBinary))
		lan := l.Switch("switch")
		for i := range b.hosts {
			b.hosts[i] = l.Host(fmt.Sprintf("host%d", i+1), lan)
		}
		all, err = b.contenders()
		return "Weft negotiated " + b.suite, err
	})
	for round := range b.rounds {
		for i := range all {
			c := all[(round+i)%len(all)] // nobody is always the first
			b.Step(fmt.Sprintf("round %d of %d: %s", round+1, b.rounds, c.name), func() (string, error) {
				m, err := b.measure(c)
				c.samples = append(c.samples, m)
				return fmt.Sprintf("%.2f Gb/s, %d streams %.2f Gb/s, %v", m.one, streams, m.many, m.p50), err
			})
		}
	}
	b.report(results(all))
}

// measure gives a contender its turn.
func (b *bench) measure(c *contender) (m measurement, err error) {
	if err := c.start(); err != nil {
		return m, err
	}
	defer c.stop()
	if _, err := c.from.Reach(c.addr, within); err != nil {
		return m, err
	}
	one, err := stream(b.ctx, c, 1, b.length)
	if err != nil {
		return m, err
	}
	many, err := stream(b.ctx, c, streams, b.length)
	if err != nil {
		return m, err
	}
	m = measurement{one: one.rate, many: many.rate, cpu: (one.cpu + many.cpu) / (one.gbit + many.gbit)}
	if m.rss, err = largestRSS(c.pids()); err != nil {
		return m, err
	}
	times, err := pingPong(b.ctx, c)
	if err != nil {
		return m, err
	}
	m.p50, m.p99 = percentile(times, 50), percentile(times, 99)
	return m, nil
}

func (b *bench) report(rows []result) {
	if !b.json {
		b.Title("%s\n%s\nWeft: %s. %d rounds, %v a measurement; median (min-max). All in %.0f s.",
			table(rows), machine(), b.suite, b.rounds, b.length, b.Elapsed().Seconds())
		return
	}
	out, err := json.MarshalIndent(struct {
		Machine string   `json:"machine"`
		Suite   string   `json:"suite"`
		Rounds  int      `json:"rounds"`
		Seconds float64  `json:"seconds"`
		Results []result `json:"results"`
	}{machine(), b.suite, b.rounds, b.length.Seconds(), rows}, "", "  ")
	if err != nil {
		b.Fatalf("%v", err)
	}
	fmt.Fprintf(b.answer, "%s\n", out)
}

// machine describes what the numbers were measured on.
func machine() string {
	cpu := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if name := field(string(info), "model name"); name != "" {
			cpu = name
		}
	}
	kernel := "unknown"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return strings.Join([]string{cpu, fmt.Sprintf("%d cores", runtime.NumCPU()), "Linux " + kernel, runtime.Version()}, ", ")
}
