// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"github.com/weftnet/weft/integration/lab"
)

const (
	weftName = "weft"
	ownSuite = "aes-256-gcm"
	wgSuite  = "chacha20-poly1305"
	// noAES makes a node believe that its processor has no AES, so that it uses WireGuard's suite.
	noAES = "GODEBUG=cpu.aes=off,cpu.pclmulqdq=off"
)

// mesh is Weft's nodes and workloads, which all contenders of Weft share: they differ in how the nodes are launched.
type mesh struct {
	hosts    [hosts]*lab.Host
	from, to *lab.Workload
}

// weft founds the mesh and leaves its nodes stopped.
func (b *bench) weft() error {
	one, two := b.hosts[0], b.hosts[1]
	one.Launch("--range", lab.DefaultRange)
	if err := one.WaitReady(within); err != nil {
		return err
	}
	two.Join(one.Token(), []*lab.Host{one}, "--range", lab.DefaultRange)
	if err := two.WaitReady(within); err != nil {
		return err
	}
	b.mesh = &mesh{hosts: b.hosts, from: one.Workload("a"), to: two.Workload("b")}
	b.mesh.from.Attach()
	b.mesh.to.Attach()
	defer b.mesh.stop()
	_, err := b.mesh.from.Reach(b.mesh.to.V4, within)
	return err
}

func (m *mesh) stop() {
	for _, h := range m.hosts {
		if h.Running() {
			h.Terminate()
		}
	}
}

func (m *mesh) launched(w way) *contender {
	return &contender{
		name: w.name, from: m.from.Namespace, to: m.to.Namespace, addr: m.to.V4, stop: m.stop, samples: samples{},
		start: func() error {
			for _, h := range m.hosts {
				h.Env(w.env...)
				h.Launch(slices.Concat([]string{"--range", lab.DefaultRange}, w.flags)...)
			}
			for _, h := range m.hosts {
				if err := h.WaitReady(within); err != nil {
					return err
				}
			}
			return nil
		},
		check: func() error { return m.uses(w.suite) },
		pids:  func() []int { return []int{m.hosts[0].Daemon().Pid(), m.hosts[1].Daemon().Pid()} },
	}
}

// uses returns an error unless the nodes use the suite.
func (m *mesh) uses(suite string) error {
	for _, h := range m.hosts {
		var peers []struct {
			Suite string `json:"suite"`
		}
		if err := h.Query(&peers, "peers"); err != nil {
			return err
		}
		if len(peers) != 1 || peers[0].Suite != suite {
			return fmt.Errorf("%s lists the peers %+v, not one with the suite %q", h.Name(), peers, suite)
		}
	}
	return nil
}

// way is how Weft's nodes are launched.
type way struct {
	name, suite string
	env, flags  []string
}

// ways are those in which Weft takes part.
func ways() []way {
	all := []way{
		{name: weftName, suite: ownSuite},
		{name: weftName + "-wireguard", suite: wgSuite, env: []string{noAES}},
		{name: weftName + "-2-shards", suite: ownSuite, flags: []string{"--shards", "2"}},
	}
	for _, off := range []string{"no-tso", "no-uso", "no-gso", "no-gro", "no-offload"} {
		all = append(all, way{name: weftName + "-" + off, suite: ownSuite, flags: []string{"--" + off}})
	}
	return all
}

func weftNames() []string {
	var out []string
	for _, w := range ways() {
		out = append(out, w.name)
	}
	return out
}

// contenders are all of the ways.
func (m *mesh) contenders() []*contender {
	var all []*contender
	for _, w := range ways() {
		all = append(all, m.launched(w))
	}
	return all
}
