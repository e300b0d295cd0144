// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/underlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const port = 6783

// arrival is what OnProbe was told.
type arrival struct {
	from    netip.Addr
	ifindex int
	node    uint64
	kind    fastpath.Kind
	echo    uint64
}

// host is a host in a namespace, with a Prober that runs.
type host struct {
	*routertest.Namespace
	*Prober
	hosts   []netip.Addr // on the overlay
	got     chan arrival
	ifindex map[string]int
}

// newHosts makes two hosts that are joined by eth0, which carries direct, and eth1, of MTU 1450, which stands for VXLAN.
func newHosts(t *testing.T) (a, b *host) {
	t.Helper()
	all := []*host{{}, {}}
	for i, h := range all {
		h.Namespace, h.got, h.ifindex = routertest.NewNamespace(t), make(chan arrival, 1000), map[string]int{}
		h.hosts = []netip.Addr{netip.AddrFrom4([4]byte{10, 32, 0, byte(i + 1)}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x32, 15: byte(i + 1)})}
	}
	a, b = all[0], all[1]
	routertest.Link(a.Namespace, b.Namespace, 1500)
	routertest.Pair(a.Namespace, "eth1", b.Namespace, "eth1", 1450)
	for i, h := range all {
		h.Address("eth1", netip.MustParsePrefix(fmt.Sprintf("198.51.100.%d/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("2001:db8:1::%d/64", i+1)))
		h.Address("lo", netip.PrefixFrom(h.hosts[0], 32), netip.PrefixFrom(h.hosts[1], 128))
		h.paths(t, all[1-i].hosts, 2-i)
		h.start(t, uint64(i+1))
	}
	return a, b
}

// paths makes the candidate tables of a host: to the addresses of another, the number of which is given.
func (h *host) paths(t *testing.T, to []netip.Addr, number int) {
	t.Helper()
	h.Do(func() {
		for table, kind := range map[int]fastpath.Kind{8701: fastpath.Direct, 8702: fastpath.VXLAN} {
			device, nets := "eth0", []string{"192.0.2.", "2001:db8::"}
			if kind == fastpath.VXLAN {
				device, nets = "eth1", []string{"198.51.100.", "2001:db8:1::"}
			}
			link, err := netlink.LinkByName(device)
			if err != nil {
				t.Fatal(err)
			}
			h.ifindex[device] = link.Attrs().Index
			for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
				if kind == fastpath.VXLAN && family == unix.AF_INET {
					continue // these go by the device
				}
				rule := netlink.NewRule()
				rule.Family, rule.Mark, rule.Table, rule.Priority = family, kind.Mark(), table, table
				if err := netlink.RuleAdd(rule); err != nil {
					t.Fatal(err)
				}
				gw := net.ParseIP(fmt.Sprint(nets[i], number))
				dst := &net.IPNet{IP: to[i].AsSlice(), Mask: net.CIDRMask(to[i].BitLen(), to[i].BitLen())}
				// The MTU of the route is what the kernel would believe of the path.
				if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gw, LinkIndex: link.Attrs().Index, Table: table, MTU: 1300}); err != nil {
					t.Fatal(err)
				}
				all := &net.IPNet{IP: make(net.IP, to[i].BitLen()/8), Mask: net.CIDRMask(0, to[i].BitLen())}
				if err := netlink.RouteAdd(&netlink.Route{Dst: all, Type: unix.RTN_UNREACHABLE, Table: table, Priority: 1 << 31}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// start runs a Prober beside the sockets of a router.
func (h *host) start(t *testing.T, node uint64) {
	t.Helper()
	h.Prober = New(Config{Node: node, Port: port, OnProbe: func(from netip.AddrPort, ifindex int, node uint64, kind fastpath.Kind, echo uint64) {
		h.got <- arrival{from.Addr(), ifindex, node, kind, echo}
	}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	h.Do(func() {
		data, control, err := underlay.ListenApart(port, 1, 16, underlay.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, c := range append(data, control) {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
		})
		if err := h.SetAddrs(h.hosts); err != nil {
			t.Fatal(err)
		}
	})
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// by is the device by which a probe is to leave, where no rule says it.
func (h *host) by(kind fastpath.Kind, to netip.Addr) int {
	if kind == fastpath.VXLAN && to.Is4() {
		return h.ifindex["eth1"]
	}
	return 0
}

// next waits for what OnProbe is told.
func (h *host) next(t *testing.T) arrival {
	t.Helper()
	select {
	case a := <-h.got:
		return a
	case <-time.After(10 * time.Second):
		t.Fatal("no probe has arrived")
	}
	return arrival{}
}

func at(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// Probes go by the path that their mark says, whole, as large as the device and whatever the kernel believes of the path; and the other side learns
// by which device they came.
func TestProbes(t *testing.T) {
	a, b := newHosts(t)
	captured := capture(t, b)
	echo := uint64(1 << 63)
	for kind, way := range map[fastpath.Kind]struct {
		device string
		mtu    int
	}{fastpath.Direct: {"eth0", 1500}, fastpath.VXLAN: {"eth1", 1450}} {
		for i, to := range b.hosts {
			for _, size := range []int{0, 128, way.mtu} {
				echo++
				if err := a.Send(kind, a.by(kind, to), at(to), size, echo); err != nil {
					t.Fatal(err)
				}
				if got, want := b.next(t), (arrival{a.hosts[i], b.ifindex[way.device], 1, kind, echo}); got != want {
					t.Errorf("%v of %d bytes to %v: %+v, not %+v", kind, size, to, got, want)
				}
				least := []int{52, 72}[i]
				if got := <-captured; got.size != max(least, size) || !got.whole {
					t.Errorf("%v of %d bytes to %v: %+v on the wire", kind, size, to, got)
				}
			}
			err := a.Send(kind, a.by(kind, to), at(to), way.mtu+1, echo)
			want := fmt.Sprintf("sending a probe of %d bytes by %v to %v: message too long", way.mtu+1, kind, at(to))
			if !errors.Is(err, unix.EMSGSIZE) || err.Error() != want {
				t.Errorf("larger than the device: %v", err)
			}
		}
	}
	if err := a.Send(fastpath.VXLAN, 0, at(netip.MustParseAddr("fd00:32::9")), 128, echo); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("to a node without a path: %v", err)
	}
	if err := a.Send(fastpath.VXLAN, 999, at(b.hosts[0]), 128, echo); !errors.Is(err, unix.ENODEV) {
		t.Errorf("by a device that is gone: %v", err)
	}
	for want, err := range map[string]error{
		"sending a probe of 128 bytes by udp to 10.32.0.2:6783: that is no kernel path":              a.Send(fastpath.UDP, 0, at(b.hosts[0]), 128, echo),
		"sending a probe of 65536 bytes by direct to 10.32.0.2:6783: no IP packet can be that large": a.Send(fastpath.Direct, 0, at(b.hosts[0]), 65536, echo),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("%v, not %s", err, want)
		}
	}
	if s := a.Stats(); s.Sent != 12 || s.Unsent != 8 {
		t.Errorf("%+v", s)
	}
	if s := b.Stats(); s.Received != 12 || s.Foreign+s.Limited != 0 || len(b.got) != 0 {
		t.Errorf("%+v", s)
	}
}

// packet is what was captured of a probe.
type packet struct {
	size  int
	whole bool // and may not be taken apart
}

// capture returns the UDP packets to the port of the probes that arrive at a host, in the order of their arrival, if they come one after the other.
func capture(t *testing.T, h *host) <-chan packet {
	t.Helper()
	var fd int
	h.Do(func() {
		var err error
		all := uint16(unix.ETH_P_ALL)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all>>8|all<<8)); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}); err != nil {
			t.Fatal(err)
		}
	})
	out, stop, done := make(chan packet, 1000), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			select {
			case <-stop:
				return
			default:
			}
			if err != nil || from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			switch p := b[:n]; {
			case n > 28 && p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP && p[22] == port>>8 && p[23] == port&0xff:
				out <- packet{int(p[2])<<8 | int(p[3]), p[6] == 0x40 && p[7] == 0}
			case n > 48 && p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP && p[42] == port>>8 && p[43] == port&0xff:
				out <- packet{40 + (int(p[4])<<8 | int(p[5])), true}
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
	return out
}

// Addresses come and go while probes are received.
func TestSetAddrs(t *testing.T) {
	a, b := newHosts(t)
	old, next := b.hosts[0], netip.MustParseAddr("10.32.0.200")
	a.another(t, next)
	b.Do(func() {
		if err := b.SetAddrs([]netip.Addr{next, b.hosts[1]}); err != nil { // which it has not yet
			t.Fatal(err)
		}
	})
	b.Address("lo", netip.PrefixFrom(next, 32))
	for i, to := range []netip.Addr{next, b.hosts[1], old} {
		if err := a.Send(fastpath.Direct, 0, at(to), 128, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[uint64]bool{b.next(t).echo: true, b.next(t).echo: true}
	if !got[0] || !got[1] {
		t.Errorf("%v", got)
	}
	b.Do(func() {
		if err := b.SetAddrs([]netip.Addr{old}); err != nil {
			t.Fatal(err)
		}
	})
	if err := a.Send(fastpath.Direct, 0, at(old), 128, 7); err != nil {
		t.Fatal(err)
	}
	if got := b.next(t); got.echo != 7 {
		t.Errorf("%+v", got)
	}
	if err := b.Send(fastpath.Direct, 0, at(a.hosts[1]), 128, 1); !errors.Is(err, errAddress) ||
		err.Error() != "sending a probe of 128 bytes by direct to [fd00:32::1]:6783: this host has no overlay address of that family" {
		t.Error(err)
	}
}

// another makes one more address one that is reached directly at the second host.
func (h *host) another(t *testing.T, to netip.Addr) {
	t.Helper()
	h.Do(func() {
		dst := &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(32, 32)}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.IPv4(192, 0, 2, 2), LinkIndex: h.ifindex["eth0"], Table: 8701}); err != nil {
			t.Fatal(err)
		}
	})
}

// Floods, and what is no probe, go nowhere.
func TestFlood(t *testing.T) {
	a, b := newHosts(t)
	const n = 500
	for i := range n {
		if err := a.Send(fastpath.Direct, 0, at(b.hosts[0]), 128, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	b.next(t)
	deadline := time.Now().Add(10 * time.Second)
	for s := b.Stats(); s.Limited == 0; s = b.Stats() {
		if time.Now().After(deadline) {
			t.Fatalf("all are told: %+v", s)
		}
		time.Sleep(time.Millisecond)
	}
	if s := b.Stats(); s.Received > 3*PerPeer {
		t.Errorf("%+v", s)
	}
	for _, wrong := range [][]byte{[]byte("hello"), message{kind: fastpath.Direct, node: 2}.append(nil, 0)} { // nothing, and what b itself says to have sent
		before := b.Stats()
		if err := a.raw(fastpath.Direct, wrong, at(b.hosts[1])); err != nil {
			t.Fatal(err)
		}
		for s := b.Stats(); s.Foreign == before.Foreign; s = b.Stats() {
			if time.Now().After(deadline) {
				t.Fatalf("%x is not counted: %+v", wrong, s)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// raw sends anything.
func (h *host) raw(kind fastpath.Kind, b []byte, to netip.AddrPort) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, e := range h.ends {
		if e.addr.Is4() == to.Addr().Is4() {
			return sendTo(e.send[kind], b, e.control(h.by(kind, to.Addr())), to)
		}
	}
	return errAddress
}

// What cannot be opened is said, and tried again.
func TestPortTaken(t *testing.T) {
	ns := routertest.NewNamespace(t)
	ns.Do(func() {
		other, err := net.ListenPacket("udp4", "127.0.0.1:6783")
		if err != nil {
			t.Fatal(err)
		}
		p := New(Config{Node: 1, Port: port, OnProbe: func(netip.AddrPort, int, uint64, fastpath.Kind, uint64) {}})
		addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
		err = p.SetAddrs(addrs)
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
		const want = "UDP port 127.0.0.1:6783 is taken by another process; stop it, or choose --port: "
		if got := err.Error(); len(got) < len(want) || got[:len(want)] != want {
			t.Errorf("%s", got)
		}
		if len(p.ends) != 1 || p.ends[0].addr != addrs[1] {
			t.Errorf("%v", p.ends)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		if err := p.SetAddrs(addrs); err != nil || len(p.ends) != 2 {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := p.SetAddrs(addrs); !errors.Is(err, ErrClosed) || err.Error() != "probes of kernel paths: closed" {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestRunTwice(t *testing.T) {
	p := New(Config{Node: 1, Port: port})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := p.Run(ctx); err == nil || err.Error() != "probes of kernel paths: Run was called twice" {
		t.Error(err)
	}
}
