// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/rotation"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/mesh/memnet"
	"github.com/weftnet/weft/router/fastpath"
)

// leaves tells whether packets may leave m in plaintext by a device.
func (m *machine) leaves(device string) bool {
	return slices.ContainsFunc(m.plain().Out, func(o hostnet.Out) bool { return o.Device == device })
}

// refuse has the host of m refuse changes of the rules, or not any more.
func (m *machine) refuse(err error) {
	m.host.mu.Lock()
	defer m.host.mu.Unlock()
	m.host.refusing = err
}

// Who does not have the new token when the old one is revoked gets nothing in plaintext any more, and is accepted no more, whatever it answers.
func TestKernelPathsEndWithTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, trusting)
		c.start(n2, trusting, "n1")
		c.start(n3, trusting, "n1")
		for _, m := range c.machines {
			c.ready(m)
		}
		c.reachedBy(n1, n2, fastpath.Direct, 10*time.Second)
		c.reachedBy(n1, n3, fastpath.Direct, 10*time.Second)
		c.reachedBy(n2, n3, fastpath.Direct, 10*time.Second)
		c.rotate(n1, api.RotateRequest{Without: []string{"n3"}})
		if n1.by(n3) != fastpath.Direct {
			t.Error("the path was left before the old token was revoked")
		}
		c.revokeOld(n1)
		for _, m := range []*machine{n1, n2} {
			c.reachedBy(m, n3, fastpath.UDP, 5*time.Second)
			mac, _ := m.ways.Neighbour("eth0", n3.addr)
			if p := m.plain(); slices.ContainsFunc(p.Tunnels, func(x hostnet.Tunnel) bool { return x.Remote == n3.addr }) ||
				slices.ContainsFunc(p.In, func(x hostnet.In) bool { return slices.Equal(x.MAC, mac) }) || len(p.In) == 0 {
				t.Errorf("%s accepts %+v and %+v", m.name, p.Tunnels, p.In)
			}
			if len(m.ways.peers()) != 1 {
				t.Errorf("%s has ways to %+v", m.name, m.ways.peers())
			}
		}
		if n1.by(n2) != fastpath.Direct {
			t.Error("the path between those who stay was left")
		}
	})
}

func TestNodesThatShareATokenWithThisOne(t *testing.T) {
	key, err := rotation.NewKey(newToken(t))
	if err != nil {
		t.Fatal(err)
	}
	own, other := uint32(key.ID), uint32(key.ID)+1
	nodes := []mesh.Node{
		{Record: mesh.Record{ID: 1, Keys: []uint32{other}}, Status: mesh.Self},
		{Record: mesh.Record{ID: 2, Keys: []uint32{other}}, Status: mesh.Failed},
		{Record: mesh.Record{ID: 3, Keys: []uint32{other, own}}, Status: mesh.Failed},
		{Record: mesh.Record{ID: 4}, Status: mesh.Failed},
		{Record: mesh.Record{ID: 5, Keys: []uint32{other}}, Status: mesh.Alive},
	}
	var ids []mesh.NodeID
	for _, m := range sharing(nodes, rotation.State{Tokens: []rotation.Key{key}}) {
		ids = append(ids, m.ID)
	}
	if !slices.Equal(ids, []mesh.NodeID{1, 3, 4}) || len(nodes) != 5 || nodes[1].ID != 2 {
		t.Errorf("%v of %v", ids, nodes)
	}
}

// Rules that are refused while nodes are connected keep no path from being left: packets go where the rules let them, and the rest by the router.
func TestRulesAreRefusedForAWhile(t *testing.T) {
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
		n1.refuse(errors.New("no memory"))
		n1.segment.block(n1, n2, fastpath.Direct, true)
		c.reachedBy(n1, n2, fastpath.VXLAN, 3*time.Second)
		n1.segment.block(n1, n2, fastpath.VXLAN, true)
		c.reachedBy(n1, n2, fastpath.UDP, 3*time.Second)
		if w := n1.service().Status().Warnings; !slices.Contains(w, "kernel paths: no memory") {
			t.Errorf("warnings %q", w)
		}
		n1.refuse(nil)
		c.eventually(3*time.Second, "what had been allowed for the path is taken back", func() bool { return !n1.leaves("eth0") })
		n1.refuse(errors.New("no memory"))
		n1.segment.block(n1, n2, fastpath.Direct, false)
		c.eventually(3*time.Minute, "direct proven again", func() bool { return n1.shown(n2).Path == "direct" })
		time.Sleep(5 * time.Second)
		if n1.by(n2) != fastpath.UDP { // and the fake kernel has checked each step
			t.Error("packets are sent where the rules do not let them leave")
		}
		n1.refuse(nil)
		c.reachedBy(n1, n2, fastpath.Direct, 3*time.Second)
		if w := n1.service().Status().Warnings; slices.ContainsFunc(w, func(s string) bool { return strings.Contains(s, "no memory") }) {
			t.Errorf("warnings %q", w)
		}
	})
}

// Without a tunnel packets may leave only as long as they are to: a device that is the way to everything else, too, lets none leave by mistake.
func TestOnlyTheDirectPathInUseIsAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, _ := newDirect(t)
		if !n1.leaves("eth0") {
			t.Error("the path in use is not allowed")
		}
		for _, path := range []string{"udp", "vxlan"} {
			if res, err := n1.service().Path(t.Context(), api.PathRequest{Node: "n2", Path: path}); err != nil || res.Path != path {
				t.Errorf("%+v, %v", res, err)
			}
			c.eventually(time.Second, "eth0 is closed", func() bool { return !n1.leaves("eth0") })
		}
	})
}

// A way that leads elsewhere carries no packets before it is proven.
func TestAChangedWayIsProvenFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, n2 := newDirect(t)
		time.Sleep(10 * time.Second)
		n1.ways.mu.Lock()
		n1.ways.device = "eth1"
		n1.ways.mu.Unlock()
		c.eventually(10*time.Second, "the way has changed", func() bool { p := n1.ways.peers(); return len(p) == 1 && p[0].Device == "eth1" })
		c.reachedBy(n1, n2, fastpath.Direct, time.Minute)
		if len(n1.told("direct to 192.0.2.2 on eth0 with packets of 1500 bytes has become direct to 192.0.2.2 on eth1")) != 1 {
			t.Errorf("%q", n1.told("reached by"))
		}
	})
}

// What is set loose for kernel paths is given back at the end, and the rules that keep workloads from sending tunnels stay.
func TestWhatKernelPathsLeaveBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, _ := newDirect(t)
		loosened := func() []string {
			n1.host.mu.Lock()
			defer n1.host.mu.Unlock()
			return n1.host.desired.Loose
		}
		c.eventually(time.Minute, "eth0 is loose", func() bool { return slices.Equal(loosened(), []string{"eth0"}) })
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		if p := n1.plain(); p.VXLANPort != 6784 || len(p.Devices)+len(p.Out)+len(p.In)+len(p.Tunnels) != 0 {
			t.Errorf("the rules are still for %+v", p)
		}
		if left := loosened(); len(left) != 0 {
			t.Errorf("still loose: %v", left)
		}
	})
}

// A retired node whose paths cannot be removed answers commands, and removes them when it ends.
func TestPathsOfARetiredNodeAreStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, trusting)
		c.start(n2, trusting, "n1")
		c.ready(n1)
		c.ready(n2)
		c.reachedBy(n2, n1, fastpath.Direct, 10*time.Second)
		n2.ways.mu.Lock()
		n2.ways.stuck = errors.New("the kernel does not let go")
		n2.ways.mu.Unlock()
		c.net.Partition([]*memnet.Host{n2.net})
		c.eventually(time.Minute, "n2 failed", func() bool { return n1.shown(n2).State == "failed" })
		if _, err := n1.service().Forget(t.Context(), api.ForgetRequest{Node: "n2"}, func(api.ForgetProgress) {}); err != nil {
			t.Fatal(err)
		}
		c.net.Heal()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		retired := make(chan bool)
		go func() {
			for n2.service().Status().Phase != api.Retired && ctx.Err() == nil {
				time.Sleep(50 * time.Millisecond)
			}
			time.Sleep(10 * time.Second)
			n2.service().Peers()
			close(retired)
		}()
		select {
		case <-retired:
		case <-ctx.Done():
			t.Error("a command waits for ever")
		}
		n2.ways.mu.Lock()
		n2.ways.stuck = nil
		tried := n2.ways.removed
		n2.ways.mu.Unlock()
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		if n2.ways.removed != tried+1 {
			t.Errorf("at the end it was tried %d times more", n2.ways.removed-tried)
		}
	})
}

// A host without IPv6 in a mesh that has it still reaches others by the kernel, with IPv4.
func TestKernelPathsWithoutIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		dual := func(cfg *Config) {
			trusting(cfg)
			cfg.Range, cfg.Kernel.Paths = testRange, Paths{fastpath.UDP, fastpath.Direct}
		}
		n1, n2 := c.machines[0], c.machines[1]
		n1.host.v4only, n2.host.v4only = true, true
		c.start(n1, dual)
		c.start(n2, dual, "n1")
		c.ready(n1)
		c.ready(n2)
		c.reachedBy(n1, n2, fastpath.Direct, 10*time.Second)
		n1.ways.mu.Lock()
		has := n1.ways.has
		n1.ways.mu.Unlock()
		if has.Source6.IsValid() || slices.ContainsFunc(has.Peers[0].Prefixes, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			t.Errorf("the kernel is given IPv6: %+v", has)
		}
	})
}
