// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Pieces of frames.
var (
	crossingMACs = []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	asV4         = []byte{0x08, 0x00}
	asV6         = []byte{0x86, 0xdd}
	asARP        = []byte{0x08, 0x06}
	vxlanBits    = []byte{0x08, 0, 0, 0, 0, 0x1a, 0x7f, 0}
)

func ip4(proto byte, from, to string) []byte {
	b := []byte{0: 0x45, 8: 64, 9: proto, 19: 0}
	copy(b[12:], netip.MustParseAddr(from).AsSlice())
	copy(b[16:], netip.MustParseAddr(to).AsSlice())
	return b
}

func ip6(proto byte, from, to string) []byte {
	b := []byte{0: 0x60, 6: proto, 39: 0}
	copy(b[8:], netip.MustParseAddr(from).AsSlice())
	copy(b[24:], netip.MustParseAddr(to).AsSlice())
	return b
}

func ports(from, to uint16) []byte {
	return []byte{byte(from >> 8), byte(from), byte(to >> 8), byte(to), 0, 0, 0, 0}
}

func TestCrossings(t *testing.T) {
	const a, b, x, y, x6, y6, a6, b6 = "192.168.1.11", "192.168.1.12", "10.32.0.1", "10.40.0.1", "fd77::1", "fd77::2", "2001:db8::1", "2001:db8::2"
	overlay := Overlay("10.32.0.0/12,fd77::/64")
	arp := func(from, to string) []byte {
		return slices.Concat(make([]byte, 14), netip.MustParseAddr(from).AsSlice(), make([]byte, 6), netip.MustParseAddr(to).AsSlice())
	}
	tunnel := func(inner ...[]byte) []byte {
		return slices.Concat(append([][]byte{ports(50000, 6784), vxlanBits, crossingMACs}, inner...)...)
	}
	quote := func(kind byte) []byte { return []byte{kind, 0, 0, 0, 0, 0, 0, 0} }
	for _, tt := range []struct {
		name  string
		parts [][]byte
		want  Openness
		inner [2]string
	}{
		{"a TCP segment of others", [][]byte{asV4, ip4(unix.IPPROTO_TCP, a, b), ports(1000, 80)}, Elsewhere, [2]string{}},
		{"a datagram of the mesh", [][]byte{asV4, ip4(unix.IPPROTO_UDP, a, b), ports(6783, 6783)}, Sealed, [2]string{}},
		{"a datagram of the mesh behind NAT", [][]byte{asV6, ip6(unix.IPPROTO_UDP, a6, b6), ports(6783, 1025)}, Sealed, [2]string{}},
		{"a stream of the mesh", [][]byte{asV4, ip4(unix.IPPROTO_TCP, a, b), ports(40000, 6783)}, Sealed, [2]string{}},
		{"v4 in VXLAN over v4", [][]byte{asV4, ip4(unix.IPPROTO_UDP, a, b), tunnel(asV4, ip4(unix.IPPROTO_TCP, x, y))}, Tunnelled, [2]string{x, y}},
		{"v6 in VXLAN over v4", [][]byte{asV4, ip4(unix.IPPROTO_UDP, a, b), tunnel(asV6, ip6(unix.IPPROTO_TCP, x6, y6))}, Tunnelled, [2]string{x6, y6}},
		{"v4 in VXLAN over v6", [][]byte{asV6, ip6(unix.IPPROTO_UDP, a6, b6), tunnel(asV4, ip4(unix.IPPROTO_TCP, x, y))}, Tunnelled, [2]string{x, y}},
		{"a first fragment of VXLAN over v6", [][]byte{asV6, ip6(unix.IPPROTO_FRAGMENT, a6, b6), {unix.IPPROTO_UDP, 0, 0, 1, 0, 0, 0, 1}, tunnel(asV4, ip4(unix.IPPROTO_TCP, x, y))}, Tunnelled, [2]string{x, y}},
		{"bare v4", [][]byte{asV4, ip4(unix.IPPROTO_TCP, x, y), ports(1, 2)}, Bare, [2]string{x, y}},
		{"bare v4 to the outside", [][]byte{asV4, ip4(unix.IPPROTO_UDP, x, b), ports(6783, 6783)}, Bare, [2]string{x, b}},
		{"bare v6", [][]byte{asV6, ip6(unix.IPPROTO_UDP, x6, y6), ports(1, 2)}, Bare, [2]string{x6, y6}},
		{"ARP for a host", [][]byte{asARP, arp(a, b)}, Elsewhere, [2]string{}},
		{"ARP for an address of the overlay", [][]byte{asARP, arp(a, y)}, Bare, [2]string{a, y}},
		{"ARP under an address of the overlay", [][]byte{asARP, arp(x, b)}, Bare, [2]string{x, b}},
		{"a solicitation for a host", [][]byte{asV6, ip6(unix.IPPROTO_ICMPV6, a6, b6), quote(135), netip.MustParseAddr(b6).AsSlice()}, Elsewhere, [2]string{}},
		{"a solicitation for an address of the overlay", [][]byte{asV6, ip6(unix.IPPROTO_ICMPV6, a6, b6), quote(135), netip.MustParseAddr(y6).AsSlice()}, Bare, [2]string{a6, y6}},
		{"an error that quotes the overlay", [][]byte{asV4, ip4(unix.IPPROTO_ICMP, b, a), quote(3), ip4(unix.IPPROTO_UDP, x, y)}, Bare, [2]string{x, y}},
		{"an error that quotes VXLAN", [][]byte{asV6, ip6(unix.IPPROTO_ICMPV6, b6, a6), quote(2), ip6(unix.IPPROTO_UDP, a6, b6), tunnel(asV4, ip4(unix.IPPROTO_TCP, x, y))}, Tunnelled, [2]string{x, y}},
		{"an error that quotes a sealed datagram", [][]byte{asV4, ip4(unix.IPPROTO_ICMP, b, a), quote(3), ip4(unix.IPPROTO_UDP, a, b), ports(6783, 6783)}, Elsewhere, [2]string{}},
	} {
		frame := slices.Concat(append([][]byte{crossingMACs}, tt.parts...)...)
		now := time.Unix(1, 0)
		c := &Capture{frames: []Frame{{At: now, Data: frame}}}
		all := c.Crossings(time.Time{}, time.Time{}, overlay, 6783)
		var inner [2]string
		for i, a := range all[0].Inner {
			if a.IsValid() {
				inner[i] = a.String()
			}
		}
		if all[0].Openness != tt.want || inner != tt.inner {
			t.Errorf("%s: %v %v, want %v %v", tt.name, all[0].Openness, inner, tt.want, tt.inner)
		}
		for _, span := range []struct {
			from, until time.Time
			want        int
		}{{now, now.Add(1), 1}, {now, now, 0}, {now.Add(1), time.Time{}, 0}} {
			if n := len(c.Crossings(span.from, span.until, overlay, 6783)); n != span.want {
				t.Errorf("%s: %d frames from %v to %v", tt.name, n, span.from, span.until)
			}
		}
		for n := range frame { // whatever is cut off
			(&Capture{frames: []Frame{{Data: frame[:n]}}}).Crossings(time.Time{}, time.Time{}, overlay, 6783)
		}
	}
}

// What goes to the addresses of a prefix is dropped in one direction, and nothing else.
func TestBlockTo(t *testing.T) {
	t.Parallel()
	l := New(t)
	lan := l.Switch("lan")
	a, b := l.Host("a", lan), l.Host("b", lan)
	for _, f := range families {
		of := func(l *Link, v6 bool) netip.Addr { return at(l, v6, 0).Addr() }
		near, far := socket(t, a.Namespace, 0), socket(t, b.Namespace, 0)
		port := func(c *net.UDPConn) uint16 { return netip.MustParseAddrPort(c.LocalAddr().String()).Port() }
		crosses := func(from, to *net.UDPConn, dst *Link, v6 bool) bool {
			t.Helper()
			if _, err := from.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(of(dst, v6), port(to))); err != nil {
				t.Fatal(err)
			}
			_, ok := hears(to, never)
			return ok
		}
		p := netip.PrefixFrom(of(b.Link(), f.v6), of(b.Link(), f.v6).BitLen()-3)
		lan.BlockTo(a.Link(), b.Link(), p)
		if crosses(near, far, b.Link(), f.v6) || !crosses(near, far, b.Link(), !f.v6) || !crosses(far, near, a.Link(), f.v6) {
			t.Errorf("%s: not that alone is dropped", f.name)
		}
		lan.Heal()
		lan.BlockTo(a.Link(), b.Link(), netip.PrefixFrom(netip.MustParseAddr("2001:db8:ffff::"), 48))
		if !crosses(near, far, b.Link(), f.v6) {
			t.Errorf("%s: another prefix is dropped", f.name)
		}
		lan.Heal()
	}
}
