// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// fragments returns copies of all fragments of a packet for a path of mtu bytes; nil if there must not be any.
func fragments(tb rapid.TB, b []byte, mtu int) (all [][]byte) {
	tb.Helper()
	b = bytes.Clone(b)
	var p Packet
	if err := p.Parse(b); err != nil {
		tb.Fatalf("%v: %x", err, b)
	}
	var f Fragmenter
	if !f.Init(b, &p, mtu) {
		if b, ok := f.Next(); ok {
			tb.Fatalf("a fragment of %d bytes where there must be none", len(b))
		}
		return nil
	}
	for b, ok := f.Next(); ok; b, ok = f.Next() {
		all = append(all, bytes.Clone(b))
	}
	return all
}

// reassemble puts fragments together byte by byte, and checks that none lacks and none overlaps. It returns the payload of
// the whole, where it begins if it is a fragment itself, and whether there are more behind it.
func reassemble(tb rapid.TB, all [][]byte, mtu int) (payload []byte, offset int, more bool) {
	tb.Helper()
	whole := map[int]byte{}
	least, end := 1<<20, 0
	for i, b := range all {
		if len(b) > mtu {
			tb.Fatalf("fragment %d has %d bytes, the path %d", i, len(b), mtu)
		}
		h := int(b[0]&15) * 4
		if int(binary.BigEndian.Uint16(b[2:])) != len(b) || slowSum(b[:h]) != 0xffff {
			tb.Fatalf("fragment %d: header %x of %d bytes", i, b[:h], len(b))
		}
		w := binary.BigEndian.Uint16(b[6:])
		at, last := int(w&0x1fff)*8, i == len(all)-1
		if mf := w&0x2000 != 0; !last && (!mf || (len(b)-h)%8 != 0) {
			tb.Fatalf("fragment %d of %d: %d bytes, more %v", i, len(all), len(b)-h, mf)
		} else if last {
			more = mf
		}
		for j, c := range b[h:] {
			if _, there := whole[at+j]; there {
				tb.Fatalf("byte %d comes twice", at+j)
			}
			whole[at+j] = c
		}
		least, end = min(least, at), max(end, at+len(b)-h)
	}
	for i := least; i < end; i++ {
		c, there := whole[i]
		if !there {
			tb.Fatalf("byte %d does not come", i)
		}
		payload = append(payload, c)
	}
	return payload, least, more
}

// slowOptions is what the header of a fragment has of the options: the copied ones, as a list of their own.
func slowOptions(o []byte, first bool) (list []string) {
	for len(o) > 0 && o[0] != 0 {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			if first {
				list = append(list, string(o))
			}
			return list
		}
		if first || o[0]&0x80 != 0 {
			list = append(list, string(o[:o[1]]))
		}
		o = o[o[1]:]
	}
	return list
}

func TestFragments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := spec{
			src: netip.MustParseAddr("10.32.1.9"), dst: netip.MustParseAddr("10.32.2.9"), id: rapid.Uint16().Draw(t, "id"), ttl: 64,
			tos: rapid.Byte().Draw(t, "tos"), proto: protoUDP, transport: make([]byte, 8),
			payload: drawBytes(t, rapid.IntRange(0, 9000).Draw(t, "size"), "payload"),
			options: drawBytes(t, 4*rapid.IntRange(0, 10).Draw(t, "option words"), "options"),
		}
		if rapid.Bool().Draw(t, "sensible options") && len(s.options) >= 12 {
			copy(s.options, []byte{0x94, 4, 0, 0, 1, 7, 7, 4, 1, 2, 3, 4}) // router alert, which is copied, and record route
			clear(s.options[12:])
		}
		offset, more := 0, false
		if rapid.Bool().Draw(t, "a fragment") {
			offset = rapid.IntRange(0, 5000).Draw(t, "offset") * 8
			s.fragment = uint16(offset / 8)
			if more = rapid.Bool().Draw(t, "more"); more {
				s.fragment |= 0x2000
				s.payload = s.payload[:len(s.payload)&^7]
			}
		}
		b := s.build(false)
		header := s.headerLen()
		mtu := rapid.IntRange(68, 9000).Draw(t, "mtu")
		all := fragments(t, b, mtu)
		payload, at, rest := reassemble(t, all, mtu)
		if !bytes.Equal(payload, b[header:]) || at != offset || rest != more {
			t.Fatalf("%d bytes at %d, more %v; want %d at %d, %v", len(payload), at, rest, len(b)-header, offset, more)
		}
		if len(b) <= mtu && (len(all) != 1 || !bytes.Equal(all[0], b)) {
			t.Fatalf("a packet that fits becomes %d", len(all))
		}
		for i, f := range all {
			var p Packet
			if err := p.Parse(f); err != nil || p.HeaderLen != header || p.Src != s.src || p.Dst != s.dst || p.Proto != s.proto || p.TOS != s.tos || p.DF ||
				binary.BigEndian.Uint16(f[4:]) != s.id || f[8] != s.ttl {
				t.Fatalf("fragment %d: %+v, %v", i, p, err)
			}
			want := slowOptions(s.options, i == 0)
			if got := slowOptions(f[20:header], true); len(got) != len(want) {
				t.Fatalf("fragment %d has options %x, want %x", i, got, want)
			} else {
				for j := range got {
					if got[j] != want[j] {
						t.Fatalf("fragment %d has options %x, want %x", i, got, want)
					}
				}
			}
		}
	})
}

func TestNoFragments(t *testing.T) {
	s := spec{
		src: netip.MustParseAddr("10.32.1.9"), dst: netip.MustParseAddr("10.32.2.9"), ttl: 64,
		proto: protoUDP, transport: make([]byte, 8), payload: make([]byte, 1000),
	}
	if n := len(fragments(t, s.build(false), 600)); n != 2 {
		t.Errorf("%d fragments", n)
	}
	if n := len(fragments(t, s.build(false), 27)); n != 0 {
		t.Errorf("%d fragments without room for 8 bytes", n)
	}
	s.fragment = 0x4000
	if n := len(fragments(t, s.build(false), 600)); n != 0 {
		t.Errorf("%d fragments of a packet with DF", n)
	}
	s.src, s.dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	if n := len(fragments(t, s.build(false), 600)); n != 0 {
		t.Errorf("%d fragments of IPv6", n)
	}
}

func FuzzFragmenter(f *testing.F) {
	s := spec{
		src: netip.MustParseAddr("10.32.1.9"), dst: netip.MustParseAddr("10.32.2.9"), ttl: 64, options: []byte{0x94, 4, 0, 0, 7, 3, 4, 0},
		proto: protoUDP, transport: make([]byte, 8), payload: make([]byte, 1000),
	}
	f.Add(s.build(false), 576)
	s.fragment = 0x2003
	f.Add(s.build(false), 68)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		var p Packet
		if p.Parse(b) != nil || mtu < 0 || mtu > 1<<16 {
			return
		}
		b = b[:p.Len]
		if all := fragments(t, b, mtu); all != nil {
			payload, at, _ := reassemble(t, all, mtu)
			if !bytes.Equal(payload, b[p.HeaderLen:]) || at != p.FragmentOffset {
				t.Fatalf("%d bytes at %d of %d at %d", len(payload), at, len(b)-p.HeaderLen, p.FragmentOffset)
			}
		}
	})
}

func TestFragmenterDoesNotAllocate(t *testing.T) {
	s := spec{
		src: netip.MustParseAddr("10.32.1.9"), dst: netip.MustParseAddr("10.32.2.9"), ttl: 64,
		proto: protoUDP, transport: make([]byte, 8), payload: make([]byte, 8000),
	}
	b, frame := s.build(false), make([]byte, 9000)
	var p Packet
	if err := p.Parse(b); err != nil {
		t.Fatal(err)
	}
	var f Fragmenter
	if n := testing.AllocsPerRun(20, func() {
		if !f.Init(frame[:copy(frame, b)], &p, 1300) {
			t.Fatal("no fragments")
		}
		n := 0
		for _, ok := f.Next(); ok; _, ok = f.Next() {
			n++
		}
		if n != 7 {
			t.Fatalf("%d fragments", n)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
