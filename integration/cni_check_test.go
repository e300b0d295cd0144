// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestCNICheck changes by hand what a container has, one thing after the other: CHECK names each, changes nothing, and ADD puts it right.
func TestCNICheck(t *testing.T) {
	t.Parallel()
	hosts := cniMesh(t, 2)
	h, n, far := hosts[0], hosts[0].weft(), hosts[1].added(hosts[1].weft(), "far")
	clean := noted(t, h.Host)
	p := h.newPod("checked")
	r := h.add(n, p)
	if err := h.check(n, p); err != nil {
		t.Fatal(err)
	}
	inside := func() netlink.Link {
		l, err := p.Netlink().LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	outside := func() netlink.Link {
		l, err := h.Netlink().LinkByName(r.Interfaces[0].Name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	prefix := func(i int) *net.IPNet { return &r.IPs[i].Address }
	for _, c := range []struct {
		what   string
		change func() error
		named  []string
	}{
		{"interface down", func() error { return p.Netlink().LinkSetDown(inside()) }, []string{"eth0", "down"}},
		{"MTU", func() error { return p.Netlink().LinkSetMTU(inside(), 1300) }, []string{"eth0", "MTU", "1300"}},
		{"hardware address", func() error {
			mac, err := net.ParseMAC("02:00:00:00:00:99")
			if err != nil {
				return err
			}
			return p.Netlink().LinkSetHardwareAddr(inside(), mac)
		}, []string{"eth0", "02:00:00:00:00:99"}},
		{"v4 address", func() error { return p.Netlink().AddrDel(inside(), &netlink.Addr{IPNet: prefix(0)}) }, []string{"eth0", p.V4.String()}},
		{"v6 address", func() error { return p.Netlink().AddrDel(inside(), &netlink.Addr{IPNet: prefix(1)}) }, []string{"eth0", p.V6.String()}},
		{"v4 route", func() error {
			return p.Netlink().RouteDel(&netlink.Route{LinkIndex: inside().Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Gw: r.IPs[0].Gateway})
		}, []string{"route", r.IPs[0].Gateway.String()}},
		{"v6 route", func() error {
			return p.Netlink().RouteDel(&netlink.Route{LinkIndex: inside().Attrs().Index, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Gw: r.IPs[1].Gateway})
		}, []string{"route", r.IPs[1].Gateway.String()}},
		{"route on the host", func() error {
			return h.Netlink().RouteDel(&netlink.Route{LinkIndex: outside().Attrs().Index, Dst: prefix(0), Scope: netlink.SCOPE_NOWHERE})
		}, []string{"route", p.V4.String()}},
		{"host's end down", func() error { return h.Netlink().LinkSetDown(outside()) }, []string{r.Interfaces[0].Name, "down"}},
		{"name", func() error {
			l := inside()
			if err := p.Netlink().LinkSetDown(l); err != nil {
				return err
			}
			return p.Netlink().LinkSetName(l, "other0")
		}, []string{"eth0"}},
		{"no interface", func() error { return p.Netlink().LinkDel(inside()) }, []string{"eth0"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			if err := c.change(); err != nil {
				t.Fatal(err)
			}
			broken := snapshot(t, p.Namespace)
			err := h.check(n, p)
			refusedBy(t, err, 101, c.named...)
			t.Log(err)
			same(t, "CHECK changed the container", broken, snapshot(t, p.Namespace))
			h.matches(p, h.add(n, p))
			if err := h.check(n, p); err != nil {
				t.Errorf("after ADD: %v", err)
			}
			if _, err := far.Reach(p.V4, patience); err != nil {
				t.Error(err)
			}
			if _, err := far.Reach(p.V6, patience); err != nil {
				t.Error(err)
			}
		})
	}

	// What the runtime believes counts too.
	k := h.last(weftType, "CHECK")
	for what, change := range map[string][2]string{
		"address": {p.V4.String() + "/", "10.47.0.1/"},
		"MTU":     {`"mtu":`, `"mtu":1`},
	} {
		if k := h.raw(replaceAll(t, string(k.stdin), change), "CNI_COMMAND=CHECK", "CNI_CONTAINERID="+k.container, "CNI_NETNS="+k.netns, "CNI_IFNAME="+k.ifname); k.code == 0 {
			t.Errorf("CHECK finds no other %s: %v", what, k)
		} else {
			refusedBy(t, k.refusal(), 101)
		}
	}
	h.del(n, p)
	clean.leaks(t)
}
