// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// patience is how long something may take that must happen.
const patience = 10 * time.Second

// testGroup is that of the devices that are served.
const testGroup = 7

var universe = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/13"), netip.MustParsePrefix("fd77::/61")}

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
	ns := namespace(f.Fd())
	h := handle(t, ns)
	lo, err := h.LinkByName("lo")
	must(t, err)
	must(t, h.LinkSetUp(lo))
	set(t, ns, "ipv6/conf/default/accept_dad", "0")
	return ns
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

func set(t testing.TB, n namespace, key, value string) {
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

// A place is a host that forwards, with the workload 10.32.n.2, fd77:0:0:n::2 behind it. All are on one network, 192.0.2.n, and reach each other by VXLAN.
type place struct {
	n              int
	ns, work       namespace
	handle, inside *netlink.Handle
	veth, vxlan    netlink.Link
	*Bypass
	end func() // ends Run
}

func v4(n, host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 32, byte(n), byte(host)}) }
func v6(n, host int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd77:0:0:%x::%x", n, host))
}

func network(a netip.Addr) *net.IPNet {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

const innerMTU = 1400

// newPlaces makes two places whose devices are served.
func newPlaces(t testing.TB) [2]*place {
	t.Helper()
	var ps [2]*place
	for i := range ps {
		p := &place{n: i + 1, ns: newNamespace(t), work: newNamespace(t)}
		p.handle, p.inside = handle(t, p.ns), handle(t, p.work)
		set(t, p.ns, "ipv4/ip_forward", "1")
		set(t, p.ns, "ipv6/conf/all/forwarding", "1")
		ps[i] = p
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	wire := netlink.NewVeth(attrs)
	wire.PeerName, wire.PeerNamespace = "eth0", netlink.NsFd(ps[1].ns)
	must(t, ps[0].handle.LinkAdd(wire))
	for i, p := range ps {
		p.up(t, p.handle, "eth0", netip.AddrFrom4([4]byte{192, 0, 2, byte(p.n)}))
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.Group = "workload", innerMTU, testGroup
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerMTU, v.PeerNamespace = "eth0", innerMTU, netlink.NsFd(p.work)
		must(t, p.handle.LinkAdd(v))
		p.veth = p.up(t, p.handle, "workload", v4(p.n, 1), v6(p.n, 1))
		p.up(t, p.inside, "eth0", v4(p.n, 2), v6(p.n, 2))
		p.addTunnel(t, netip.AddrFrom4([4]byte{192, 0, 2, byte(2 - i)}))
		p.vxlan = p.up(t, p.handle, "vxlan7", v4(7, p.n), v6(7, p.n))
		must(t, p.handle.LinkSetGroup(p.vxlan, testGroup))
	}
	for i, p := range ps {
		for _, r := range []struct {
			h       *netlink.Handle
			dst     *net.IPNet
			gateway netip.Addr
		}{
			{p.handle, network(v4(2-i, 0)), v4(7, 2-i)},
			{p.handle, network(v6(2-i, 0)), v6(7, 2-i)},
			{p.inside, nil, v4(p.n, 1)},
			{p.inside, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, v6(p.n, 1)},
		} {
			must(t, r.h.RouteAdd(&netlink.Route{Dst: r.dst, Gw: r.gateway.AsSlice()}))
		}
		p.start(t)
	}
	return ps
}

// addTunnel makes the device of the tunnel to the other place, whose packets are not to be fragmented on their way.
func (p *place) addTunnel(t testing.TB, to netip.Addr) {
	t.Helper()
	in(t, p.ns, func() error {
		r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
		data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
		data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(7))
		data.AddRtAttr(nl.IFLA_VXLAN_PORT, nl.BEUint16Attr(6784))
		data.AddRtAttr(nl.IFLA_VXLAN_GROUP, to.AsSlice())
		data.AddRtAttr(unix.IFLA_VXLAN_DF, nl.Uint8Attr(1))
		r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("vxlan7")))
		r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(innerMTU)))
		r.AddData(info)
		_, err := r.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// up gives a device its addresses and brings it up.
func (p *place) up(t testing.TB, h *netlink.Handle, name string, addrs ...netip.Addr) netlink.Link {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	must(t, h.LinkSetUp(l))
	for _, a := range addrs {
		x := &netlink.Addr{IPNet: network(a)}
		if a.Is6() {
			x.Flags = unix.IFA_F_NODAD
		}
		must(t, h.AddrAdd(l, x))
	}
	return l
}

// start loads the programs anew, as the next run of the daemon does.
func (p *place) start(t testing.TB) {
	t.Helper()
	b, err := newAt(Config{Universe: universe, Groups: []uint32{testGroup}, Log: zap.NewNop()}, p.ns)
	must(t, err)
	b.Serve(nil, []string{"eth0"})
	p.Bypass, p.end = b, run(t, b)
	eventually(t, "the programs are in place", func() bool { return b.State() == "" && len(b.held()) >= 3 })
}

// run runs a Bypass until the function that it returns is called, or the test ends.
func run(t testing.TB, b *Bypass) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		must(t, <-done)
		b.Close()
	})
	t.Cleanup(end)
	return end
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func (p *place) count(t testing.TB) uint64 {
	t.Helper()
	n, err := p.Count()
	must(t, err)
	return n
}

// testAttr is a part of union bpf_attr (linux/bpf.h, BPF_PROG_TEST_RUN).
type testAttr struct {
	program, result       uint32
	inSize, outSize       uint32
	in, out               uint64
	repeat, duration      uint32
	ctxInSize, ctxOutSize uint32
	ctxIn, ctxOut         uint64
	flags, cpu            uint32
	batch, _              uint32
}

// try runs a program on a packet that the kernel makes of it, and returns its result and what became of the packet.
func try(t testing.TB, program int, packet []byte, segment uint32) (result int32, out []byte) {
	t.Helper()
	out = make([]byte, len(packet)+256)
	ctx := make([]byte, 192)
	binary.NativeEndian.PutUint32(ctx[ctxSegment:], segment)
	a := testAttr{
		program: uint32(program), in: address(packet), inSize: uint32(len(packet)), out: address(out), outSize: uint32(len(out)), ctxIn: address(ctx), ctxInSize: uint32(len(ctx)),
	}
	_, err := bpf(unix.BPF_PROG_TEST_RUN, unsafe.Pointer(&a), unsafe.Sizeof(a))
	runtime.KeepAlive(packet)
	runtime.KeepAlive(ctx)
	must(t, err)
	return int32(a.result), out[:a.outSize]
}
