// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/mesh/memnet"
	"github.com/weftnet/weft/router/fastpath"
)

// crash ends m's node as kill -9 does: nobody is told, and the kernel keeps what it has.
func (c *cluster) crash(m *machine) {
	c.t.Helper()
	m.net.Dark(true)
	m.ways.mu.Lock()
	has := m.ways.has
	m.ways.mu.Unlock()
	plain := m.plain()
	m.ways.mu.Lock()
	m.ways.crashing = true
	m.ways.mu.Unlock()
	if err := m.stop(); err != nil {
		c.t.Fatal(err)
	}
	m.ways.mu.Lock()
	m.ways.has, m.ways.crashing = has, false
	m.ways.mu.Unlock()
	m.host.mu.Lock()
	m.host.desired.Plain = plain
	m.host.mu.Unlock()
	m.net.Dark(false)
}

// While the daemon of a node is dead its packets go on by the kernel, in both directions, and the next one takes over: never does a route change.
func TestKernelPathsOutliveACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		vxlan := func(cfg *Config) {
			trusting(cfg)
			cfg.Kernel.Paths = Paths{fastpath.UDP, fastpath.VXLAN}
		}
		c.start(n1, vxlan)
		c.start(n2, vxlan, "n1")
		c.ready(n1)
		c.ready(n2)
		n1.busy(t)
		n2.busy(t)
		c.reachedBy(n1, n2, fastpath.VXLAN, 10*time.Second)
		c.reachedBy(n2, n1, fastpath.VXLAN, 10*time.Second)
		time.Sleep(10 * time.Second)
		n1.ways.watch(n2)
		n2.ways.watch(n1)
		c.crash(n2)
		time.Sleep(20 * time.Second)
		c.start(n2, vxlan, "n1")
		c.ready(n2)
		time.Sleep(time.Minute)
		for _, m := range []*machine{n1, n2} {
			if left := m.ways.left(); left != "" {
				t.Errorf("%s: %s; %v", m.name, left, m.told("is reached by"))
			}
		}
		if n2.shown(n1).Path != "vxlan" || n1.shown(n2).Path != "vxlan" {
			t.Errorf("afterwards: %+v, %+v", n2.shown(n1), n1.shown(n2))
		}
		// A daemon that lives, and does not answer by the path, is another thing.
		n1.segment.block(n1, n2, fastpath.VXLAN, true)
		c.reachedBy(n1, n2, fastpath.UDP, 2*time.Second)
	})
}

// watch notes whether packets to another machine are ever not by VXLAN, from now on.
func (k *fakeKernel) watch(to *machine) {
	id := to.nodeID()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watched = id
}

func (k *fakeKernel) left() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.strayed
}

// weft stop --keep-traffic leaves the paths as they are; retirement and leaving do not.
func TestKernelPathsAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, trusting)
		c.start(n2, trusting, "n1")
		c.start(n3, trusting, "n1")
		for _, m := range c.machines {
			c.ready(m)
		}
		c.reachedBy(n2, n1, fastpath.Direct, 10*time.Second)
		c.reachedBy(n3, n1, fastpath.Direct, 10*time.Second)
		c.reachedBy(n2, n3, fastpath.Direct, 10*time.Second)
		res := n2.service().Stop(api.StopRequest{KeepTraffic: true})
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(res.Kept, []string{"n1 (direct)", "n3 (direct)"}) || n2.by(n1) != fastpath.Direct || len(n2.plain().Out) == 0 {
			t.Errorf("%+v; the kernel has %+v, and lets leave %+v", res, n2.ways.peers(), n2.plain().Out)
		}
		c.net.Partition([]*memnet.Host{n2.net})
		// Somebody declares it gone: when it comes back nothing is left.
		if _, err := n1.service().Forget(t.Context(), api.ForgetRequest{Node: "n2"}, func(api.ForgetProgress) {}); err != nil {
			t.Fatal(err)
		}
		c.eventually(time.Minute, "n1 has no path to n2 any more", func() bool { return n1.by(n2) == fastpath.UDP && len(n1.ways.peers()) == 1 })
		c.net.Heal()
		c.start(n2, trusting, "n1")
		c.eventually(time.Minute, "n2 is retired", func() bool { svc := n2.service(); return svc != nil && svc.Status().Phase == api.Retired })
		c.eventually(time.Minute, "n2 has no paths any more", func() bool { return len(n2.ways.peers()) == 0 && len(n2.plain().Out) == 0 })
		if _, err := n3.service().Leave(t.Context(), api.LeaveRequest{}, untold); err != nil {
			t.Fatal(err)
		}
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}
		if len(n3.ways.peers()) != 0 {
			t.Error("a node that left has kept its paths")
		}
	})
}
