// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// split runs a Splitter over a copy of frame that lies between guard bytes,
// spoils every segment before it asks for the next, and returns copies of them.
func split(t rapid.TB, frame []byte, h VNetHdr) ([][]byte, error) {
	t.Helper()
	const guard = 32
	arena := bytes.Repeat([]byte{0xa5}, guard+len(frame)+guard)
	in := arena[guard : guard+len(frame) : guard+len(frame)]
	copy(in, frame)

	s := new(Splitter)
	err := s.Init(in, h)
	var out [][]byte
	for {
		seg, ok := s.Next()
		if !ok {
			if seg != nil {
				t.Fatalf("a segment without ok")
			}
			break
		}
		if err != nil {
			t.Fatalf("a segment after %v", err)
		}
		out = append(out, bytes.Clone(seg))
		for i := range seg {
			seg[i] = 0x5a
		}
		if len(out) > len(frame) {
			t.Fatalf("more segments than bytes")
		}
	}
	if _, ok := s.Next(); ok {
		t.Fatalf("a segment after the last")
	}
	for i, v := range arena {
		if v != 0xa5 && (i < guard || i >= guard+len(frame)) {
			t.Fatalf("byte %d outside the frame changed", i-guard)
		}
	}
	return out, err
}

func checkSegments(t rapid.TB, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d segments, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("segment %d of %d\n got %x\nwant %x", i, len(got), got[i], want[i])
		}
	}
}

// Superpackets against slowSplit; all checksums verified, the payload whole.
func TestSplitRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t, rapid.SampledFrom([]int{10, 300, 5000, 64000}).Draw(t, "most"))
		size := rapid.SampledFrom([]int{1, 2, 3, 7, 8, 39, 536, 1380, 1448, 65535}).Draw(t, "size")
		if len(s.payload)/size > 2000 {
			size = len(s.payload) / 2000
		}
		h := s.vnet(size)
		h.HdrLen = rapid.Uint16().Draw(t, "hint")
		frame := s.build(true)
		got, err := split(t, frame, h)
		if err != nil {
			t.Fatal(err)
		}
		var payload []byte
		for _, seg := range got {
			verify(t, seg, s.final)
			payload = append(payload, seg[len(frame)-len(s.payload):]...)
		}
		if !bytes.Equal(payload, s.payload) {
			t.Fatalf("payload changed")
		}
		checkSegments(t, got, slowSplit(s, size))
	})
}

// A checksum left open is completed, whatever the protocol and the headers.
func TestCompleteRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t, 3000)
		h := s.vnet(0)
		h.GSOType = VNetGSONone
		got, err := split(t, s.build(true), h)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 {
			t.Fatalf("%d segments", len(got))
		}
		verify(t, got[0], s.final)
	})
}

// superpacket returns a TCP stream's worth of n bytes to be cut at size.
func superpacket(v6 bool, flags uint8, n, size int) ([]byte, VNetHdr, spec) {
	s := spec{
		src: netip.MustParseAddr("10.32.0.1"), dst: netip.MustParseAddr("10.32.0.2"),
		ttl: 64, id: 0xfffe, fragment: 0x4000, proto: protoTCP,
		transport: make([]byte, 32), payload: pattern(3, n),
	}
	if v6 {
		s.src, s.dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	}
	binary.BigEndian.PutUint32(s.transport[4:], 0xffffff00) // wraps
	s.transport[12], s.transport[13] = 0x80, flags
	copy(s.transport[20:], []byte{1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7})
	h := s.vnet(size)
	return s.build(true), h, s
}

func TestSplitFlags(t *testing.T) {
	const ack, cwr, ece, psh, fin = 0x10, 0x80, 0x40, 0x08, 0x01
	frame, h, _ := superpacket(false, ack|cwr|ece|psh|fin, 2501, 1000)
	if h.GSOType != VNetGSOTCPv4|VNetGSOECN {
		t.Fatalf("type %#x", h.GSOType)
	}
	got, err := split(t, frame, h)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 {
		t.Fatalf("%d segments", len(got))
	}
	want := []struct {
		length, id int
		seq        uint32
		flags      uint8
	}{
		{1052, 0xfffe, 0xffffff00, ack | cwr | ece},
		{1052, 0xffff, 0x2e8, ack | ece},
		{553, 0, 0x6d0, ack | ece | psh | fin},
	}
	for i, w := range want {
		seg := got[i]
		verify(t, seg, netip.Addr{})
		id, seq := int(binary.BigEndian.Uint16(seg[4:])), binary.BigEndian.Uint32(seg[24:])
		if len(seg) != w.length || id != w.id || seq != w.seq || seg[33] != w.flags {
			t.Errorf("segment %d: length %d id %#x seq %#x flags %#x, want %+v", i, len(seg), id, seq, seg[33], w)
		}
	}
}

// The flag AE of accurate ECN (RFC 9768 §3.1), and ECE, stand on every segment.
func TestSplitAccurateECN(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		_, h, s := superpacket(v6, 0x10|0x40, 2500, 1000)
		at := s.headerLen()
		s.transport[12] |= 1
		got, err := split(t, s.build(true), h)
		if err != nil || len(got) != 3 {
			t.Fatal(len(got), err)
		}
		for i, seg := range got {
			verify(t, seg, netip.Addr{})
			if seg[at+12] != 0x81 || seg[at+13] != 0x50 {
				t.Errorf("v6 %v, segment %d: flags %x %x", v6, i, seg[at+12], seg[at+13])
			}
		}
	}
}

func TestSplitPassesThrough(t *testing.T) {
	for _, in := range []string{echo4, syn6, "0102"} {
		frame := unhex(t, in)
		got, err := split(t, frame, VNetHdr{Flags: VNetDataValid})
		if err != nil {
			t.Fatal(err)
		}
		checkSegments(t, got, [][]byte{frame})
	}
}

func TestSplitOneSegment(t *testing.T) {
	for _, n := range []int{0, 1, 1000} {
		frame, h, s := superpacket(true, 0x19, n, 1000)
		got, err := split(t, frame, h)
		if err != nil {
			t.Fatal(err)
		}
		checkSegments(t, got, [][]byte{s.build(false)})
	}
}

func TestSplitPadding(t *testing.T) {
	frame, h, s := superpacket(true, 0x10, 1500, 1000)
	got, err := split(t, append(frame, 1, 2, 3), h)
	if err != nil {
		t.Fatal(err)
	}
	checkSegments(t, got, slowSplit(s, 1000))
}

// A UDP checksum that comes out as zero is sent as all ones.
func TestSplitUDPZeroChecksum(t *testing.T) {
	s := spec{
		src: netip.MustParseAddr("10.32.0.1"), dst: netip.MustParseAddr("10.32.0.2"),
		ttl: 64, proto: protoUDP, transport: make([]byte, 8), payload: make([]byte, 4),
	}
	binary.BigEndian.PutUint16(s.transport[4:], 12)
	h := s.vnet(2)
	// Two bytes in each datagram that complement the sum of all the others.
	others := slowSum(pseudoHeader(s.src, s.dst, protoUDP, 10), []byte{0, 0, 0, 0, 0, 10, 0, 0})
	binary.BigEndian.PutUint16(s.payload, ^others)
	binary.BigEndian.PutUint16(s.payload[2:], ^others)
	got, err := split(t, s.build(true), h)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d segments", len(got))
	}
	for _, seg := range got {
		verify(t, seg, netip.Addr{})
		if seg[26] != 0xff || seg[27] != 0xff {
			t.Errorf("checksum %x", seg[26:28])
		}
	}
}

func TestSplitErrors(t *testing.T) {
	change := func(f func(frame []byte, h *VNetHdr) []byte) func() ([]byte, VNetHdr) {
		return func() ([]byte, VNetHdr) {
			frame, h, _ := superpacket(false, 0x10, 3000, 1000)
			frame = f(frame, &h)
			return frame, h
		}
	}
	tests := []struct {
		name string
		make func() ([]byte, VNetHdr)
		want error
	}{
		{"empty", change(func([]byte, *VNetHdr) []byte { return nil }), ErrShort},
		{"no checksum asked", change(func(b []byte, h *VNetHdr) []byte { h.Flags = 0; return b }), ErrOffload},
		{"size zero", change(func(b []byte, h *VNetHdr) []byte { h.GSOSize = 0; return b }), ErrOffload},
		{"UFO", change(func(b []byte, h *VNetHdr) []byte { h.GSOType = 3; return b }), ErrOffload},
		{"other family", change(func(b []byte, h *VNetHdr) []byte { h.GSOType = VNetGSOTCPv6; return b }), ErrOffload},
		{"other protocol", change(func(b []byte, h *VNetHdr) []byte { h.GSOType = VNetGSOUDPL4; return b }), ErrOffload},
		{"ECN on UDP", change(func(b []byte, h *VNetHdr) []byte { h.GSOType = VNetGSOUDPL4 | VNetGSOECN; b[9] = 17; return b }), ErrOffload},
		{"start elsewhere", change(func(b []byte, h *VNetHdr) []byte { h.CsumStart++; return b }), ErrOffload},
		{"offset elsewhere", change(func(b []byte, h *VNetHdr) []byte { h.CsumOffset = 6; return b }), ErrOffload},
		{"fragment", change(func(b []byte, _ *VNetHdr) []byte { b[6] = 0x20; return b }), ErrOffload},
		{"not IP", change(func(b []byte, _ *VNetHdr) []byte { b[0] = 0; return b }), ErrVersion},
		{"cut", change(func(b []byte, _ *VNetHdr) []byte { return b[:100] }), ErrShort},
		{"TCP header length 16", change(func(b []byte, _ *VNetHdr) []byte { b[32] = 0x40; return b }), ErrHeader},
		{"TCP header cut", change(func(b []byte, _ *VNetHdr) []byte {
			binary.BigEndian.PutUint16(b[2:], 39)
			return b[:39]
		}), ErrShort},
		{"TCP options cut", change(func(b []byte, _ *VNetHdr) []byte {
			binary.BigEndian.PutUint16(b[2:], 51)
			return b[:51]
		}), ErrShort},
		{"UDP header cut", change(func(b []byte, h *VNetHdr) []byte {
			binary.BigEndian.PutUint16(b[2:], 27)
			b[9] = protoUDP
			h.GSOType, h.CsumOffset = VNetGSOUDPL4, 6
			return b[:27]
		}), ErrShort},
		{"endless extensions", func() ([]byte, VNetHdr) {
			_, _, s := superpacket(true, 0x10, 3000, 1000)
			s.first = protoDestOpts
			s.options = make([]byte, 2040)
			s.options[0], s.options[1] = protoTCP, 254
			return s.build(true), s.vnet(1000)
		}, ErrHeader},
		{"checksum behind the end", func() ([]byte, VNetHdr) {
			return unhex(t, echo4), VNetHdr{Flags: VNetNeedsCsum, CsumStart: 20, CsumOffset: 15}
		}, ErrOffload},
		{"start behind the end", func() ([]byte, VNetHdr) {
			return unhex(t, echo4), VNetHdr{Flags: VNetNeedsCsum, CsumStart: 0xffff, CsumOffset: 0xffff}
		}, ErrOffload},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			frame, h := tt.make()
			if _, err := split(t, frame, h); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// After an error, and after a frame left half read, a Splitter starts anew.
func TestSplitterAgain(t *testing.T) {
	var s Splitter
	if _, ok := s.Next(); ok {
		t.Fatal("the zero Splitter has a segment")
	}
	frame, h, _ := superpacket(false, 0x10, 5000, 1000)
	if err := s.Init(frame, h); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Next(); !ok {
		t.Fatal("no segment")
	}
	h.GSOSize = 0
	if err := s.Init(frame, h); !errors.Is(err, ErrOffload) {
		t.Fatal(err)
	}
	if _, ok := s.Next(); ok {
		t.Fatal("a segment after an error")
	}
	plain := unhex(t, echo4)
	if err := s.Init(plain, VNetHdr{}); err != nil {
		t.Fatal(err)
	}
	if seg, ok := s.Next(); !ok || !bytes.Equal(seg, plain) {
		t.Fatal("not the frame")
	}
}

func FuzzSplitter(f *testing.F) {
	add := func(frame []byte, h VNetHdr) {
		var b [VNetHdrLen]byte
		h.Encode(b[:])
		f.Add(b[:], frame)
	}
	for _, v6 := range []bool{false, true} {
		frame, h, s := superpacket(v6, 0x99, 300, 100)
		add(frame, h)
		s.proto, s.transport = protoUDP, s.transport[:8]
		add(s.build(true), s.vnet(100))
		add(s.build(true), VNetHdr{Flags: VNetNeedsCsum, CsumStart: uint16(s.headerLen()), CsumOffset: 6})
	}
	f.Fuzz(func(t *testing.T, hdr, frame []byte) {
		var h VNetHdr
		if h.Decode(hdr) != nil {
			return
		}
		got, err := split(t, frame, h)
		if err != nil {
			return
		}
		if h.GSOType == VNetGSONone {
			if len(got) != 1 || len(got[0]) != len(frame) {
				t.Fatalf("%d segments", len(got))
			}
			return
		}
		// Segments are as long as they say and hold the payload once, in order.
		var p Packet
		if err := p.Parse(frame); err != nil {
			t.Fatal(err)
		}
		headers := p.HeaderLen + 8
		if p.Proto == protoTCP {
			headers = p.HeaderLen + int(frame[p.HeaderLen+12]>>4)*4
		}
		var payload []byte
		for i, seg := range got {
			var q Packet
			if err := q.Parse(seg); err != nil || q.Len != len(seg) || q.Src != p.Src || q.Dst != p.Dst {
				t.Fatalf("segment %d: %+v, %v", i, q, err)
			}
			if n := len(seg) - headers; n > int(h.GSOSize) || n < int(h.GSOSize) && i < len(got)-1 {
				t.Fatalf("segment %d has %d bytes of payload", i, n)
			}
			payload = append(payload, seg[headers:]...)
		}
		if !bytes.Equal(payload, frame[headers:p.Len]) {
			t.Fatalf("payload changed")
		}
	})
}

// FuzzOpenChecksum leaves the checksums of what the kernel hands over open, as far as that can be, and completes them: it must come to
// the same as if they had been completed at once.
func FuzzOpenChecksum(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		frame, h, s := superpacket(v6, 0x99, 300, 100)
		var b [VNetHdrLen]byte
		h.Encode(b[:])
		f.Add(b[:], frame)
		h.GSOType = VNetGSONone
		h.Encode(b[:])
		f.Add(bytes.Clone(b[:]), frame)
		s.proto, s.transport = protoUDP, s.transport[:8]
		h = s.vnet(100)
		h.Encode(b[:])
		f.Add(bytes.Clone(b[:]), s.build(true))
	}
	f.Fuzz(func(t *testing.T, hdr, frame []byte) {
		var h VNetHdr
		var p Packet
		if h.Decode(hdr) != nil || p.Parse(frame) != nil {
			return
		}
		frame = frame[:p.Len]
		want, err := split(t, bytes.Clone(frame), h)
		s := new(Splitter)
		if openErr := s.InitOpen(bytes.Clone(frame), &p, h); (err == nil) != (openErr == nil) {
			t.Fatalf("%v, but open %v", err, openErr)
		}
		if err != nil {
			return
		}
		for i := 0; ; i++ {
			b, ok := s.Next()
			if !ok {
				if i != len(want) {
					t.Fatalf("%d segments, want %d", i, len(want))
				}
				return
			}
			var q Packet
			if err := q.Parse(b); err != nil {
				t.Fatal(err)
			}
			if s.Open() {
				// On the way nothing knows what the field holds.
				field, ok := q.Checksum(b)
				if !ok || !CompleteChecksum(b, &q) {
					t.Fatalf("left open for good: %x", b)
				}
				framed := append(make([]byte, VNetHdrLen), b...)
				if !OpenChecksum(framed, &q) {
					t.Fatal("cannot be left to the kernel")
				}
				transport := b[q.HeaderLen:]
				if got := slowSum(pseudoHeader(q.Src, q.Dst, q.Proto, len(transport)), transport); got != 0xffff {
					t.Fatalf("completed to %#x: %x", got, b)
				}
				if h.GSOType == VNetGSONone { // the sum that the kernel began with is its own affair
					want[i][field], want[i][field+1] = b[field], b[field+1]
				}
			}
			if h.GSOType == VNetGSONone && !bytes.Equal(b, want[i]) || len(b) != len(want[i]) {
				t.Fatalf("segment %d\n got %x\nwant %x", i, b, want[i])
			}
		}
	})
}

func BenchmarkSplitter(b *testing.B) {
	run := func(name string, frame []byte, h VNetHdr) {
		b.Run(name, func(b *testing.B) {
			var s Splitter
			work := make([]byte, len(frame))
			b.SetBytes(int64(len(frame)))
			for b.Loop() {
				// The headers are spoilt by every round; restore those of the first.
				copy(work, frame[:min(len(frame), 128)])
				if err := s.Init(work, h); err != nil {
					b.Fatal(err)
				}
				for {
					if _, ok := s.Next(); !ok {
						break
					}
				}
			}
		})
	}
	for _, v6 := range []bool{false, true} {
		frame, h, s := superpacket(v6, 0x10, 45*1368, 1368)
		family := map[bool]string{false: "4", true: "6"}[v6]
		run("TSO"+family, frame, h)
		s.proto, s.transport = protoUDP, s.transport[:8]
		run("USO"+family, s.build(true), s.vnet(1368))
	}
	frame, h, _ := superpacket(false, 0x10, 1368, 1368)
	h.GSOType = VNetGSONone
	run("checksum", frame, h)
	run("nothing", frame, VNetHdr{})
}
