// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

const (
	// patience is how long a packet may take that must arrive, never how long one is waited for that must not.
	patience = 10 * time.Second
	never    = 300 * time.Millisecond
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A space is a network namespace of a test.
type space struct {
	fd int
	nl *netlink.Handle
}

// newSpace makes an empty namespace that ends with the test.
func newSpace(t testing.TB) *space {
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
	s := &space{fd: int(f.Fd())}
	must(t, s.do(func() (err error) {
		s.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}))
	t.Cleanup(s.nl.Close)
	lo, err := s.nl.LinkByName("lo")
	must(t, err)
	must(t, s.nl.LinkSetUp(lo))
	return s
}

// wait runs f in a goroutine of its own.
func wait(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return <-done
}

// do runs f in the namespace.
func (s *space) do(f func() error) error { return inside(s.fd, f) }

func (s *space) sysctl(t testing.TB, key, value string) {
	t.Helper()
	must(t, s.do(func() error { return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o600) }))
}

// A world is a client, a node that forwards, and pods behind it: two by two they are in a namespace.
type world struct {
	client, node *space
	pods         [2]*space
}

// of returns the namespace of an address.
func (w *world) of(a netip.Addr) *space {
	for _, v6 := range []bool{false, true} {
		for i := range podCount {
			if a == podAddr(i, v6) {
				return w.pods[i/2]
			}
		}
		if a == clientAddr(v6) {
			return w.client
		}
	}
	return w.node
}

const podCount = 4

// The addresses.
func clientAddr(v6 bool) netip.Addr { return pick(v6, "192.0.2.2", "2001:db8::2") }
func nodeAddr(v6 bool) netip.Addr   { return pick(v6, "10.9.0.1", "fd09:0::1") }
func podAddr(i int, v6 bool) netip.Addr {
	return pick(v6, fmt.Sprintf("10.9.%d.%d", i/2, 10+i), fmt.Sprintf("fd09:%d::%d", i/2, 10+i))
}

func pick(v6 bool, a, b string) netip.Addr {
	if v6 {
		return netip.MustParseAddr(b)
	}
	return netip.MustParseAddr(a)
}

// newWorld connects the three.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{newSpace(t), newSpace(t), [2]*space{newSpace(t), newSpace(t)}}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		w.node.sysctl(t, key, "1")
	}
	for _, s := range []*space{w.client, w.node, w.pods[0], w.pods[1]} {
		s.sysctl(t, "net/ipv4/icmp_ratelimit", "0") // each refusal is heard
		s.sysctl(t, "net/ipv6/icmp/ratelimit", "0")
		s.sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
		s.sysctl(t, "net/ipv4/conf/default/rp_filter", "0")
	}
	join(t, w.node, "out", []string{"192.0.2.1/24", "2001:db8::1/64"}, w.client, []string{"192.0.2.2/24", "2001:db8::2/64"})
	for n, pods := range w.pods {
		var own []string
		for i := 2 * n; i < 2*n+2; i++ {
			own = append(own, podAddr(i, false).String()+"/24", podAddr(i, true).String()+"/64")
		}
		join(t, w.node, fmt.Sprint("in", n), []string{fmt.Sprintf("10.9.%d.1/24", n), fmt.Sprintf("fd09:%d::1/64", n)}, pods, own)
	}
	return w
}

// join connects two namespaces by a veth pair. The far one gets its default routes by the near one's first addresses.
func join(t testing.TB, near *space, name string, nearAddrs []string, far *space, farAddrs []string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(far.fd)
	must(t, near.nl.LinkAdd(v))
	for _, x := range []struct {
		s     *space
		name  string
		addrs []string
	}{{near, name, nearAddrs}, {far, "eth0", farAddrs}} {
		l, err := x.s.nl.LinkByName(x.name)
		must(t, err)
		must(t, x.s.nl.LinkSetUp(l))
		for _, s := range x.addrs {
			a, err := netlink.ParseAddr(s)
			must(t, err)
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			must(t, x.s.nl.AddrAdd(l, a))
		}
	}
	l, err := far.nl.LinkByName("eth0")
	must(t, err)
	for _, s := range nearAddrs {
		must(t, far.nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IP(netip.MustParsePrefix(s).Addr().AsSlice())}))
	}
}

// newFilter returns one in a namespace.
func newFilter(t testing.TB, s *space) *Filter {
	t.Helper()
	f, err := New(Config{NetNS: s.fd, Log: zaptest.NewLogger(t)})
	must(t, err)
	t.Cleanup(f.Close)
	return f
}

// by returns a verdict that is put down to a policy.
func by(allow bool, name string) compile.Verdict {
	return compile.Verdict{Allow: allow, By: &policy.Verdict{
		Allowed: allow, Reason: policy.ByRule, Policy: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "n", Name: name}},
	}}
}
