// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
)

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// wants fails the test unless err is of that text, "" for none.
func wants(t testing.TB, err error, text string) {
	t.Helper()
	if got := errorText(err); got != text {
		t.Errorf("\n got %s\nwant %s", got, text)
	}
}

// What is in the way is named with what to do, stays as it is, and keeps nothing else from being done; when it is gone all is well.
func TestInTheWay(t *testing.T) {
	hosts := newHosts(t, 2)
	connected(t, hosts[1:], under4, fastpath.VXLAN)
	must(t, hosts[1].Apply(hosts[1].toAll(hosts, under4, fastpath.VXLAN)))
	h := hosts[0]
	d := h.toAll(hosts, under4, fastpath.VXLAN)

	a := netlink.NewLinkAttrs()
	a.Name = Device6
	must(t, h.handle.LinkAdd(&netlink.Bridge{LinkAttrs: a}))
	const theirs = "interface weft-vx6 exists and is not Weft's; rename it, or delete it as by: ip link delete weft-vx6"
	wants(t, h.Apply(d), theirs)
	if err := exchange(t, h, hosts[1], true, 1450, 0); err != nil {
		t.Errorf("by the other device: %v", err)
	}
	_, err := h.Reconcile()
	wants(t, err, theirs)
	if _, err := h.Remove(); err != nil {
		t.Error(err)
	}
	if l := h.link(t, Device6); l.Type() != "bridge" {
		t.Errorf("somebody's device is a %s now", l.Type())
	}
	wants(t, h.Apply(d), theirs)
	must(t, h.handle.LinkDel(h.link(t, Device6)))
	must(t, h.Apply(d))

	// A route in the place of one of ours.
	dst := ipNet(prefixes(2)[0])
	foreign := &netlink.Route{Dst: dst, LinkIndex: h.link(t, "lo").Attrs().Index, Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC}
	must(t, h.handle.RouteReplace(foreign))
	const route = "there is a route to 10.34.0.0/16 already that is not Weft's; delete it as by: ip route delete 10.34.0.0/16 table 254"
	got, err := h.Reconcile()
	wants(t, err, route)
	if len(got) > 0 {
		t.Errorf("repaired %q", got)
	}
	wants(t, h.Apply(d), route)
	if list, err := h.handle.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST); err != nil || len(list) != 1 || list[0].Protocol != unix.RTPROT_STATIC {
		t.Errorf("somebody's route is %v now, %v", list, err)
	}
	must(t, h.handle.RouteDel(foreign))
	must(t, h.Apply(d))

	// The network of direct paths.
	must(t, h.handle.LinkSetDown(h.eth0))
	const down = "interface eth0 is down: nobody is reached by direct through it"
	got, err = h.Reconcile()
	wants(t, err, down)
	if len(got) > 0 {
		t.Errorf("repaired %q", got)
	}
	wants(t, h.Apply(d), down)
	must(t, h.handle.LinkSetUp(h.eth0))
	h.settled(t)
	h.reconciled(t)
	must(t, h.Apply(d))
	must(t, h.handle.LinkSetDown(h.eth0))
	must(t, h.handle.LinkSetName(h.eth0, "eth1"))
	must(t, h.handle.LinkSetUp(h.eth0))
	_, err = h.Reconcile()
	wants(t, err, "interface eth0 does not exist: nobody is reached by direct through it")
	h.settled(t)
	d.Peers[0].Device = "eth1"
	must(t, h.Apply(d))
	for mark, device := range map[int]string{0: "", MarkDirect: "", MarkVXLAN: Device4} {
		if err := exchangeBy(t, h, hosts[1], false, 1000, mark, device); err != nil {
			t.Errorf("mark %#x: %v", mark, err)
		}
	}
	h.reconciled(t)
}

// The kernel does not say of what is made while others have it already; Apply does.
func TestTaken(t *testing.T) {
	for _, x := range []struct {
		name string
		take func(t *testing.T, h *host)
		text string
	}{
		{"the VNI", func(t *testing.T, h *host) {
			a := netlink.NewLinkAttrs()
			a.Name = "flannel"
			must(t, h.handle.LinkAdd(&netlink.Vxlan{LinkAttrs: a, VxlanId: testVNI, Port: testPort}))
		}, "another VXLAN device has the VNI 6783 and UDP port 6784; choose another by --vxlan-vni (file exists: A VXLAN device with the specified VNI already exists)"},
		{
			"the port", func(t *testing.T, h *host) { listen(t, h.ns, over4(h.n), testPort) },
			"another program or device has UDP port 6784; end it, or choose another port by --port (address already in use)",
		},
	} {
		t.Run(x.name, func(t *testing.T) {
			hosts := newHosts(t, 2)
			h := hosts[0]
			x.take(t, h)
			s := h.Support()
			doing := "made"
			if x.name == "the port" {
				doing = "brought up"
			}
			wants(t, s.VXLAN4, fmt.Sprintf("device weft-vxtry cannot be %s: %s", doing, x.text))
			if s.VXLAN6 != nil || s.Rules != nil {
				t.Error(s)
			}
			err := h.Apply(h.toAll(hosts, under4, fastpath.Direct))
			wants(t, err, fmt.Sprintf("device weft-vx4 cannot be %s: %s", doing, x.text))
			if err := hosts[1].Apply(hosts[1].toAll(hosts, under4, fastpath.Direct)); err != nil {
				t.Error(err)
			}
			if err := exchange(t, h, hosts[1], false, 1500, 0); err != nil {
				t.Errorf("direct: %v", err)
			}
		})
	}
}

// The trial leaves nothing, and finds what an earlier run has left of use.
func TestSupport(t *testing.T) {
	hosts := newHosts(t, 2)
	h := hosts[0]
	before := snapshot(t, h.ns)
	m := newMonitor(t, h.ns)
	// A rule of IPv4 slows all of this host's traffic down, for good: there is none unless a path needs it.
	noRule := func(what string) {
		t.Helper()
		for _, line := range m.told(t) {
			if strings.Contains(line, "of IPv4 for the mark") {
				t.Errorf("%s: %s", what, line)
			}
		}
	}
	if s := h.Support(); s.VXLAN4 != nil || s.VXLAN6 != nil || s.Rules != nil {
		t.Error(s)
	}
	same(t, "after the trial", before, snapshot(t, h.ns))
	noRule("a trial")
	d := h.toAll(hosts, under4, fastpath.VXLAN)
	for i := range d.Peers {
		d.Peers[i].Device = ""
	}
	must(t, h.Apply(d))
	noRule("paths by VXLAN alone")
	connected(t, hosts, under4, fastpath.VXLAN)
	m.told(t)
	if s := h.newKernel(t).Support(); s.VXLAN4 != nil || s.VXLAN6 != nil || s.Rules != nil {
		t.Error(s)
	}
	m.quiet(t, "a trial beside what is in use")
}

// Without the right to change the network that is said.
func TestNotPermitted(t *testing.T) {
	hosts := newHosts(t, 2)
	h := hosts[0]
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with it
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&header, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		s := h.Support()
		wants(t, s.VXLAN4, "device weft-vxtry cannot be made: CAP_NET_ADMIN is needed (operation not permitted)")
		wants(t, s.VXLAN6, "device weft-vxtry cannot be made: CAP_NET_ADMIN is needed (operation not permitted)")
		wants(t, s.Rules, "rules cannot be made: CAP_NET_ADMIN is needed (removing the rule 8700 of IPv4 for the mark 0x57650000: operation not permitted)")
		wants(t, h.Apply(h.desired()), "device weft-vx4 cannot be made: CAP_NET_ADMIN is needed (operation not permitted); "+
			"device weft-vx6 cannot be made: CAP_NET_ADMIN is needed (operation not permitted)")
	}()
	<-done
}

// What is not possible is left out, and said with every Apply and Reconcile.
func TestRefused(t *testing.T) {
	good := peer(2, under4(2), fastpath.VXLAN)
	with := func(f func(*Peer)) Peer {
		p := peer(3, under4(3), fastpath.UDP)
		f(&p)
		return p
	}
	for _, x := range []struct {
		name string
		mtu6 int
		p    Peer
		text string
	}{
		{"nothing wrong", 1430, with(func(*Peer) {}), ""},
		{
			"the same hardware address", 1430, with(func(p *Peer) { p.ID = idOf(2) + 1<<40 }),
			"node 123457789abcde02 cannot be reached by vxlan: its hardware address 0e:78:9a:bc:de:02 is that of node 123456789abcde02 as well; `weft reset` there gives it another NodeID",
		},
		{
			"our own hardware address", 1430, with(func(p *Peer) { p.ID = idOf(1) + 1<<40 }),
			"node 123457789abcde01 cannot be reached by vxlan: its hardware address 0e:78:9a:bc:de:01 is that of node 123456789abcde01 as well; `weft reset` there gives it another NodeID",
		},
		{
			"the same prefix", 1430, with(func(p *Peer) { p.Prefixes = prefixes(2)[:1] }),
			"10.34.0.0/16 belongs to two nodes, 123456789abcde02 and 123456789abcde03; it leads to the first",
		},
		{
			"no device", 0, with(func(p *Peer) { p.VXLAN = netip.AddrPortFrom(under6(3), testPort) }),
			"node 123456789abcde03 cannot be reached by vxlan at 2001:db8::3: there is no device weft-vx6",
		},
		{
			"no way by vxlan", 1430, with(func(p *Peer) { p.VXLAN, p.Path, p.Prefixes = netip.AddrPort{}, fastpath.VXLAN, p.Prefixes[:1] }),
			"node 123456789abcde03 cannot be reached at 10.35.0.0/16 by vxlan: there is no such way to it",
		},
		{
			"no direct way for IPv6", 1430, with(func(p *Peer) { p.Hop6, p.Path = netip.Addr{}, fastpath.Direct }),
			"node 123456789abcde03 cannot be reached at fd77::3:0/112 by direct: there is no such way to it",
		},
		{"an MTU", 500, with(func(*Peer) {}), "an MTU of 500 is not possible for weft-vx6; choose 576 to 65535"},
	} {
		t.Run(x.name, func(t *testing.T) {
			h := newHosts(t, 1)[0]
			d := h.desired(good, x.p)
			d.MTU6 = x.mtu6
			wants(t, h.Apply(d), x.text)
			wants(t, h.Apply(d), x.text)
			_, err := h.Reconcile()
			wants(t, err, x.text)
			if got := snapshot(t, h.ns); !slices.ContainsFunc(got, func(l string) bool {
				return strings.HasPrefix(l, "route fd77::2:0/112") && strings.Contains(l, "table 254")
			}) {
				t.Errorf("the other peer has no route: %q", got)
			}
		})
	}
}

// Many errors are one line.
func TestManyErrors(t *testing.T) {
	var errs []error
	for i := range 20 {
		errs = append(errs, fmt.Errorf("error %02d: %w", i, net.ErrClosed))
	}
	err := joined(errs)
	const end = "error 07: use of closed network connection; and 12 more"
	if s := err.Error(); !strings.HasSuffix(s, end) || strings.Count(s, ";") != 8 || strings.Contains(s, "\n") {
		t.Error(s)
	}
	if !errors.Is(err, net.ErrClosed) {
		t.Error("the causes are lost")
	}
	if joined(nil) != nil {
		t.Error("no errors are one")
	}
}

// What a kernel lacks is named with what has it.
func TestExplain(t *testing.T) {
	c := Config{VNI: 7, Port: 8}
	for err, want := range map[error]string{
		unix.EOPNOTSUPP:   "this kernel has no VXLAN: load the module vxlan, or boot a kernel with CONFIG_VXLAN (operation not supported)",
		unix.EAFNOSUPPORT: "device weft-vx6 cannot be made: this host has no IPv6; boot it without ipv6.disable=1 (address family not supported by protocol)",
		unix.ENOBUFS:      "making device weft-vx6: no buffer space available",
	} {
		wants(t, explainMaking(Device6, c, err), want)
	}
}
