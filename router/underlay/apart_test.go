// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

const apartByte = 16

func listenApart(t *testing.T, n int) (data []*Conn, apart *Conn) {
	t.Helper()
	data, apart, err := ListenApart(0, n, apartByte, Options{NotApart: func(err error) { t.Error(err) }})
	if err != nil || apart == nil || len(data) != n {
		t.Fatalf("%d sockets, %v, %v", len(data), apart, err)
	}
	t.Cleanup(func() {
		for _, c := range append(data, apart) {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return data, apart
}

// sender returns a socket of the kernel's own, and the address of port in its family.
func sender(t *testing.T, family int, port uint16) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	host := []netip.Addr{loop4, loop6}[family]
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, netip.AddrPortFrom(host, port)
}

// received takes what has arrived at a socket.
func received(t *testing.T, c *Conn) []Message { return receivedBy(t, c.Recv) }

func receivedBy(t *testing.T, recv func([]Message) (int, error)) (all []Message) {
	t.Helper()
	for {
		ms := messages(64, 2000)
		n, err := recv(ms)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all
		}
		all = append(all, ms[:n]...)
	}
}

// What is apart comes to its socket, and all of it; the rest is spread over the others, each sender's to the same one. So it stays when
// data sockets are closed.
func TestApart(t *testing.T) {
	for _, n := range []int{1, 2, 3, 8} {
		t.Run(fmt.Sprint(n, " data sockets"), func(t *testing.T) {
			data, apart := listenApart(t, n)
			for _, left := range []int{n, (n + 1) / 2} {
				for _, c := range data[left:] { // the order does not matter
					if err := c.Close(); err != nil {
						t.Fatal(err)
					}
				}
				data = data[:left]
				if err := apart.Spread(left); err != nil {
					t.Fatal(err)
				}
				for family := range 2 {
					const senders, each = 256, 3
					for range senders {
						from, to := sender(t, family, apart.Port())
						for range each {
							for _, b := range [][]byte{{apartByte, 1}, {4, 1, 2}} {
								if _, err := from.WriteToUDPAddrPort(b, to); err != nil {
									t.Fatal(err)
								}
							}
						}
						if _, err := from.WriteToUDPAddrPort(nil, to); err != nil {
							t.Fatal(err)
						}
					}
					special := received(t, apart)
					for _, m := range special {
						if m.N == 0 || m.Buf[0] != apartByte {
							t.Errorf("family %d: %x came apart", family, m.Buf[:m.N])
						}
					}
					if len(special) != senders*each {
						t.Errorf("family %d: %d datagrams came apart", family, len(special))
					}
					total := 0
					for i, c := range data {
						per := map[netip.AddrPort]int{}
						for _, m := range received(t, c) {
							if m.N > 0 && m.Buf[0] != 4 {
								t.Errorf("family %d: %x came to data socket %d", family, m.Buf[:m.N], i)
							}
							per[m.Addr]++
						}
						for from, count := range per {
							if count != each+1 {
								t.Errorf("family %d: %d of %d datagrams from %v came to data socket %d", family, count, each+1, from, i)
							}
						}
						total += len(per)
						if least := senders / left / 4; len(per) < least {
							t.Errorf("family %d: data socket %d of %d has %d of %d senders", family, i, left, len(per), senders)
						}
					}
					if total != senders {
						t.Errorf("family %d: %d senders", family, total)
					}
				}
			}
		})
	}
}

// What the socket apart sends goes first, says so, and may be fragmented.
func TestApartSends(t *testing.T) {
	_, apart := listenApart(t, 2)
	if p, err := unix.GetsockoptInt(apart.FD(), unix.SOL_SOCKET, unix.SO_PRIORITY); err != nil || p < apartPriority-1 {
		t.Errorf("priority %d, %v", p, err)
	}
	there := listen(t, 1)[0]
	for _, host := range []netip.Addr{loop4, loop6} {
		if err := apart.SendTo(make([]byte, 1300), netip.AddrPortFrom(host, there.Port()), 0); err != nil {
			t.Fatal(err)
		}
		await(t, there)
		in := messages(2, 2000)
		if n, err := there.Recv(in); n != 1 || err != nil || in[0].TOS != apartTOS || in[0].Addr.Port() != apart.Port() {
			t.Errorf("%d datagrams, %v: TOS %#x from %v", n, err, in[0].TOS, in[0].Addr)
		}
	}
	if v, err := unix.GetsockoptInt(apart.FD(), unix.SOL_IP, unix.IP_MTU_DISCOVER); err != nil || v != fragmentsV4 {
		t.Errorf("MTU discovery %d, %v", v, err)
	}
	if v, err := unix.GetsockoptInt(apart.FD(), unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER); err != nil || v != fragmentsV6 {
		t.Errorf("MTU discovery %d of IPv6, %v", v, err)
	}
}

func TestRequire(t *testing.T) {
	_, apart := listenApart(t, 1)
	has := func(word uint32) []byte { return binary.BigEndian.AppendUint32([]byte{apartByte, 1, 2, 3}, word) }
	all := [][]byte{has(1), has(0xfffffffe), has(0x01000000), {apartByte}, has(1)[:7], append(has(0xfffffffe), 1, 2, 3)}
	for _, c := range []struct {
		words []uint32
		want  []int // indices in all
	}{
		{[]uint32{1}, []int{0}},
		{[]uint32{2, 1, 0xfffffffe}, []int{0, 1, 5}},
		{nil, nil},
	} {
		if err := apart.Require(4, c.words); err != nil {
			t.Fatal(err)
		}
		for family := range 2 {
			before := apart.Lost()
			from, to := sender(t, family, apart.Port())
			for _, b := range all {
				if _, err := from.WriteToUDPAddrPort(b, to); err != nil {
					t.Fatal(err)
				}
			}
			got := received(t, apart)
			if lost := apart.Lost() - before; len(got) != len(c.want) || int(lost) != len(all)-len(got) {
				t.Fatalf("family %d, %x: %d datagrams came through, %d were lost", family, c.words, len(got), lost)
			}
			for i, m := range got {
				if want := all[c.want[i]]; !bytes.Equal(m.Buf[:m.N], want) {
					t.Errorf("family %d, %x: %x came through, not %x", family, c.words, m.Buf[:m.N], want)
				}
			}
		}
	}
}

func TestApartRefused(t *testing.T) {
	data, apart := listenApart(t, 1)
	if _, _, err := ListenApart(apart.Port(), 1, apartByte, Options{}); !errors.Is(err, ErrPortTaken) {
		t.Errorf("a second time: %v", err)
	}
	if err := apart.Close(); err != nil {
		t.Fatal(err)
	}
	if err := apart.Spread(1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("spreading when it is closed: %v", err)
	}
	if err := apart.Require(0, nil); !errors.Is(err, os.ErrClosed) || apart.Lost() != 0 {
		t.Errorf("requiring when it is closed: %v, %d lost", err, apart.Lost())
	}
	if err := apart.SendTo([]byte{1}, netip.AddrPortFrom(loop4, data[0].Port()), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("sending when it is closed: %v", err)
	}
}

// Where the kernel cannot tell datagrams apart the data sockets get all, and it is told why.
func TestNotApart(t *testing.T) {
	alone, err := Listen(0, 1, Options{}) // and so in no group
	if err != nil {
		t.Fatal(err)
	}
	here := listen(t, 2)
	told := ""
	data, apart, err := setApart(append(alone, here...), apartByte, Options{NotApart: func(err error) { told += err.Error() }})
	if err != nil || apart != nil || len(data) != 1 || data[0] != here[0] {
		t.Fatalf("%v, %v, %v", data, apart, err)
	}
	if want := fmt.Sprintf("telling datagrams on UDP port %d apart (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5): invalid argument", alone[0].Port()); told != want {
		t.Errorf("told %q, not %q", told, want)
	}
	for _, c := range []*Conn{alone[0], here[1]} {
		if err := c.SendTo(nil, netip.AddrPortFrom(loop4, here[0].Port()), 0); !errors.Is(err, os.ErrClosed) {
			t.Errorf("a socket that is not needed: %v", err)
		}
	}
	if fd := data[0].LightFD(); fd != -1 {
		t.Errorf("a queue for light datagrams, %d", fd)
	}
	from, to := sender(t, 0, data[0].Port())
	if _, err := from.WriteToUDPAddrPort([]byte{apartByte}, to); err != nil {
		t.Fatal(err)
	}
	if got := received(t, data[0]); len(got) != 1 {
		t.Errorf("%d datagrams", len(got))
	}
	if n, err := data[0].RecvLight(messages(1, 10)); n != 0 || err != nil {
		t.Errorf("%d light datagrams, %v", n, err)
	}
}

// Light datagrams come to the second queue of the socket that their sender's others come to, and only they, whatever congestion they have met.
func TestLight(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n, " data sockets"), func(t *testing.T) {
			data, apart := listenApart(t, n)
			for _, host := range []netip.Addr{loop4, loop6} {
				for range 16 {
					from, to := listen(t, 1)[0], netip.AddrPortFrom(host, apart.Port())
					for tos := range 256 {
						if err := from.SendTo([]byte{4, byte(tos)}, to, uint8(tos)); err != nil {
							t.Fatal(err)
						}
					}
					if err := from.SendTo([]byte{apartByte}, to, LightTOS); err != nil {
						t.Fatal(err)
					}
					if got := received(t, apart); len(got) != 1 || got[0].Buf[0] != apartByte {
						t.Fatalf("to %v: %d datagrams came apart", to, len(got))
					}
					sockets := 0
					for i, c := range data {
						heavy, light := received(t, c), receivedBy(t, c.RecvLight)
						if len(heavy)+len(light) == 0 {
							continue
						}
						sockets++
						if len(heavy) != 252 || len(light) != 4 {
							t.Errorf("to %v: socket %d has %d datagrams and %d light ones", to, i, len(heavy), len(light))
						}
						for j, m := range light {
							if want := byte(LightTOS + j); m.Buf[1] != want || m.TOS != want || m.Addr.Port() != from.Port() {
								t.Errorf("to %v: light is %x of %v with TOS %#x", to, m.Buf[:m.N], m.Addr, m.TOS)
							}
						}
					}
					if sockets != 1 {
						t.Errorf("to %v: one sender's datagrams came to %d sockets", to, sockets)
					}
				}
			}
			if err := data[0].Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := data[0].RecvLight(messages(1, 10)); !errors.Is(err, os.ErrClosed) {
				t.Errorf("receiving when it is closed: %v", err)
			}
		})
	}
}
