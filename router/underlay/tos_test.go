// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What one side sends with a TOS is on the wire with it, and the other side is told, whatever the socket and the family, for
// single datagrams and for runs.
func TestTOS(t *testing.T) {
	inNamespace(t, func(lo netlink.Link) {
		wire := sniff(t, lo)
		for _, o := range []Options{{}, {NoGSO: true}, {NoGRO: true}} {
			dual := func() *Conn { return listenWith(t, o) }
			only4 := func() *Conn {
				c, err := open(unix.AF_INET, 0, false)
				if err != nil {
					t.Fatal(err)
				}
				c.probe(o)
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			for _, c := range []struct {
				name string
				a, b *Conn
				to   netip.Addr
			}{
				{"v6", dual(), dual(), loop6},
				{"v4 on dual", dual(), dual(), loop4},
				{"v4 only to dual", only4(), dual(), loop4},
				{"dual to v4 only", dual(), only4(), loop4},
			} {
				name := fmt.Sprintf("%s %+v", c.name, o)
				checkTOS(t, name, c.a, c.b, netip.AddrPortFrom(c.to, c.b.Port()))
				got := wire.seen(c.b.Port())
				for tos := range 256 {
					// Of a run there is one packet on this link, or several.
					if n := got[uint8(tos)]; n < 3 {
						t.Errorf("%s: %d packets with TOS %#x on the wire", name, n, tos)
						break
					}
				}
			}
		}
	})
}

// checkTOS sends one datagram by either call and a run with every TOS.
func checkTOS(t *testing.T, name string, a, b *Conn, to netip.AddrPort) {
	t.Helper()
	in := messages(8, 1<<16)
	for tos := range 256 {
		tos := uint8(tos)
		run := bytes.Repeat([]byte("0123456789"), 7)
		ms := []Message{{Buf: []byte("one"), Addr: to, TOS: tos}, {Buf: run, Segment: 20, Addr: to, TOS: tos}}
		if n, err := a.Send(ms); n != len(ms) || err != nil {
			t.Fatalf("%s: %d, %v", name, n, err)
		}
		if err := a.SendTo([]byte("two"), to, tos); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for got := 0; got < len(run)+6; {
			await(t, b)
			n, err := b.Recv(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range in[:n] {
				got += m.N
				if m.TOS != tos {
					t.Errorf("%s: TOS %#x arrived as %#x", name, tos, m.TOS)
					return
				}
			}
		}
	}
}

// Datagrams of one run that were marked on the way come apart by their marks.
func TestMarkEndsRun(t *testing.T) {
	a, b := listenWith(t, Options{}), listenWith(t, Options{})
	for _, host := range []netip.Addr{loop4, loop6} {
		to := netip.AddrPortFrom(host, b.Port())
		var ms []Message
		for i := range 6 {
			ms = append(ms, Message{Buf: bytes.Repeat([]byte{byte(i)}, 60), Segment: 20, Addr: to, TOS: []uint8{2, 2, 3, 3, 0, 2}[i]})
		}
		if n, err := a.Send(ms); n != len(ms) || err != nil {
			t.Fatal(n, err)
		}
		in := messages(32, 1<<16)
		for at := 0; at < 6*60; {
			await(t, b)
			n, err := b.Recv(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range in[:n] {
				for _, c := range m.Buf[:m.N] {
					if want := ms[c].TOS; m.TOS != want {
						t.Fatalf("a datagram with TOS %d came with %d", want, m.TOS)
					}
				}
				at += m.N
			}
		}
	}
}

// sniffer sees what crosses a device.
type sniffer struct {
	t  *testing.T
	fd int
}

func sniff(t *testing.T, link netlink.Link) *sniffer {
	t.Helper()
	all := swapped(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		t.Fatal(err)
	}
	wait := unix.NsecToTimeval(int64(200 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return &sniffer{t, fd}
}

// seen returns how many packets to the UDP port have passed, by TOS, since the last call.
func (s *sniffer) seen(port uint16) map[uint8]int {
	s.t.Helper()
	b := make([]byte, 1<<16)
	all := map[uint8]int{}
	for {
		n, from, err := unix.Recvfrom(s.fd, b, 0)
		if err == unix.EAGAIN {
			return all
		}
		if err != nil {
			s.t.Fatal(err)
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue // the loopback device shows each packet twice
		}
		var tos, proto uint8
		var transport []byte
		switch {
		case n >= 28 && b[0]>>4 == 4:
			tos, proto, transport = b[1], b[9], b[int(b[0]&15)*4:n]
		case n >= 48 && b[0]>>4 == 6:
			tos, proto, transport = b[0]<<4|b[1]>>4, b[6], b[40:n]
		}
		if proto == unix.IPPROTO_UDP && binary.BigEndian.Uint16(transport[2:]) == port {
			all[tos]++
		}
	}
}
