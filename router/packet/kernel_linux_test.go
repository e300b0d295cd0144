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
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// The kernel as the judge of Splitter: superpackets are written to a TUN
// device with offloads, routed to a device without, and so cut by the kernel.

// kernelSplitter is a network namespace with the two devices.
type kernelSplitter struct {
	in, out int // descriptors; what is read from out came whole out of the device without offloads
}

// againstKernel runs f with a TUN device and with a veth pair as the device without offloads.
func againstKernel(t *testing.T, f func(t *testing.T, k *kernelSplitter)) {
	t.Run("TUN", func(t *testing.T) { f(t, newKernelSplitter(t)) })
	t.Run("veth", func(t *testing.T) { f(t, newVethSplitter(t)) })
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

// newVethSplitter has a veth pair at the way out. What comes out of it is read at its other end, by a packet socket alone: it is sent to a
// link address that nobody has, so the kernel itself takes none of it.
func newVethSplitter(t *testing.T) *kernelSplitter {
	t.Helper()
	k := new(kernelSplitter)
	inNamespace(t, func() (err error) {
		if k.in, err = openTUN(t, "in", unix.IFF_VNET_HDR, 9000, kernelIn4, kernelIn6); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out", MTU: 9000}, PeerName: "far", PeerMTU: 9000}); err != nil {
			return err
		}
		out, err := netlink.LinkByName("out")
		if err != nil {
			return err
		}
		far, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(far); err != nil {
			return err
		}
		if err := raise(out, 9000, kernelOut4, kernelOut6); err != nil {
			return err
		}
		// Without checksums by the device there is no segmentation by it either.
		if err := withoutChecksums("out"); err != nil {
			return err
		}
		for _, ip := range []string{"10.92.0.2", "fd92::2"} {
			if err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: out.Attrs().Index, IP: net.ParseIP(ip), State: unix.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x99},
			}); err != nil {
				return err
			}
		}
		if k.out, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		closeLater(t, k.out)
		if err := unix.SetsockoptInt(k.out, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in the order of the network
		return unix.Bind(k.out, &unix.SockaddrLinklayer{Protocol: all, Ifindex: far.Attrs().Index})
	})
	return k
}

// withoutChecksums switches off that a device computes checksums (ETHTOOL_STXCSUM of linux/ethtool.h).
func withoutChecksums(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	value := struct{ command, data uint32 }{0x17, 0}
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], device)
	ifreq.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		return errno
	}
	return nil
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
	return fd, raise(link, mtu, addrs...)
}

// raise gives a device its MTU and addresses, usable at once, and brings it up.
func raise(link netlink.Link, mtu int, addrs ...string) error {
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range addrs {
		ip, n, err := net.ParseCIDR(a)
		if err != nil {
			return err
		}
		n.IP = ip
		// Without duplicate address detection the address is usable at once.
		addr := &netlink.Addr{IPNet: n}
		if ip.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return nil
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

func TestSplitAgainstKernel(t *testing.T) { againstKernel(t, testSplitAgainstKernel) }

func testSplitAgainstKernel(t *testing.T, k *kernelSplitter) {
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

func TestCompleteAgainstKernel(t *testing.T) { againstKernel(t, testCompleteAgainstKernel) }

func testCompleteAgainstKernel(t *testing.T, k *kernelSplitter) {
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
		complete := func() [][]byte {
			t.Helper()
			ours, err := split(t, routed.build(true), h)
			if err != nil {
				t.Fatal(err)
			}
			return ours
		}
		ours, field := complete(), int(h.CsumStart+h.CsumOffset)
		if len(s.payload) >= 2 && rapid.IntRange(0, 9).Draw(t, "zero") == 0 {
			// The checksum itself, added to what it is of, makes it zero.
			sum := uint32(binary.BigEndian.Uint16(s.payload)) + uint32(binary.BigEndian.Uint16(ours[0][field:]))
			binary.BigEndian.PutUint16(s.payload, uint16(sum+sum>>16))
			ours = complete()
		}
		kernels := k.split(t, h, s.build(true), s.dst, 1)
		if s.proto == protoTCP && len(kernels) == 1 && len(kernels[0]) > field+2 && binary.BigEndian.Uint16(kernels[0][field:]) == 0xffff {
			// For a single packet of TCP, too, the kernel writes zero's other form, which only UDP needs.
			binary.BigEndian.PutUint16(kernels[0][field:], 0)
		}
		checkSegments(t, ours, kernels)
	})
}
