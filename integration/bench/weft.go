// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"github.com/weftnet/weft/integration/lab"
)

const (
	weftName = "weft"
	weftWG   = weftName + "-wireguard"
	ownSuite = "aes-256-gcm"
	wgSuite  = "chacha20-poly1305"
	// noAES makes a node believe that its processor has no AES, so that it uses WireGuard's suite.
	noAES = "GODEBUG=cpu.aes=off,cpu.pclmulqdq=off"
)

// mesh is Weft's nodes and workloads, which all contenders of Weft share: they differ in how the nodes are launched.
type mesh struct {
	hosts    [hosts]*lab.Host
	third    *lab.Host
	from, to *lab.Workload
	// A second workload of the first host, and one of the third host, for the measurement fair.
	beside, beyond *lab.Workload
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
	b.third.Join(one.Token(), []*lab.Host{one}, "--range", lab.DefaultRange)
	if err := b.third.WaitReady(within); err != nil {
		return err
	}
	b.mesh = &mesh{
		hosts: b.hosts, third: b.third,
		from: one.Workload("a"), to: two.Workload("b"), beside: one.Workload("c"), beyond: b.third.Workload("d"),
	}
	all := []*lab.Workload{b.mesh.from, b.mesh.to, b.mesh.beside, b.mesh.beyond}
	for _, w := range all {
		w.Attach()
	}
	defer b.mesh.stop()
	_, err := lab.AllReach(within, all...)
	return err
}

func (m *mesh) stop() {
	for _, h := range append(m.hosts[:], m.third) {
		if h.Running() {
			h.Terminate()
		}
	}
}

func (m *mesh) launched(w way) *contender {
	return &contender{
		name: w.name, from: m.from.Namespace, to: m.to.Namespace, addr: m.to.V4, stop: m.stop, samples: samples{},
		start: func() error { return w.launch(m.hosts[:]...) },
		kinds: w.kinds,
		third: &third{
			from: m.beside.Namespace, to: m.beyond.Namespace, addr: m.beyond.V4,
			start: func() error { return w.launch(m.third) },
		},
		check: func() error { return m.uses(w.suite) },
		pids:  func() []int { return []int{m.hosts[0].Daemon().Pid(), m.hosts[1].Daemon().Pid()} },
	}
}

// launch starts the hosts' nodes, and returns when they are ready.
func (w way) launch(nodes ...*lab.Host) error {
	for _, h := range nodes {
		h.Env(w.env...)
		h.Launch(slices.Concat([]string{"--range", lab.DefaultRange}, w.flags)...)
	}
	for _, h := range nodes {
		if err := h.WaitReady(within); err != nil {
			return err
		}
	}
	return nil
}

// uses returns an error unless the two nodes use the suite with each other.
func (m *mesh) uses(suite string) error {
	for i, h := range m.hosts {
		type peer struct{ Name, Suite string }
		var peers []peer
		if err := h.Query(&peers, "peers"); err != nil {
			return err
		}
		want := peer{m.hosts[1-i].Name(), suite}
		if !slices.Contains(peers, want) {
			return fmt.Errorf("%s lists the peers %+v, none of which is %+v", h.Name(), peers, want)
		}
	}
	return nil
}

// way is how Weft's nodes are launched.
type way struct {
	name, suite string
	env, flags  []string
	kinds       []kind
}

// ways are those in which Weft takes part.
func ways() []way {
	all := []way{
		{name: weftName, suite: ownSuite, kinds: kinds()},
		{name: weftWG, suite: wgSuite, env: []string{noAES}, kinds: without(without(kinds(), lossKind), fairKind)},
		{name: weftName + "-2-shards", suite: ownSuite, flags: []string{"--shards", "2"}, kinds: kinds()},
	}
	for _, off := range []string{"no-tso", "no-uso", "no-gso", "no-gro", "no-offload"} {
		all = append(all, way{name: weftName + "-" + off, suite: ownSuite, flags: []string{"--" + off}, kinds: []kind{tcpKind, udpKind}})
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
