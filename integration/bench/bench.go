// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"debug/buildinfo"
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
	ctx   context.Context
	hosts [hosts]*lab.Host
	third *lab.Host // of the measurement fair
	// What is built besides where the kernel carries packets by hand.
	lab    *lab.Lab
	lan    *lab.Segment
	answer io.Writer // of -json
	mesh   *mesh     // Weft's nodes and workloads
	notes  []string  // what the reader must know
}

func (b *bench) run() {
	var all []*contender
	var looks []float64
	b.Step("build two hosts and the ways between them", func() (result string, err error) {
		l := lab.New(b.Show, lab.Binary(b.weftBinary))
		lan := l.Switch("switch")
		for i := range b.hosts {
			b.hosts[i] = l.Host(fmt.Sprintf("host%d", i+1), lan)
		}
		b.third = l.Host("host3", lan)
		b.lab, b.lan = l, lan
		all, err = b.contenders()
		return fmt.Sprintf("%d contenders", len(all)), err
	})
	for round := range b.rounds {
		b.Step(fmt.Sprintf("round %d of %d: is the machine idle", round+1, b.rounds), func() (string, error) {
			used, err := look(b.ctx, lookTime)
			looks = append(looks, used)
			return fmt.Sprintf("others use %.0f%% of the processors", used*100), err
		})
		for i := range all {
			c := all[(round+i)%len(all)] // nobody is always the first
			b.Step(fmt.Sprintf("round %d of %d: %s", round+1, b.rounds, c.name), func() (string, error) {
				err := b.turn(c)
				return c.summary(), err
			})
		}
	}
	b.notes = append(b.notes, busy(looks, "Rates are too low")...)
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
		{tcpKind, b.tcp},
		{udpKind, b.udp},
		{pacedKind, b.paced},
		{latencyKind, b.latency},
		{lossKind, b.loss},
		{fairKind, b.fair},
		{byHandKind, b.byHand},
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
	c.samples.add(oneStreamCPU, one.machine/one.gbit)
	if len(c.pids()) > 0 {
		c.samples.add(cpuPerGbit, (one.cpu+many.cpu)/(one.gbit+many.gbit))
	}
	return nil
}

func (b *bench) udp(c *contender) error {
	for _, m := range []struct {
		bytes      int
		rate, lost string
	}{{shortBytes, udpShort, udpShortOut}, {longBytes, udpLong, udpLongOut}} {
		d, err := udp(b.ctx, c, m.bytes, 0, b.length)
		if err != nil {
			return err
		}
		c.samples.add(m.rate, d.rate/1000)
		c.samples.add(m.lost, d.loss*100)
	}
	return nil
}

func (b *bench) latency(c *contender) error {
	times, err := pingPong(b.ctx, c, b.length/2)
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
	if times, err = pingPong(b.ctx, c, b.length/2); err != nil {
		return err
	}
	c.samples.add(loadedP50, micros(percentile(times, 50)))
	c.samples.add(loadedP99, micros(percentile(times, 99)))
	return nil
}

func (b *bench) report(rows []result) {
	d := document{
		date: time.Now(), machine: machine(), notes: b.notes, rounds: b.rounds, length: b.length, took: b.Elapsed(), rows: rows,
		versions: b.versions(),
	}
	if b.file != "" {
		if err := os.WriteFile(b.file, []byte(d.markdown()), 0o644); err != nil {
			b.Fatalf("%v", err)
		}
	}
	if !b.json {
		b.Title("%s", d.terminal())
		return
	}
	out, err := json.MarshalIndent(struct {
		Date     time.Time `json:"date"`
		Machine  string    `json:"machine"`
		Versions []string  `json:"versions"`
		Notes    []string  `json:"notes,omitempty"`
		Rounds   int       `json:"rounds"`
		Seconds  float64   `json:"seconds"`
		Results  []result  `json:"results"`
	}{d.date, d.machine, d.versions, d.notes, d.rounds, d.length.Seconds(), rows}, "", "  ")
	if err != nil {
		b.Fatalf("%v", err)
	}
	fmt.Fprintf(b.answer, "%s\n", out)
}

// versions tells the versions of the programs that took part.
func (b *bench) versions() []string {
	var out []string
	if slices.ContainsFunc(weftNames(), b.competes) {
		if r := b.hosts[0].Weft("version"); r.Code == 0 {
			out = append(out, strings.TrimSpace(r.Stdout))
		}
	}
	if b.competes(wgName) {
		if info, err := buildinfo.ReadFile(b.wgBinary); err == nil {
			out = append(out, wgName+" "+info.Main.Version)
		}
	}
	if b.competes(nebulaName) {
		if v, err := b.version(b.nebulaBinary, "-version"); err == nil {
			out = append(out, nebulaName+" "+strings.TrimPrefix(v, "Version: "))
		}
	}
	return out
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
