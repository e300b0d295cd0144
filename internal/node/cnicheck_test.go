// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/ipam"
)

func TestCNICheckNamesTheDifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		r := request(n1, "c1")
		r.MAC = "0a:58:0a:20:00:77"
		a := c.add(n1, r)
		only := request(n1, "c2")
		only.AddressesOnly = true
		b := c.add(n1, only)
		elsewhere := request(n1, "c3").Netns
		check := func(r cni.Request, want cni.Attachment) cni.CheckRequest {
			return cni.CheckRequest{Key: r.Key, Network: r.Network, Netns: r.Netns, AddressesOnly: r.AddressesOnly, Want: want}
		}
		more := a // by a plugin that is chained
		more.Addresses = append(slices.Clone(a.Addresses), netip.MustParseAddr("192.0.2.7"))
		for _, r := range []cni.CheckRequest{check(r, a), check(r, more), check(r, cni.Attachment{}), check(only, b), check(only, cni.Attachment{})} {
			if err := n1.service().CNICheck(t.Context(), r); err != nil {
				t.Errorf("%+v: %v", r, err)
			}
		}
		const again = "delete it, and add it again"
		was := "eth0 of container c1: "
		for _, x := range []struct {
			change       func(*cni.CheckRequest)
			code         uint
			msg, details string
		}{
			{func(r *cni.CheckRequest) { r.ContainerID = "c9" }, cni.CodeUnknown, "container c9 has no eth0 of network net1", "add it"},
			{func(r *cni.CheckRequest) { r.Network = "net2" }, cni.CodeUnknown, "container c1 has no eth0 of network net2", "add it"},
			{func(r *cni.CheckRequest) { r.IfName = "" }, cni.CodeEnvironment, `"" is no name for an interface`, "use 1 to 15 letters, digits, '-', '.' and '_'"},
			{func(r *cni.CheckRequest) { r.AddressesOnly = true }, cni.CodeDiffers, was + "it was added for another kind of plugin", again},
			{func(r *cni.CheckRequest) { r.Netns = "/run/netns/none" }, cni.CodeEnvironment, "/run/netns/none is no network namespace", "give the path of a network namespace that the daemon can open"},
			{func(r *cni.CheckRequest) { r.Netns = elsewhere }, cni.CodeDiffers, was + "it is in /run/netns/c1, and not in /run/netns/c3", again},
			{func(r *cni.CheckRequest) { r.Want.HostIf = "veth1" }, cni.CodeDiffers, was + "it has the interface on the host " + a.HostIf + ", and not veth1", again},
			{func(r *cni.CheckRequest) { r.Want.HostMAC = "06:00:00:00:00:01" }, cni.CodeDiffers, was + "it has the hardware address on the host " + a.HostMAC + ", and not 06:00:00:00:00:01", again},
			{func(r *cni.CheckRequest) { r.Want.MAC = "06:00:00:00:00:01" }, cni.CodeDiffers, was + "it has the hardware address 0a:58:0a:20:00:77, and not 06:00:00:00:00:01", again},
			{func(r *cni.CheckRequest) { r.Want.MTU = 1500 }, cni.CodeDiffers, was + "it has an MTU of 1408, and not 1500", again},
			{func(r *cni.CheckRequest) { r.Want.Addresses = []netip.Addr{netip.MustParseAddr("10.32.0.99")} }, cni.CodeDiffers, was + fmt.Sprintf("it has the addresses %v, and not 10.32.0.99", a.Addresses), again},
			{func(r *cni.CheckRequest) { r.Want.Routes = []cni.Route{{GW: netip.MustParseAddr("10.32.0.99")}} }, cni.CodeDiffers, was + fmt.Sprintf("it has the gateways %v, and not 10.32.0.99", n1.service().Status().Addresses), again},
		} {
			r := check(r, a)
			x.change(&r)
			refused(t, n1.service().CNICheck(t.Context(), r), x.code, x.msg, x.details)
		}
		n1.vanish(api.Workload{ID: "cni/c1/eth0"}, false, true)
		refused(t, n1.service().CNICheck(t.Context(), check(r, a)), cni.CodeDiffers, was+"interface "+a.HostIf+" on the host is gone", again)
		time.Sleep(2 * repairInterval)
		if err := n1.service().CNICheck(t.Context(), check(r, a)); err != nil {
			t.Errorf("it was repaired: %v", err)
		}
	})
}

func TestCNIStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		status := func() error { return n1.service().CNICheck(t.Context(), cni.CheckRequest{}) }
		unready := func(code uint) {
			t.Helper()
			refused(t, status(), code, "this node is not ready yet (starting: "+hostnet.ErrNoNetwork.Error()+")", "try again when weft status says ready")
		}
		n1.unplugged = true
		c.start(n1, nil)
		time.Sleep(time.Second)
		unready(cni.CodeUnavailable)
		n1.mu.Lock()
		n1.unplugged = false
		n1.mu.Unlock()
		c.ready(n1)
		if err := status(); err != nil {
			t.Error(err)
		}
		c.add(n1, request(n1, "c1"))

		n1.host.mu.Lock()
		n1.host.broken = errors.New("device weft0 does not exist; it must be opened before the host's network is set up")
		n1.host.mu.Unlock()
		time.Sleep(2 * repairInterval)
		refused(t, status(), cni.CodeLimited, "the host's network is not in order: "+n1.host.broken.Error(), "see weft status")
		n1.host.mu.Lock()
		n1.host.broken = nil
		n1.host.mu.Unlock()
		time.Sleep(2 * repairInterval)
		if err := status(); err != nil {
			t.Error(err)
		}

		n1.service().(*Node).engines().workloads.refuse(errDraining)
		refused(t, status(), cni.CodeUnavailable, "this node is being drained to leave the mesh and takes nothing new", "do this on another node, or end the drain by Ctrl-C in weft leave --drain")
		n1.service().(*Node).engines().workloads.refuse(nil)

		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		n1.unplugged = true
		c.start(n1, nil)
		time.Sleep(time.Second)
		unready(cni.CodeLimited) // there is a container by now
	})
}

// A mesh that is full has nothing for anybody, and says so before it is asked.
func TestCNIStatusFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		small := func(cfg *Config) { cfg.Range = "10.32.0.0/27"; cfg.Quarantine = time.Minute }
		c.start(n1, small)
		c.ready(n1)
		c.start(n2, small, "n1")
		c.ready(n2)
		status := func(m *machine) error { return m.service().CNICheck(t.Context(), cni.CheckRequest{}) }
		var last cni.Request
		for i := range 28 { // and two hosts
			m := c.machines[i%2]
			last = request(m, fmt.Sprint("c", i))
			c.add(m, last)
		}
		time.Sleep(time.Minute)
		for _, m := range c.machines {
			var ce *cni.Error
			if err := status(m); !errors.As(err, &ce) || ce.Code != cni.CodeUnavailable ||
				ce.Msg != "no address left in 10.32.0.0/27: 30 of 30 in use (n1 15, n2 15)" {
				t.Errorf("%s: %v", m.name, err)
			}
			_, err := m.service().CNIAttach(t.Context(), request(m, "more"))
			if !errors.As(err, &ce) || ce.Code != cni.CodeTryLater {
				t.Errorf("%s: %v", m.name, err)
			}
		}
		c.del(n2, release(last))
		time.Sleep(time.Minute + ipam.DefaultQuarantine)
		if err := status(n2); err != nil {
			t.Error(err)
		}
	})
}

// A node that was declared gone attaches nothing, says that its containers are cut off, and lets go of what it has.
func TestCNIRetired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, _, n3 := trio(t)
		a, b := request(n3, "a"), request(n3, "b")
		c.add(n3, a)
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "n3 stopped", func() bool { return peer(n1, "n3").State == "stopped" })
		if _, _, err := forget(t, n1, api.ForgetRequest{Node: "n3"}, time.Minute); err != nil {
			t.Fatal(err)
		}
		c.start(n3, nil, "n1")
		c.eventually(10*time.Second, "n3 retired", func() bool { svc := n3.service(); return svc != nil && svc.Status().Phase == api.Retired })
		svc := n3.service()
		is := func(what string, err error, code uint) {
			t.Helper()
			var ce *cni.Error
			if !errors.As(err, &ce) || ce.Code != code || !retiredText.MatchString(ce.Error()) || ce.Details == "" {
				t.Errorf("%s: %#v", what, err)
			}
		}
		_, err := svc.CNIAttach(t.Context(), b)
		is("ADD", err, cni.CodeFailed)
		is("CHECK", svc.CNICheck(t.Context(), cni.CheckRequest{Key: a.Key, Network: a.Network, Netns: a.Netns}), cni.CodeFailed)
		is("STATUS", svc.CNICheck(t.Context(), cni.CheckRequest{}), cni.CodeLimited)
		c.del(n3, cni.Release{Network: a.Network})
		if l := svc.Workloads(); len(l) != 0 || len(n3.host.up) != 0 {
			t.Errorf("left are %+v, %v", l, n3.host.up)
		}
		is("STATUS", svc.CNICheck(t.Context(), cni.CheckRequest{}), cni.CodeUnavailable)
	})
}
