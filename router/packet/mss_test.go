// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// synWith returns a TCP packet with the given flags and options.
func synWith(v6 bool, flags uint8, options []byte) spec {
	s := spec{
		src: netip.MustParseAddr("10.32.0.1"), dst: netip.MustParseAddr("10.32.0.2"),
		ttl: 64, proto: protoTCP, transport: append(pattern(5, 20), options...),
	}
	if v6 {
		s.src, s.dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	}
	s.transport[12], s.transport[13] = uint8(len(s.transport)/4)<<4, flags
	return s
}

func TestClampMSS(t *testing.T) {
	const syn, ack = 0x02, 0x10
	mss := func(v uint16) []byte { return []byte{2, 4, byte(v >> 8), byte(v)} }
	tests := []struct {
		name    string
		v6      bool
		flags   uint8
		options []byte
		mtu     int
		want    []byte // nil: unchanged
	}{
		{"lowered", false, syn, mss(1460), 1420, mss(1380)},
		{"lowered6", true, syn, mss(1440), 1420, mss(1360)},
		{"answer", false, syn | ack, mss(65495), 1420, mss(1380)},
		{"equal", false, syn, mss(1380), 1420, nil},
		{"below", false, syn, mss(536), 1420, nil},
		{"no SYN", false, ack, mss(1460), 1420, nil},
		{"no option", false, syn, nil, 1420, nil},
		{"odd offset", false, syn, []byte{1, 2, 4, 5, 0xb4, 0, 0, 0}, 1420, []byte{1, 2, 4, 5, 0x64, 0, 0, 0}},
		{
			"after others", false, syn,
			append([]byte{4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, mss(9000)...), 1420,
			append([]byte{4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, mss(1380)...),
		},
		{"twice", false, syn, append(mss(1460), mss(1459)...), 1420, append(mss(1380), mss(1380)...)},
		{"behind the end", false, syn, append([]byte{0, 0, 0, 0}, mss(1460)...), 1420, nil},
		{"length 3", false, syn, []byte{2, 3, 5, 0xb4}, 1420, nil},
		{"length 0", false, syn, []byte{2, 0, 5, 0xb4}, 1420, nil},
		{"beyond the header", false, syn, []byte{1, 1, 2, 4}, 1420, nil},
		{"kind alone", false, syn, []byte{1, 1, 1, 2}, 1420, nil},
		{"least", false, syn, mss(1460), 100, mss(88)},
		{"nonsense", false, syn, mss(1460), -5, mss(88)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := synWith(tt.v6, tt.flags, tt.options)
			b := s.build(false)
			want := bytes.Clone(b)
			if tt.want != nil {
				s = synWith(tt.v6, tt.flags, tt.want)
				want = s.build(false)
			}
			var p Packet
			if err := p.Parse(b); err != nil {
				t.Fatal(err)
			}
			if got := ClampMSS(b, &p, tt.mtu); got != (tt.want != nil) {
				t.Errorf("reported %v", got)
			}
			if !bytes.Equal(b, want) {
				t.Errorf("\n got %x\nwant %x", b, want)
			}
			verify(t, b, netip.Addr{})
		})
	}
}

func TestClampMSSOther(t *testing.T) {
	s := synWith(false, 2, []byte{2, 4, 5, 0xb4})
	tests := []struct {
		name   string
		change func(b []byte) []byte
	}{
		{"UDP", func(b []byte) []byte { b[9] = protoUDP; return b }},
		{"later fragment", func(b []byte) []byte { b[7] = 1; return b }},
		{"cut", func(b []byte) []byte { b[3] = 39; return b[:39] }},
		{"header length 16", func(b []byte) []byte { b[32] = 0x40; return b }},
		{"header length beyond", func(b []byte) []byte { b[32] = 0x70; return b }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.change(s.build(false))
			want := bytes.Clone(b)
			var p Packet
			if err := p.Parse(b); err != nil {
				t.Fatal(err)
			}
			if ClampMSS(b, &p, 1420) || !bytes.Equal(b, want) {
				t.Errorf("changed")
			}
		})
	}
	b := s.build(false)
	var p Packet
	if err := p.Parse(b); err != nil {
		t.Fatal(err)
	}
	if ClampMSS(b[:p.Len-1], &p, 1420) || !bytes.Equal(b, s.build(false)) {
		t.Errorf("changed a packet that p does not describe")
	}
}

// slowClamp is ClampMSS by way of a list of options and a checksum from
// scratch.
func slowClamp(s spec, limit uint16) spec {
	t := bytes.Clone(s.transport)
	s.transport = t
	if t[13]&2 == 0 {
		return s
	}
	for o := t[20:]; len(o) > 0 && o[0] != 0; {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			break
		}
		if o[0] == 2 && o[1] == 4 && binary.BigEndian.Uint16(o[2:]) > limit {
			binary.BigEndian.PutUint16(o[2:], limit)
		}
		o = o[o[1]:]
	}
	return s
}

func TestClampMSSRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Options made of pieces that mostly parse.
		var options []byte
		for range rapid.IntRange(0, 8).Draw(t, "options") {
			switch rapid.IntRange(0, 4).Draw(t, "option") {
			case 0:
				options = append(options, 1)
			case 1, 2:
				v := rapid.Uint16().Draw(t, "mss")
				options = append(options, 2, 4, byte(v>>8), byte(v))
			case 3:
				n := rapid.IntRange(2, 10).Draw(t, "n")
				options = append(options, rapid.Byte().Draw(t, "kind"), byte(n))
				options = append(options, drawBytes(t, n-2, "value")...)
			case 4:
				options = append(options, rapid.Byte().Draw(t, "junk"))
			}
		}
		options = append(options, make([]byte, 40)...)[:rapid.IntRange(0, 10).Draw(t, "words")*4]
		s := synWith(rapid.Bool().Draw(t, "v6"), rapid.Byte().Draw(t, "flags"), options)
		mtu := rapid.IntRange(0, 70000).Draw(t, "mtu")
		headers := 40
		if s.src.Is6() {
			headers = 60
		}
		slow := slowClamp(s, uint16(min(max(mtu-headers, 88), 65535)))
		want := slow.build(false)

		b := s.build(false)
		before := bytes.Clone(b)
		var p Packet
		if err := p.Parse(b); err != nil {
			t.Fatal(err)
		}
		if ClampMSS(b, &p, mtu) != !bytes.Equal(before, b) {
			t.Fatalf("reported wrongly")
		}
		verify(t, b, netip.Addr{})
		at := s.headerLen() + 16 // a sum of zero has two ways to be written
		copy(b[at:at+2], want[at:at+2])
		if !bytes.Equal(b, want) {
			t.Fatalf("\n got %x\nwant %x", b, want)
		}
	})
}

func FuzzClampMSS(f *testing.F) {
	f.Add(unhex(f, syn4), 1420)
	f.Add(unhex(f, syn6), 1280)
	s := synWith(false, 2, []byte{1, 2, 4, 0x05, 0xb4, 1, 1, 0})
	f.Add(s.build(false), 576)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		var p Packet
		if p.Parse(b) != nil {
			return
		}
		before := bytes.Clone(b)
		if changed := ClampMSS(b, &p, mtu); changed != !bytes.Equal(before, b) {
			t.Fatalf("reported %v", changed)
		}
		// Whatever the sum was, right or wrong, it stays; 0 and ffff are one.
		was, is := slowSum(before[p.HeaderLen:p.Len]), slowSum(b[p.HeaderLen:p.Len])
		if was%0xffff != is%0xffff {
			t.Fatalf("sum %#x became %#x", was, is)
		}
		if !bytes.Equal(before[:p.HeaderLen], b[:p.HeaderLen]) || !bytes.Equal(before[p.Len:], b[p.Len:]) {
			t.Fatalf("changed beyond the TCP header")
		}
		// Once is enough.
		if ClampMSS(b, &p, mtu) {
			t.Fatalf("changed again")
		}
	})
}

func BenchmarkClampMSS(b *testing.B) {
	buf := unhex(b, syn4)
	var p Packet
	if err := p.Parse(buf); err != nil {
		b.Fatal(err)
	}
	mtu := 1420
	for b.Loop() {
		mtu ^= 1
		buf[22], buf[23] = 5, 0xb4
		ClampMSS(buf, &p, mtu)
	}
}
