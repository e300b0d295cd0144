// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

var (
	gateway4 = netip.MustParseAddr("10.32.0.9")
	gateway6 = netip.MustParseAddr("fd00::9")
)

// udpPacket returns a datagram of n bytes of payload.
func udpPacket(v6 bool, n int) []byte {
	s := spec{
		src: netip.MustParseAddr("10.32.0.1"), dst: netip.MustParseAddr("10.32.0.2"), ttl: 64, fragment: 0x4000,
		proto: protoUDP, transport: make([]byte, 8), payload: pattern(9, n),
	}
	if v6 {
		s.src, s.dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	}
	binary.BigEndian.PutUint16(s.transport[4:], uint16(8+n))
	return s.build(false)
}

// checkError checks everything about an ICMP error but type, code and word.
func checkError(t rapid.TB, got, orig []byte, from netip.Addr) {
	t.Helper()
	verify(t, got, netip.Addr{})
	var p, o Packet
	if err := p.Parse(got); err != nil {
		t.Fatal(err)
	}
	if err := o.Parse(orig); err != nil {
		t.Fatal(err)
	}
	if p.Src != from || p.Dst != o.Src || !p.DF || p.Fragment || p.TOS != 0xc0 {
		t.Fatalf("%+v", p)
	}
	ttl, most := got[8], 576
	if from.Is6() {
		ttl, most = got[7], 1280
	}
	quote := got[p.HeaderLen+8:]
	if ttl != 64 || len(quote) != min(o.Len, most-p.HeaderLen-8) || !bytes.Equal(quote, orig[:len(quote)]) {
		t.Fatalf("ttl %d, quotes %d of %d bytes", ttl, len(quote), o.Len)
	}
}

func TestICMPErrors(t *testing.T) {
	tooBig := func(mtu int) func(dst, orig []byte, from netip.Addr) int {
		return func(dst, orig []byte, from netip.Addr) int { return TooBig(dst, orig, from, mtu) }
	}
	tests := []struct {
		name string
		f    func(dst, orig []byte, from netip.Addr) int
		orig []byte
		from netip.Addr
		want string // type, code, zero for the checksum, second word
	}{
		{"too big", tooBig(1400), udpPacket(false, 2000), gateway4, "0304 0000 0000 0578"},
		{"too big, small", tooBig(20), udpPacket(false, 0), gateway4, "0304 0000 0000 0014"},
		{"too big, padded", tooBig(1400), append(udpPacket(false, 10), 0, 0, 0), gateway4, "0304 0000 0000 0578"},
		{"too big, huge mtu", tooBig(1 << 20), udpPacket(false, 2000), gateway4, "0304 0000 0000 ffff"},
		{"too big6", tooBig(1400), udpPacket(true, 2000), gateway6, "0200 0000 0000 0578"},
		{"too big6, huge mtu", tooBig(1 << 20), udpPacket(true, 10), gateway6, "0200 0000 0010 0000"},
		{"unreachable", Unreachable, unhex(t, syn4), gateway4, "0301 0000 0000 0000"},
		{"unreachable6", Unreachable, unhex(t, syn6), gateway6, "0103 0000 0000 0000"},
		{"about an echo", Unreachable, unhex(t, echo4), gateway4, "0301 0000 0000 0000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dst := bytes.Repeat([]byte{0xa5}, ICMPLen+16)
			n := tt.f(dst, tt.orig, tt.from)
			if n == 0 {
				t.Fatal("no error written")
			}
			checkError(t, dst[:n], tt.orig, tt.from)
			header := dst[20:28]
			if tt.from.Is6() {
				header = dst[40:48]
			}
			header = bytes.Clone(header)
			header[2], header[3] = 0, 0
			if want := unhex(t, tt.want); !bytes.Equal(header, want) {
				t.Errorf("header %x, want %x", header, want)
			}
			for i, v := range dst[n:] {
				if v != 0xa5 {
					t.Fatalf("byte %d behind the packet changed", i)
				}
			}
		})
	}
}

func TestICMPErrorsNotSent(t *testing.T) {
	addr := func(v6 bool, at int, a string) []byte {
		b := udpPacket(v6, 10)
		copy(b[at:], netip.MustParseAddr(a).AsSlice())
		return b
	}
	icmp := func(v6 bool, typ uint8) []byte {
		s := spec{src: netip.MustParseAddr("10.32.0.1"), dst: netip.MustParseAddr("10.32.0.2"), proto: protoICMP, transport: make([]byte, 8)}
		if v6 {
			s.src, s.dst, s.proto = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), protoICMPv6
		}
		s.transport[0] = typ
		return s.build(false)
	}
	empty := func(v6 bool) []byte {
		if v6 {
			b := icmp(true, 128)[:40]
			b[5] = 0
			return b
		}
		b := icmp(false, 8)[:20]
		b[3] = 20
		return b
	}
	fragment := udpPacket(false, 10)
	fragment[7] = 1
	fragment6 := unhex(t, `6000 0000 0010 2c40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002
			1100 05a8 0000 0007 0102 0304 0506 0708`)
	tests := []struct {
		name string
		orig []byte
		from netip.Addr
	}{
		{"nothing", nil, gateway4},
		{"not IP", make([]byte, 40), gateway4},
		{"no address", udpPacket(false, 10), netip.Addr{}},
		{"no address6", udpPacket(true, 10), netip.Addr{}},
		{"other family", udpPacket(false, 10), gateway6},
		{"other family6", udpPacket(true, 10), gateway4},
		{"mapped", udpPacket(true, 10), netip.MustParseAddr("::ffff:10.0.0.1")},
		{"mapped4", udpPacket(false, 10), netip.MustParseAddr("::ffff:10.0.0.1")},
		{"later fragment", fragment, gateway4},
		{"later fragment6", fragment6, gateway6},
		{"to multicast", addr(false, 16, "224.0.0.1"), gateway4},
		{"to broadcast", addr(false, 16, "255.255.255.255"), gateway4},
		{"to multicast6", addr(true, 24, "ff02::1"), gateway6},
		{"from unspecified", addr(false, 12, "0.0.0.0"), gateway4},
		{"from this network", addr(false, 12, "0.1.2.3"), gateway4},
		{"from loopback", addr(false, 12, "127.0.0.1"), gateway4},
		{"from multicast", addr(false, 12, "224.0.0.1"), gateway4},
		{"from class E", addr(false, 12, "240.0.0.1"), gateway4},
		{"from broadcast", addr(false, 12, "255.255.255.255"), gateway4},
		{"from unspecified6", addr(true, 8, "::"), gateway6},
		{"from loopback6", addr(true, 8, "::1"), gateway6},
		{"from multicast6", addr(true, 8, "ff02::1"), gateway6},
		{"unreachable", icmp(false, 3), gateway4},
		{"source quench", icmp(false, 4), gateway4},
		{"redirect", icmp(false, 5), gateway4},
		{"time exceeded", icmp(false, 11), gateway4},
		{"parameter problem", icmp(false, 12), gateway4},
		{"empty ICMP", empty(false), gateway4},
		{"unreachable6", icmp(true, 1), gateway6},
		{"too big6", icmp(true, 2), gateway6},
		{"unknown error6", icmp(true, 127), gateway6},
		{"redirect6", icmp(true, 137), gateway6},
		{"empty ICMPv6", empty(true), gateway6},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dst := make([]byte, ICMPLen)
			if n := TooBig(dst, tt.orig, tt.from, 1400); n != 0 {
				t.Errorf("TooBig wrote %d bytes", n)
			}
			if n := Unreachable(dst, tt.orig, tt.from); n != 0 {
				t.Errorf("Unreachable wrote %d bytes", n)
			}
			if !bytes.Equal(dst, make([]byte, ICMPLen)) {
				t.Errorf("wrote something")
			}
		})
	}
	if n := TooBig(make([]byte, ICMPLen), udpPacket(false, 10), gateway4, -1); n != 0 {
		t.Errorf("negative mtu: %d bytes", n)
	}
	if n := TooBig(make([]byte, 575), udpPacket(false, 10), gateway4, 1400); n != 0 {
		t.Errorf("no room: %d bytes", n)
	}
	if n := TooBig(make([]byte, 1279), udpPacket(true, 10), gateway6, 1400); n != 0 {
		t.Errorf("no room: %d bytes", n)
	}
}

func TestTooBigRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t, 3000)
		orig := s.build(false)
		from := gateway4
		if s.src.Is6() {
			from = gateway6
		}
		mtu := rapid.IntRange(0, 9000).Draw(t, "mtu")
		dst := make([]byte, ICMPLen)
		n := TooBig(dst, orig, from, mtu)
		if n == 0 {
			t.Fatalf("no error written")
		}
		checkError(t, dst[:n], orig, from)
		if TooBig(make([]byte, ICMPLen), dst[:n], from, mtu) != 0 {
			t.Fatalf("an error about an error")
		}
	})
}

func FuzzTooBig(f *testing.F) {
	f.Add(unhex(f, syn4), 1420)
	f.Add(unhex(f, syn6), 1280)
	f.Add(unhex(f, echo4), 0)
	f.Add(unhex(f, mld6), 1<<40)
	f.Add(udpPacket(true, 1400), 1300)
	f.Fuzz(func(t *testing.T, orig []byte, mtu int) {
		dst := make([]byte, ICMPLen)
		for _, from := range []netip.Addr{gateway4, gateway6} {
			for _, f := range []func() int{
				func() int { return TooBig(dst, orig, from, mtu) },
				func() int { return Unreachable(dst, orig, from) },
			} {
				n := f()
				if n == 0 {
					continue
				}
				checkError(t, dst[:n], orig, from)
				if Unreachable(make([]byte, ICMPLen), dst[:n], from) != 0 {
					t.Fatalf("an error about an error")
				}
			}
		}
	})
}

func BenchmarkTooBig(b *testing.B) {
	dst := make([]byte, ICMPLen)
	for name, from := range map[string]netip.Addr{"v4": gateway4, "v6": gateway6} {
		b.Run(name, func(b *testing.B) {
			orig := udpPacket(from.Is6(), 1400)
			for b.Loop() {
				if TooBig(dst, orig, from, 1400) == 0 {
					b.Fatal("not written")
				}
			}
		})
	}
}
