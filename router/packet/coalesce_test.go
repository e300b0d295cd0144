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

const largest = 16 << 10 // packet in these tests

// coalesce runs packets through a Coalescer, each followed by padding, and returns copies of the frames with their headers. unwanted
// tells after which packets another is written to the space and dropped.
func coalesce(t rapid.TB, c *Coalescer, packets [][]byte, open bool, unwanted func(i int) bool) (frames [][]byte) {
	t.Helper()
	take := func() {
		if f := c.Take(); f != nil {
			frames = append(frames, bytes.Clone(f))
		}
	}
	for i, b := range packets {
		space := c.Space()
		if len(space) != 0 || cap(space) < largest {
			t.Fatalf("space of %d, %d", len(space), cap(space))
		}
		full := append(space, b...)
		full = append(full, make([]byte, -len(b)&15)...)
		if &full[:1][0] != &space[:1][0] {
			t.Fatal("the space was too small")
		}
		var p Packet
		if err := p.Parse(full); err != nil {
			t.Fatalf("%v: %x", err, b)
		}
		_, allowed := p.Checksum(full)
		if !c.Add(&p, open && allowed) {
			take()
			if !c.Add(&p, open && allowed) {
				t.Fatal("refused twice")
			}
		}
		if unwanted != nil && unwanted(i) {
			_ = append(c.Space(), bytes.Repeat([]byte{0xee}, 1+i%90)...)
			c.Drop()
		}
		if c.Done() {
			take()
			if c.Done() {
				t.Fatal("done after Take")
			}
		}
	}
	take()
	if c.Take() != nil {
		t.Fatal("a frame after the last")
	}
	return frames
}

// apart cuts frames as their offload headers say, and returns how many packets each had.
func apart(t rapid.TB, frames [][]byte) (packets [][]byte, counts []int) {
	t.Helper()
	for _, f := range frames {
		var h VNetHdr
		if err := h.Decode(f); err != nil {
			t.Fatal(err)
		}
		segments, err := split(t, f[VNetHdrLen:], h)
		if err != nil {
			t.Fatalf("%v: %+v %.80x", err, h, f)
		}
		if (h.GSOType == VNetGSONone) != (len(segments) == 1) {
			t.Fatalf("%d segments of type %d", len(segments), h.GSOType)
		}
		packets = append(packets, segments...)
		counts = append(counts, len(segments))
	}
	return packets, counts
}

func newCoalescer() *Coalescer {
	c := new(Coalescer)
	c.Init(make([]byte, CoalescerBuffer(largest)), true, true)
	return c
}

// joins is the oracle: the packets may be one superpacket if one exists of which slowSplit makes just them.
func joins(specs []spec, built [][]byte) bool {
	first := specs[0]
	if len(specs) == 1 {
		return true
	}
	if len(first.options) > 0 || first.src.Is4() && first.fragment&0x3fff != 0 || len(first.payload) == 0 {
		return false
	}
	whole := first
	whole.payload, whole.transport = nil, bytes.Clone(first.transport)
	for i := range specs {
		if len(specs[i].payload) == 0 || len(specs[i].transport) != len(first.transport) {
			return false
		}
		whole.payload = append(whole.payload, specs[i].payload...)
		if first.proto == protoTCP {
			flags := specs[i].transport[13]
			if flags&(0x02|0x04|0x20|0x80) != 0 {
				return false
			}
			whole.transport[13] |= flags & 0x09
		}
	}
	if whole.headerLen()+len(whole.transport)+len(whole.payload) > 65535 || first.proto == protoUDP && len(specs) > 64 {
		return false
	}
	want := slowSplit(whole, len(first.payload))
	if len(want) != len(built) {
		return false
	}
	for i := range want {
		if !bytes.Equal(want[i], built[i]) {
			return false
		}
	}
	return true
}

// drawStream draws packets of which many continue one another, and what may come in between.
func drawStream(t *rapid.T) (specs []spec, built [][]byte) {
	base := drawSpec(t, 3000)
	if rapid.IntRange(0, 9).Draw(t, "plain") > 0 {
		base.options, base.final, base.fragment = nil, netip.Addr{}, 0x4000
	}
	if base.proto == protoTCP && rapid.IntRange(0, 9).Draw(t, "ordinary") > 0 {
		base.transport[13] = 0x10
	}
	next := base
	for range rapid.IntRange(1, 80).Draw(t, "packets") {
		s := next
		s.transport, s.options = bytes.Clone(next.transport), bytes.Clone(next.options)
		bad := -1
		kind := rapid.IntRange(0, 60).Draw(t, "kind")
		switch kind {
		case 0:
			s.payload = s.payload[:len(s.payload)/2] // short
		case 1:
			s.payload = append(bytes.Clone(s.payload), 1) // long
		case 2:
			s.payload = nil
		case 3:
			s.tos ^= 1
		case 4:
			s.ttl++
		case 5:
			s.id++
		case 6:
			s.fragment ^= 0x8000 >> rapid.IntRange(0, 15).Draw(t, "bit")
			s.fragment &= 0xe000
		case 7, 8, 9, 10, 11, 12:
			i := rapid.IntRange(0, len(s.transport)-1).Draw(t, "byte")
			if i != 12 || s.proto != protoTCP {
				s.transport[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			}
		case 13, 14, 15, 16, 17:
			if s.proto == protoTCP {
				s.transport[13] ^= []byte{0x01, 0x08, 0x80, 0x40, 0x20}[kind-13]
			}
		case 18:
			s.proto = protoTCP + protoUDP - s.proto // another kind, with the bytes that happen to be there
			s.transport = bytes.Clone(pattern(7, 20))
			s.transport[12], s.transport[13] = 0x50, 0x10
			if s.proto == protoUDP {
				s.transport = s.transport[:8]
			}
		case 19:
			other := s.src.As16()
			other[15] ^= 1
			s.src = netip.AddrFrom16(other)
			if s.dst.Is4() {
				s.src = s.src.Unmap()
			}
		case 20, 21:
			bad = rapid.IntRange(0, 1<<16).Draw(t, "bad")
		}
		if s.proto == protoUDP && kind > 12 {
			binary.BigEndian.PutUint16(s.transport[4:], uint16(8+len(s.payload)))
		}
		b := s.build(false)
		if bad >= 0 && len(s.payload) > 0 { // of which the oracle does not know
			b[len(b)-1-bad%len(s.payload)] ^= 1
		}
		specs, built = append(specs, s), append(built, b)
		if kind != 18 && kind != 19 && rapid.IntRange(0, 20).Draw(t, "again") > 0 {
			next = s
			next.payload = base.payload
			next.id++
			if base.proto == protoTCP {
				seq := binary.BigEndian.Uint32(s.transport[4:])
				next.transport = bytes.Clone(s.transport)
				binary.BigEndian.PutUint32(next.transport[4:], seq+uint32(len(s.payload)))
			} else {
				next.transport = bytes.Clone(base.transport)
			}
		}
	}
	return specs, built
}

// What was joined comes apart into the very same packets, and all is joined that can be.
func TestCoalesceRapid(t *testing.T) {
	c := newCoalescer()
	rapid.Check(t, func(t *rapid.T) {
		specs, built := drawStream(t)
		spoil := rapid.Bool().Draw(t, "spoil")
		frames := coalesce(t, c, built, false, func(i int) bool { return spoil && i%3 == 1 })
		got, counts := apart(t, frames)
		checkSegments(t, got, built)
		at := 0
		for _, n := range counts {
			if !joins(specs[at:at+n], built[at:at+n]) {
				t.Fatalf("packets %d to %d were joined\n%x", at, at+n-1, built[at:at+n])
			}
			if end := at + n; end < len(specs) && joins(specs[at:end+1], built[at:end+1]) {
				t.Fatalf("packet %d could have been joined to the %d before it\n%x\n%x", end, n, built[end-1], built[end])
			}
			at += n
		}
	})
}

// The same with checksums left open, which come out complete.
func TestCoalesceOpenRapid(t *testing.T) {
	c := newCoalescer()
	rapid.Check(t, func(t *rapid.T) {
		specs, built := drawStream(t)
		var open [][]byte
		for i := range built {
			b := bytes.Clone(built[i])
			var p Packet
			if err := p.Parse(b); err != nil {
				t.Fatal(err)
			}
			if field, ok := p.Checksum(b); ok {
				b[field], b[field+1] = 0xde, 0xad
				CompleteChecksum(built[i], &p) // those that were wrong
			}
			open = append(open, b)
		}
		got, counts := apart(t, coalesce(t, c, open, true, nil))
		checkSegments(t, got, built)
		if len(counts) > len(specs) {
			t.Fatal(counts)
		}
	})
}

// A splitter's open segments are what a coalescer makes one again.
func TestSplitOpenRapid(t *testing.T) {
	c := newCoalescer()
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t, 60000)
		size := rapid.SampledFrom([]int{0, 1000, 1368, 1448}).Draw(t, "size")
		if size == 0 {
			s.payload = s.payload[:min(len(s.payload), 8000)]
			if s.proto == protoUDP {
				binary.BigEndian.PutUint16(s.transport[4:], uint16(8+len(s.payload)))
			}
		}
		h := s.vnet(size)
		if size == 0 {
			h.GSOType = VNetGSONone
		}
		frame := s.build(true)
		want, err := split(t, frame, h)
		if err != nil {
			t.Fatal(err)
		}
		var p Packet
		if err := p.Parse(frame); err != nil {
			t.Fatal(err)
		}
		_, allowed := p.Checksum(frame)
		sp := new(Splitter)
		if err := sp.InitOpen(frame, &p, h); err != nil || sp.Open() != allowed {
			t.Fatalf("%v, open %v, allowed %v", err, sp.Open(), allowed)
		}
		var segments [][]byte
		for b, ok := sp.Next(); ok; b, ok = sp.Next() {
			segments = append(segments, bytes.Clone(b))
		}
		got, _ := apart(t, coalesce(t, c, segments, sp.Open(), nil))
		checkSegments(t, got, want)
		for i := range segments {
			var q Packet
			if err := q.Parse(segments[i]); err != nil {
				t.Fatal(err)
			}
			if allowed {
				frame := append(make([]byte, VNetHdrLen), segments[i]...)
				var h VNetHdr
				if !OpenChecksum(frame, &q) || h.Decode(frame) != nil {
					t.Fatal("not to be left open any more")
				}
				alone, err := split(t, frame[VNetHdrLen:], h)
				if err != nil {
					t.Fatal(err)
				}
				checkSegments(t, alone, want[i:i+1])
			}
			if CompleteChecksum(segments[i], &q) != allowed {
				t.Fatal("completed what was not open")
			}
		}
		checkSegments(t, segments, want)
	})
}

// The kernel cuts what was joined into the same packets too.
func TestCoalesceAgainstKernel(t *testing.T) { againstKernel(t, testCoalesceAgainstKernel) }

func testCoalesceAgainstKernel(t *testing.T, k *kernelSplitter) {
	c := newCoalescer()
	rapid.Check(t, func(t *rapid.T) {
		s := drawRoutable(t)
		s.options = nil
		size := rapid.SampledFrom([]int{100, 536, 1368, 1448, 8000}).Draw(t, "size")
		s.payload = pattern(uint64(len(s.payload)), min(50000, size*rapid.IntRange(2, 60).Draw(t, "segments")-len(s.payload)%size))
		if s.proto == protoTCP {
			s.transport[13] &= 0x59
		}
		packets := slowSplit(s, size)
		s.ttl--
		want := slowSplit(s, size)
		var got [][]byte
		for _, f := range coalesce(t, c, packets, rapid.Bool().Draw(t, "open"), nil) {
			var h VNetHdr
			if err := h.Decode(f); err != nil {
				t.Fatal(err)
			}
			_, counts := apart(t, [][]byte{bytes.Clone(f)})
			got = append(got, k.split(t, h, f[VNetHdrLen:], s.dst, counts[0])...)
		}
		checkSegments(t, got, want)
	})
}

// flow returns n packets of a stream, each of size bytes of payload.
func flow(v6 bool, proto uint8, n, size int) [][]byte {
	s := spec{
		src: netip.MustParseAddr("10.32.0.1"), dst: netip.MustParseAddr("10.32.0.2"),
		ttl: 64, id: 7, fragment: 0x4000, proto: proto, transport: make([]byte, 32), payload: pattern(3, n*size),
	}
	if v6 {
		s.src, s.dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	}
	s.transport[12], s.transport[13] = 0x80, 0x10
	if proto == protoUDP {
		s.transport = []byte{1, 2, 3, 4, 0, 0, 0, 0}
	}
	return slowSplit(s, size)
}

// marked returns a packet with another ECN field and the right checksum.
func marked(t testing.TB, b []byte, ecn uint8) []byte {
	t.Helper()
	var p Packet
	if err := p.Parse(b); err != nil {
		t.Fatal(err)
	}
	setECN(b, &p, ecn)
	return b
}

// flagged returns the packets of a stream with these TCP flags; bit 8 is AE (RFC 9768 §3.1).
func flagged(t testing.TB, flags ...uint16) [][]byte {
	t.Helper()
	packets := flow(false, protoTCP, len(flags), 1000)
	for i, b := range packets {
		var p Packet
		if err := p.Parse(b); err != nil {
			t.Fatal(err)
		}
		b[p.HeaderLen+12] |= byte(flags[i] >> 8)
		b[p.HeaderLen+13] = byte(flags[i])
		CompleteChecksum(b, &p)
	}
	return packets
}

// What can be joined is, to the limits, and two flows that alternate are not.
func TestCoalesceCounts(t *testing.T) {
	other := func(b [][]byte) [][]byte {
		for i := range b {
			var p Packet
			if err := p.Parse(b[i]); err != nil {
				t.Fatal(err)
			}
			b[i][p.HeaderLen]++
			CompleteChecksum(b[i], &p)
		}
		return b
	}
	var alternate, runs [][]byte
	one, two := flow(false, protoTCP, 6, 1000), other(flow(false, protoTCP, 6, 1000))
	for i := range one {
		alternate = append(alternate, one[i], two[i])
	}
	congested := flow(false, protoTCP, 5, 1000)
	for i := range congested {
		congested[i] = marked(t, congested[i], []uint8{ECT0, ECT0, CE, CE, ECT0}[i])
	}
	runs = append(append(append(append(runs, one[:3]...), two...), one[3:]...), flow(true, protoUDP, 3, 10)...)
	for _, tt := range []struct {
		name     string
		packets  [][]byte
		tcp, udp bool
		want     []int
	}{
		{"TCP", flow(false, protoTCP, 60, 1368), true, false, []int{47, 13}},
		{"TCPv6", flow(true, protoTCP, 60, 1348), true, false, []int{48, 12}},
		{"UDP", flow(false, protoUDP, 70, 100), false, true, []int{64, 6}},
		{"UDPv6", flow(true, protoUDP, 50, 1360), false, true, []int{48, 2}},
		{"no TCP", flow(false, protoTCP, 3, 1000), false, true, []int{1, 1, 1}},
		{"no UDP", flow(false, protoUDP, 3, 1000), true, false, []int{1, 1, 1}},
		{"small UDPv6", flow(true, protoUDP, 3, 10), true, true, []int{3}},
		{"alternating", alternate, true, true, []int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
		{"runs", runs, true, true, []int{3, 6, 3, 3}},
		{"congestion marks", congested, true, true, []int{2, 2, 1}},
		{"CWR once", flagged(t, 0x90, 0x10, 0x10, 0x10), true, true, []int{1, 3}},
		{"CWR late", flagged(t, 0x10, 0x10, 0x90, 0x10), true, true, []int{2, 1, 1}},
		{"ECE from the third on", flagged(t, 0x10, 0x10, 0x50, 0x50), true, true, []int{2, 2}},
		{"accurate ECN counts", flagged(t, 0x110, 0x110, 0x150, 0x190, 0x190, 0x010), true, true, []int{2, 1, 1, 1, 1}},
		{"large and small", append(flow(false, protoTCP, 2, 9000), flow(true, protoUDP, 2, 1)...), true, true, []int{2, 2}},
	} {
		c := newCoalescer()
		c.Init(c.buf, tt.tcp, tt.udp)
		got, counts := apart(t, coalesce(t, c, tt.packets, false, nil))
		checkSegments(t, got, tt.packets)
		if fmt.Sprint(counts) != fmt.Sprint(tt.want) {
			t.Errorf("%s: frames of %v, want %v", tt.name, counts, tt.want)
		}
	}
}

// FuzzCoalescer cuts the input into packets, each behind a length of two bytes, and expects them back.
func FuzzCoalescer(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, proto := range []uint8{protoTCP, protoUDP} {
			var in []byte
			for _, b := range flow(v6, proto, 4, 50) {
				in = append(binary.BigEndian.AppendUint16(in, uint16(len(b))), b...)
			}
			f.Add(in, false)
			f.Add(in, true)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, open bool) {
		var packets, want [][]byte
		for len(in) > 2 {
			n := min(int(binary.BigEndian.Uint16(in)), len(in)-2, largest-16)
			b := bytes.Clone(in[2 : 2+n])
			in = in[2+n:]
			var p Packet
			if p.Parse(b) != nil {
				continue
			}
			b = b[:p.Len]
			packets = append(packets, b)
			done := bytes.Clone(b)
			if open {
				CompleteChecksum(done, &p)
			}
			want = append(want, done)
		}
		got, _ := apart(t, coalesce(t, newCoalescer(), packets, open, nil))
		if !open {
			checkSegments(t, got, want)
			return
		}
		// Of the two ways to write a checksum of zero the splitter chooses one for each kind of segment.
		if len(got) != len(want) {
			t.Fatalf("%d packets, want %d", len(got), len(want))
		}
		for i := range got {
			var p Packet
			if err := p.Parse(got[i]); err != nil {
				t.Fatal(err)
			}
			CompleteChecksum(got[i], &p)
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("packet %d\n got %x\nwant %x", i, got[i], want[i])
			}
		}
	})
}

func BenchmarkCoalescer(b *testing.B) {
	for _, open := range []bool{false, true} {
		b.Run(fmt.Sprintf("open %v", open), func(b *testing.B) {
			packets := flow(false, protoTCP, 47, 1368)
			c := newCoalescer()
			b.SetBytes(47 * 1408)
			b.ReportAllocs()
			for b.Loop() {
				run(c, packets, open)
			}
		})
	}
}

// run is coalesce without the checks.
func run(c *Coalescer, packets [][]byte, open bool) (frames int) {
	for _, b := range packets {
		var p Packet
		if p.Parse(append(c.Space(), b...)) != nil {
			c.Drop()
			continue
		}
		if !c.Add(&p, open) {
			c.Take()
			frames++
			c.Add(&p, open)
		}
	}
	c.Take()
	return frames + 1
}
