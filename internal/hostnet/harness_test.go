// SPDX-License-Identifier: Apache-2.0

package hostnet

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

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// patience is how long a packet may take that must arrive.
const patience = 10 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNamespace makes an empty namespace that ends with the test.
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

// path leads to the namespace as long as it is open.
func (n namespace) path() string { return fmt.Sprintf("/proc/self/fd/%d", int(n)) }

func connect(t testing.TB, n namespace) conn {
	t.Helper()
	c, err := n.open()
	must(t, err)
	t.Cleanup(c.Close)
	return c
}

// in runs f in the namespace.
func in(t testing.TB, n namespace, f func() error) {
	t.Helper()
	must(t, n.run(f))
}

func setSysctl(t testing.TB, n namespace, key, value string) {
	t.Helper()
	in(t, n, func() error { return writeSysctl(key, value) })
}

func sysctl(t testing.TB, n namespace, key string) (v string) {
	t.Helper()
	in(t, n, func() (err error) {
		v, err = readSysctl(key)
		return err
	})
	return v
}

// openTUN opens a persistent TUN device as the router does.
func openTUN(t testing.TB, n namespace, name string) *os.File {
	t.Helper()
	var fd int
	in(t, n, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	})
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { _ = f.Close() }) // some tests do it before
	return f
}

var (
	range4 = netip.MustParsePrefix("10.32.0.0/12")
	range6 = netip.MustParsePrefix("fd77::/64")
	host4  = netip.MustParseAddr("10.32.0.1")
	host6  = netip.MustParseAddr("fd77::1")
)

// testHost is a host with an overlay, on a network of its own.
type testHost struct {
	*Host
	ns      namespace
	conn    conn
	tun     *os.File
	outside namespace // 192.0.2.2 and 2001:db8::2; the host is .1, by eth0
	changes Changes
}

func newHost(t *testing.T) *testHost {
	t.Helper()
	ns, outside := newNamespace(t), newNamespace(t)
	h := &testHost{Host: newAt(zap.NewNop(), ns), ns: ns, conn: connect(t, ns), outside: outside}
	setSysctl(t, ns, "net/ipv4/ip_forward", "0")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(outside)
	must(t, h.conn.LinkAdd(v))
	for i, c := range []conn{h.conn, connect(t, outside)} {
		up(t, c, "lo")
		eth0, err := c.link("eth0")
		must(t, err)
		must(t, c.LinkSetIP6AddrGenMode(eth0, nl6GenNone)) // comes late, and disturbs comparisons
		l := addAddr(t, c, "eth0", fmt.Sprintf("192.0.2.%d/24", i+1), fmt.Sprintf("2001:db8::%d/64", i+1))
		for _, gw := range []string{"192.0.2.2", "2001:db8::2"} {
			if i == 0 {
				must(t, c.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)}))
			}
		}
	}
	if !h.conn.settled(netip.MustParseAddr("2001:db8::1"), patience) {
		t.Fatal("the host's own network does not come up")
	}
	h.tun = openTUN(t, ns, DefaultDevice)
	return h
}

func up(t testing.TB, c conn, name string) netlink.Link {
	t.Helper()
	l, err := c.link(name)
	must(t, err)
	if l == nil {
		t.Fatalf("no interface %s", name)
	}
	must(t, c.LinkSetUp(l))
	return l
}

func addAddr(t testing.TB, c conn, name string, addrs ...string) netlink.Link {
	t.Helper()
	l := up(t, c, name)
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		must(t, err)
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		must(t, c.AddrAdd(l, a))
	}
	return l
}

func desired(ws ...Workload) Desired {
	return Desired{
		MTU: 1420, Addrs: []netip.Addr{host4, host6}, Universe: []netip.Prefix{range4, range6}, Masquerade: true, Workloads: ws,
	}
}

// apply applies d, which must work without warnings.
func (h *testHost) apply(t testing.TB, d Desired) Result {
	t.Helper()
	res, err := h.Apply(d, h.changes)
	must(t, err)
	if len(res.Warnings) > 0 {
		t.Fatalf("warnings: %q", res.Warnings)
	}
	h.changes = res.Changes
	return res
}

// attach makes a workload with the n-th addresses.
func (h *testHost) attach(t testing.TB, n int) Workload {
	t.Helper()
	w := workload(n, newNamespace(t))
	got, err := h.Attach(w)
	must(t, err)
	if len(got.Warnings) > 0 {
		t.Fatalf("warnings: %q", got.Warnings)
	}
	if got.Unsettled {
		must(t, h.Settle(w))
	}
	return w
}

func workload(n int, ns namespace) Workload {
	return Workload{ID: fmt.Sprintf("workload-%d", n), Netns: ns.path(), Addrs: []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.32.1.%d", n)), netip.MustParseAddr(fmt.Sprintf("fd77::1:%d", n)),
	}}
}

func (w Workload) ns(t testing.TB) namespace {
	t.Helper()
	var n int
	_, err := fmt.Sscanf(w.Netns, "/proc/self/fd/%d", &n)
	must(t, err)
	return namespace(n)
}

// listen opens a UDP socket in a namespace on the wildcard address of a's family.
func listen(t testing.TB, n namespace, a netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	in(t, n, func() (err error) {
		c, err = net.ListenUDP(network(a), nil)
		return err
	})
	t.Cleanup(func() { must(t, c.Close()) })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

func network(a netip.Addr) string {
	if a.Is4() {
		return "udp4"
	}
	return "udp6"
}

// send sends a datagram from a namespace, from the source if that is valid, which the namespace need not know.
func send(t testing.TB, n namespace, from netip.Addr, to netip.AddrPort, payload string) error {
	t.Helper()
	return n.run(func() error {
		fd, level, opt := 0, unix.SOL_IP, unix.IP_TRANSPARENT
		domain := unix.AF_INET
		if to.Addr().Is6() {
			domain, level, opt = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if from.IsValid() {
			if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
				return err
			}
			if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
				return err
			}
		}
		return unix.Sendto(fd, []byte(payload), 0, sockaddr(to))
	})
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func port(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// receive returns the next datagram.
func receive(t testing.TB, c *net.UDPConn) (payload string, from netip.Addr) {
	t.Helper()
	b := make([]byte, 2048)
	n, a, err := c.ReadFromUDPAddrPort(b)
	must(t, err)
	return string(b[:n]), a.Addr().Unmap()
}

// reaches sends one single datagram, which has to arrive, from one namespace to an address of another, and one back.
func reaches(t testing.TB, src, dst namespace, to netip.Addr) (seen netip.Addr) {
	t.Helper()
	server, client := listen(t, dst, to), listen(t, src, to)
	_, err := client.WriteToUDPAddrPort([]byte("there"), netip.AddrPortFrom(to, port(server)))
	must(t, err)
	b := make([]byte, 64)
	n, from, err := server.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != "there" {
		t.Fatalf("to %v: %q, %v", to, b[:n], err)
	}
	_, err = server.WriteToUDPAddrPort([]byte("back"), from)
	must(t, err)
	if got, _ := receive(t, client); got != "back" {
		t.Fatalf("from %v: %q", to, got)
	}
	return from.Addr().Unmap()
}

// snapshot describes all that a namespace has, one object a line, without what changes by itself.
func snapshot(t testing.TB, n namespace) []string {
	t.Helper()
	c := connect(t, n)
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	links, err := c.links()
	must(t, err)
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		add("link %s %s mtu %d up %v %v alias %q qlen %d", a.Name, l.Type(), a.MTU, a.Flags&net.FlagUp != 0, a.HardwareAddr, a.Alias, a.TxQLen)
	}
	addrs, err := c.addrs(nil, netlink.FAMILY_ALL)
	must(t, err)
	for _, a := range addrs {
		add("addr %s %v flags %x", names[a.LinkIndex], a.IPNet, a.Flags&^unix.IFA_F_TENTATIVE)
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := c.RouteListFiltered(f, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		must(t, err)
		for _, r := range routes {
			if r.Dst.String() == multicast6().String() && isHostIf(names[r.LinkIndex]) {
				continue // it comes when the kernel gets to it, and goes by slim
			}
			add("route %v via %v dev %s src %v type %d proto %d metric %d table %d scope %d onlink %v", r.Dst, r.Gw, names[r.LinkIndex], r.Src, r.Type,
				r.Protocol, r.Priority, r.Table, r.Scope, r.Flags&int(netlink.FLAG_ONLINK) != 0)
		}
		rules, err := c.RuleList(f)
		must(t, err)
		for _, r := range rules {
			add("rule %v", r)
		}
	}
	neighbours, err := c.NeighList(0, netlink.FAMILY_ALL)
	must(t, err)
	for _, x := range neighbours {
		if x.State == netlink.NUD_PERMANENT {
			add("neighbour %v %v dev %s", x.IP, x.HardwareAddr, names[x.LinkIndex])
		}
	}
	out = append(out, ruleset(t, n)...)
	in(t, n, func() error {
		return filepath.WalkDir("/proc/sys/net", func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(p, "nf_conntrack_count") {
				return err
			}
			b, err := os.ReadFile(p)
			if err == nil {
				add("sysctl %s = %q", p, b)
			}
			return nil // some cannot be read
		})
	})
	slices.Sort(out)
	// Link-local addresses are the kernel's business, and come late.
	return slices.DeleteFunc(out, func(l string) bool { return strings.Contains(l, " fe80::") })
}

// ruleset describes all of nftables.
func ruleset(t testing.TB, n namespace) (out []string) {
	t.Helper()
	c, err := n.nftables()
	must(t, err)
	chains, err := c.ListChains()
	must(t, err)
	for _, ch := range chains {
		out = append(out, fmt.Sprintf("chain %d %s %s %s", ch.Table.Family, ch.Table.Name, ch.Name, ch.Type))
		rules, err := c.GetRules(ch.Table, ch)
		must(t, err)
		for i, r := range rules {
			line := fmt.Sprintf("rule %s %s %d:", ch.Table.Name, ch.Name, i)
			for _, e := range r.Exprs {
				switch e.(type) {
				case *expr.Counter, *expr.Lookup: // a set's name differs each time
					line += fmt.Sprintf(" %T", e)
				default:
					line += fmt.Sprintf(" %T%+v", e, e)
				}
			}
			out = append(out, line)
		}
	}
	return out
}

// dropped returns how many packets the rules of that comment have matched.
func dropped(t testing.TB, n namespace, comment string) (packets uint64) {
	t.Helper()
	c, err := n.nftables()
	must(t, err)
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	must(t, err)
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		must(t, err)
		for _, r := range rules {
			if s, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && s == comment {
				for _, e := range r.Exprs {
					if counter, ok := e.(*expr.Counter); ok {
						packets += counter.Packets
					}
				}
			}
		}
	}
	return packets
}

// differ fails the test with the lines in which two snapshots differ.
func differ(t testing.TB, what string, before, after []string) {
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

// Present says whether the host's interface of the workload exists.
func (h *Host) Present(id string) bool {
	c, err := h.ns.open()
	if err != nil {
		return false
	}
	defer c.Close()
	l, err := c.link(HostIf(id))
	return err == nil && vethOf(l, id)
}
