// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
)

// patience is how long something may take that must happen.
const patience = 10 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNamespace makes an empty namespace that ends with the test, with its loopback up.
func newNamespace(t testing.TB) namespace {
	t.Helper()
	var f *os.File
	var enter func() error
	enter = func() error {
		runtime.LockOSThread() // for good
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			return wait(enter)
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w; run the tests as root", err)
		}
		var err error
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	}
	must(t, wait(enter))
	t.Cleanup(func() { must(t, f.Close()) })
	return namespace(f.Fd())
}

// wait runs f in a goroutine of its own.
func wait(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return <-done
}

// in runs f in the namespace.
func in(t testing.TB, n namespace, f func() error) {
	t.Helper()
	must(t, n.run(f))
}

func setSysctl(t testing.TB, n namespace, key, value string) {
	t.Helper()
	in(t, n, func() error { return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0) })
}

// handle is what the tests change the kernel with, as somebody else would.
func handle(t testing.TB, n namespace) *netlink.Handle {
	t.Helper()
	var h *netlink.Handle
	in(t, n, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	t.Cleanup(h.Close)
	return h
}

// A host is a namespace with kernel paths. Host n of a test has the underlay addresses 192.0.2.n and 2001:db8::n by eth0, the
// overlay addresses 10.32+n.0.1 and fd77::n:1 and all of 10.32+n.0.0/16 and fd77::n:0/112, on a network with the others.
type host struct {
	*Kernel
	n      int
	ns     namespace
	handle *netlink.Handle
	eth0   netlink.Link
}

const (
	testVNI   = 6783
	testPort  = 6784
	testGroup = 7
)

var (
	range4 = netip.MustParsePrefix("10.32.0.0/12")
	range6 = netip.MustParsePrefix("fd77::/64")
)

func idOf(n int) uint64 { return 0x1234_5678_9abc_de00 + uint64(n) }

func under4(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) }
func under6(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n)) }
func over4(n int) netip.Addr  { return netip.AddrFrom4([4]byte{10, byte(32 + n), 0, 1}) }
func over6(n int) netip.Addr  { return netip.MustParseAddr(fmt.Sprintf("fd77::%x:1", n)) }

func prefixes(n int) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(over4(n), 16).Masked(), netip.PrefixFrom(over6(n), 112).Masked()}
}

// newHosts makes hosts 1 to n on one network, a bridge.
func newHosts(t testing.TB, n int) []*host {
	t.Helper()
	lan := newNamespace(t)
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = "br0"
	lanHandle := handle(t, lan)
	setSysctl(t, lan, "ipv6/conf/default/disable_ipv6", "1")
	must(t, lanHandle.LinkAdd(bridge))
	must(t, lanHandle.LinkSetUp(bridge))
	hosts := make([]*host, n)
	for i := range hosts {
		h := &host{n: i + 1, ns: newNamespace(t)}
		h.handle = handle(t, h.ns)
		h.Kernel = h.newKernel(t)
		setSysctl(t, h.ns, "ipv6/conf/default/accept_dad", "0") // addresses are there at once
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = fmt.Sprintf("port%d", h.n), bridge.Index
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(h.ns)
		must(t, lanHandle.LinkAdd(v))
		must(t, lanHandle.LinkSetUp(v))
		setSysctl(t, h.ns, "ipv4/ip_forward", "1")
		setSysctl(t, h.ns, "ipv6/conf/all/forwarding", "1")
		h.eth0 = h.link(t, "eth0")
		lo := h.link(t, "lo")
		must(t, h.handle.LinkSetUp(lo))
		h.addAddr(t, h.eth0, under4(h.n), 24)
		h.addAddr(t, h.eth0, under6(h.n), 64)
		h.addAddr(t, lo, over4(h.n), 32)
		h.addAddr(t, lo, over6(h.n), 128)
		for _, p := range []netip.Prefix{range4, range6} { // to the router, whose device this stands for
			r := &netlink.Route{Dst: ipNet(p), LinkIndex: lo.Attrs().Index, Protocol: 87, Priority: int(metricOf(p))}
			if p.Addr().Is4() {
				r.Scope = netlink.SCOPE_LINK
			}
			must(t, h.handle.RouteAdd(r))
		}
		setSysctl(t, h.ns, "ipv6/conf/eth0/keep_addr_on_down", "1")
		setSysctl(t, h.ns, "ipv4/conf/eth0/rp_filter", "2") // as internal/hostnet does
		must(t, h.handle.LinkSetUp(h.eth0))
		hosts[i] = h
	}
	for _, h := range hosts {
		h.settled(t)
	}
	return hosts
}

// settled waits for what an interface that comes up brings with it.
func (h *host) settled(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		addrs, err := h.handle.AddrList(h.eth0, netlink.FAMILY_V6)
		must(t, err)
		ready := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
		if ready && !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }) {
			return
		}
	}
	t.Fatal("eth0 does not come up")
}

// newKernel returns a Kernel as the next run of the daemon has one.
func (h *host) newKernel(t testing.TB) *Kernel {
	t.Helper()
	k := newAt(Config{ID: idOf(h.n), VNI: testVNI, Port: testPort, Group: testGroup, Log: zap.NewNop()}, h.ns)
	t.Cleanup(func() { must(t, k.Close()) })
	return k
}

func (h *host) link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := h.handle.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func (h *host) addAddr(t testing.TB, l netlink.Link, a netip.Addr, bits int) {
	t.Helper()
	x := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
	if a.Is6() {
		x.Flags = unix.IFA_F_NODAD
	}
	must(t, h.handle.AddrAdd(l, x))
}

// peer is host n, with all ways to it: vxlan by an underlay address, direct.
func peer(n int, under netip.Addr, use fastpath.Kind) Peer {
	return Peer{
		ID: idOf(n), Prefixes: prefixes(n), VXLAN: netip.AddrPortFrom(under, testPort),
		Host4: over4(n), Device: "eth0", Hop4: under4(n), Hop6: under6(n), Path: use,
	}
}

// desired is what host h wants with these peers.
func (h *host) desired(peers ...Peer) Desired {
	return Desired{
		Universe: []netip.Prefix{range4, range6}, Source4: over4(h.n), Source6: over6(h.n), MTU4: 1450, MTU6: 1430, Peers: peers,
	}
}

// listen opens a UDP socket of a namespace on an address.
func listen(t testing.TB, n namespace, a netip.Addr, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	in(t, n, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// sent returns how many packets a device has sent.
func (h *host) sent(t testing.TB, name string) uint64 {
	t.Helper()
	return h.link(t, name).Attrs().Statistics.TxPackets
}

// snapshot describes what a namespace has, one object a line, without what changes by itself.
func snapshot(t testing.TB, n namespace) []string {
	t.Helper()
	h := handle(t, n)
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	links, err := h.LinkList()
	must(t, err)
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		add("link %d %s %s mtu %d up %v %v alias %q", a.Index, a.Name, l.Type(), a.MTU, a.Flags&net.FlagUp != 0, a.HardwareAddr, a.Alias)
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(f, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		must(t, err)
		for _, r := range routes {
			add("route %v via %v %v dev %s src %v type %d proto %d metric %d table %d", r.Dst, r.Gw, r.Via, names[r.LinkIndex], r.Src, r.Type, r.Protocol, r.Priority, r.Table)
		}
		rules, err := h.RuleList(f)
		must(t, err)
		for _, r := range rules {
			add("rule %v", r)
		}
		neighbours, err := h.NeighList(0, f)
		must(t, err)
		for _, x := range neighbours {
			if x.State == netlink.NUD_PERMANENT {
				add("neighbour %v %v dev %s", x.IP, x.HardwareAddr, names[x.LinkIndex])
			}
		}
	}
	fdb, err := h.NeighList(0, unix.AF_BRIDGE)
	must(t, err)
	for _, x := range fdb {
		add("fdb %v %v dev %s", x.HardwareAddr, x.IP, names[x.LinkIndex])
	}
	in(t, n, func() error {
		return filepath.WalkDir("/proc/sys/net", func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(p, "nf_conntrack_count") {
				return err
			}
			if b, err := os.ReadFile(p); err == nil {
				add("sysctl %s = %q", p, b)
			}
			return nil // some cannot be read
		})
	})
	slices.Sort(out)
	return slices.DeleteFunc(out, func(l string) bool { return strings.Contains(l, " fe80::/64") })
}

// same fails the test with the lines in which two snapshots differ.
func same(t testing.TB, what string, before, after []string) {
	t.Helper()
	var lines []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			lines = append(lines, "- "+l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			lines = append(lines, "+ "+l)
		}
	}
	if len(lines) > 0 || len(before) != len(after) {
		t.Errorf("%s:\n%s", what, strings.Join(lines, "\n"))
	}
}
