// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// The kernel as the judge of Splitter: superpackets are written to a TUN
// device with offloads, routed to one without, and so cut by the kernel.

// kernelSplitter is a network namespace with the two devices.
type kernelSplitter struct {
	in, out int // descriptors
}

const (
	kernelIn4, kernelOut4 = "10.91.0.1/24", "10.92.0.1/24"
	kernelIn6, kernelOut6 = "fd91::1/64", "fd92::1/64"
)

func newKernelSplitter(t *testing.T) *kernelSplitter {
	t.Helper()
	k := new(kernelSplitter)
	inNamespace(t, func() (err error) {
		if k.in, err = openTUN(t, "in", unix.IFF_VNET_HDR, 9000, kernelIn4, kernelIn6); err != nil {
			return err
		}
		k.out, err = openTUN(t, "out", 0, 9000, kernelOut4, kernelOut6)
		return err
	})
	return k
}

// inNamespace runs f in a new network namespace that forwards. The namespace
// lives as long as the descriptors that f opens in it; the thread, locked for
// good, dies with the goroutine.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			ns, err := netns.New()
			if err != nil {
				return err
			}
			defer func() { _ = ns.Close() }()
			for _, set := range [][2]string{
				{"ipv4/ip_forward", "1"},
				{"ipv6/conf/all/forwarding", "1"},
				{"ipv6/conf/default/addr_gen_mode", "1"},
			} {
				if err := os.WriteFile("/proc/sys/net/"+set[0], []byte(set[1]), 0); err != nil {
					return err
				}
			}
			return f()
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// closeLater closes fd at the end of the test.
func closeLater(t *testing.T, fd int) {
	t.Cleanup(func() {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
}

func openTUN(t *testing.T, name string, flags uint16, mtu int, addrs ...string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	closeLater(t, fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fd, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fd, err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fd, err
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fd, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fd, err
	}
	for _, a := range addrs {
		ip, n, err := net.ParseCIDR(a)
		if err != nil {
			return fd, err
		}
		n.IP = ip
		// Without duplicate address detection the address is usable at once.
		addr := &netlink.Addr{IPNet: n}
		if ip.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fd, err
		}
	}
	return fd, nil
}

// split returns what the kernel makes of a superpacket, want packets of it.
// Packets that are not to dst, such as the kernel's own, are left out.
func (k *kernelSplitter) split(t rapid.TB, h VNetHdr, frame []byte, dst netip.Addr, want int) [][]byte {
	t.Helper()
	b := make([]byte, VNetHdrLen, VNetHdrLen+len(frame))
	h.Encode(b)
	if _, err := unix.Write(k.in, append(b, frame...)); err != nil {
		t.Fatalf("the kernel refused %+v: %v", h, err)
	}
	var out [][]byte
	for len(out) < want {
		b := readTUN(t, k.out)
		var p Packet
		if p.Parse(b) == nil && p.Dst == dst {
			out = append(out, b)
		}
	}
	return out
}

// readTUN waits for a packet. That none comes is a failure after some seconds.
func readTUN(t rapid.TB, fd int) []byte {
	t.Helper()
	buf := make([]byte, VNetHdrLen+65536)
	deadline := time.Now().Add(5 * time.Second)
	for {
		n, err := unix.Read(fd, buf)
		if err == nil {
			return buf[:n]
		}
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(deadline) {
			t.Fatalf("no packet from the kernel: %v", err)
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
	}
}

// drawRoutable draws a superpacket with headers that a kernel forwards.
func drawRoutable(t *rapid.T) spec {
	s := drawSpec(t, 60000)
	s.ttl = rapid.Uint8Range(2, 255).Draw(t, "hops")
	s.final = netip.Addr{}
	if s.src.Is4() {
		s.src, s.dst = netip.MustParseAddr("10.91.0.2"), netip.MustParseAddr("10.92.0.2")
		s.options = []byte{0x94, 4, 0, 0, 1, 1, 1, 0}[:4*rapid.IntRange(0, 2).Draw(t, "options")]
	} else {
		s.src, s.dst = netip.MustParseAddr("fd91::2"), netip.MustParseAddr("fd92::2")
		s.first, s.options = s.proto, nil
		switch rapid.IntRange(0, 2).Draw(t, "extension") {
		case 1: // options that are padding
			s.first, s.options = protoHopByHop, []byte{s.proto, 0, 1, 4, 0, 0, 0, 0}
		case 2:
			s.first, s.options = protoDestOpts, []byte{s.proto, 1, 1, 4, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0}
		}
	}
	return s
}

func TestSplitAgainstKernel(t *testing.T) {
	k := newKernelSplitter(t)
	rapid.Check(t, func(t *rapid.T) {
		s := drawRoutable(t)
		size := rapid.SampledFrom([]int{100, 536, 1368, 1448, 8000}).Draw(t, "size")
		if len(s.payload) <= size { // the kernel calls that no superpacket
			s.payload = pattern(1, size+len(s.payload)+1)
		}
		// 128 datagrams are the kernel's limit, 500 packets the device queue's.
		s.payload = s.payload[:min(len(s.payload), 128*size)]
		if s.proto == protoUDP {
			binary.BigEndian.PutUint16(s.transport[4:], uint16(8+len(s.payload)))
		}
		h := s.vnet(size)
		h.HdrLen = uint16(s.headerLen() + len(s.transport))

		routed := s
		routed.ttl--
		ours, err := split(t, routed.build(true), h)
		if err != nil {
			t.Fatal(err)
		}
		kernels := k.split(t, h, s.build(true), s.dst, len(ours))
		for i := range ours {
			if !bytes.Equal(ours[i], kernels[i]) {
				t.Fatalf("segment %d of %d differs\n ours   %.120x\n kernel %.120x", i, len(ours), ours[i], kernels[i])
			}
		}
	})
}

func TestCompleteAgainstKernel(t *testing.T) {
	k := newKernelSplitter(t)
	rapid.Check(t, func(t *rapid.T) {
		s := drawRoutable(t)
		if len(s.payload) > 8000 {
			s.payload = s.payload[:8000]
		}
		if s.proto == protoUDP {
			binary.BigEndian.PutUint16(s.transport[4:], uint16(8+len(s.payload)))
		}
		h := s.vnet(0)
		h.GSOType = VNetGSONone
		routed := s
		routed.ttl--
		ours, err := split(t, routed.build(true), h)
		if err != nil {
			t.Fatal(err)
		}
		kernels := k.split(t, h, s.build(true), s.dst, 1)
		checkSegments(t, ours, kernels)
	})
}
