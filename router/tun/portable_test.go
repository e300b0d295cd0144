// SPDX-License-Identifier: Apache-2.0

package tun_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/tun"
)

const (
	ours   = "10.32.1.1"
	theirs = "10.32.2.2"
)

// A device passes from one kind to the other and back with its addresses and routes, whatever offloads it had.
func TestTakeOver(t *testing.T) {
	ns := routertest.NewNamespace(t)
	first := open(t, ns, tun.Config{Name: "weft0", Queues: 2, VNetHdr: true, Persist: true})
	ns.Address("weft0", netip.MustParsePrefix(ours+"/16"), netip.MustParsePrefix("fd00::1/64"))
	ns.Do(func() {
		link, err := netlink.LinkByName("weft0")
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{
				LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(10, 99, 0, 0), Mask: net.CIDRMask(16, 32)},
			})
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	closeDevice(t, first)
	before := describe(t, ns)
	for _, c := range []struct {
		portable bool
		queues   int
	}{{true, 1}, {false, 1}, {true, 4}, {true, 2}, {false, 4}} {
		d := open(t, ns, tun.Config{Name: "weft0", Queues: c.queues, VNetHdr: true, Persist: true, Portable: c.portable})
		want := tun.Offloads{VNetHdr: !c.portable, TSO: !c.portable, USO: !c.portable}
		if len(d.Queues()) != c.queues || d.Offloads() != want || d.Queues()[0].Offloads() != want || d.Name() != "weft0" {
			t.Errorf("%+v gives %v", c, d)
		}
		if c.portable {
			plain(t, ns, d)
		}
		closeDevice(t, d)
		if after := describe(t, ns); !slices.Equal(before, after) {
			t.Errorf("after %+v: %v, before %v", c, after, before)
		}
	}
}

// describe lists the index, addresses and routes of weft0.
func describe(t *testing.T, ns *routertest.Namespace) (all []string) {
	t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName("weft0")
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, link.Attrs().Name)
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() { // that one is made when the link is first used
				all = append(all, a.IPNet.String())
			}
		}
		for _, r := range routes {
			all = append(all, r.Dst.String())
		}
		all = append(all, fmt.Sprint(link.Attrs().Index))
	})
	return all
}

// plain sends datagrams that offloads would hand over as one with its checksum open, and checks that
// they come out one by one, complete.
func plain(t *testing.T, ns *routertest.Namespace, d *tun.Device) {
	t.Helper()
	var c *net.UDPConn
	ns.Do(func() {
		var err error
		if c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(ours)}); err != nil {
			t.Fatal(err)
		}
	})
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 500) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	seen := 0
	b := make([]byte, 70000)
	for start := time.Now(); seen < 4; {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d datagrams came out of the device", seen)
		}
		// Again and again: the kernel notices some time after a queue was attached that the link works.
		if _, err := c.WriteToUDPAddrPort(make([]byte, 2000), netip.AddrPortFrom(netip.MustParseAddr(theirs), 7)); err != nil {
			t.Fatal(err)
		}
		var polls []unix.PollFd
		for _, q := range d.Queues() {
			polls = append(polls, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
		}
		if _, err := unix.Poll(polls, 100); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		for _, q := range d.Queues() {
			for {
				n, err := q.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					break
				}
				var p packet.Packet
				if p.Parse(b[:n]) != nil || p.Dst != netip.MustParseAddr(theirs) {
					continue // the kernel's own noise
				}
				if n != 528 || sum(p.Src, p.Dst, b[20:n]) != 0xffff {
					t.Fatalf("%d bytes with the sum %#x came out of the device: %x", n, sum(p.Src, p.Dst, b[20:n]), b[:40])
				}
				seen++
			}
		}
	}
}

// sum adds up a UDP datagram and its pseudo header: to 0xffff if the checksum is right.
func sum(src, dst netip.Addr, datagram []byte) uint16 {
	b := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, 17, byte(len(datagram) >> 8), byte(len(datagram))}, datagram)
	acc := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	for acc>>16 != 0 {
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc)
}

// What is opened belongs to this process alone, never waits, and goes with it if it is not to stay.
func TestPortableDescriptor(t *testing.T) {
	ns := routertest.NewNamespace(t)
	for _, queues := range []int{1, 2} {
		d := open(t, ns, tun.Config{Name: "weft0", Queues: queues, Portable: true})
		for _, q := range d.Queues() {
			flags, err := unix.FcntlInt(uintptr(q.FD()), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor flags %#x, %v", flags, err)
			}
			if n, err := q.Read(make([]byte, 2000)); n != 0 || err != nil {
				t.Errorf("reading from an idle device: %d, %v", n, err)
			}
		}
		closeDevice(t, d)
		if _, err := d.Queues()[0].Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("reading from a closed device: %v", err)
		}
		ns.Do(func() {
			if _, err := netlink.LinkByName("weft0"); err == nil {
				t.Error("weft0 is still there")
			}
		})
	}
}

// What can go wrong is told in the same words.
func TestPortableErrors(t *testing.T) {
	ns := routertest.NewNamespace(t)
	open(t, ns, tun.Config{Name: "held", Queues: 2, Persist: true, Portable: true})
	ns.Do(func() {
		addForeign(t, "single", netlink.TUNTAP_MODE_TUN)
		for _, c := range []struct {
			config tun.Config
			kind   error
			want   string
		}{
			{tun.Config{Name: strings.Repeat("x", 16)}, tun.ErrName, `"xxxxxxxxxxxxxxxx" cannot be the name of a device: use 1 to 15 letters or digits`},
			{tun.Config{Name: "weft0", Queues: 129}, nil, "weft0 cannot have 129 queues: choose at most 64"},
			{tun.Config{Name: "held"}, tun.ErrBusy, "held is in use by another process: stop that one or choose another device name"},
			{tun.Config{Name: "single"}, tun.ErrKind, "single exists but is not a multi-queue TUN device: if nobody needs it, remove it (ip link delete single)"},
		} {
			c.config.Portable = true
			_, err := tun.Open(c.config)
			var e *tun.Error
			if !errors.As(err, &e) || err.Error() != c.want || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("error %v, want %s", err, c.want)
			}
		}
		if _, err := netlink.LinkByName("weft0"); err == nil {
			t.Error("a device was left behind")
		}
	})
	// Without the capability.
	routertest.NewNamespace(t).Do(func() {
		var none [2]unix.CapUserData // version 3 takes two
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Fatal(err)
		}
		_, err := tun.Open(tun.Config{Name: "weft0", Portable: true})
		want := "creating weft0 needs CAP_NET_ADMIN: run as root or grant the capability"
		if !errors.Is(err, tun.ErrPermission) || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	})
}
