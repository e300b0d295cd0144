// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netns"
)

// Every packet counts here: nothing is sent twice, so the first has to arrive, right after Attach.
func TestTrafficFlowsAtOnce(t *testing.T) {
	h := newHost(t)
	setSysctl(t, h.ns, "net/ipv4/conf/all/rp_filter", "1") // hosts may be strict
	h.apply(t, desired())
	var earlier Workload
	for i := 1; i <= 20; i++ {
		w := h.attach(t, i)
		for j, addr := range w.Addrs {
			gateway := desired().Addrs[j]
			if i%2 == 0 {
				if from := reaches(t, w.ns(t), h.ns, gateway); from != addr {
					t.Errorf("the host sees %v, want %v", from, addr)
				}
				if from := reaches(t, w.ns(t), earlier.ns(t), earlier.Addrs[j]); from != addr {
					t.Errorf("another workload sees %v, want %v", from, addr)
				}
			} else {
				if from := reaches(t, h.ns, w.ns(t), addr); from != gateway {
					t.Errorf("the workload sees %v, want %v", from, gateway)
				}
				if earlier.ID != "" {
					reaches(t, earlier.ns(t), w.ns(t), addr)
				}
			}
			reaches(t, w.ns(t), w.ns(t), addr) // itself
		}
		reaches(t, w.ns(t), w.ns(t), netip.MustParseAddr("127.0.0.1"))
		earlier = w
	}
}

// What is sent to the rest of the universe comes to the router.
func TestUniverseLeadsToTheDevice(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	for _, from := range []namespace{w.ns(t), h.ns} {
		for _, to := range []string{"10.47.0.9", "fd77::9:9"} {
			dst := netip.MustParseAddr(to)
			payload := fmt.Sprintf("to %s from %d", to, from)
			must(t, send(t, from, netip.Addr{}, netip.AddrPortFrom(dst, 9), payload))
			b := make([]byte, 2048)
			for { // other packets are the kernel's own
				n := read(t, h.tun, b)
				if strings.HasSuffix(string(b[:n]), payload) {
					break
				}
			}
		}
	}
}

// After the daemon was killed nobody reads the device; what does not need it goes on.
func TestLocalTrafficOutlivesTheDaemon(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Workloads = []Workload{workload(1, newNamespace(t)), workload(2, newNamespace(t))}
	h.apply(t, desired())
	for _, w := range d.Workloads {
		_, err := h.Attach(w)
		must(t, err)
	}
	must(t, h.tun.Close())
	h.tun = nil
	for i, gateway := range d.Addrs {
		for _, w := range d.Workloads {
			reaches(t, w.ns(t), h.ns, gateway)
			reaches(t, h.ns, w.ns(t), w.Addrs[i])
		}
		reaches(t, d.Workloads[0].ns(t), d.Workloads[1].ns(t), d.Workloads[1].Addrs[i])
		reaches(t, d.Workloads[0].ns(t), h.outside, netip.MustParseAddr([]string{"192.0.2.2", "2001:db8::2"}[i]))
	}
	before := snapshot(t, h.ns)
	h.tun = openTUN(t, h.ns, DefaultDevice) // the next one
	h.apply(t, d)
	differ(t, "the next start changes something", before, snapshot(t, h.ns))
}

func read(t testing.TB, f *os.File, b []byte) int {
	t.Helper()
	for {
		n, err := unix.Read(int(f.Fd()), b)
		if errors.Is(err, unix.EAGAIN) {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, int(patience.Milliseconds()))
			must(t, err)
			continue
		}
		must(t, err)
		return n
	}
}

func TestAttachTwiceEqualsOnce(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	l, err := h.conn.link(HostIf(w.ID))
	must(t, err)
	host, inside := snapshot(t, h.ns), snapshot(t, w.ns(t))
	got, err := h.Attach(w)
	if err != nil || len(got.Warnings) > 0 {
		t.Fatal(got.Warnings, err)
	}
	again, err := h.conn.link(HostIf(w.ID))
	must(t, err)
	if again.Attrs().Index != l.Attrs().Index {
		t.Error("the interface was made anew")
	}
	differ(t, "the host", host, snapshot(t, h.ns))
	differ(t, "the workload", inside, snapshot(t, w.ns(t)))
	if !h.Present(w.ID) || h.Present("other") {
		t.Error("Present is wrong")
	}
}

func TestAttachMakes(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := workload(1, newNamespace(t))
	w.IfName, w.MTU = "net1", 1300
	_, err := h.Attach(w)
	must(t, err)
	got := snapshot(t, w.ns(t))
	for _, want := range []string{
		fmt.Sprintf("link net1 veth mtu 1300 up true %v alias \"\" qlen 1000", workloadMAC(w.ID)),
		"addr net1 10.32.1.1/32 flags 80", "addr net1 fd77::1:1/128 flags 82",
		"route 0.0.0.0/0 via 10.32.0.1 dev net1 src 10.32.1.1 type 1 proto 87 metric 0 table 254 scope 0 onlink true",
		"route ::/0 via fd77::1 dev net1 src fd77::1:1 type 1 proto 87 metric 1024 table 254 scope 0 onlink true",
		fmt.Sprintf("neighbour 10.32.0.1 %v dev net1", hostMAC(w.ID)), fmt.Sprintf("neighbour fd77::1 %v dev net1", hostMAC(w.ID)),
	} {
		if !slices.Contains(got, want) {
			t.Errorf("there is no %s", want)
		}
	}
	l, err := h.conn.link(HostIf(w.ID))
	must(t, err)
	if a := l.Attrs(); a.MTU != 1300 || a.Alias != "weft: "+w.ID || a.HardwareAddr.String() != hostMAC(w.ID).String() {
		t.Errorf("the host's end: %+v", a)
	}
}

// Whatever happened inside, Attach puts it right, without a new interface unless it must.
func TestAttachRepairs(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	ns := w.ns(t)
	c := connect(t, ns)
	hostRight, right := snapshot(t, h.ns), snapshot(t, ns)
	eth0 := func() netlink.Link { l, _ := c.link("eth0"); return l }
	outer := func() netlink.Link { l, _ := h.conn.link(HostIf(w.ID)); return l }
	for _, x := range []struct {
		name string
		do   func() error
		anew bool
	}{
		{"down", func() error { return c.LinkSetDown(eth0()) }, false},
		{"down outside", func() error { return h.conn.LinkSetDown(outer()) }, false},
		{"MTU", func() error { return c.LinkSetMTU(eth0(), 1300) }, false},
		{"MAC", func() error { return c.LinkSetHardwareAddr(eth0(), net.HardwareAddr{2, 0, 0, 0, 0, 1}) }, false},
		{"loopback", func() error { l, _ := c.link("lo"); return c.LinkSetDown(l) }, false},
		{"old address", func() error {
			a, _ := netlink.ParseAddr("10.32.77.77/32")
			return c.AddrAdd(eth0(), a)
		}, false},
		{"no addresses", func() error {
			list, err := c.addrs(eth0(), netlink.FAMILY_ALL)
			for i := range list {
				err = errors.Join(err, c.AddrDel(eth0(), &list[i]))
			}
			return err
		}, false},
		{"routes", func() error {
			var errs []error
			for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				_, err := removeRoutes(c, f)
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		}, false},
		{"other gateway", func() error {
			return c.RouteReplace(&netlink.Route{
				LinkIndex: eth0().Attrs().Index, Gw: net.ParseIP("10.32.0.99").To4(), Flags: int(netlink.FLAG_ONLINK), Protocol: RouteProtocol,
			})
		}, false},
		{"neighbour", func() error {
			return c.NeighSet(neighbour(eth0().Attrs().Index, host4, net.HardwareAddr{2, 0, 0, 0, 0, 1}))
		}, false},
		{"deleted", func() error { return c.LinkDel(eth0()) }, true},
		{"renamed", func() error {
			if err := c.LinkSetDown(eth0()); err != nil {
				return err
			}
			return c.LinkSetName(eth0(), "other")
		}, true},
		{"crashed half-way", func() error {
			if err := h.conn.LinkDel(outer()); err != nil {
				return err
			}
			v := netlink.NewVeth(netlink.NewLinkAttrs())
			v.Name, v.PeerName, v.HardwareAddr, v.PeerNamespace = HostIf(w.ID), "eth0", hostMAC(w.ID), netlink.NsFd(ns)
			return h.conn.LinkAdd(v)
		}, false},
	} {
		t.Run(strings.ReplaceAll(x.name, " ", "-"), func(t *testing.T) {
			must(t, x.do())
			var index int
			if l := outer(); l != nil {
				index = l.Attrs().Index
			}
			got, err := h.Attach(w)
			if err != nil || len(got.Warnings) > 0 {
				t.Fatal(got.Warnings, err)
			}
			if anew := outer().Attrs().Index != index; anew != x.anew {
				t.Errorf("made anew: %v, want %v", anew, x.anew)
			}
			for _, a := range w.Addrs {
				reaches(t, h.ns, ns, a)
			}
			h.apply(t, desired(w))
			differ(t, "the host", hostRight, snapshot(t, h.ns))
			differ(t, "the workload", right, snapshot(t, ns))
		})
	}
}

// The same workload in a namespace that was made anew gets a new interface, even while the old one is still there.
func TestAttachFollowsTheNamespace(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := h.attach(t, 1)
	old := connect(t, w.ns(t))
	w.Netns = newNamespace(t).path()
	_, err := h.Attach(w)
	must(t, err)
	if l, err := old.link("eth0"); err != nil || l != nil {
		t.Errorf("the old namespace has %v, %v", l, err)
	}
	for _, a := range w.Addrs {
		reaches(t, h.ns, w.ns(t), a)
	}
}

func TestAttachRefuses(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	first := h.attach(t, 1)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	foreign := newNamespace(t)
	d := netlink.NewVeth(netlink.NewLinkAttrs())
	d.Name, d.PeerName = "eth0", "eth9"
	must(t, connect(t, foreign).LinkAdd(d))
	twin := netlink.NewVeth(netlink.NewLinkAttrs()) // a device of others with the name that the workload's would have
	twin.Name, twin.PeerName = HostIf("workload-66"), "twin"
	must(t, h.conn.LinkAdd(twin))
	empty := newNamespace(t)
	before, inside := snapshot(t, h.ns), snapshot(t, first.ns(t))

	for name, c := range map[string]struct {
		change func(*Workload)
		want   string
	}{
		"no namespace":  {func(w *Workload) { w.Netns = file }, file + " is no network namespace; give the path of one, such as /run/netns/NAME or /proc/PID/ns/net"},
		"nothing there": {func(w *Workload) { w.Netns = "/run/netns/weft-none" }, "/run/netns/weft-none does not exist, so it is no network namespace; give the path of one, such as /run/netns/NAME"},
		"the host":      {func(w *Workload) { w.Netns = h.ns.path() }, h.ns.path() + " is the host's own network namespace, which needs no attaching; give that of a workload"},
		"taken":         {func(w *Workload) { w.Netns = foreign.path() }, "interface eth0 already exists in " + foreign.path() + " and is not Weft's; choose another with --ifname"},
		"taken by us":   {func(w *Workload) { w.Netns = first.Netns }, "interface eth0 in " + first.Netns + " belongs to workload workload-1; detach that first, or choose another with --ifname"},
		"twice":         {func(w *Workload) { w.Netns, w.IfName = first.Netns, "eth1" }, first.Netns + " is attached already, by another interface than eth1; detach that first"},
		"name in use":   {func(w *Workload) { w.ID = "workload-66" }, "interface " + HostIf("workload-66") + " exists on the host and is not that of workload workload-66; delete it, as by: ip link delete " + HostIf("workload-66")},
		"outside":       {func(w *Workload) { w.Addrs[0] = netip.MustParseAddr("10.99.0.1") }, "address 10.99.0.1 lies outside the range of this mesh, [10.32.0.0/12 fd77::/64]"},
		"no address":    {func(w *Workload) { w.Addrs = nil }, "workload workload-5 has no address"},
		"two addresses": {func(w *Workload) { w.Addrs[1] = netip.MustParseAddr("10.32.1.9") }, "workload workload-5 has both 10.32.1.5 and 10.32.1.9; only one of a family is possible"},
		"no ID":         {func(w *Workload) { w.ID = "" }, `workload ID "" has 0 bytes; use 1 to 200`},
		"bad name":      {func(w *Workload) { w.IfName = "a/b" }, "making interface a/b in " + empty.path() + ": invalid argument"},
		"MTU":           {func(w *Workload) { w.MTU = 100000 }, "an MTU of 100000 is not possible for workload workload-5; choose 576 to 65535"},
		"bad gateway":   {func(w *Workload) { w.Addrs[0] = host4 }, ""},
	} {
		w := workload(5, empty)
		c.change(&w)
		_, err := h.Attach(w)
		if err == nil || c.want != "" && err.Error() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, c.want)
		}
		if strings.Contains(c.want, "is no network namespace") && !errors.Is(err, netns.ErrNotNetns) {
			t.Errorf("%s: %v is not ErrNotNetns", name, err)
		}
		differ(t, name+": the host", before, snapshot(t, h.ns))
		differ(t, name+": the first workload", inside, snapshot(t, first.ns(t)))
	}
	if l, err := connect(t, foreign).link("eth0"); err != nil || l == nil || l.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("the interface of others: %v, %v", l, err)
	}
}

func TestOwnNamespaceIsRefused(t *testing.T) {
	h := New(newHost(t).log)
	h.last = &applied{mtu: 1420, universe: desired().Universe, gateways: byFamily(desired().Addrs)}
	w := workload(1, here)
	w.Netns = "/proc/self/ns/net"
	_, err := h.Attach(w)
	if err == nil || err.Error() != "/proc/self/ns/net is the host's own network namespace, which needs no attaching; give that of a workload" {
		t.Errorf("got %v", err)
	}
}

func TestDefaultRouteOfOthersStays(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	ns := newNamespace(t)
	c := connect(t, ns)
	v := netlink.NewVeth(netlink.NewLinkAttrs())
	v.Name, v.PeerName = "docker", "peer"
	must(t, c.LinkAdd(v))
	up(t, c, "peer")
	l := addAddr(t, c, "docker", "172.17.0.2/16")
	must(t, c.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("172.17.0.1")}))
	w := workload(1, ns)
	for range 2 {
		got, err := h.Attach(w)
		must(t, err)
		if want := []string{ns.path() + " keeps its default route by docker: only 10.32.0.0/12 is reached through Weft"}; !slices.Equal(got.Warnings, want) {
			t.Errorf("warnings %q, want %q", got.Warnings, want)
		}
	}
	got := snapshot(t, ns)
	for _, want := range []string{
		"route 0.0.0.0/0 via 172.17.0.1 dev docker src <nil> type 1 proto 3 metric 0 table 254 scope 0 onlink false",
		"route 10.32.0.0/12 via 10.32.0.1 dev eth0 src 10.32.1.1 type 1 proto 87 metric 0 table 254 scope 0 onlink true",
		"route ::/0 via fd77::1 dev eth0 src fd77::1:1 type 1 proto 87 metric 1024 table 254 scope 0 onlink true",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("there is no %s in %q", want, got)
		}
	}
	for _, a := range w.Addrs {
		reaches(t, h.ns, ns, a)
	}
}

func TestWorkloadWithoutIPv6(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	ns := newNamespace(t)
	setSysctl(t, ns, "net/ipv6/conf/all/disable_ipv6", "1")
	w := workload(1, ns)
	got, err := h.Attach(w)
	must(t, err)
	if want := []string{"IPv6 is disabled in " + ns.path() + ": it gets no IPv6 address; set net.ipv6.conf.default.disable_ipv6 to 0 there and attach it anew"}; !slices.Equal(got.Warnings, want) {
		t.Errorf("warnings %q", got.Warnings)
	}
	reaches(t, h.ns, ns, w.Addrs[0])
	h.apply(t, desired(w))
}

func TestHostWithoutIPv6(t *testing.T) {
	h := newHost(t)
	for _, which := range []string{"default", DefaultDevice} {
		setSysctl(t, h.ns, "net/ipv6/conf/"+which+"/disable_ipv6", "1")
	}
	res, err := h.Apply(desired(), Changes{})
	must(t, err)
	if len(res.Warnings) != 1 || !strings.HasPrefix(res.Warnings[0], "IPv6 is disabled on this host: workloads get IPv4 only; set ") {
		t.Errorf("warnings %q", res.Warnings)
	}
	w := h.attach(t, 1)
	reaches(t, h.ns, w.ns(t), w.Addrs[0])
	for _, l := range snapshot(t, w.ns(t)) {
		if strings.HasPrefix(l, "addr eth0 fd77") || strings.HasPrefix(l, "route ::/0") {
			t.Errorf("the workload has %s", l)
		}
	}
	_, err = h.Apply(desired(w), res.Changes)
	must(t, err)
}

func TestSmallMTU(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.MTU = 1000
	res, err := h.Apply(d, Changes{})
	must(t, err)
	if want := []string{"an MTU of 1000 is too small for IPv6: workloads get IPv4 only; IPv6 needs 1280"}; !slices.Equal(res.Warnings, want) {
		t.Errorf("warnings %q", res.Warnings)
	}
	w := h.attach(t, 1)
	w.MTU = 1000
	reaches(t, h.ns, w.ns(t), w.Addrs[0])
	// The network gets better; this workload keeps its MTU.
	h.apply(t, desired(w))
	second := h.attach(t, 2)
	for _, a := range second.Addrs {
		reaches(t, h.ns, second.ns(t), a)
	}
	if _, err := h.Attach(w); err != nil {
		t.Error(err)
	}
	h.apply(t, desired(w, second))
}

func TestDetachIsIdempotent(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	before := snapshot(t, h.ns)
	w := h.attach(t, 1)
	for range 2 {
		must(t, h.Detach(Workload{ID: w.ID, Netns: "/run/netns/gone"}))
		if h.Present(w.ID) {
			t.Error("still there")
		}
	}
	must(t, h.Detach(Workload{ID: "never there"}))
	differ(t, "something is left", before, snapshot(t, h.ns))
}

func TestHundredCyclesLeaveNothing(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	ns := newNamespace(t)
	must(t, connect(t, ns).LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}))
	host, inside, files := snapshot(t, h.ns), snapshot(t, ns), openFiles(t)
	for i := range 100 {
		w := workload(1+i%3, ns)
		_, err := h.Attach(w)
		must(t, err)
		must(t, h.Detach(w))
	}
	h.Close()
	differ(t, "the host", host, snapshot(t, h.ns))
	differ(t, "the workload", inside, snapshot(t, ns))
	// Each snapshot keeps connections open until the test ends: two here, one for routes.
	if n := openFiles(t); n > files+2 {
		t.Errorf("%d open files, %d before", n, files)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// Threads that have been in another namespace run nothing else afterwards.
func TestConcurrentUse(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	own, err := here.id()
	must(t, err)
	var ws []Workload
	for i := 1; i <= 8; i++ {
		ws = append(ws, workload(i, newNamespace(t)))
	}
	var wg sync.WaitGroup
	errs := make(chan error, 1000)
	for _, w := range ws {
		wg.Go(func() {
			for range 4 {
				_, err := h.Attach(w)
				errs <- err
				if !h.Present(w.ID) {
					errs <- errors.New("not present")
				}
				errs <- h.Detach(w)
				if ns, err := here.id(); err != nil || ns != own {
					errs <- fmt.Errorf("a goroutine runs in %s: %w", ns, err)
				}
			}
			_, err := h.Attach(w)
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	for _, w := range ws {
		for _, a := range w.Addrs {
			reaches(t, h.ns, w.ns(t), a)
		}
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	ns := newNamespace(b)
	h := newAt(zap.NewNop(), ns)
	openTUN(b, ns, DefaultDevice)
	if _, err := h.Apply(desired(), Changes{}); err != nil {
		b.Fatal(err)
	}
	w := workload(1, newNamespace(b))
	b.Run("attach", func(b *testing.B) {
		for b.Loop() {
			_, err := h.Attach(w)
			b.StopTimer()
			must(b, err)
			must(b, h.Detach(w))
			b.StartTimer()
		}
	})
	b.Run("detach", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			_, err := h.Attach(w)
			must(b, err)
			b.StartTimer()
			must(b, h.Detach(w))
		}
	})
	b.Run("attached already", func(b *testing.B) {
		_, err := h.Attach(w)
		must(b, err)
		for b.Loop() {
			_, err := h.Attach(w)
			must(b, err)
		}
	})
}
