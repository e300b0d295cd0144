// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/fastpath/kernel"
)

// segment is the network between the machines of a cluster, as kernel paths see it: who may probe whom by which kind.
type segment struct {
	mu       sync.Mutex
	machines map[uint64]*machine // whose node has that ID
	blocked  map[crossing]bool
	probed   map[crossing]int
}

type crossing struct {
	from, to string
	kind     fastpath.Kind
}

// block lets no packet pass by a kind from one machine to another, or lets it pass again.
func (s *segment) block(from, to *machine, kind fastpath.Kind, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked[crossing{from.name, to.name, kind}] = on
}

// fakeKernel keeps what it is told as the kernel does, over restarts of the node, and checks it: a route that the rules do not allow is a failure
// of the test.
type fakeKernel struct {
	t    *testing.T
	host *fakeHost
	addr netip.Addr
	flow *fakeBypass

	mu      sync.Mutex
	lacks   kernel.Support
	has     kernel.Desired // in the kernel
	applies int
	removed int
	repairs []string // what Reconcile says next
	changed func()
	device  string          // by which others are reached; "": eth0
	tried   map[string]bool // devices by which probes were sent without a tunnel
	stuck   error           // what Remove ends in: the routes go, something else stays

	crashing bool   // Remove is not of this world
	watched  uint64 // packets to that node are to go by VXLAN always
	strayed  string
	retired  bool // devices of earlier runs have gone
}

func (k *fakeKernel) Support() kernel.Support {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lacks
}

func (k *fakeKernel) Apply(d kernel.Desired) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unrepeated()
	k.has = d
	k.has.Peers = slices.Clone(d.Peers)
	k.applies++
	k.allowed()
	for _, p := range d.Peers {
		if p.Path == fastpath.Direct && !k.tried[p.Device] {
			k.t.Errorf("packets are to go by %s, where no probe was sent", p.Device)
		}
	}
	for _, p := range d.Peers {
		if p.ID == k.watched && p.Path == fastpath.VXLAN {
			return nil
		}
	}
	if k.watched != 0 {
		k.strayed = "the path was left by an Apply"
	}
	return nil
}

// allowed checks that what has a route may leave.
func (k *fakeKernel) allowed() {
	k.host.mu.Lock()
	defer k.host.mu.Unlock()
	for _, p := range k.has.Peers {
		for _, prefix := range p.Prefixes {
			device := map[fastpath.Kind]string{fastpath.Direct: p.Device, fastpath.VXLAN: deviceVXLAN4}[p.Path]
			if device != "" && !slices.Contains(k.host.desired.Plain.Out, hostnet.Out{Device: device, Prefix: prefix}) {
				k.t.Errorf("a route to %v leads to %s, where nothing may leave for it", prefix, device)
			}
		}
	}
}

func (k *fakeKernel) Reconcile() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := k.repairs
	k.repairs = nil
	return list, nil
}

func (k *fakeKernel) Retire() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.retired = true
	return nil
}

func (k *fakeKernel) Found(d kernel.Desired) (map[uint64]fastpath.Kind, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.retired {
		return nil, errors.New("devices of an earlier run may be open to anybody")
	}
	found := map[uint64]fastpath.Kind{}
	for _, p := range k.has.Peers {
		if p.Path != fastpath.UDP && slices.ContainsFunc(d.Peers, func(x kernel.Peer) bool { return x.ID == p.ID }) {
			found[p.ID] = p.Path
		}
	}
	return found, nil
}

func (k *fakeKernel) Remove() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removed++
	if k.watched != 0 && !k.crashing {
		k.strayed = "the path was removed"
	}
	k.has = kernel.Desired{}
	return nil, k.stuck
}

func (k *fakeKernel) Watch(ctx context.Context, changed func()) error {
	k.mu.Lock()
	k.changed = changed
	k.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (k *fakeKernel) Close() error { return nil }

func (k *fakeKernel) Route(to netip.Addr) (fastpath.Hop, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return fastpath.Hop{Source: k.addr, Device: cmp.Or(k.device, "eth0"), MTU: 1500, OnLink: true}, to != k.addr
}

func (k *fakeKernel) Neighbour(_ string, hop netip.Addr) (net.HardwareAddr, bool) {
	a := hop.As4()
	return net.HardwareAddr{2, 0, a[0], a[1], a[2], a[3]}, true
}

// path is by which kind packets to another node leave, as the kernel has it.
func (k *fakeKernel) path(id uint64) fastpath.Kind {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.has.Peers {
		if p.ID == id {
			return p.Path
		}
	}
	return fastpath.UDP
}

// covered checks that the rules still allow what there are routes for.
func (h *fakeHost) covered() {
	if h.ways != nil {
		h.ways.mu.Lock()
		defer h.ways.mu.Unlock()
		h.ways.allowed()
	}
}

func (h *fakeHost) SetPlain(p hostnet.Plaintext) error {
	defer h.covered()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refusing != nil {
		return h.refusing
	}
	h.desired.Plain = p
	return nil
}

func (h *fakeHost) Passes() bool { return true }

func (h *fakeHost) CarriesIPv6(string, int) bool { return !h.v4only }

func (h *fakeHost) Tighten(c hostnet.Changes) (hostnet.Changes, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.desired.Loose = nil
	return hostnet.Changes{}, nil
}

func (h *fakeHost) Traffic() (map[netip.Prefix]uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.traffic), nil
}

func (h *fakeHost) Support() error { return h.lacks }

func (h *fakeHost) Guard(ctx context.Context, repaired func([]string)) error {
	h.mu.Lock()
	h.guarded = repaired
	h.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (m *machine) kernel(kernel.Config) pathKernel { return m.ways }

// fakeProbes carries probes over the segment.
type fakeProbes struct {
	m    *machine
	c    probeConfig
	came func(probeSeen)
}

func (m *machine) probes(c probeConfig, came func(probeSeen), _ *zap.Logger) (pathProbes, error) {
	if m.unprobed != nil {
		return nil, m.unprobed
	}
	return &fakeProbes{m: m, c: c, came: came}, nil
}

func (p *fakeProbes) Run(ctx context.Context) error {
	p.m.mu.Lock()
	p.m.probing = p
	p.m.mu.Unlock()
	<-ctx.Done()
	p.m.mu.Lock()
	p.m.probing = nil
	p.m.mu.Unlock()
	return nil
}

var (
	errNarrow = errors.New("message too long")
	errNoWay  = errors.New("network is unreachable")
)

// leads tells whether the kernel has a way of a kind to a node.
func (k *fakeKernel) leads(id uint64, kind fastpath.Kind) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.has.Peers, func(p kernel.Peer) bool {
		if p.ID == id && kind == fastpath.Direct && p.Device != "" {
			k.tried[p.Device] = true
		}
		return p.ID == id && (kind == fastpath.VXLAN && p.VXLAN.IsValid() || kind == fastpath.Direct && p.Device != "")
	})
}

// Send lets a probe arrive a millisecond later, if nothing is in the way and the other side takes it.
func (p *fakeProbes) Send(a fastpath.Action) error {
	s := p.m.segment
	s.mu.Lock()
	to := s.machines[a.ID]
	way := crossing{p.m.name, to.name, a.Way}
	s.probed[way]++
	lost := s.blocked[way]
	s.mu.Unlock()
	if a.Size > 1500 {
		return errNarrow
	}
	if !p.m.ways.leads(a.ID, a.Way) {
		return errNoWay
	}
	seen := probeSeen{from: p.c.id, way: a.Way, echo: a.Echo, device: "eth0"}
	if a.Way == fastpath.VXLAN {
		seen.device = deviceVXLAN4
	}
	for _, h := range p.c.hosts {
		if h.Is4() == a.To.Is4() {
			seen.source = h
		}
	}
	time.AfterFunc(time.Millisecond, func() {
		to.mu.Lock()
		there := to.probing
		to.mu.Unlock()
		if there != nil && !lost && to.host.admits(seen) {
			there.came(seen)
		}
	})
	return nil
}

// admits tells whether the rules let a probe in.
func (h *fakeHost) admits(p probeSeen) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.way == fastpath.VXLAN {
		return slices.ContainsFunc(h.desired.Plain.Tunnels, func(t hostnet.Tunnel) bool { return t.Prefix.Contains(p.source) })
	}
	return slices.ContainsFunc(h.desired.Plain.In, func(in hostnet.In) bool {
		return in.Device == p.device && in.Prefix.Contains(p.source)
	})
}

// SendProof answers by the segment: the control datagrams of the cluster's network are for the mesh.
func (p *fakePlane) SendProof(node, echo uint64) error {
	s := p.segment
	s.mu.Lock()
	to := s.machines[node]
	cut := s.blocked[crossing{p.name, to.name, fastpath.UDP}]
	s.mu.Unlock()
	time.AfterFunc(time.Millisecond, func() {
		to.mu.Lock()
		there, alive := to.carrier, to.probing != nil
		to.mu.Unlock()
		if alive && !cut {
			there.config.onProof(p.config.idOf(), echo, time.Now())
		}
	})
	return nil
}

// SendAsk is for the other side's engine to answer.
func (p *fakePlane) SendAsk(node, echo uint64) error {
	s := p.segment
	s.mu.Lock()
	to := s.machines[node]
	cut := s.blocked[crossing{p.name, to.name, fastpath.UDP}]
	s.mu.Unlock()
	time.AfterFunc(time.Millisecond, func() {
		to.mu.Lock()
		there, alive := to.carrier, to.probing != nil
		to.mu.Unlock()
		if alive && !cut {
			there.config.onAsk(p.config.idOf(), echo, time.Now())
		}
	})
	return nil
}

func (c planeConfig) idOf() uint64 { return uint64(c.id) }

// newDirect starts two nodes that trust the network between them, and returns them when they reach each other by the direct path.
func newDirect(t *testing.T) (c *cluster, n1, n2 *machine) {
	t.Helper()
	c = newCluster(t, 2)
	n1, n2 = c.machines[0], c.machines[1]
	c.start(n1, trusting)
	c.start(n2, trusting, "n1")
	c.ready(n1)
	c.ready(n2)
	c.reachedBy(n1, n2, fastpath.Direct, 10*time.Second)
	return c, n1, n2
}
