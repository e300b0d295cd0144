// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/bench"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netlock"
	"github.com/weftnet/weft/internal/netns"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/mesh/memnet"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/envelope"
)

// fakeHost is a host's network that keeps what it is told, and checks it: the
// same address for two workloads, or a workload outside the desired state, is a
// failure of the test.
type fakeHost struct {
	t  *testing.T
	mu sync.Mutex
	// up is what is attached, and survives the node, as the kernel's state does.
	up      map[string]hostnet.Workload
	desired hostnet.Desired
	fail    error            // what Attach does next
	stuck   map[string]error // what Detach does, by workload
	traffic map[netip.Prefix]uint64
	lacks   error // for kernel paths
	guarded func(lines []string)
	ways    *fakeKernel
	broken  error                  // what Apply ends in
	unruly  bool                   // Apply refuses the rules of kernel paths
	v4only  bool                   // the host has no IPv6
	visited func(hostnet.Workload) // is called by Attach and Detach first, if it is set

	settle   func(hostnet.Workload) error // what Settle does; Attach says that it has to be called if it is set
	refusing error                        // what SetPlain ends in, and Apply with other rules than before
}

func (h *fakeHost) Plan(_ hostnet.Desired, c hostnet.Changes) (hostnet.Changes, error) { return c, nil }

func (h *fakeHost) Apply(d hostnet.Desired, c hostnet.Changes) (hostnet.Result, error) {
	defer h.covered()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken != nil {
		return hostnet.Result{Changes: c}, h.broken
	}
	if h.unruly && d.Plain.VXLANPort != 0 {
		return hostnet.Result{Changes: c}, errors.New("such rules are refused")
	}
	if h.refusing != nil {
		d.Plain = h.desired.Plain
	}
	h.desired = d
	res := hostnet.Result{Changes: c}
	wanted := map[string]bool{}
	for _, w := range d.Workloads {
		wanted[w.ID] = true
		if _, ok := h.up[w.ID]; !ok && !w.AddressesOnly {
			res.Missing = append(res.Missing, w.ID)
		}
	}
	for id := range h.up {
		if !wanted[id] {
			delete(h.up, id)
		}
	}
	return res, nil
}

func (h *fakeHost) Attach(w hostnet.Workload) (hostnet.Attached, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.visited != nil {
		h.visited(w)
	}
	if h.fail != nil {
		return hostnet.Attached{}, h.fail
	}
	for id, other := range h.up {
		if id != w.ID && slices.Equal(other.Addrs, w.Addrs) {
			h.t.Errorf("%s and %s both have %v", id, w.ID, w.Addrs)
		}
	}
	h.up[w.ID] = w
	made := hostnet.Attached{MTU: w.MTU, Addrs: w.Addrs, Unsettled: h.settle != nil}
	if !w.AddressesOnly {
		made.HostMAC, made.MAC = hostnet.MACs(w)
	}
	for _, a := range h.desired.Addrs {
		made.Routes = append(made.Routes, hostnet.Route{Dst: netip.PrefixFrom(a, 0).Masked(), Gateway: a})
	}
	return made, nil
}

func (h *fakeHost) Settle(w hostnet.Workload) error {
	h.mu.Lock()
	settle := h.settle
	h.mu.Unlock()
	return settle(w)
}

func (h *fakeHost) Detach(w hostnet.Workload) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.visited != nil {
		h.visited(w)
	}
	if err := h.stuck[w.ID]; err != nil {
		return err
	}
	delete(h.up, w.ID)
	return nil
}

func (h *fakeHost) Missing(all []hostnet.Workload) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var missing []string
	for _, w := range all {
		if _, ok := h.up[w.ID]; !ok && !w.AddressesOnly {
			missing = append(missing, w.ID)
		}
	}
	return missing, nil
}

func (h *fakeHost) Close() {}

func (h *fakeHost) Check(w hostnet.Workload) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch is, ok := h.up[w.ID]; {
	case !ok:
		return &hostnet.DifferenceError{Text: "interface " + hostnet.HostIf(w.ID) + " on the host is gone"}
	case is.MTU != w.MTU:
		return &hostnet.DifferenceError{Text: fmt.Sprintf("it has an MTU of %d instead of %d", is.MTU, w.MTU)}
	}
	return nil
}

func (h *fakeHost) Remove(hostnet.Changes) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.up)
	h.desired = hostnet.Desired{}
	return nil, nil
}

// fakePlane carries gossip over a network in memory, and knows its peers.
type fakePlane struct {
	router *memnet.Router

	mu      sync.Mutex
	peers   []router.Peer
	local   router.Local
	greeted bool
	refuse  error              // what SetPeers does next
	told    func()             // what SetPeers calls the next time
	stats   []router.PeerStats // made up
	reached reach              // made up
	config  planeConfig
	name    string
	segment *segment
}

func (p *fakePlane) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (p *fakePlane) SetPeers(peers []router.Peer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return p.refuse
	}
	p.peers = peers
	if p.told != nil {
		p.told()
		p.told = nil
	}
	return nil
}

func (p *fakePlane) SetKeys(k router.Keys) {
	secrets := [][32]byte{secretOf(k.Envelope.Primary)}
	for _, a := range k.Envelope.Accept {
		secrets = append(secrets, secretOf(a))
	}
	p.router.SetSecrets(secrets...)
}

// secretOf stands for a key on the network in memory.
func secretOf(k envelope.Key) (s [32]byte) {
	binary.BigEndian.PutUint32(s[:], k.ID())
	return s
}

func (p *fakePlane) SetLocal(l router.Local) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.local = l
}

func (p *fakePlane) SendControl(b []byte, to router.Addr) error {
	return p.router.SendControl(b, memnet.Addr(to))
}

func (p *fakePlane) Examine(uint64) {}

func (p *fakePlane) Offloads() Offloads { return Offloads{TSO: true, GRO: true} }
func (p *fakePlane) TUN() TUN           { return TUNNative }
func (p *fakePlane) Shards() int        { return 1 }

func (p *fakePlane) Greet() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.greeted = true
}

func (p *fakePlane) Reach() reach {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reached
}

func (p *fakePlane) Moved()                 {}
func (p *fakePlane) Stats() router.Stats    { return router.Stats{} }
func (p *fakePlane) CPUTime() time.Duration { return 0 }
func (p *fakePlane) Close() error           { return p.router.Close() }

func (p *fakePlane) PeerStats() []router.PeerStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// machine is one host of a cluster, which outlives the nodes that run on it.
type machine struct {
	t    *testing.T
	name string
	addr netip.Addr
	net  *memnet.Host
	host *fakeHost
	dir  string
	over bench.Network // nil: none

	mu     sync.Mutex
	spaces map[string]netns.ID      // path -> namespace
	closed map[string]error         // what looking at a path ends in
	hung   map[string]chan struct{} // paths on a file system that does not answer
	boot   string
	states []string // told to the supervisor
	svc    api.Service
	broken error // what making the data path ends in

	unplugged  bool         // has no network
	nowhere    bool         // has no address that others could reach
	interfaces []netip.Addr // what it has instead of its address
	rewired    signal       // the interfaces changed; nil: they never do
	carrier    *fakePlane
	ways       *fakeKernel
	filter     *fakeFilter
	flows      fakeBypass
	segment    *segment
	probing    *fakeProbes // nil: nobody answers
	unprobed   error       // what opening the sockets of probes ends in

	kill context.CancelFunc
	done chan error
}

type nothing struct{}

func (nothing) Close() error { return nil }

func (m *machine) lock(context.Context, netlock.Holder) (io.Closer, error)   { return nothing{}, nil }
func (m *machine) probe() error                                              { return nil }
func (m *machine) listen(uint16, int, Offloads, *zap.Logger) (socket, error) { return nothing{}, nil }
func (m *machine) removeDevice() error                                       { return nil }
func (m *machine) network() mesh.Network                                     { return m.net }
func (m *machine) overlay() bench.Network                                    { return m.over }
func (m *machine) overlap([]netip.Prefix) error                              { return nil }
func (m *machine) egress(advertise netip.Addr) (hostnet.Link, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unplugged {
		return hostnet.Link{}, hostnet.ErrNoNetwork
	}
	if m.nowhere {
		return hostnet.Link{Name: "eth0", MTU: 1500}, nil
	}
	addrs := []netip.Addr{m.addr}
	if m.interfaces != nil {
		addrs = m.interfaces
	}
	l := hostnet.Link{Name: "eth0", MTU: 1500, Addr: addrs[0], Addrs: addrs}
	if advertise.IsValid() {
		l.Addr = advertise
	}
	return l, nil
}

func (m *machine) watchNetwork(ctx context.Context, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.rewired:
			changed()
		}
	}
}

func (m *machine) plane(_ socket, c planeConfig) (dataplane, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	p := &fakePlane{config: c, name: m.name, segment: m.segment, router: m.net.Router(memnet.Member{Node: uint64(c.id), Port: DefaultPort, Secret: secretOf(c.keys.Envelope.Primary)},
		func(b []byte, from memnet.Addr, at time.Time) { c.control(b, router.Addr(from), at) })}
	p.SetKeys(c.keys)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.carrier = p
	m.segment.mu.Lock()
	m.segment.machines[uint64(c.id)] = m
	m.segment.mu.Unlock()
	return p, nil
}

func (m *machine) knock(id mesh.NodeID, keys router.Keys, deliver func(b []byte, from mesh.Addr)) (mesh.Knocker, error) {
	r := m.net.Router(memnet.Member{Node: uint64(id), Port: 40000, Secret: secretOf(keys.Envelope.Primary)},
		func(b []byte, from memnet.Addr, _ time.Time) {
			deliver(b, mesh.Addr{Node: mesh.NodeID(from.Node), Addr: from.Addr})
		})
	return fakeKnocker{r}, nil
}

type fakeKnocker struct{ *memnet.Router }

func (k fakeKnocker) SendControl(b []byte, to mesh.Addr) error {
	return k.Router.SendControl(b, memnet.Addr{Node: uint64(to.Node), Addr: to.Addr})
}

func (m *machine) netnsAt(path string) (netns.ID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if hung := m.hung[path]; hung != nil {
		m.mu.Unlock()
		<-hung
		m.mu.Lock()
	}
	if err := m.closed[path]; err != nil {
		return "", err
	}
	if id, ok := m.spaces[path]; ok {
		return id, nil
	}
	return "", fmt.Errorf("%s %w", path, netns.ErrNotNetns)
}

// uptime is that of a machine that runs for a day when the test begins.
func (m *machine) uptime() time.Duration {
	return time.Since(time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC))
}

func (m *machine) bootID() (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boot, nil
}

func (m *machine) notify(state string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states = append(m.states, state)
}

type fakeControl struct{}

func (fakeControl) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (fakeControl) Path() string                  { return "nowhere" }

func (m *machine) control(_ context.Context, _ string, svc api.Service, _ *zap.Logger) (controlServer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.svc = svc
	return fakeControl{}, nil
}

// fakeSystem is a machine as the node sees it.
type fakeSystem struct{ *machine }

func (s fakeSystem) host(*zap.Logger) hostNetwork { return s.machine.host }
