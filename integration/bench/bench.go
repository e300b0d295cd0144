// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/integration/show"
)

const (
	hosts      = 2
	streams    = 4    // of the measurement with several
	shortBytes = 64   // payload of a short datagram
	longBytes  = 1300 // and of a long one
	within     = 15 * time.Second
	idle       = 2 * time.Second // from a contender's start until its memory counts
)

// bench is one run.
type bench struct {
	*show.Show
	options
	ctx    context.Context
	hosts  [hosts]*lab.Host
	third  *lab.Host // of the measurement fair
	answer io.Writer // of -json
	mesh   *mesh     // Weft's nodes and workloads
	notes  []string  // what the reader must know
}

func (b *bench) run() {
	var all []*contender
	b.Step("build two hosts and the ways between them", func() (result string, err error) {
		l := lab.New(b.Show, lab.Binary(b.weftBinary))
		lan := l.Switch("switch")
		for i := range b.hosts {
			b.hosts[i] = l.Host(fmt.Sprintf("host%d", i+1), lan)
		}
		b.third = l.Host("host3", lan)
		all, err = b.contenders()
		return fmt.Sprintf("%d contenders", len(all)), err
	})
	for round := range b.rounds {
		for i := range all {
			c := all[(round+i)%len(all)] // nobody is always the first
			b.Step(fmt.Sprintf("round %d of %d: %s", round+1, b.rounds, c.name), func() (string, error) {
				err := b.turn(c)
				return c.summary(), err
			})
		}
	}
	b.report(results(all))
}

// turn gives a contender its turn.
func (b *bench) turn(c *contender) error {
	if err := c.start(); err != nil {
		return err
	}
	defer c.stop()
	if _, err := c.from.Reach(c.addr, within); err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	memory := b.wants(memoryKind, c) && len(c.pids()) > 0
	if memory {
		if err := sleep(b.ctx, idle); err != nil {
			return err
		}
		rss, err := largestRSS(c.pids())
		if err != nil {
			return err
		}
		c.samples.add(idleRSS, rss)
	}
	loaded := 0.0
	for _, m := range []struct {
		kind kind
		run  func(*contender) error
	}{
		{tcpKind, b.tcp}, {udpKind, b.udp}, {pacedKind, b.paced}, {latencyKind, b.latency}, {lossKind, b.loss}, {fairKind, b.fair},
	} {
		if !b.wants(m.kind, c) {
			continue
		}
		if err := m.run(c); err != nil {
			return fmt.Errorf("%s: %w", m.kind, err)
		}
		rss, err := largestRSS(c.pids())
		if err != nil {
			return err
		}
		loaded = max(loaded, rss)
	}
	if memory && loaded > 0 {
		c.samples.add(loadedRSS, loaded)
	}
	return nil
}

// wants reports whether the measurement is asked for, and the contender takes part in it.
func (b *bench) wants(k kind, c *contender) bool {
	return slices.Contains(b.measure, k) && slices.Contains(c.kinds, k)
}

func (b *bench) tcp(c *contender) error {
	one, err := stream(b.ctx, c, 1, b.length)
	if err != nil {
		return err
	}
	many, err := stream(b.ctx, c, streams, b.length)
	if err != nil {
		return err
	}
	c.samples.add(oneStream, one.rate)
	c.samples.add(manyStreams, many.rate)
	if len(c.pids()) > 0 {
		c.samples.add(cpuPerGbit, (one.cpu+many.cpu)/(one.gbit+many.gbit))
	}
	return nil
}

func (b *bench) udp(c *contender) error {
	for _, m := range []struct {
		bytes          int
		rate, offering string
	}{{shortBytes, udpShort, udpShortOff}, {longBytes, udpLong, udpLongOff}} {
		d, err := udp(b.ctx, c, m.bytes, 0, b.length)
		if err != nil {
			return err
		}
		c.samples.add(m.rate, d.rate/1000)
		c.samples.add(m.offering, d.offered/1000)
	}
	return nil
}

func (b *bench) latency(c *contender) error {
	times, err := pingPong(b.ctx, c)
	if err != nil {
		return err
	}
	c.samples.add(idleP50, micros(percentile(times, 50)))
	c.samples.add(idleP99, micros(percentile(times, 99)))
	bulk, err := startStreams(b.ctx, c, 1)
	if err != nil {
		return err
	}
	defer bulk.stop()
	if times, err = pingPong(b.ctx, c); err != nil {
		return err
	}
	c.samples.add(loadedP50, micros(percentile(times, 50)))
	c.samples.add(loadedP99, micros(percentile(times, 99)))
	return nil
}

func (b *bench) report(rows []result) {
	if !b.json {
		for _, s := range sheets(rows) {
			b.Title("%s", s.terminal())
		}
		b.Title("%s\n%s\n%d rounds, %v a measurement; median (min-max). All in %.0f s.",
			machine(), strings.Join(b.notes, "\n"), b.rounds, b.length, b.Elapsed().Seconds())
		return
	}
	out, err := json.MarshalIndent(struct {
		Machine string   `json:"machine"`
		Notes   []string `json:"notes"`
		Rounds  int      `json:"rounds"`
		Seconds float64  `json:"seconds"`
		Results []result `json:"results"`
	}{machine(), b.notes, b.rounds, b.length.Seconds(), rows}, "", "  ")
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
