// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"time"
)

// DefaultRange is the universe of a [Net] unless told otherwise: both families.
const DefaultRange = "10.32.0.0/12,fd77:6566:7400::/64"

// readyTimeout is how long a daemon may take from its launch until it is ready.
const readyTimeout = 20 * time.Second

// A Net is a lab with hosts on one switch whose daemons form a mesh, and workloads.
type Net struct {
	*Lab
	Segment   *Segment
	Token     string
	Workloads []*Workload // in the order of hosts
}

// A MeshOption changes what [Mesh] builds.
type MeshOption func(*meshConfig)

type meshConfig struct {
	workloads int
	flags     []string
	hosts     []HostOption
	lab       []Option
}

// PerHost sets the number of workloads on each host, default 1.
func PerHost(n int) MeshOption { return func(c *meshConfig) { c.workloads = n } }

// Flags adds flags to the launch of every daemon. The default is --range with [DefaultRange].
func Flags(flags ...string) MeshOption {
	return func(c *meshConfig) { c.flags = append(c.flags, flags...) }
}

// Hosts sets options of all hosts.
func Hosts(o ...HostOption) MeshOption {
	return func(c *meshConfig) { c.hosts = append(c.hosts, o...) }
}

// With sets options of the lab.
func With(o ...Option) MeshOption { return func(c *meshConfig) { c.lab = append(c.lab, o...) } }

// Mesh builds n hosts on one switch, lets the first one found a mesh and the others join it by token, and attaches one workload
// on each host. All of them are ready when it returns.
func Mesh(tb TB, n int, options ...MeshOption) *Net {
	tb.Helper()
	c := meshConfig{workloads: 1, flags: []string{"--range", DefaultRange}}
	for _, o := range options {
		o(&c)
	}
	m := &Net{Lab: New(tb, c.lab...)}
	m.Segment = m.Switch("lan")
	for i := range n {
		m.Host(fmt.Sprintf("host%d", i+1), m.Segment, c.hosts...)
	}
	founder := m.hosts[0]
	founder.Launch(c.flags...)
	ready := func(h *Host) {
		tb.Helper()
		if err := h.WaitReady(readyTimeout); err != nil {
			tb.Fatalf("lab: %v", err)
		}
	}
	ready(founder)
	m.Token = founder.Token()
	for _, h := range m.hosts[1:] {
		h.Join(m.Token, []*Host{founder}, c.flags...)
	}
	for _, h := range m.hosts[1:] {
		ready(h)
	}
	for _, h := range m.hosts {
		for i := range c.workloads {
			w := h.Workload(fmt.Sprintf("w%d", i+1))
			w.Attach()
			m.Workloads = append(m.Workloads, w)
		}
	}
	return m
}

// AllReach waits until every workload has reached every other one by all its addresses, at most for the given time, which
// counts for all of them together. It returns how long it took.
func AllReach(within time.Duration, workloads ...*Workload) (time.Duration, error) {
	start := time.Now()
	for _, from := range workloads {
		for _, to := range workloads {
			if from == to {
				continue
			}
			for _, a := range to.Addrs() {
				// One ping is due to each pair, however late.
				if _, err := from.Reach(a, max(within-time.Since(start), pingTimeout)); err != nil {
					return 0, err
				}
			}
		}
	}
	took := time.Since(start)
	if took > within {
		return took, fmt.Errorf("%d workloads all reach each other, but only after %v, not %v", len(workloads), took, within)
	}
	return took, nil
}
