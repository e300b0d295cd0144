// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/bench"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netlock"
	"github.com/weftnet/weft/internal/netns"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/mesh/memnet"
	"github.com/weftnet/weft/router"
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
	fail    error // what Attach does next
}

func (h *fakeHost) Plan(_ hostnet.Desired, c hostnet.Changes) (hostnet.Changes, error) { return c, nil }

func (h *fakeHost) Apply(d hostnet.Desired, c hostnet.Changes) (hostnet.Result, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.desired = d
	res := hostnet.Result{Changes: c}
	wanted := map[string]bool{}
	for _, w := range d.Workloads {
		wanted[w.ID] = true
		if _, ok := h.up[w.ID]; !ok {
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

func (h *fakeHost) Attach(w hostnet.Workload) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return nil, h.fail
	}
	for id, other := range h.up {
		if id != w.ID && slices.Equal(other.Addrs, w.Addrs) {
			h.t.Errorf("%s and %s both have %v", id, w.ID, w.Addrs)
		}
	}
	h.up[w.ID] = w
	return nil, nil
}

func (h *fakeHost) Detach(w hostnet.Workload) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.up, w.ID)
	return nil
}

func (h *fakeHost) Missing(all []hostnet.Workload) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var missing []string
	for _, w := range all {
		if _, ok := h.up[w.ID]; !ok {
			missing = append(missing, w.ID)
		}
	}
	return missing, nil
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
	host *memnet.Host

	mu      sync.Mutex
	peers   []router.Peer
	local   router.Local
	greeted bool
	refuse  error              // what SetPeers does next
	told    func()             // what SetPeers calls the next time
	stats   []router.PeerStats // made up
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

func (p *fakePlane) SetLocal(l router.Local) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.local = l
}

func (p *fakePlane) SendControl(b []byte, to netip.AddrPort) error { return p.host.SendControl(b, to) }

func (p *fakePlane) Offloads() Offloads { return Offloads{TSO: true, GRO: true} }
func (p *fakePlane) TUN() TUN           { return TUNNative }
func (p *fakePlane) Shards() int        { return 1 }

func (p *fakePlane) Greet() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.greeted = true
}

func (p *fakePlane) Stats() router.Stats    { return router.Stats{} }
func (p *fakePlane) CPUTime() time.Duration { return 0 }
func (p *fakePlane) Close() error           { p.host.Receive(0, nil); return nil }

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
	spaces map[string]netns.ID // path -> namespace
	boot   string
	states []string // told to the supervisor
	svc    api.Service
	broken error // what making the data path ends in

	unplugged bool // has no network
	nowhere   bool // has no address that others could reach
	carrier   *fakePlane

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
func (m *machine) egress(netip.Addr) (hostnet.Link, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unplugged {
		return hostnet.Link{}, hostnet.ErrNoNetwork
	}
	if m.nowhere {
		return hostnet.Link{Name: "eth0", MTU: 1500}, nil
	}
	return hostnet.Link{Name: "eth0", MTU: 1500, Addr: m.addr, Addrs: []netip.Addr{m.addr}}, nil
}

func (m *machine) plane(_ socket, c planeConfig) (dataplane, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	p := &fakePlane{host: m.net}
	m.net.Receive(DefaultPort, c.control)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.carrier = p
	return p, nil
}

func (m *machine) netnsAt(path string) (netns.ID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if id, ok := m.spaces[path]; ok {
		return id, nil
	}
	return "", fmt.Errorf("%s %w", path, netns.ErrNotNetns)
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

// cluster is a number of machines on one network.
type cluster struct {
	t        *testing.T
	net      *memnet.Net
	machines []*machine
	token    token.Token
}

const testRange = "10.32.0.0/16,fd00::/112"

func newCluster(t *testing.T, machines int) *cluster {
	t.Helper()
	c := &cluster{t: t, net: memnet.New(1), token: newToken(t)}
	c.net.Delay(time.Millisecond, 5*time.Millisecond)
	root := t.TempDir()
	for i := range machines {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		name := fmt.Sprint("n", i+1)
		m := &machine{
			t: t, name: name, addr: addr, net: c.net.Host(addr), dir: filepath.Join(root, name), boot: "boot-1",
			spaces: map[string]netns.ID{"/proc/self/ns/net": "net:[1]"},
			host:   &fakeHost{t: t, up: map[string]hostnet.Workload{}},
		}
		c.net.Name(name, addr)
		c.machines = append(c.machines, m)
	}
	t.Cleanup(func() {
		for _, m := range c.machines {
			if err := m.stop(); err != nil {
				t.Errorf("%s ended: %v", m.name, err)
			}
		}
		time.Sleep(time.Minute) // memberlist does not wait for its last probes
	})
	return c
}

// start launches the node of m; peers are names of machines.
func (c *cluster) start(m *machine, change func(*Config), peers ...string) {
	c.t.Helper()
	cfg := Config{
		Version: "test", Name: m.name, Peers: peers, Token: c.token, Port: DefaultPort, Range: testRange,
		DataDir: m.dir, RunDir: m.dir + ".run", Shards: 1, Masquerade: true, Log: zap.NewNop(), Out: io.Discard,
	}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.kill, m.done = cancel, make(chan error, 1)
	m.mu.Lock()
	m.svc = nil
	m.mu.Unlock()
	go func() { m.done <- launch(ctx, cfg, fakeSystem{m}) }()
}

// stop ends m's node as SIGTERM does, and returns what Launch did.
func (m *machine) stop() error {
	if m.kill == nil {
		return nil
	}
	m.kill()
	m.kill = nil
	return <-m.done
}

func (m *machine) service() api.Service {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.svc
}

// eventually waits, in virtual time, for cond.
func (c *cluster) eventually(within time.Duration, what string, cond func() bool) {
	c.t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if cond() {
			return
		}
	}
	for _, m := range c.machines {
		if svc := m.service(); svc != nil {
			c.t.Logf("%s: %+v\n%+v\n%+v", m.name, svc.Status(), svc.Peers(), svc.IPAM())
		}
	}
	c.t.Fatalf("after %v there is still not: %s", within, what)
}

func (c *cluster) ready(m *machine) {
	c.t.Helper()
	c.eventually(10*time.Second, m.name+" ready", func() bool { svc := m.service(); return svc != nil && svc.Status().Ready })
}

// attach makes a namespace on m and attaches it.
func (c *cluster) attach(m *machine, name string) api.Workload {
	c.t.Helper()
	path := "/run/netns/" + name
	m.mu.Lock()
	m.spaces[path] = netns.ID("net:[" + m.name + name + "]")
	m.mu.Unlock()
	w, err := m.service().Attach(c.t.Context(), api.AttachRequest{Netns: path, IfName: "eth0"})
	if err != nil {
		c.t.Fatalf("%s: attaching %s: %v", m.name, name, err)
	}
	return w
}

// untold is the progress of a leave that nobody looks at.
func untold(api.LeaveProgress) {}

// routed tells whether the node of m would send a packet for a to the machine to.
func (m *machine) routed(a netip.Addr, to *machine) bool {
	m.mu.Lock()
	p := m.carrier
	m.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, peer := range p.peers {
		for _, prefix := range peer.Prefixes {
			if prefix.Contains(a) {
				return peer.Name == to.name && len(peer.Endpoints) > 0 && peer.Endpoints[0].Addr() == to.addr
			}
		}
	}
	return false
}

func (c *cluster) connected(within time.Duration) {
	c.t.Helper()
	c.eventually(within, "a route from everyone to every workload", func() bool {
		for _, to := range c.machines {
			for _, w := range to.service().Workloads() {
				for _, from := range c.machines {
					for _, a := range w.Addresses {
						if from != to && !from.routed(a, to) {
							return false
						}
					}
				}
			}
		}
		return true
	})
}

// distinct fails if two workloads or hosts of the cluster have one address.
func (c *cluster) distinct() {
	c.t.Helper()
	seen := map[netip.Addr]string{}
	for _, m := range c.machines {
		for _, a := range m.service().IPAM().Allocations {
			for _, addr := range a.Addresses {
				if who, ok := seen[addr]; ok {
					c.t.Errorf("%v is held by %s and by %s of %s", addr, who, a.Owner, m.name)
				}
				seen[addr] = m.name + " " + a.Owner
			}
		}
	}
}

func TestThreeNodesInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n3, nil, "n2")
		c.start(n2, nil, "n1")
		time.Sleep(time.Minute) // nobody there yet
		if st := n3.service().Status(); st.Phase != api.Joining || st.WaitsFor == "" {
			t.Errorf("n3 does not say that it waits: %+v", st)
		}
		if _, err := n3.service().Attach(t.Context(), api.AttachRequest{Netns: "/run/netns/a", IfName: "eth0"}); err == nil {
			t.Error("a node that has not joined gave an address away")
		}
		c.start(n1, nil)
		for _, m := range c.machines {
			c.ready(m)
		}
		for i := range 5 {
			for _, m := range c.machines {
				c.attach(m, fmt.Sprint("w", i))
			}
		}
		c.connected(5 * time.Second)
		c.distinct()
		if !slices.Contains(n1.states, "READY=1") {
			t.Errorf("the supervisor was told %v", n1.states)
		}
	})
}

func TestPartitionAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.start(n3, nil, "n1")
		for _, m := range c.machines {
			c.ready(m)
			c.attach(m, "before")
		}
		c.connected(5 * time.Second)
		c.net.Partition([]*memnet.Host{n3.net})
		time.Sleep(2 * time.Minute)
		for i := range 50 {
			for _, m := range c.machines {
				c.attach(m, fmt.Sprint("during", i))
			}
		}
		c.net.Heal()
		c.connected(10 * time.Second)
		c.distinct()
		c.eventually(10*time.Second, "everyone alive for everyone", func() bool {
			for _, m := range c.machines {
				if m.service().Status().Nodes != (api.NodeCount{Total: 3, Alive: 3}) {
					return false
				}
			}
			return true
		})
	})
}

func TestRestartResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.ready(n1)
		c.ready(n2)
		kept, gone := c.attach(n2, "kept"), c.attach(n2, "gone")
		lost := c.attach(n2, "lost")
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		// While it is down, one namespace goes with its interface, another loses
		// its interface only, and the other node is gone as well.
		n2.host.mu.Lock()
		delete(n2.host.up, gone.ID)
		delete(n2.host.up, lost.ID)
		n2.host.mu.Unlock()
		n2.mu.Lock()
		delete(n2.spaces, gone.Netns)
		n2.mu.Unlock()
		n1.net.Dark(true)
		c.start(n2, nil, "n1")
		c.ready(n2)
		if !n2.carrier.greeted {
			t.Error("the peers were not greeted after the restart")
		}
		var ids []string
		for _, w := range n2.service().Workloads() {
			ids = append(ids, w.ID)
			if w.ID == kept.ID && !slices.Equal(w.Addresses, kept.Addresses) {
				t.Errorf("%s had %v and has %v", w.ID, kept.Addresses, w.Addresses)
			}
		}
		slices.Sort(ids)
		if want := []string{kept.ID, lost.ID}; !slices.Equal(ids, want) {
			t.Errorf("after the restart there are %v, want %v", ids, want)
		}
		if _, ok := n2.host.up[lost.ID]; !ok {
			t.Error("a workload whose interface was gone was not attached again")
		}
		n1.net.Dark(false)
		c.connected(10 * time.Second)

		// After a reboot no namespace is the one that it was.
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		n2.boot = "boot-2"
		c.start(n2, nil, "n1")
		c.ready(n2)
		if l := n2.service().Workloads(); len(l) != 0 {
			t.Errorf("after the reboot there are %+v", l)
		}
		if a := n2.service().IPAM().Allocations; len(a) != 1 || a[0].Owner != hostOwner {
			t.Errorf("after the reboot these are allocated: %+v", a)
		}
	})
}

func TestAttachIsIdempotentAndAtomic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		a := c.attach(n1, "a")
		if b := c.attach(n1, "a"); b.ID != a.ID || !slices.Equal(a.Addresses, b.Addresses) {
			t.Errorf("asked again: %+v, then %+v", a, b)
		}
		before := n1.service().IPAM()
		n1.host.fail = errors.New("no more interfaces")
		n1.spaces["/run/netns/b"] = "net:[b]"
		if _, err := n1.service().Attach(t.Context(), api.AttachRequest{Netns: "/run/netns/b", IfName: "eth0"}); !errors.Is(err, n1.host.fail) {
			t.Errorf("got %v", err)
		}
		n1.host.fail = nil
		after := n1.service().IPAM()
		if len(after.Allocations) != len(before.Allocations) || len(n1.service().Workloads()) != 1 {
			t.Errorf("a failed attach left %+v", after.Allocations)
		}
		own := api.AttachRequest{Netns: "/proc/self/ns/net", IfName: "eth0"}
		want := "/proc/self/ns/net is the host's own network namespace, which needs no attaching; give that of a workload"
		if _, err := n1.service().Attach(t.Context(), own); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		for i := range 2 {
			res, err := n1.service().Detach(t.Context(), api.DetachRequest{Netns: a.Netns, IfName: "eth0"})
			if err != nil || i == 0 && !slices.Equal(res.Released, a.Addresses) || i == 1 && len(res.Released) != 0 {
				t.Errorf("detach %d: %+v, %v", i, res, err)
			}
		}
	})
}

func TestSeedStartsPartitioned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		seed := func(cfg *Config) { cfg.Seed = []string{"n1", "n2", "n3"} }
		c.net.Partition([]*memnet.Host{c.machines[0].net}, []*memnet.Host{c.machines[1].net}, []*memnet.Host{c.machines[2].net})
		for i, m := range c.machines {
			c.start(m, seed, c.machines[(i+1)%3].name)
		}
		for _, m := range c.machines {
			c.ready(m)
			c.attach(m, "w")
		}
		c.net.Heal()
		c.connected(15 * time.Second)
		c.distinct()
	})
}

func TestLeaveGivesAddressesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.ready(n1)
		c.ready(n2)
		w := c.attach(n2, "w")
		_, err := n2.service().Leave(t.Context(), api.LeaveRequest{}, untold)
		want := "1 workloads are attached (" + w.ID + "); detach them, wait for that with --drain, or leave with --force: they are cut off then, and another node gets their addresses"
		if err == nil || err.Error() != want {
			t.Fatalf("got  %v\nwant %s", err, want)
		}
		if _, err := n2.service().Detach(t.Context(), api.DetachRequest{Netns: w.Netns, IfName: "eth0"}); err != nil {
			t.Fatal(err)
		}
		if _, err := n2.service().Leave(t.Context(), api.LeaveRequest{}, untold); err != nil {
			t.Fatal(err)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "n2 gone", func() bool {
			h := n1.service().IPAM().Holdings
			return n1.service().Status().Nodes.Total == 1 && len(h) > 0 && h[0].Node == "n1"
		})
		c.start(n2, nil, "n1")
		err = <-n2.done
		n2.kill = nil
		if err == nil || !errors.Is(err, err) || err.Error()[:len("this node left its mesh for good at ")] != "this node left its mesh for good at " {
			t.Errorf("a node that left starts again: %v", err)
		}
	})
}

// What is refused at a first start leaves nothing behind.
func TestRefusedStartsLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.ready(n1)
		other := newToken(t)
		for name, r := range map[string]struct {
			change func(*Config)
			peers  []string
			want   string
		}{
			"wrong token": {
				func(cfg *Config) { cfg.Token = other },
				[]string{"n1"},
				"the token is not that of the mesh at n1:6783; get the right one there by `weft token --raw`, and give it by --token-file or WEFT_TOKEN",
			},
			"no token": {
				func(cfg *Config) { cfg.Token = token.Token{} },
				[]string{"n1"},
				"no token to join n1:6783 with; get it there by `weft token --raw`, and give it by --token-file or WEFT_TOKEN",
			},
			"other range": {
				func(cfg *Config) { cfg.Range, cfg.RangeGiven = "10.64.0.0/16", true },
				[]string{"n1"},
				"--range 10.64.0.0/16 differs from the mesh's, which has " + testRange + "; leave the flag out",
			},
		} {
			c.start(n2, r.change, r.peers...)
			err := <-n2.done
			n2.kill = nil
			if err == nil || err.Error() != r.want {
				t.Errorf("%s:\ngot  %v\nwant %s", name, err, r.want)
			}
			if _, err := os.Stat(n2.dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: the data directory is there: %v", name, err)
			}
		}
		// It may join properly afterwards.
		c.start(n2, nil, "n1")
		c.ready(n2)
		// A data directory of another universe.
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, func(cfg *Config) { cfg.Range, cfg.RangeGiven = "10.64.0.0/16", true }, "n1")
		err := <-n2.done
		n2.kill = nil
		want := "--range 10.64.0.0/16 differs from this node's mesh, which has " + testRange + "; leave the flag out, or run weft reset to join another mesh"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		c.start(n2, func(cfg *Config) { cfg.Seed = []string{"n2", "n9"} }, "n1")
		err = <-n2.done
		n2.kill = nil
		want = "data directory " + n2.dir + " is of another universe: its mesh was not founded with --seed n2,n9; choose another --data-dir, or run weft reset"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

// A host that cannot carry packets ends the start with that reason alone, leaves
// nothing, and starts when it can.
func TestBrokenDataPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		n1.broken = errors.New("weft0 is in use by another process")
		c.start(n1, nil)
		if err := <-n1.done; !errors.Is(err, n1.broken) || err.Error() != n1.broken.Error() {
			t.Errorf("got %v", err)
		}
		n1.kill = nil
		if _, err := os.Stat(n1.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the data directory is there: %v", err)
		}
		n1.broken = nil
		c.start(n1, nil)
		c.ready(n1)
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		// A later start that fails keeps everything.
		n1.broken = errors.New("weft0 is in use by another process")
		c.start(n1, nil)
		if err := <-n1.done; !errors.Is(err, n1.broken) {
			t.Errorf("got %v", err)
		}
		n1.kill = nil
		n1.broken = nil
		id := c.attachedTo(n1)
		c.start(n1, nil)
		c.ready(n1)
		if got := n1.service().Status().NodeID; got != id {
			t.Errorf("it was node %s and is %s", id, got)
		}
	})
}

// attachedTo reads which node the data directory of m belongs to.
func (c *cluster) attachedTo(m *machine) string {
	c.t.Helper()
	st, err := store.Open(m.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	s, err := loadState(st)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		c.t.Fatal(err)
	}
	return s.identity.ID.String()
}

// A share of --seed is one node's: neither a second node of the name nor a node
// that changes its name gets it.
func TestSeedSharesAreTakenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		seed := func(cfg *Config) { cfg.Seed = []string{"n1", "n2"} }
		c.start(n1, seed, "n2")
		c.start(n2, seed, "n1")
		c.ready(n1)
		c.ready(n2)
		c.start(n3, func(cfg *Config) { seed(cfg); cfg.Name = "n1" }, "n1")
		err := <-n3.done
		n3.kill = nil
		if err == nil || !strings.HasPrefix(err.Error(), "the seeded share of this node's name was taken over by node n1") {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(n3.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the data directory of the refused node is there: %v", err)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, func(cfg *Config) { seed(cfg); cfg.Name = "n1" }, "n1")
		err = <-n2.done
		n2.kill = nil
		want := "this node has the share that --seed gave to the name n2; launch it with --name n2, or run weft reset"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		c.start(n2, seed, "n1")
		c.ready(n2)
		c.eventually(10*time.Second, "two nodes, all told", func() bool { return n1.service().Status().Nodes.Total == 2 })
	})
}

// A copy of a living node's data directory is refused on another host, and taken
// where the first has gone.
func TestCopyOfALivingNodeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.ready(n1)
		c.ready(n2)
		time.Sleep(10 * time.Second)
		if err := os.CopyFS(n3.dir, os.DirFS(n2.dir)); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{store.FileName, tokenFile} {
			if err := os.Chmod(filepath.Join(n3.dir, f), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.start(n3, nil, "n1")
		err := <-n3.done
		n3.kill = nil
		want := "data directory " + n3.dir + " is a copy of that of a node that is alive on another host, as a node of its mesh says; run weft reset here to make it a new one"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n3, nil, "n1") // moved
		c.ready(n3)
		if id := n3.service().Status().NodeID; id != c.attachedTo(n2) {
			t.Errorf("the node that moved is %s", id)
		}
	})
}

func TestWaitsForTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		n1.unplugged = true
		c.start(n1, nil)
		time.Sleep(time.Minute)
		if st := n1.service().Status(); st.Phase != api.Starting || st.WaitsFor != hostnet.ErrNoNetwork.Error() {
			t.Errorf("it does not say what it waits for: %+v", st)
		}
		if err := n1.stop(); err != nil { // and can be stopped
			t.Errorf("stopped: %v", err)
		}
		c.start(n1, nil)
		time.Sleep(time.Minute)
		n1.mu.Lock()
		n1.unplugged = false
		n1.mu.Unlock()
		c.ready(n1)
	})
}
