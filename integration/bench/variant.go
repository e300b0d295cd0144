// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// The variants of the comparison.
const (
	noneName      = "none"
	policiesName  = "policies"
	untrackedName = "none, untracked"
)

// The metrics of a way. The processors' time is that of all that ran.
const (
	wayStream  = "stream Gb/s"
	wayCPU     = "CPU ms/Gbit"
	wayCalls   = "connections/s"
	wayCallCPU = "CPU µs/connection"
	wayPackets = "64 B kpps"
	wayOneWay  = "never answered, kpps"
)

// wayMetrics are the columns, with their digits behind the point.
func wayMetrics() []metric {
	return []metric{
		{key: wayStream, title: wayStream, digits: 2},
		{key: wayCPU, title: wayCPU},
		{key: wayCalls, title: wayCalls},
		{key: wayCallCPU, title: wayCallCPU},
		{key: wayPackets, title: wayPackets},
		{key: wayOneWay, title: wayOneWay},
	}
}

// The ways that are measured.
const (
	acrossName = "between hosts"
	nearName   = "on one host"
)

// pair is two workloads between which it is measured.
type pair struct {
	name     string
	from, to *lab.Workload
}

// variant is a mesh as it is measured.
type variant struct {
	name      string
	policies  bool
	untracked bool
	hosts     [hosts]*lab.Host
	pairs     []pair
	samples   map[string]samples // by the pair's name
	made      [hosts]float64     // connections that a host's policies had to judge
}

// variants are the two meshes, that without policies also without connection tracking.
func (t *town) variants(open *town) []*variant {
	of := func(name string, t *town) *variant {
		client, near, far := t.workloads[0][clientAt], t.workloads[0][serverAt], t.workloads[1][serverAt]
		return &variant{
			name: name, hosts: t.hosts,
			pairs:   []pair{{acrossName, client, far}, {nearName, client, near}},
			samples: map[string]samples{acrossName: {}, nearName: {}},
		}
	}
	none, policies, untracked := of(noneName, open), of(policiesName, t), of(untrackedName, open)
	policies.policies, untracked.untracked = true, true
	return []*variant{none, policies, untracked}
}

// turn gives the variant its turn.
func (v *variant) turn(ctx context.Context, length time.Duration) (err error) {
	if v.untracked {
		for _, h := range v.hosts {
			if err := h.Untrack(); err != nil {
				return err
			}
		}
		defer func() {
			for _, h := range v.hosts {
				err = errors.Join(err, h.DropTable(lab.UntrackedTable))
			}
		}()
	}
	for _, p := range v.pairs {
		if err := v.measure(ctx, p, length); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (v *variant) measure(ctx context.Context, p pair, length time.Duration) error {
	c := &contender{name: v.name, from: p.from.Namespace, to: p.to.Namespace, addr: p.to.V4, pids: noPIDs}
	f, err := stream(ctx, c, 1, length)
	if err != nil {
		return fmt.Errorf("a stream: %w", err)
	}
	var ports []uint16
	for port := uint16(firstPort); port <= lastPort; port++ {
		ports = append(ports, port)
	}
	before, err := tracked(p.from.Host())
	if err != nil {
		return err
	}
	n, err := calls(ctx, c.from, c.to, c.addr, ports, length)
	if err != nil {
		return err
	}
	after, err := tracked(p.from.Host())
	if err != nil {
		return err
	}
	// Old ones end meanwhile.
	if v.untracked && after > before || !v.untracked && after == 0 {
		return fmt.Errorf("the kernel tracks %d connections, %d before; that is not %q", after, before, v.name)
	}
	for i, h := range v.hosts {
		if h == p.from.Host() || h == p.to.Host() {
			v.made[i] += n.rate * length.Seconds()
		}
	}
	for _, u := range []struct {
		key     string
		answers bool
	}{{wayPackets, true}, {wayOneWay, false}} {
		c.answers = u.answers
		d, err := udp(ctx, c, shortBytes, 0, length)
		if err != nil {
			return fmt.Errorf("datagrams: %w", err)
		}
		v.samples[p.name].add(u.key, d.rate/1000)
	}
	s := v.samples[p.name]
	s.add(wayStream, f.rate)
	s.add(wayCPU, f.machine/f.gbit*1000)
	s.add(wayCalls, n.rate)
	s.add(wayCallCPU, n.cpu*1e6)
	return nil
}

// tracked is how many connections the host's kernel tracks.
func tracked(h *lab.Host) (int, error) {
	text, err := h.ReadSysctl("net/netfilter/nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// summary tells what the last turn saw.
func (v *variant) summary() string {
	var out []string
	for _, p := range v.pairs {
		for _, m := range []metric{wayMetrics()[0], wayMetrics()[2]} {
			if s := v.samples[p.name].last(m); s != "" {
				out = append(out, s)
			}
		}
	}
	return strings.Join(out, "; ")
}
