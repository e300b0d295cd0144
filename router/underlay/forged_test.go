// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tooBig is an ICMP error, as anybody can forge it, that a UDP datagram from one of our sockets was too large for a path of mtu bytes.
func tooBig(from, to netip.AddrPort, mtu int) []byte {
	ip := make([]byte, 28)
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], 1500)
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[20:], from.Port())
	binary.BigEndian.PutUint16(ip[22:], to.Port())
	b := append([]byte{3, 4, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, ip...)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	return b
}

// What others say of the path by ICMP does not make us fragment, send less, or send one by one.
func TestForgedICMP(t *testing.T) {
	inNamespace(t, func(lo netlink.Link) {
		if err := netlink.LinkSetMTU(lo, 1500); err != nil {
			t.Error(err)
			return
		}
		a, b := listenWith(t, Options{}), listenWith(t, Options{})
		at, to := netip.AddrPortFrom(loop4, a.Port()), netip.AddrPortFrom(loop4, b.Port())
		raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = unix.Close(raw) }()
		if err := unix.Sendto(raw, tooBig(at, to, 700), 0, &unix.SockaddrInet4{Addr: loop4.As4()}); err != nil {
			t.Error(err)
			return
		}
		// A socket that believes in ICMP does believe this.
		naive, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = unix.Close(naive) }()
		if err := unix.SetsockoptInt(naive, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO); err != nil {
			t.Error(err)
		}
		if err := unix.Sendto(naive, make([]byte, 1400), 0, &unix.SockaddrInet4{Port: int(b.Port()), Addr: loop4.As4()}); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("the forgery has no effect: %v", err)
		}
		if n, err := a.Send([]Message{{Buf: make([]byte, 14000), Segment: 1400, Addr: to}}); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if got, most := collect(t, b, 10); len(got) != 10 || most != 10 {
			t.Errorf("%d datagrams, at most %d together", len(got), most)
		}
		if err := a.SendWhole(make([]byte, 1400), to); err != nil {
			t.Error(err)
		}
	})
}
