// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/fastpath/kernel"
)

// trusting lets a node trust the network of the cluster; untrusting does not. That network has no IPv6, without which none is carried directly.
func trusting(cfg *Config) {
	untrusting(cfg)
	cfg.Kernel.Trusted = []string{"192.0.2.0/24"}
}

func untrusting(cfg *Config) { cfg.Range = "10.32.0.0/16" }

// nodeID is that of the node that runs on m.
func (m *machine) nodeID() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(m.carrier.config.id)
}

// by is by which kind packets leave for another machine.
func (m *machine) by(to *machine) fastpath.Kind { return m.ways.path(to.nodeID()) }

// shown is how m shows another machine in `weft peers`.
func (m *machine) shown(to *machine) api.Peer {
	for _, p := range m.service().Peers() {
		if p.Name == to.name {
			return p
		}
	}
	return api.Peer{}
}

// plain is what may enter and leave m in plaintext.
func (m *machine) plain() hostnet.Plaintext {
	m.host.mu.Lock()
	defer m.host.mu.Unlock()
	return m.host.desired.Plain
}

// told returns the events of m that contain a text.
func (m *machine) told(text string) (found []string) {
	_, _ = m.service().Events(context.Background(), api.EventsRequest{Last: 1000}, func(p api.EventsProgress) {
		if line := p.Event.Text + ": " + p.Event.Cause; strings.Contains(line, text) {
			found = append(found, line)
		}
	})
	return found
}

// busy lets there be traffic from m to all others, until the test ends.
func (m *machine) busy(t *testing.T) {
	ctx := t.Context()
	go func() {
		for n := uint64(1); ctx.Err() == nil; n++ {
			m.host.mu.Lock()
			m.host.traffic = map[netip.Prefix]uint64{}
			for _, o := range m.host.desired.Plain.Out {
				m.host.traffic[o.Prefix] = n
			}
			m.host.mu.Unlock()
			time.Sleep(100 * time.Millisecond)
		}
	}()
}

func (c *cluster) reachedBy(from, to *machine, kind fastpath.Kind, within time.Duration) {
	c.t.Helper()
	for end := time.Now().Add(within); from.by(to) != kind; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("after %v %s does not reach %s by %v: %+v; %q", within, from.name, to.name, kind, from.shown(to).Kernel, from.told("reached by"))
		}
	}
}

// Packets go by the kernel where both sides trust the network between them, and only there; when one does not any more, nothing of it is left.
func TestKernelPathsByConsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, trusting)
		c.start(n2, trusting, "n1")
		c.start(n3, untrusting, "n1")
		for _, m := range c.machines {
			c.ready(m)
		}
		c.reachedBy(n1, n2, fastpath.Direct, 2*time.Second)
		c.reachedBy(n2, n1, fastpath.Direct, 2*time.Second)
		w := c.attach(n1, "w")
		if w.MTU != 1500 {
			t.Errorf("a workload got an MTU of %d", w.MTU)
		}
		p := n1.shown(n2)
		if p.Path != "direct" || p.Kernel == nil || p.Kernel.Want != "auto" || len(p.Kernel.Kinds) != 2 || p.Kernel.Kinds[0].State != "in use" || p.Kernel.Kinds[1].State != "proven" ||
			p.Kernel.Kinds[1].To != "vxlan to 192.0.2.2:6784" || p.Kernel.Kinds[1].MTU != 1450 || !strings.Contains(p.Kernel.Why, "direct") {
			t.Errorf("n2 is shown as %+v: %+v", p, p.Kernel)
		}
		if p := n1.shown(n3); p.Kernel == nil || p.Kernel.Path != "udp" || p.Kernel.Why != "n3 trusts no subnet: see its --trusted-subnets" {
			t.Errorf("n3 is shown as %+v: %+v", p, p.Kernel)
		}
		if p := n3.shown(n1); p.Kernel != nil || n3.service().Status().Kernel != nil {
			t.Errorf("n3, which trusts nothing, shows %+v", p)
		}
		st := n1.service().Status()
		if !st.Encrypted || st.Kernel == nil || !slices.Equal(st.Kernel.Possible, []string{"direct", "vxlan"}) || !slices.Equal(st.Kernel.Trusted, []string{"192.0.2.0/24"}) || st.Kernel.Port != 6784 || st.Kernel.VNI != DefaultVNI {
			t.Errorf("status %+v", st.Kernel)
		}
		for _, h := range n1.service().IPAM().Holdings {
			for _, o := range n1.plain().Out {
				if h.Node != "n2" && slices.Contains(h.Prefixes, o.Prefix) {
					t.Errorf("packets to %v of %s may leave in plaintext by %s", o.Prefix, h.Node, o.Device)
				}
			}
		}
		if len(n3.plain().Out)+len(n3.plain().In) != 0 {
			t.Errorf("n3 lets pass %+v", n3.plain())
		}

		// n2 comes back without trust: n1 takes all back, and n2 removes what may be left.
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		removed := n2.ways.removed
		c.start(n2, untrusting, "n1")
		c.ready(n2)
		c.eventually(5*time.Second, "n1 has no path to n2 any more", func() bool { return len(n1.ways.peers()) == 0 && len(n1.plain().Out) == 0 })
		if n2.ways.removed == removed {
			t.Error("n2 has not removed what an earlier run could have left")
		}
		if len(n1.told("n2 is reached by direct")) == 0 {
			t.Error("no event tells of the path")
		}
		// And with trust again.
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, trusting, "n1")
		c.ready(n2)
		c.reachedBy(n1, n2, fastpath.Direct, 10*time.Second)
	})
}

// peers are those that the kernel has ways to.
func (k *fakeKernel) peers() []kernel.Peer {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.has.Peers
}

// A path that leads nowhere is left within two seconds for the next one that is proven, with the reason; and used again after a while.
func TestKernelPathsFallBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, trusting)
		c.start(n2, trusting, "n1")
		c.ready(n1)
		c.ready(n2)
		n1.busy(t)
		c.reachedBy(n1, n2, fastpath.Direct, 10*time.Second)
		time.Sleep(20 * time.Second)
		c.eventually(10*time.Second, "vxlan proven", func() bool { return n1.shown(n2).Kernel.Kinds[1].State == "proven" })
		n1.segment.block(n1, n2, fastpath.Direct, true)
		c.reachedBy(n1, n2, fastpath.VXLAN, 2*time.Second)
		n1.segment.block(n1, n2, fastpath.VXLAN, true)
		c.reachedBy(n1, n2, fastpath.UDP, 2*time.Second)
		if p := n1.shown(n2); p.Path == "vxlan" || !strings.Contains(p.Kernel.Why, "no answer by vxlan to 192.0.2.2:6784 since ") {
			t.Errorf("shown: %+v %+v", p, p.Kernel)
		}
		if len(n1.told("n2 is reached by udp: no answer by vxlan to 192.0.2.2:6784 since ")) != 1 {
			t.Errorf("events: %v", n1.told("n2"))
		}
		if n2.by(n1) != fastpath.Direct {
			t.Error("the other direction was given up, too")
		}
		n1.segment.block(n1, n2, fastpath.VXLAN, false)
		c.reachedBy(n1, n2, fastpath.VXLAN, time.Minute)
		n1.segment.block(n1, n2, fastpath.Direct, false)
		c.reachedBy(n1, n2, fastpath.Direct, 2*time.Minute)
	})
}

// weft path chooses, durably.
func TestPathIsChosen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, n2 := newDirect(t)
		for _, path := range []string{"vxlan", "udp", "direct", "vxlan"} {
			res, err := n1.service().Path(t.Context(), api.PathRequest{Node: "n2", Path: path})
			if err != nil || res.Path != path || res.Want != path || n1.by(n2).String() != path {
				t.Errorf("%s: %+v, %v", path, res, err)
			}
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		if len(n1.ways.peers()) != 0 {
			t.Error("what was stopped in order has left its paths")
		}
		c.start(n1, trusting, "n2")
		c.ready(n1)
		c.reachedBy(n1, n2, fastpath.VXLAN, 10*time.Second)
		time.Sleep(30 * time.Second)
		if n1.by(n2) != fastpath.VXLAN {
			t.Error("what was chosen has not outlived the daemon")
		}
		if res, err := n1.service().Path(t.Context(), api.PathRequest{Node: "n2", Path: "auto"}); err != nil || res.Want != "auto" {
			t.Errorf("auto: %+v, %v", res, err)
		}
		c.reachedBy(n1, n2, fastpath.Direct, time.Minute)
		for _, x := range []struct{ node, path, want string }{
			{"n9", "udp", `there is no node "n9"; the others are n2`},
			{"n1", "udp", "n1 is this node; name another one: n2"},
			{"n2", "fast", `"fast" is no path; choose auto, udp, vxlan or direct`},
		} {
			if _, err := n1.service().Path(t.Context(), api.PathRequest{Node: x.node, Path: x.path}); err == nil || err.Error() != x.want {
				t.Errorf("got  %v\nwant %s", err, x.want)
			}
		}
	})
}

func TestPathIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, untrusting)
		c.start(n2, func(cfg *Config) {
			trusting(cfg)
			cfg.Kernel.Paths = Paths{fastpath.UDP, fastpath.Direct}
		}, "n1")
		c.ready(n1)
		c.ready(n2)
		for _, x := range []struct {
			at, to     *machine
			path, want string
		}{
			{n1, n2, "vxlan", "this node trusts no network with plaintext; launch it with --trusted-subnets"},
			{n2, n1, "vxlan", "--paths leaves out vxlan; launch this node with it"},
		} {
			if _, err := x.at.service().Path(t.Context(), api.PathRequest{Node: x.to.name, Path: x.path}); err == nil || err.Error() != x.want {
				t.Errorf("got  %v\nwant %s", err, x.want)
			}
		}
		res, err := n2.service().Path(t.Context(), api.PathRequest{Node: "n1", Path: "direct"})
		if err != nil || res.Path != "udp" || !strings.Contains(res.Kinds[0].Why, "n1 trusts no subnet") {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

// In a mesh without encryption everybody trusts everybody, and who joins is told.
func TestMeshWithoutEncryption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, func(cfg *Config) {
			untrusting(cfg)
			cfg.Kernel.Encryption = EncryptionOff
		})
		c.start(n2, untrusting, "n1")
		c.ready(n1)
		c.ready(n2)
		c.reachedBy(n1, n2, fastpath.Direct, 10*time.Second)
		c.reachedBy(n2, n1, fastpath.Direct, 10*time.Second)
		if st := n2.service().Status(); st.Encrypted || st.Kernel == nil {
			t.Errorf("status %+v", st)
		}
		c.start(n3, func(cfg *Config) { cfg.Kernel.Encryption = EncryptionOn }, "n1")
		err := <-n3.done
		n3.kill = nil
		if want := "--encryption=on contradicts the mesh, which was founded with --encryption=off; leave the flag out, or join another mesh"; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, func(cfg *Config) { cfg.Kernel.Encryption = EncryptionOn }, "n1")
		err = <-n2.done
		n2.kill = nil
		if want := "--encryption=on contradicts this node's mesh, which was founded with --encryption=off; leave the flag out, or run weft reset to join another mesh"; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

// A host that cannot do kernel paths says what is lacking, and everything else works.
func TestKernelPathsThatAreNotPossible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		n1.ways.lacks.VXLAN4 = fmt.Errorf("no VXLAN: load the module")
		n1.ways.lacks.VXLAN6 = n1.ways.lacks.VXLAN4
		n2.host.lacks = fmt.Errorf("nftables refuses: use a newer kernel")
		n3.unprobed = fmt.Errorf("no sockets")
		c.start(n1, trusting)
		c.start(n2, trusting, "n1")
		c.start(n3, func(cfg *Config) {
			trusting(cfg)
			cfg.Kernel.Paths = Paths{fastpath.Direct}
		}, "n1")
		for _, m := range c.machines {
			c.ready(m)
		}
		time.Sleep(time.Second)
		for m, want := range map[*machine]string{
			n1: "vxlan is not possible over IPv4: no VXLAN: load the module",
			n2: "no kernel path is possible: nftables refuses: use a newer kernel",
			n3: "no packet reaches another node: --paths leaves out udp, and no kernel path is possible here; launch this node with --trusted-subnets, or with udp among --paths",
		} {
			st := m.service().Status()
			if !slices.Contains(st.Warnings, want) || !st.Ready {
				t.Errorf("%s: %q, %v", m.name, st.Warnings, st.Kernel)
			}
		}
		if !slices.Equal(n1.service().Status().Kernel.Possible, []string{"direct"}) || len(n2.service().Status().Kernel.Possible) != 0 {
			t.Error("what is not possible is shown as possible")
		}
		for _, m := range c.machines {
			if got := m.carrier.routed(); (m == n3) == (got > 0) {
				t.Errorf("%s: the router has %d prefixes", m.name, got)
			}
		}
	})
}

// Rules that are refused keep no node from starting.
func TestKernelPathsAreGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		n1.host.unruly = true
		c.start(n1, trusting)
		c.start(n2, trusting, "n1")
		c.ready(n1)
		c.ready(n2)
		time.Sleep(5 * time.Second)
		if st := n1.service().Status(); !slices.Contains(st.Warnings, "no kernel path is possible: such rules are refused") || len(st.Kernel.Possible) != 0 {
			t.Errorf("%q, %+v", st.Warnings, st.Kernel)
		}
		if p := n2.shown(n1); p.Kernel == nil || p.Kernel.Kinds[0].Why != "n1 does not offer direct: its --paths excludes it, or its host cannot do it" {
			t.Errorf("%+v", p.Kernel)
		}
	})
}

// routed is how many prefixes the router has of others.
func (p *fakePlane) routed() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.peers {
		n += len(x.Prefixes)
	}
	return n
}

// What somebody else has changed is put right, and told.
func TestKernelPathsAreMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, _ := newDirect(t)
		n1.ways.mu.Lock()
		n1.ways.repairs = []string{"route to 10.34.0.0/15 was deleted by somebody; set again"}
		changed := n1.ways.changed
		n1.ways.mu.Unlock()
		changed()
		n1.host.mu.Lock()
		guarded := n1.host.guarded
		n1.host.mu.Unlock()
		guarded([]string{"the table was flushed by somebody; made again"})
		c.eventually(time.Second, "that of the filter is told", func() bool { return len(n1.told("the table was flushed")) == 1 })
		c.eventually(time.Second, "the repair is told", func() bool { return len(n1.told("route to 10.34.0.0/15 was deleted")) == 1 })
	})
}

// What a record says is read with care, and of the node's own addresses only what the ring gives it counts.
func TestRecordsOfKernelPaths(t *testing.T) {
	for _, x := range []struct {
		features []string
		kinds    []fastpath.Kind
		vni      uint32
		port     uint16
	}{
		{nil, nil, 0, 0},
		{[]string{"bench", "direct"}, []fastpath.Kind{fastpath.Direct}, 0, 0},
		{[]string{"vxlan/6783/6784", "direct"}, []fastpath.Kind{fastpath.VXLAN, fastpath.Direct}, 6783, 6784},
		{[]string{"vxlan/1/2", "vxlan/3/4"}, []fastpath.Kind{fastpath.VXLAN}, 1, 2},
		{[]string{"vxlan", "vxlan/", "vxlan/0/1", "vxlan/1/0", "vxlan/16777216/1", "vxlan/1/65536", "vxlan/-1/1", "vxlan/1/1/1"}, nil, 0, 0},
	} {
		if kinds, vni, port := offeredBy(x.features); !slices.Equal(kinds, x.kinds) || vni != x.vni || port != x.port {
			t.Errorf("%q: %v %d %d", x.features, kinds, vni, port)
		}
	}
	own, forged := netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("10.40.0.1")
	nodes := []mesh.Node{
		{Record: mesh.Record{ID: 1, Name: "self"}, Status: mesh.Self},
		{Record: mesh.Record{ID: 2, Name: "n2", Hosts: []netip.Addr{own}}, Status: mesh.Failed},
		{Record: mesh.Record{ID: 3, Name: "n3", Hosts: []netip.Addr{forged}}, Status: mesh.Alive},
		{Record: mesh.Record{ID: 4, Name: "n4"}, Status: mesh.Left},
	}
	owned := map[uint64][]netip.Prefix{2: {netip.MustParsePrefix("10.32.0.0/16"), netip.MustParsePrefix("10.40.0.0/16")}, 3: {netip.MustParsePrefix("10.33.0.0/16")}}
	peers := peersOfPaths(nodes, owned, nil, map[mesh.NodeID]fastpath.Want{3: {Forced: true, Kind: fastpath.VXLAN}})
	if len(peers) != 2 || !slices.Equal(peers[0].Hosts, []netip.Addr{own}) || len(peers[1].Hosts) != 0 || !peers[1].Want.Forced {
		t.Errorf("%+v", peers)
	}
}
