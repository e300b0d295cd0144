// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// third is a way to a third host, which shares the first host with the contender's own way.
type third struct {
	from, to *lab.Namespace
	addr     netip.Addr
	start    func() error // before it is used
}

// floodBefore is how long a flood runs before anything beside it counts.
const floodBefore = 300 * time.Millisecond

// fair measures what is left for others when one workload floods its peer with short datagrams: the stream and the latency
// between the first and a third host, alone and beside the flood.
func (b *bench) fair(c *contender) error {
	if err := c.third.start(); err != nil {
		return err
	}
	if _, err := c.third.from.Reach(c.third.addr, within); err != nil {
		return err
	}
	way := &contender{from: c.third.from, to: c.third.to, addr: c.third.addr, pids: noPIDs}
	if err := b.beside(c, way, fairAlone, fairAloneP50); err != nil {
		return err
	}
	s, err := newSink(c.to, c.addr, c.answers)
	if err != nil {
		return err
	}
	defer func() { _ = s.close() }()
	var out, errs strings.Builder
	p, err := startFlood(c.from, s.addr, shortBytes, 0, time.Hour, &out, &errs)
	if err != nil {
		return err
	}
	defer p.Kill()
	if err := errors.Join(s.first(b.ctx), sleep(b.ctx, floodBefore)); err != nil {
		return err
	}
	start, before := time.Now(), s.count.Load()
	if err := b.beside(c, way, fairFlood, fairFloodP50); err != nil {
		return err
	}
	c.samples.add(fairFloodKpps, float64(s.count.Load()-before)/time.Since(start).Seconds()/1000)
	return nil
}

// beside measures a stream and the latency of a way, and notes them with the contender.
func (b *bench) beside(c, way *contender, rate, p50 string) error {
	f, err := stream(b.ctx, way, 1, b.length)
	if err != nil {
		return err
	}
	times, err := pingPong(b.ctx, way, b.length/2)
	if err != nil {
		return err
	}
	c.samples.add(rate, f.rate)
	c.samples.add(p50, micros(percentile(times, 50)))
	return nil
}
