// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/tun"
)

// A narrower way to one peer is told to the kernel, which tells the sender.
func TestPathMTUOverKernel(t *testing.T) {
	inEachSetup(t, func(t *testing.T, s setup, a, b *node) {
		a.setPeer(2, s, 1300)
		for family := range 2 {
			level, option, value, headers := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, 28
			if family == 1 {
				level, option, value, headers = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, 48
			}
			there := b.listenUDP(netip.AddrPortFrom(addrs(2)[family], 5000))
			var here *net.UDPConn
			a.ns.Do(func() {
				d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
					return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) }), err)
				}}
				c, err := d.Dial("udp", there.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				here = c.(*net.UDPConn)
			})
			defer closeIt(t, here)
			if _, err := here.Write(make([]byte, 1301-headers)); err != nil {
				t.Fatal(err)
			}
			// The answer arrives as an error of the socket.
			for start := time.Now(); ; {
				if _, err := here.Write(make([]byte, 1301-headers)); errors.Is(err, unix.EMSGSIZE) {
					break
				}
				if time.Since(start) > 10*time.Second {
					t.Fatalf("nobody told that 1301 bytes are too many: %v", a.Stats())
				}
				time.Sleep(10 * time.Millisecond)
			}
			want := make([]byte, 1300-headers)
			_, err := here.Write(want)
			for start := time.Now(); errors.Is(err, unix.EMSGSIZE) && time.Since(start) < 10*time.Second; {
				_, err = here.Write(want) // the errors of earlier packets come first
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := there.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			in := make([]byte, 2000)
			if n, _, err := there.ReadFrom(in); n != len(want) || err != nil {
				t.Errorf("got %d bytes, %v", n, err)
			}
			// And streams pass without it, by a smaller segment size in both directions.
			transfer(t, a, b, family, 1<<20)
			transfer(t, b, a, family, 1<<20)
		}
	})
}

// Whoever connects to an address that nobody has is told at once.
func TestUnreachableOverKernel(t *testing.T) {
	inEachSetup(t, func(t *testing.T, _ setup, a, _ *node) {
		for _, to := range []netip.Addr{addr4(9, 9), addr6(9, 9)} {
			var err error
			a.ns.Do(func() {
				var c net.Conn
				if c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 80).String(), 20*time.Second); err == nil {
					closeIt(t, c)
				}
			})
			if !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("connecting to %v: %v", to, err)
			}
		}
	})
}

// TestPingOverKernel is a ping(8), by raw sockets.
func TestPingOverKernel(t *testing.T) {
	inEachSetup(t, func(t *testing.T, _ setup, a, _ *node) {
		for family, network := range []string{"ip4:icmp", "ip6:ipv6-icmp"} {
			request, reply := byte(8), byte(0)
			if family == 1 {
				request, reply = 128, 129
			}
			var c *net.IPConn
			a.ns.Do(func() {
				var err error
				if c, err = net.DialIP(network, nil, &net.IPAddr{IP: addrs(2)[family].AsSlice()}); err != nil {
					t.Fatal(err)
				}
			})
			defer closeIt(t, c)
			echo := append([]byte{request, 0, 0, 0, 0x77, 0x66, 0, 1}, strings.Repeat("ping", 14)...)
			if family == 0 {
				binary.BigEndian.PutUint16(echo[2:], ^checksum(0, echo)) // for ICMPv6 the kernel does it
			}
			if _, err := c.Write(echo); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for in := make([]byte, 200); ; {
				n, _, err := c.ReadFromIP(in)
				if err != nil {
					t.Fatal(err)
				}
				if n > 0 && in[0] == reply {
					if !bytes.Equal(in[4:n], echo[4:]) {
						t.Errorf("%x came back for %x", in[:n], echo)
					}
					break
				}
			}
		}
	})
}

func TestDeviceDeletedOverKernel(t *testing.T) {
	inEachSetup(t, func(t *testing.T, s setup, a, _ *node) {
		a.ns.Do(func() {
			if err := tun.Delete("weft0"); err != nil {
				t.Fatal(err)
			}
		})
		err := <-a.ended
		var said []string // by whichever shard is first, and by no other
		for i := range s.shards {
			said = append(said, fmt.Sprintf("router shard %d: weft0 was deleted while in use: start again to make a new one", i))
		}
		if !errors.Is(err, os.ErrClosed) || !slices.Contains(said, err.Error()) {
			t.Errorf("Run ended with %v", err)
		}
		a.cancel()
		a.ended = nil
		a.close()
	})
}

func TestSocketClosedOverKernel(t *testing.T) {
	a, _ := nodes(t, setups[1])
	closeIt(t, a.conns[1])
	err := <-a.ended
	if !errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "router shard 1: receiving on UDP port 6783: ") {
		t.Errorf("Run ended with %v", err)
	}
	a.cancel()
	a.ended = nil
	a.close()
}

// A device that is down loses packets and nothing else.
func TestDeviceDownOverKernel(t *testing.T) {
	a, b := nodes(t, setups[0])
	here := a.listenUDP(netip.AddrPortFrom(addr4(1, 1), 5000))
	there := b.listenUDP(netip.AddrPortFrom(addr4(2, 1), 5000))
	exchange(t, here, there, []byte("up"))
	setLink := func(set func(netlink.Link) error) {
		b.ns.Do(func() {
			link, err := netlink.LinkByName("weft0")
			if err == nil {
				err = set(link)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	setLink(netlink.LinkSetDown)
	for start := time.Now(); b.Stats().Drops[router.DropWrite] == 0; {
		if _, err := here.WriteTo([]byte("down"), there.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("no write failed: %v", b.Stats())
		}
		time.Sleep(time.Millisecond)
	}
	setLink(netlink.LinkSetUp)
	exchange(t, here, there, []byte("up again"))
}
