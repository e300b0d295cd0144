// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Packets as captured on a wire.
const (
	// An ICMP echo request, 84 bytes with its payload cut to 8 (length fixed).
	echo4 = `4500 0024 1c46 4000 4001 0000 0a20 0001 0a20 0002  0800 0000 0001 0001 6162636465666768`
	// A TCP SYN with MSS 1460, SACK permitted, timestamps, window scale.
	syn4 = `4500 003c 1c46 4000 4006 0000 0a20 0001 0a20 0002
		d431 0050 1234 5678 0000 0000 a002 faf0 0000 0000
		0204 05b4 0402 080a 0013 5b3c 0000 0000 0103 0307`
	// A TCP SYN over IPv6 with MSS 1440 only.
	syn6 = `6001 2345 0018 0640 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002
		d431 0050 1234 5678 0000 0000 6002 faf0 0000 0000 0204 05a0`
	// An MLDv2 report: a hop-by-hop header with router alert before ICMPv6.
	mld6 = `6000 0000 0024 0001 fe80 0000 0000 0000 0000 0000 0000 0001 ff02 0000 0000 0000 0000 0000 0000 0016
		3a00 0502 0000 0100  8f00 0000 0000 0001 0400 0000 ff02 0000 0000 0000 0000 0001 ff00 0002`
)

func TestParse(t *testing.T) {
	addr := netip.MustParseAddr
	tests := []struct {
		name string
		in   string
		want Packet
	}{
		{"echo4", echo4, Packet{Src: addr("10.32.0.1"), Dst: addr("10.32.0.2"), Len: 36, HeaderLen: 20, Proto: protoICMP, DF: true}},
		{"padded", echo4 + "0000 0000", Packet{Src: addr("10.32.0.1"), Dst: addr("10.32.0.2"), Len: 36, HeaderLen: 20, Proto: protoICMP, DF: true}},
		{"syn4", syn4, Packet{Src: addr("10.32.0.1"), Dst: addr("10.32.0.2"), Len: 60, HeaderLen: 20, Proto: protoTCP, DF: true}},
		{
			"options", `46b8 0018 0000 0000 4011 0000 0a20 0001 0a20 0002 9404 0000`,
			Packet{Src: addr("10.32.0.1"), Dst: addr("10.32.0.2"), Len: 24, HeaderLen: 24, Proto: protoUDP, TOS: 0xb8},
		},
		{
			"first fragment", `4500 0014 0001 2000 4011 0000 0a20 0001 0a20 0002`,
			Packet{Src: addr("10.32.0.1"), Dst: addr("10.32.0.2"), Len: 20, HeaderLen: 20, Proto: protoUDP, Fragment: true},
		},
		{
			"last fragment", `4500 0014 0001 00b9 4011 0000 0a20 0001 0a20 0002`,
			Packet{Src: addr("10.32.0.1"), Dst: addr("10.32.0.2"), Len: 20, HeaderLen: 20, Proto: protoUDP, Fragment: true, FragmentOffset: 1480},
		},
		{"syn6", syn6, Packet{Src: addr("fd00::1"), Dst: addr("fd00::2"), Len: 64, HeaderLen: 40, Proto: protoTCP, DF: true}},
		{"mld6", mld6, Packet{Src: addr("fe80::1"), Dst: addr("ff02::16"), Len: 76, HeaderLen: 48, Proto: protoICMPv6, DF: true}},
		{
			"class6", `6b80 0000 0000 3b40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002`,
			Packet{Src: addr("fd00::1"), Dst: addr("fd00::2"), Len: 40, HeaderLen: 40, Proto: 59, TOS: 0xb8, DF: true},
		},
		{
			"fragment6", `6000 0000 0010 2c40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002
			1100 0001 0000 0007 0102 0304 0506 0708`,
			Packet{Src: addr("fd00::1"), Dst: addr("fd00::2"), Len: 56, HeaderLen: 48, Proto: protoUDP, DF: true, Fragment: true},
		},
		{
			"later fragment6", `6000 0000 0010 2c40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002
			3c00 05a8 0000 0007 0102 0304 0506 0708`,
			Packet{Src: addr("fd00::1"), Dst: addr("fd00::2"), Len: 56, HeaderLen: 48, Proto: protoDestOpts, DF: true, Fragment: true, FragmentOffset: 1448},
		},
		{
			"atomic fragment6", `6000 0000 0010 2c40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002
			1100 0000 0000 0007 0102 0304 0506 0708`,
			Packet{Src: addr("fd00::1"), Dst: addr("fd00::2"), Len: 56, HeaderLen: 48, Proto: protoUDP, DF: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got Packet
			if err := got.Parse(unhex(t, tt.in)); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct {
		name string
		in   string
		want error
	}{
		{"nothing", ``, ErrShort},
		{"short", `4500 0014 0000 0000 4011 0000 0a20 0001 0a20 00`, ErrShort},
		{"ethernet", `0000 0014 0000 0000 4011 0000 0a20 0001 0a20 0002`, ErrVersion},
		{"header length 16", `4400 0014 0000 0000 4011 0000 0a20 0001 0a20 0002`, ErrHeader},
		{"total below header", `4600 0014 0000 0000 4011 0000 0a20 0001 0a20 0002 0000 0000`, ErrHeader},
		{"total beyond the bytes", `4500 0015 0000 0000 4011 0000 0a20 0001 0a20 0002`, ErrShort},
		{"short6", `6000 0000 0000 3b40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 00`, ErrShort},
		{"payload beyond the bytes", `6000 0000 0001 3b40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002`, ErrShort},
		{"mapped source", `6000 0000 0000 3b40 0000 0000 0000 0000 0000 ffff 0a20 0001 fd00 0000 0000 0000 0000 0000 0000 0002`, ErrHeader},
		{"mapped destination", `6000 0000 0000 3b40 fd00 0000 0000 0000 0000 0000 0000 0002 0000 0000 0000 0000 0000 ffff 0a20 0001`, ErrHeader},
		{"extension missing", `6000 0000 0000 0040 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002`, ErrShort},
		{"extension cut", `6000 0000 0008 0040 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002 3b01 0000 0000 0000`, ErrShort},
		{"fragment header cut", `6000 0000 0004 2c40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002 3b00 0000`, ErrShort},
		{"authentication header cut", `6000 0000 0008 3340 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002 3b01 0000 0000 0000`, ErrShort},
		{"authentication header missing", `6000 0000 0004 3340 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 0000 0000 0000 0002 3b01 0000`, ErrShort},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p Packet
			if err := p.Parse(unhex(t, tt.in)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// Whatever is built is read back, and every shorter slice of it is refused.
func TestParseRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t, 100)
		b := s.build(false)
		want := Packet{
			Src: s.src, Dst: s.dst, Len: len(b), HeaderLen: s.headerLen(),
			Proto: s.proto, TOS: s.tos, DF: s.src.Is6() || s.fragment&0x4000 != 0,
		}
		var got Packet
		if err := got.Parse(append(b, make([]byte, rapid.IntRange(0, 20).Draw(t, "padding"))...)); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
		for n := range len(b) {
			if err := got.Parse(b[:n]); !errors.Is(err, ErrShort) {
				t.Fatalf("first %d of %d bytes: %v", n, len(b), err)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{echo4, syn4, syn6, mld6} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Packet
		if err := p.Parse(b); err != nil {
			return
		}
		if p.HeaderLen < 20 || p.HeaderLen > p.Len || p.Len > len(b) {
			t.Fatalf("header %d, length %d, %d bytes", p.HeaderLen, p.Len, len(b))
		}
		if p.Src.Is4() != p.Dst.Is4() || p.Src.Is4In6() || p.Dst.Is4In6() || p.Src.Is4() != (b[0]>>4 == 4) {
			t.Fatalf("families: %v %v", p.Src, p.Dst)
		}
		if p.FragmentOffset != 0 && !p.Fragment || p.FragmentOffset < 0 || p.FragmentOffset%8 != 0 {
			t.Fatalf("fragment %v at %d", p.Fragment, p.FragmentOffset)
		}
		// What lies behind the packet is of no account.
		var q Packet
		if err := q.Parse(b[:p.Len]); err != nil || q != p {
			t.Fatalf("without padding: %+v, %v; with: %+v", q, err, p)
		}
	})
}

func TestVNetHdr(t *testing.T) {
	h := VNetHdr{Flags: 1, GSOType: 0x81, HdrLen: 0x0102, GSOSize: 0x0304, CsumStart: 0x0506, CsumOffset: 0x0708}
	var b [VNetHdrLen]byte
	h.Encode(b[:])
	want := []byte{1, 0x81}
	for _, v := range []uint16{0x0102, 0x0304, 0x0506, 0x0708} {
		want = binary.NativeEndian.AppendUint16(want, v)
	}
	if string(b[:]) != string(want) {
		t.Errorf("encoded %x, want %x", b, want)
	}
	var got VNetHdr
	if err := got.Decode(b[:VNetHdrLen-1]); !errors.Is(err, ErrShort) {
		t.Errorf("short: %v", err)
	}
	if err := got.Decode(b[:]); err != nil || got != h {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

// Only what acknowledges, and does nothing else, is a bare acknowledgement.
func TestBareACK(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		segment := func(n int, offset, flags byte) []byte {
			b := udpPacket(v6, tcpHeaderLen-udpHeaderLen+n)
			if v6 {
				b[6] = protoTCP
			} else {
				b[9] = protoTCP
			}
			header := b[len(b)-tcpHeaderLen-n:]
			header[12], header[13] = offset<<4, flags
			return b
		}
		udp := udpPacket(v6, tcpHeaderLen-udpHeaderLen)
		for _, c := range []struct {
			name string
			b    []byte
			want bool
		}{
			{"acknowledgement", segment(0, 5, tcpACK), true},
			{"with options", segment(12, 8, tcpACK), true},
			{"of a congested way", segment(0, 5, tcpACK|0x40), true},
			{"data", segment(1, 5, tcpACK), false},
			{"pushed", segment(0, 5, tcpACK|tcpPSH), false},
			{"urgent", segment(0, 5, tcpACK|tcpURG), false},
			{"the beginning", segment(0, 5, tcpSYN), false},
			{"the answer to it", segment(0, 5, tcpSYN|tcpACK), false},
			{"the end", segment(0, 5, tcpFIN|tcpACK), false},
			{"a reset", segment(0, 5, tcpRST), false},
			{"no flags", segment(0, 5, 0), false},
			{"options that are longer than the packet", segment(0, 15, tcpACK), false},
			{"a header that is too short", segment(0, 4, tcpACK), false},
			{"UDP", udp, false},
		} {
			var p Packet
			if err := p.Parse(c.b); err != nil {
				t.Fatal(err)
			}
			if got := p.BareACK(c.b); got != c.want {
				t.Errorf("IPv6 %t, %s: %t", v6, c.name, got)
			}
			if p.BareACK(c.b[:p.Len-1]) {
				t.Errorf("IPv6 %t, %s, cut off", v6, c.name)
			}
		}
	}
	ack := unhex(t, syn4)
	var p Packet
	if err := p.Parse(ack); err != nil {
		t.Fatal(err)
	}
	ack[p.HeaderLen+13] = tcpACK
	if !p.BareACK(ack) {
		t.Error("a whole packet")
	}
	if p.Fragment = true; p.BareACK(ack) {
		t.Error("a fragment")
	}
}

func FuzzVNetHdr(f *testing.F) {
	f.Add([]byte{1, 1, 54, 0, 0xb4, 5, 20, 0, 16, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var h VNetHdr
		if err := h.Decode(b); err != nil {
			if len(b) >= VNetHdrLen {
				t.Fatal(err)
			}
			return
		}
		var back [VNetHdrLen]byte
		h.Encode(back[:])
		if string(back[:]) != string(b[:VNetHdrLen]) {
			t.Fatalf("%x came back as %x", b[:VNetHdrLen], back)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for name, s := range map[string]string{"v4": syn4, "v6": syn6, "extension": mld6} {
		b.Run(name, func(b *testing.B) {
			buf := unhex(b, s)
			var p Packet
			for b.Loop() {
				if err := p.Parse(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
