// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

const (
	weftName   = "weft"
	weftHost   = weftName + "-host"
	weftWGHost = weftWG + "-host"
	weftWG     = weftName + "-wireguard"
	// Weft's kernel paths.
	weftVXLAN  = weftName + "-vxlan"
	weftDirect = weftName + "-direct"
	ownSuite   = "aes-256-gcm"
	wgSuite    = "chacha20-poly1305"
	// noAES makes a node believe that its processor has no AES, so that it uses WireGuard's suite.
	noAES = "GODEBUG=cpu.aes=off,cpu.pclmulqdq=off"
)

// mesh is Weft's nodes and workloads, which all contenders of Weft share: they differ in how the nodes are launched.
type mesh struct {
	hosts    [hosts]*lab.Host
	third    *lab.Host
	from, to *lab.Workload
	host     netip.Addr // the second host's own address in the mesh
	// A second workload of the first host, and one of the third host, for the measurement fair.
	beside, beyond *lab.Workload
	// Workloads that were attached by nodes that had been launched for a kernel path, by its name: they have the MTU that goes with it.
	byPath map[string][hosts]*lab.Workload
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
		byPath: map[string][hosts]*lab.Workload{},
	}
	all := []*lab.Workload{b.mesh.from, b.mesh.to, b.mesh.beside, b.mesh.beyond}
	for _, w := range all {
		w.Attach()
	}
	defer b.mesh.stop()
	if _, err := lab.AllReach(within, all...); err != nil {
		return err
	}
	status, err := statusOf(two)
	if err != nil {
		return err
	}
	b.mesh.host = status.Addresses[0]
	for _, w := range ways() {
		if w.path == "" {
			continue
		}
		if err := b.mesh.attachFor(w); err != nil {
			return fmt.Errorf("workloads of %s: %w", w.name, err)
		}
	}
	return nil
}

// attachFor attaches the workloads of a way that is a kernel path.
func (m *mesh) attachFor(w way) error {
	m.stop()
	defer m.stop()
	if err := w.launch(m.hosts[:]...); err != nil {
		return err
	}
	var pair [hosts]*lab.Workload
	for i, h := range m.hosts {
		pair[i] = h.Workload(w.path)
		pair[i].Attach()
	}
	m.byPath[w.path] = pair
	return nil
}

// status is what a node tells of itself.
type status struct {
	Addresses []netip.Addr
	Shards    int
	Offloads  []string
}

func statusOf(h *lab.Host) (status, error) {
	var s status
	if err := h.Query(&s, "status"); err != nil {
		return s, err
	}
	if len(s.Addresses) == 0 || !s.Addresses[0].Is4() {
		return s, fmt.Errorf("%s has no v4 address in the mesh", h.Name())
	}
	return s, nil
}

func (m *mesh) stop() {
	for _, h := range append(m.hosts[:], m.third) {
		if h.Running() {
			h.Terminate()
		}
	}
}

// launched is the contender that goes this way.
func (m *mesh) launched(w way) *contender {
	c := &contender{
		name: w.name, from: m.from.Namespace, to: m.to.Namespace, addr: m.to.V4, kinds: w.kinds, samples: samples{},
		start: func() error { return w.launch(m.hosts[:]...) },
		stop:  m.stop,
		pids:  func() []int { return []int{m.hosts[0].Daemon().Pid(), m.hosts[1].Daemon().Pid()} },
		third: &third{
			from: m.beside.Namespace, to: m.beyond.Namespace, addr: m.beyond.V4,
			start: func() error { return w.launch(m.third) },
		},
	}
	c.check = func() error { return m.goes(w, c) }
	if w.fromHost {
		c.from, c.to, c.addr = m.hosts[0].Namespace, m.hosts[1].Namespace, m.host
	}
	if pair, ok := m.byPath[w.path]; ok {
		c.from, c.to, c.addr = pair[0].Namespace, pair[1].Namespace, pair[1].V4
	}
	return c
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

// maxShards is how many shards Weft starts by itself at most.
const maxShards = 8

// goes returns an error unless the two nodes run as the way says: with the suite between them, the shards and the offloads.
func (m *mesh) goes(w way, c *contender) error {
	for i, h := range m.hosts {
		if w.path != "" {
			if err := onPath(h, m.hosts[1-i], w.path); err != nil {
				return err
			}
		}
		if err := inSuite(h, m.hosts[1-i], w.suite, c); err != nil {
			return err
		}
		s, err := statusOf(h)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(w.off, func(o string) bool { return slices.Contains(s.Offloads, o) }) || s.Shards != cmp.Or(w.shards, min((runtime.GOMAXPROCS(0)+1)/2, maxShards)) {
			return fmt.Errorf("%s uses the offloads %v and %d shards, not as %s should", h.Name(), s.Offloads, s.Shards, w.name)
		}
	}
	return nil
}

// inSuite waits until a host says that its session with the other one is of that suite. There may be none: it is made for packets, so c has some.
func inSuite(h, to *lab.Host, suite string, c *contender) error {
	type peer struct{ Name, Suite string }
	for deadline := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		var peers []peer
		if err := h.Query(&peers, "peers"); err != nil {
			return err
		}
		switch {
		case slices.Contains(peers, peer{to.Name(), suite}):
			return nil
		case !slices.Contains(peers, peer{to.Name(), ""}) || time.Now().After(deadline):
			return fmt.Errorf("%s lists the peers %+v, none of which is %+v", h.Name(), peers, peer{to.Name(), suite})
		}
		if _, err := c.from.Reach(c.addr, within); err != nil {
			return err
		}
	}
}

// onPath waits until a host says that it reaches the other one by that path.
func onPath(h, to *lab.Host, path string) error {
	for deadline := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		var peers []struct{ Name, Path, Reason string }
		if err := h.Query(&peers, "peers"); err != nil {
			return err
		}
		for _, p := range peers {
			if p.Name == to.Name() && p.Path == path {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not reach %s by %s: %+v", h.Name(), to.Name(), path, peers)
		}
	}
}

// underlay are the networks between the hosts.
const underlay = "192.168.0.0/16,2001:db8::/32"

// way is how Weft's nodes are launched, and which way packets go.
type way struct {
	name, suite string
	env, flags  []string
	fromHost    bool     // to host, instead of workload to workload
	shards      int      // 0: what Weft chooses
	off         []string // offloads that must not be in use
	path        string   // the kernel path that packets take, "" for none
	kinds       []kind
}

// ways are those in which Weft takes part.
func ways() []way {
	pair := without(common(), fairKind)
	all := []way{
		{name: weftName, suite: ownSuite, kinds: common()},
		{name: weftHost, suite: ownSuite, kinds: pair, fromHost: true},
		{name: weftWG, suite: wgSuite, kinds: []kind{tcpKind, udpKind, latencyKind, memoryKind}, env: []string{noAES}},
		{name: weftWGHost, suite: wgSuite, kinds: []kind{tcpKind}, env: []string{noAES}, fromHost: true},
		{name: weftName + "-2-shards", suite: ownSuite, kinds: without(common(), pacedKind), flags: []string{"--shards", "2"}, shards: 2},
	}
	for _, k := range []struct{ name, path string }{{weftVXLAN, "vxlan"}, {weftDirect, "direct"}} {
		all = append(all, way{
			name: k.name, suite: ownSuite, path: k.path, kinds: []kind{tcpKind, udpKind, latencyKind, memoryKind},
			flags: []string{"--trusted-subnets", underlay, "--paths", k.path + ",udp"},
		})
	}
	offloads := []string{"tso", "uso", "gso", "gro"}
	switchedOff := func(flag string, off ...string) {
		all = append(all, way{
			name: weftName + "-" + flag, suite: ownSuite, kinds: []kind{tcpKind, udpKind}, flags: []string{"--" + flag}, off: off,
		})
	}
	for _, o := range offloads {
		switchedOff("no-"+o, o)
	}
	switchedOff("no-offload", offloads...)
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
