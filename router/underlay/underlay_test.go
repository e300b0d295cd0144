// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	loop4 = netip.MustParseAddr("127.0.0.1")
	loop6 = netip.MustParseAddr("::1")
)

func listen(t *testing.T, n int) []*Conn {
	t.Helper()
	conns, err := Listen(0, n, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range conns {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return conns
}

// await waits until a descriptor is readable.
func await(t *testing.T, c *Conn) {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.FD()), Events: unix.POLLIN}}, 5000); n != 1 {
		t.Fatalf("nothing arrived: %v", err)
	}
}

func messages(n, size int) []Message {
	ms := make([]Message, n)
	for i := range ms {
		ms[i].Buf = make([]byte, size)
	}
	return ms
}

func TestBothFamilies(t *testing.T) {
	a, b := listen(t, 1)[0], listen(t, 1)[0]
	if !a.IPv6() {
		t.Fatal("this kernel has no IPv6")
	}
	for _, to := range []netip.Addr{loop4, loop6, netip.MustParseAddr("::ffff:127.0.0.1")} {
		const n = 300 // more than a batch
		out := make([]Message, n)
		for i := range out {
			out[i] = Message{Buf: []byte(fmt.Sprint("datagram ", i)), Addr: netip.AddrPortFrom(to, b.Port())}
		}
		if sent, err := a.Send(out); sent != n || err != nil {
			t.Fatalf("to %v: %d sent, %v", to, sent, err)
		}
		in := messages(64, 100)
		for got := 0; got < n; {
			await(t, b)
			k, err := b.Recv(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range in[:k] {
				if want := out[got].Buf; !bytes.Equal(m.Buf[:m.N], want) || m.Addr != netip.AddrPortFrom(to.Unmap(), a.Port()) {
					t.Errorf("got %q from %v, want %q", m.Buf[:m.N], m.Addr, want)
				}
				got++
			}
		}
		if k, err := b.Recv(in); k != 0 || err != nil {
			t.Errorf("an empty socket gives %d, %v", k, err)
		}
		if err := b.SendTo([]byte("reply"), netip.AddrPortFrom(to, a.Port()), 0); err != nil {
			t.Error(err)
		}
		await(t, a)
		if k, err := a.Recv(in); k != 1 || err != nil || string(in[0].Buf[:in[0].N]) != "reply" {
			t.Errorf("reply: %d, %v, %q", k, err, in[0].Buf[:in[0].N])
		}
	}
}

func TestSizes(t *testing.T) {
	a, b := listen(t, 1)[0], listen(t, 1)[0]
	to := netip.AddrPortFrom(loop4, b.Port())
	for _, size := range []int{0, 1, 1400, 9000, 60000} {
		if err := a.SendTo(make([]byte, size), to, 0); err != nil {
			t.Fatal(err)
		}
		await(t, b)
		in := messages(2, 9000)
		if n, err := b.Recv(in); n != 1 || err != nil || in[0].N != size {
			t.Errorf("%d bytes: %d datagrams, %d bytes, %v", size, n, in[0].N, err)
		}
	}
}

func TestSendErrors(t *testing.T) {
	a, b := listen(t, 1)[0], listen(t, 1)[0]
	good := Message{Buf: []byte("good"), Addr: netip.AddrPortFrom(loop4, b.Port())}
	for name, bad := range map[string]Message{
		"no address":          {Buf: []byte("x")},
		"larger than allowed": {Buf: make([]byte, 70000), Addr: good.Addr},
		"no such zone":        {Buf: []byte("x"), Addr: netip.MustParseAddrPort("[fe80::1%nosuchlink]:1")},
	} {
		ms := []Message{good, bad, good}
		var errs []error
		sent := 0
		for at := 0; at < len(ms); {
			n, err := a.Send(ms[at:])
			at, sent = at+n, sent+n
			if err != nil {
				errs = append(errs, err)
				if at != 1 {
					t.Errorf("%s: the error came for message %d", name, at)
				}
				at++
			}
		}
		if sent != 2 || len(errs) != 1 || errors.Is(errs[0], os.ErrClosed) {
			t.Errorf("%s: %d sent, errors %v", name, sent, errs)
		}
		if err := a.SendTo(bad.Buf, bad.Addr, 0); err == nil {
			t.Errorf("%s: SendTo has no error", name)
		}
	}
}

func TestIPv4Only(t *testing.T) {
	c, err := open(unix.AF_INET, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	if c.IPv6() || c.Port() == 0 {
		t.Errorf("IPv6 %v, port %d", c.IPv6(), c.Port())
	}
	for _, to := range []netip.Addr{loop4, netip.MustParseAddr("::ffff:127.0.0.1")} {
		if n, err := c.Send([]Message{{Buf: []byte("self"), Addr: netip.AddrPortFrom(to, c.Port())}}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		await(t, c)
		in := messages(1, 10)
		if n, err := c.Recv(in); n != 1 || err != nil || in[0].Addr != netip.AddrPortFrom(loop4, c.Port()) {
			t.Errorf("%d, %v, from %v", n, err, in[0].Addr)
		}
	}
	if err := c.SendTo([]byte("x"), netip.AddrPortFrom(loop6, 1), 0); !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("sending to IPv6: %v", err)
	}
}

func TestManySockets(t *testing.T) {
	conns := listen(t, 3)
	for _, c := range conns {
		if c.Port() != conns[0].Port() {
			t.Errorf("ports %d and %d", c.Port(), conns[0].Port())
		}
	}
	// Different senders reach different sockets, and nothing is lost between them.
	const senders = 64
	for range senders {
		s := listen(t, 1)[0]
		if err := s.SendTo([]byte("x"), netip.AddrPortFrom(loop4, conns[0].Port()), 0); err != nil {
			t.Fatal(err)
		}
	}
	in := messages(senders, 10)
	total, used := 0, 0
	for _, c := range conns {
		n, err := c.Recv(in)
		if err != nil {
			t.Fatal(err)
		}
		total += n
		if n > 0 {
			used++
		}
	}
	if total != senders || used < 2 {
		t.Errorf("%d datagrams of %d, over %d sockets", total, senders, used)
	}
}

func TestPortTaken(t *testing.T) {
	for _, n := range []int{1, 2} {
		held := listen(t, n)
		port := held[0].Port()
		for _, again := range []int{1, 2} {
			_, err := Listen(port, again, Options{})
			want := fmt.Sprintf("UDP port %d is taken by another process; stop it or choose --port", port)
			var e *Error
			if !errors.Is(err, ErrPortTaken) || !errors.Is(err, unix.EADDRINUSE) || !errors.As(err, &e) || err.Error() != want {
				t.Errorf("error %v, want %s", err, want)
			}
		}
	}
	// Also by somebody who has it on one address only.
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := Listen(netip.MustParseAddrPort(other.LocalAddr().String()).Port(), 2, Options{}); !errors.Is(err, ErrPortTaken) {
		t.Errorf("error %v", err)
	}
}

func TestErrorText(t *testing.T) {
	for err, want := range map[error]string{
		unix.EACCES: "UDP port 53 may be used by root only (CAP_NET_BIND_SERVICE): run as root or choose --port above 1023",
		unix.ENOMEM: "listening on UDP port 53: cannot allocate memory",
	} {
		if got := listenError(53, err); got.Error() != want || !errors.Is(got, err) {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

func TestClose(t *testing.T) {
	conns, err := Listen(0, 1, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := conns[0]
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	to := netip.AddrPortFrom(loop4, 9)
	_, recv := c.Recv(messages(1, 10))
	_, send := c.Send([]Message{{Buf: []byte("x"), Addr: to}})
	for _, err := range []error{recv, send, c.SendTo(nil, to, 0), c.SendTo(make([]byte, 2000), to, 0), c.SendWhole(nil, to)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	c := listen(t, 1)[0]
	for _, to := range []netip.Addr{loop4, loop6} {
		out := make([]Message, 10)
		for i := range out {
			out[i] = Message{Buf: make([]byte, 100), Addr: netip.AddrPortFrom(to, c.Port()), TOS: uint8(i), Fragment: i%4 < 2}
		}
		in := messages(20, 2000)
		large := make([]byte, 2000)
		if n := testing.AllocsPerRun(20, func() {
			if n, err := c.Send(out); n != len(out) || err != nil {
				t.Fatal(n, err)
			}
			if err := c.SendTo(out[0].Buf, out[0].Addr, 0x88); err != nil {
				t.Fatal(err)
			}
			if err := c.SendTo(large, out[0].Addr, 0); err != nil {
				t.Fatal(err)
			}
			if err := c.SendWhole(large, out[0].Addr); err != nil {
				t.Fatal(err)
			}
			for range 3 { // the last finds nothing
				if _, err := c.Recv(in); err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations", to, n)
		}
	}
}

func TestZones(t *testing.T) {
	var z zones
	var name unix.RawSockaddrInet6
	for _, c := range [][2]string{
		{"[fe80::1%7]:99", "[fe80::1%7]:99"},
		{"[fe80::1%lo]:99", "[fe80::1%1]:99"},
		{"[2001:db8::1]:65535", "[2001:db8::1]:65535"},
		{"192.0.2.1:6783", "192.0.2.1:6783"},
		{"[::ffff:192.0.2.1]:6783", "192.0.2.1:6783"},
	} {
		if _, errno := encode(&name, unix.AF_INET6, netip.MustParseAddrPort(c[0])); errno != 0 {
			t.Errorf("%s: %v", c[0], errno)
			continue
		}
		if got := z.decode(&name); got.String() != c[1] {
			t.Errorf("%s comes back as %v, want %s", c[0], got, c[1])
		}
	}
	if _, errno := encode(&name, unix.AF_INET6, netip.MustParseAddrPort("[fe80::1%7]:1")); errno != 0 {
		t.Fatal(errno)
	}
	if n := testing.AllocsPerRun(100, func() { z.decode(&name) }); n != 0 {
		t.Errorf("link-local addresses cost %v allocations", n)
	}
}
