// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// network returns what the sum acc would be stored as.
func network(acc uint64) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], fold(acc))
	return binary.BigEndian.Uint16(b[:])
}

func TestSumAgainstSlow(t *testing.T) {
	// Every length and alignment up to some unrolled rounds, with bytes that
	// carry as often as can be and with bytes that do not.
	for _, fill := range [][]byte{
		bytes.Repeat([]byte{0xff}, 300), make([]byte, 300), pattern(7, 300),
	} {
		for from := range 9 {
			for n := range 280 {
				b := fill[from : from+n]
				if got, want := network(sum(b, 0)), slowSum(b); got != want {
					t.Fatalf("%d bytes at %d: %#x, want %#x", n, from, got, want)
				}
			}
		}
	}
}

func TestSumRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawBytes(t, 2*rapid.IntRange(0, 200).Draw(t, "na"), "a")
		b := drawBytes(t, rapid.IntRange(0, 70000).Draw(t, "nb"), "b")
		v := rapid.Uint16().Draw(t, "v")
		acc := sumWord(v, sum(b, sum(a, 0)))
		want := slowSum(a, []byte{byte(v >> 8), byte(v)}, b)
		if got := network(acc); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
		var stored [2]byte
		putChecksum(stored[:], acc)
		if s := slowSum(a, []byte{byte(v >> 8), byte(v)}, stored[:], b); s != 0xffff {
			t.Fatalf("with its checksum the sum is %#x", s)
		}
	})
}

func TestPutChecksumNonZero(t *testing.T) {
	var b [2]byte
	putChecksumNonZero(b[:], 0xffff)
	if b != [2]byte{0xff, 0xff} {
		t.Errorf("zero stored as %x", b)
	}
	putChecksumNonZero(b[:], sumWord(0x1234, 0))
	if b != [2]byte{0xed, 0xcb} {
		t.Errorf("complement of 1234 stored as %x", b)
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 60, 576, 1420, 65535} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := pattern(1, n)
			b.SetBytes(int64(n))
			var acc uint64
			for b.Loop() {
				acc = sum(buf, acc)
			}
		})
	}
}

// However a checksum of zero comes about it is written in one way, which is that of the protocol, and only that way is joined: what is cut again would
// come out with it.
func TestChecksumOfZero(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, c := range []struct {
			proto uint8
			want  uint16
		}{{protoTCP, 0}, {protoUDP, 0xffff}} {
			s := spec{
				src: netip.MustParseAddr("10.32.0.1"), dst: netip.MustParseAddr("10.32.0.2"),
				ttl: 64, fragment: 0x4000, proto: c.proto, transport: make([]byte, 8), payload: pattern(9, 2000),
			}
			if v6 {
				s.src, s.dst = netip.MustParseAddr("fd77::1"), netip.MustParseAddr("fd77::2")
			}
			if c.proto == protoTCP {
				s.transport = make([]byte, 20)
				s.transport[12], s.transport[13] = 0x50, 0x10
			} else {
				binary.BigEndian.PutUint16(s.transport[4:], uint16(8+len(s.payload)))
			}
			at := s.headerLen() + checksumOffset(c.proto)
			const half = 1000
			first, second := s, s
			first.payload, second.payload = s.payload[:half], s.payload[half:]
			second.id++
			if c.proto == protoTCP {
				second.transport = bytes.Clone(s.transport)
				binary.BigEndian.PutUint32(second.transport[4:], half)
			} else {
				first.transport = bytes.Clone(s.transport)
				binary.BigEndian.PutUint16(first.transport[4:], 8+half)
				second.transport = first.transport
			}
			for _, x := range []*spec{&first, &second} {
				clear(x.payload[:2])
				b := x.build(false)
				copy(x.payload, b[at:at+2]) // to the sum this adds what makes it zero
			}
			check := func(how string, b []byte) {
				t.Helper()
				if got := binary.BigEndian.Uint16(b[at:]); got != c.want {
					t.Errorf("protocol %d, IPv6 %v: %s: %04x, want %04x", c.proto, v6, how, got, c.want)
				}
				verify(t, b, s.final)
			}
			var p Packet
			completed := first.build(true)
			if err := p.Parse(completed); err != nil || !CompleteChecksum(completed, &p) {
				t.Fatal(err)
			}
			check("CompleteChecksum", completed)
			h := first.vnet(0)
			h.GSOType = VNetGSONone
			for how, x := range map[string]struct {
				frame []byte
				h     VNetHdr
			}{"one packet": {first.build(true), h}, "a superpacket": {s.build(true), s.vnet(half)}} {
				segments, err := split(t, x.frame, x.h)
				if err != nil {
					t.Fatal(err)
				}
				for _, b := range segments {
					check(how, b)
				}
			}
			for _, same := range []bool{true, false} {
				both := [][]byte{first.build(false), second.build(false)}
				for _, b := range both {
					binary.BigEndian.PutUint16(b[at:], c.want)
					if !same {
						binary.BigEndian.PutUint16(b[at:], ^c.want)
					}
				}
				if frames := coalesce(t, newCoalescer(), both, false, nil); (len(frames) == 1) != same {
					t.Errorf("protocol %d, IPv6 %v, written its way %v: %d frames", c.proto, v6, same, len(frames))
				}
			}
		}
	}
}
