// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router/routertest"
)

// header4 puts an IPv4 header with options before what follows it.
func header4(src, dst netip.Addr, proto byte, fragment uint16, options, rest []byte) []byte {
	b := make([]byte, 20, 20+len(options)+len(rest))
	b = append(b, options...)
	b[0], b[8], b[9] = 0x40|byte(len(b)/4), 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(rest)))
	binary.BigEndian.PutUint16(b[4:], 0xbeef)
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^checksum(0, b))
	return append(b, rest...)
}

// header6 puts an IPv6 header before what follows it, which begins with a header of the type next.
func header6(src, dst netip.Addr, next byte, rest []byte) []byte {
	b := make([]byte, 40, 40+len(rest))
	b[0], b[3], b[6], b[7] = 0x60, 0x77, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, rest...)
}

// inner returns what follows the IP header of one that udp, tcp or ip has made.
func inner(b []byte) []byte {
	if b[0]>>4 == 4 {
		return b[20:]
	}
	return b[40:]
}

// kinds are packets of all kinds from one workload to another, in each family.
func kinds() (all [][]byte) {
	s4, d4, s6, d6 := addr4(1, 9), addr4(2, 9), addr6(1, 9), addr6(2, 9)
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		return b
	}
	for _, options := range [][]byte{{1, 1, 1, 0}, {0x94, 4, 0, 0}, {7, 7, 4, 0, 0, 0, 0, 0}, noise(40)} {
		all = append(all,
			header4(s4, d4, 17, 0x4000, options, inner(udp(s4, d4, "options"))),
			header4(s4, d4, 6, 0, options, inner(tcp(s4, d4, 0x10, 0, "options"))))
	}
	for _, fragment := range []uint16{0x2000, 0x2000 | 40, 80, 0x1fff, 0x8000} { // the last has the reserved bit
		all = append(all, header4(s4, d4, 17, fragment, nil, noise(320)), header4(s4, d4, 6, fragment, nil, noise(321)))
	}
	extensions := []struct {
		first byte
		b     []byte
	}{
		{0, []byte{17, 0, 1, 4, 0, 0, 0, 0}},                                                     // hop by hop
		{60, []byte{17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},                           // for the destination
		{44, []byte{17, 0, 0, 1, 9, 9, 9, 9}},                                                    // first fragment
		{44, []byte{17, 0, 1, 64, 9, 9, 9, 9}},                                                   // last fragment
		{43, []byte{17, 0, 253, 0, 0, 0, 0, 0}},                                                  // routing, of a type that nobody knows, at its end
		{0, []byte{60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0}},                            // two
		{51, []byte{17, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}, // authentication
	}
	for _, x := range extensions {
		all = append(all, header6(s6, d6, x.first, append(bytes.Clone(x.b), inner(udp(s6, d6, "extension"))...)))
	}
	for family := range 2 {
		src, dst := s4, d4
		other := func(proto byte, rest []byte) []byte { return header4(src, dst, proto, 0x4000, nil, rest) }
		if family == 1 {
			src, dst = s6, d6
			other = func(proto byte, rest []byte) []byte { return header6(src, dst, proto, rest) }
		}
		for _, flags := range []byte{0, 0x02, 0xc2, 0x12, 0x52, 0x10, 0x18, 0x11, 0x19, 0x14, 0x04, 0x30, 0x38, 0x50, 0x90, 0xd0, 0xd8, 0xff} {
			for _, accurate := range []byte{0, 1} { // the AE bit of AccECN (RFC 9768)
				for _, options := range [][]byte{nil, {1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}, {1, 1, 5, 10, 0, 0, 0, 5, 0, 0, 0, 9}, {253, 4, 1, 2}} {
					s := make([]byte, 20, 80)
					binary.BigEndian.PutUint32(s[4:], rand.Uint32())
					s = append(s, options...)
					s[12], s[13] = byte(len(s)/4<<4)|accurate, flags
					copy(s[14:], []byte{1, 0, 0, 0, 0, 7}) // window and urgent pointer
					all = append(all, ip(src, dst, 6, append(s, noise(int(rand.Uint32()%5))...), 16))
				}
			}
		}
		for _, size := range []int{0, 1, 2, 3, 255, 1200, 1201} {
			all = append(all, udp(src, dst, string(noise(size))), tcp(src, dst, 0x18, 0, string(noise(size))))
		}
		wrong := udp(src, dst, "a wrong checksum stays wrong")
		inner(wrong)[6] ^= 0x55
		all = append(all, wrong)
		wrong = tcp(src, dst, 0x10, 0, "a wrong checksum stays wrong")
		inner(wrong)[17] ^= 0x55
		all = append(all, wrong)
		if family == 0 {
			none := udp(src, dst, "no checksum")
			inner(none)[6], inner(none)[7] = 0, 0
			all = append(all, none)
		}
		for _, proto := range []byte{1, 2, 4, 41, 47, 50, 58, 59, 89, 132, 136, 253, 255} { // ICMP, IGMP, tunnels, SCTP, UDP-Lite, experiments
			all = append(all, other(proto, noise(64)), other(proto, noise(65)))
		}
		echo := []byte{8, 0, 0, 0, 1, 1, 0, 1, 'p', 'i', 'n', 'g'}
		all = append(all, other(1, echo), other(132, nil), other(6, noise(19)), other(17, noise(7)))
	}
	return all
}

// streams are segments of several TCP streams and runs of UDP datagrams whose last is shorter, as a sender makes them.
func streams() (all [][][]byte) {
	for f := range 4 {
		src, dst := addr4(1, 20+f), addr4(2, 9)
		if f%2 == 1 {
			src, dst = addr6(1, 20+f), addr6(2, 9)
		}
		var stream, run [][]byte
		seq := rand.Uint32()
		for i := range 40 {
			n := 700
			if i%13 == 12 || i == 39 {
				n = 33
			}
			data := bytes.Repeat([]byte{byte(i)}, n)
			flags := byte(0x10)
			if n < 700 {
				flags = 0x18
			}
			s := tcp(src, dst, flags, 0, string(data))
			binary.BigEndian.PutUint32(inner(s)[4:], seq)
			if src.Is4() {
				binary.BigEndian.PutUint16(s[4:], uint16(i))
				s[10], s[11] = 0, 0
				binary.BigEndian.PutUint16(s[10:], ^checksum(0, s[:20]))
			}
			inner(s)[16], inner(s)[17] = 0, 0
			binary.BigEndian.PutUint16(inner(s)[16:], ^checksum(pseudo(src, dst, 6, len(inner(s))), inner(s)))
			seq += uint32(n)
			stream = append(stream, s)
			run = append(run, udp(src, dst, string(data)))
		}
		all = append(all, stream, run)
	}
	return all
}

// interleave mixes lists at random and keeps the order of each.
func interleave(lists ...[][]byte) (all [][]byte) {
	for len(lists) > 0 {
		i := rand.IntN(len(lists))
		n := min(len(lists[i]), 1+rand.IntN(6))
		all = append(all, lists[i][:n]...)
		if lists[i] = lists[i][n:]; len(lists[i]) == 0 {
			lists = append(lists[:i], lists[i+1:]...)
		}
	}
	return all
}

// Whatever a workload sends arrives byte for byte and in its order, with flows that alternate in what is received at once.
func TestKindsCross(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		for range 5 {
			all := interleave(append(streams(), kinds())...)
			for _, p := range all {
				a.queues[0].Inject(p)
			}
			b.want(all...)
		}
		a.wantDrops(nil)
		b.wantDrops(nil)
	})
}

// Where datagrams are lost, doubled and overtaken, the others arrive once and byte for byte.
func TestKindsOverBadNetwork(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			net := routertest.NewNet(seed)
			a, b := pair(t, net, shapes[seed%4])
			defer a.stop()
			defer b.stop()
			establish(a, b)
			b.delivered()
			net.SetFaults(routertest.Faults{Loss: 0.05, Duplicate: 0.05, Late: 0.2})
			all := interleave(append(streams(), kinds())...)
			due := map[string]int{}
			for _, p := range all {
				due[string(p)]++
				a.queues[0].Inject(p)
			}
			synctest.Wait()
			time.Sleep(time.Second)
			got := b.delivered()
			for _, p := range got {
				if due[string(p)]--; due[string(p)] < 0 {
					t.Fatalf("seed %d: arrived twice or was never sent: %x", seed, p)
				}
			}
			if len(got) < len(all)*9/10-20 {
				t.Errorf("seed %d: only %d of %d packets arrived", seed, len(got), len(all))
			}
		})
	}
}
