// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// slowSum is the one's complement sum as RFC 1071 §1 words it: pairs of bytes
// as 16-bit numbers, an odd one padded with zero.
func slowSum(parts ...[]byte) uint16 {
	all := bytes.Join(parts, nil)
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	var acc uint32
	for i := 0; i < len(all); i += 2 {
		acc += uint32(all[i])<<8 | uint32(all[i+1])
		if acc > 0xffff {
			acc = acc - 0x10000 + 1
		}
	}
	return uint16(acc)
}

// pseudoHeader returns RFC 9293 §3.1's and RFC 8200 §8.1's pseudo header.
func pseudoHeader(src, dst netip.Addr, proto uint8, length int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	if src.Is4() {
		b = append(b, 0, proto)
		return binary.BigEndian.AppendUint16(b, uint16(length))
	}
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return append(b, 0, 0, 0, proto)
}

// verify fails the test unless the IPv4 header checksum and the TCP, UDP or
// ICMP checksum of the whole packet b are right. final is the destination for
// the pseudo header if a routing header names another than the IP header.
func verify(t rapid.TB, b []byte, final netip.Addr) {
	t.Helper()
	var p Packet
	if err := p.Parse(b); err != nil {
		t.Fatalf("parse: %v\n%x", err, b)
	}
	if p.Len != len(b) {
		t.Fatalf("length field %d, packet has %d", p.Len, len(b))
	}
	if p.Src.Is4() {
		if s := slowSum(b[:b[0]&0xf*4]); s != 0xffff {
			t.Fatalf("IP header sums to %#x\n%x", s, b)
		}
	}
	if !final.IsValid() {
		final = p.Dst
	}
	payload := b[p.HeaderLen:]
	var pseudo []byte
	switch p.Proto {
	case protoTCP, protoUDP, protoICMPv6:
		pseudo = pseudoHeader(p.Src, final, p.Proto, len(payload))
	case protoICMP:
	default:
		t.Fatalf("protocol %d has no checksum", p.Proto)
	}
	if p.Proto == protoUDP {
		if payload[6] == 0 && payload[7] == 0 {
			t.Fatalf("UDP checksum missing")
		}
		if n := int(binary.BigEndian.Uint16(payload[4:])); n != len(payload) {
			t.Fatalf("UDP length %d, datagram has %d", n, len(payload))
		}
	}
	if s := slowSum(pseudo, payload); s != 0xffff {
		t.Fatalf("transport sums to %#x\n%x", s, b)
	}
}

// A spec describes a packet; build makes it byte by byte.
type spec struct {
	src, dst, final netip.Addr // final: see verify
	tos, ttl        uint8
	id, fragment    uint16 // IPv4
	options         []byte // IPv4 options, or IPv6 extension headers
	first           uint8  // IPv6: first extension header, 0 and no options: none
	proto           uint8
	transport       []byte // with room for a checksum
	payload         []byte
}

// headerLen is the length of the IP header and all that follows it up to the
// transport header.
func (s *spec) headerLen() int {
	if s.src.Is4() {
		return 20 + len(s.options)
	}
	return 40 + len(s.options)
}

// build returns the packet; the checksum of the transport header is complete,
// or, if partial, only the sum of the pseudo header, as the kernel leaves it.
func (s *spec) build(partial bool) []byte {
	var b []byte
	length := len(s.transport) + len(s.payload)
	if s.src.Is4() {
		b = append(b, 0x40|uint8(s.headerLen()/4), s.tos)
		b = binary.BigEndian.AppendUint16(b, uint16(s.headerLen()+length))
		b = binary.BigEndian.AppendUint16(b, s.id)
		b = binary.BigEndian.AppendUint16(b, s.fragment)
		b = append(b, s.ttl, s.proto, 0, 0)
		b = append(b, s.src.AsSlice()...)
		b = append(b, s.dst.AsSlice()...)
		b = append(b, s.options...)
		binary.BigEndian.PutUint16(b[10:], ^slowSum(b))
	} else {
		next := s.proto
		if len(s.options) > 0 {
			next = s.first
		}
		b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(s.tos)<<20|0x12345)
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.options)+length))
		b = append(b, next, s.ttl)
		b = append(b, s.src.AsSlice()...)
		b = append(b, s.dst.AsSlice()...)
		b = append(b, s.options...)
	}
	at := len(b)
	b = append(b, s.transport...)
	b = append(b, s.payload...)
	field := at + checksumOffset(s.proto)
	if field == at {
		return b
	}
	final := s.dst
	if s.final.IsValid() {
		final = s.final
	}
	pseudo := pseudoHeader(s.src, final, s.proto, length)
	b[field], b[field+1] = 0, 0
	if partial {
		binary.BigEndian.PutUint16(b[field:], slowSum(pseudo))
		return b
	}
	v := ^slowSum(pseudo, b[at:])
	if v == 0 && s.proto == protoUDP {
		v = 0xffff
	}
	binary.BigEndian.PutUint16(b[field:], v)
	return b
}

// checksumOffset is where a transport header keeps its checksum, 0 if nowhere.
func checksumOffset(proto uint8) int {
	switch proto {
	case protoTCP:
		return 16
	case protoUDP:
		return 6
	case protoICMP, protoICMPv6:
		return 2
	}
	return 0
}

// slowSplit makes the segments of a superpacket one after the other in memory
// of their own, each with build.
func slowSplit(s spec, size int) [][]byte {
	var out [][]byte
	for at := 0; ; at += size {
		end := min(at+size, len(s.payload))
		seg := s
		seg.id = s.id + uint16(len(out))
		seg.payload = s.payload[at:end]
		seg.transport = bytes.Clone(s.transport)
		if s.proto == protoTCP {
			seq := binary.BigEndian.Uint32(s.transport[4:])
			binary.BigEndian.PutUint32(seg.transport[4:], seq+uint32(at))
			if at > 0 {
				seg.transport[13] &^= 0x80
			}
			if end < len(s.payload) {
				seg.transport[13] &^= 0x09
			}
		} else {
			binary.BigEndian.PutUint16(seg.transport[4:], uint16(8+end-at))
		}
		out = append(out, seg.build(false))
		if end >= len(s.payload) {
			return out
		}
	}
}

// pattern returns n bytes that depend on seed.
func pattern(seed uint64, n int) []byte {
	r := rand.NewPCG(seed, 1)
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

// drawBytes draws a slice without asking rapid for every byte of it.
func drawBytes(t *rapid.T, n int, label string) []byte {
	return pattern(rapid.Uint64().Draw(t, label), n)
}

// drawSpec draws a packet of TCP or UDP with at most maxPayload bytes.
func drawSpec(t *rapid.T, maxPayload int) spec {
	s := spec{
		tos:   rapid.Byte().Draw(t, "tos"),
		ttl:   rapid.Uint8Range(1, 255).Draw(t, "ttl"),
		id:    rapid.Uint16().Draw(t, "id"),
		proto: rapid.SampledFrom([]uint8{protoTCP, protoUDP}).Draw(t, "proto"),
	}
	s.payload = drawBytes(t, rapid.IntRange(0, maxPayload).Draw(t, "length"), "payload")
	if rapid.Bool().Draw(t, "v6") {
		s.src = netip.AddrFrom16([16]byte(append([]byte{0xfd}, drawBytes(t, 15, "src")...)))
		s.dst = netip.AddrFrom16([16]byte(append([]byte{0xfd}, drawBytes(t, 15, "dst")...)))
		drawExtensions(t, &s)
	} else {
		s.src = netip.AddrFrom4([4]byte(append([]byte{10}, drawBytes(t, 3, "src")...)))
		s.dst = netip.AddrFrom4([4]byte(append([]byte{10}, drawBytes(t, 3, "dst")...)))
		s.options = drawBytes(t, 4*rapid.IntRange(0, 10).Draw(t, "option words"), "options")
		if rapid.Bool().Draw(t, "df") {
			s.fragment = 0x4000
		}
	}
	if s.proto == protoTCP {
		s.transport = drawBytes(t, 20+4*rapid.IntRange(0, 10).Draw(t, "tcp option words"), "tcp")
		s.transport[12] = uint8(len(s.transport)/4) << 4
		s.transport[13] = rapid.Byte().Draw(t, "flags")
	} else {
		s.transport = drawBytes(t, 8, "udp")
		binary.BigEndian.PutUint16(s.transport[4:], uint16(8+len(s.payload)))
	}
	return s
}

// drawExtensions gives s up to four extension headers.
func drawExtensions(t *rapid.T, s *spec) {
	next := &s.first
	for range rapid.IntRange(0, 4).Draw(t, "extensions") {
		kind := rapid.SampledFrom([]uint8{
			protoHopByHop, protoRouting, protoDestOpts, protoAH, protoMobility, protoHIP, protoShim6, protoFragment,
		}).Draw(t, "kind")
		*next = kind
		var h []byte
		switch kind {
		case protoFragment: // atomic
			h = []byte{0, 0, 0, 0, 1, 2, 3, 4}
		case protoAH:
			n := rapid.Uint8Range(1, 9).Draw(t, "words")
			h = drawBytes(t, (int(n)+2)*4, "extension")
			h[1] = n
		case protoRouting: // one more address to visit
			h = drawBytes(t, 24, "extension")
			h[1], h[2], h[3] = 2, 0, 1
			s.final = netip.AddrFrom16([16]byte(h[8:]))
		default:
			n := rapid.Uint8Range(0, 9).Draw(t, "words")
			h = drawBytes(t, (int(n)+1)*8, "extension")
			h[1] = n
		}
		at := len(s.options)
		s.options = append(s.options, h...)
		next = &s.options[at]
	}
	*next = s.proto
}

// vnet returns the offload header of the superpacket s.
func (s *spec) vnet(size int) VNetHdr {
	h := VNetHdr{
		Flags:      VNetNeedsCsum,
		GSOSize:    uint16(size),
		CsumStart:  uint16(s.headerLen()),
		CsumOffset: uint16(checksumOffset(s.proto)),
	}
	switch {
	case s.proto == protoUDP:
		h.GSOType = VNetGSOUDPL4
	case s.src.Is4():
		h.GSOType = VNetGSOTCPv4
	default:
		h.GSOType = VNetGSOTCPv6
	}
	if s.proto == protoTCP && s.transport[13]&0x80 != 0 {
		h.GSOType |= VNetGSOECN
	}
	return h
}

func TestSlowSum(t *testing.T) {
	// The example of RFC 1071 §3.
	if got := slowSum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != 0xddf2 {
		t.Errorf("sum %#x, RFC 1071 says 0xddf2", got)
	}
}
