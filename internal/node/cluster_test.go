// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netns"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/mesh/memnet"
)

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
	between := &segment{machines: map[uint64]*machine{}, blocked: map[crossing]bool{}, probed: map[crossing]int{}}
	for i := range machines {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		name := fmt.Sprint("n", i+1)
		m := &machine{
			t: t, name: name, addr: addr, net: c.net.Host(addr), dir: filepath.Join(root, name), boot: "boot-1",
			spaces: map[string]netns.ID{"/proc/self/ns/net": "net:[1]"},
			host:   &fakeHost{t: t, up: map[string]hostnet.Workload{}},
		}
		m.segment, m.ways = between, &fakeKernel{t: t, host: m.host, addr: addr, tried: map[string]bool{}}
		m.host.ways, m.filter = m.ways, newFilter(t)
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
		c.eventually(10*time.Second, "a workload whose interface was gone is attached again", func() bool {
			n2.host.mu.Lock()
			defer n2.host.mu.Unlock()
			_, ok := n2.host.up[lost.ID]
			return ok
		})
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
