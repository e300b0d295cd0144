// SPDX-License-Identifier: Apache-2.0

package packet

import "testing"

// Nothing that runs per packet allocates.
func TestNoAllocation(t *testing.T) {
	var p Packet
	var h VNetHdr
	s := new(Splitter)
	hdr := make([]byte, VNetHdrLen)
	dst := make([]byte, ICMPLen)
	syn, mld := unhex(t, syn4), unhex(t, mld6)
	big, big6 := udpPacket(false, 1400), udpPacket(true, 1400)
	frame, vnet, _ := superpacket(true, 0x10, 5000, 1000)
	work := make([]byte, len(frame))
	c := newCoalescer()
	stream := append(flow(false, protoTCP, 5, 1000), flow(true, protoUDP, 3, 100)...)

	tests := []struct {
		name string
		f    func()
	}{
		{"Parse", func() { _ = p.Parse(syn); _ = p.Parse(mld); _ = p.Parse(nil) }},
		{"VNetHdr", func() { h.Encode(hdr); _ = h.Decode(hdr) }},
		{"ClampMSS", func() {
			_ = p.Parse(syn)
			syn[22] = 0x10
			ClampMSS(syn, &p, 1420)
		}},
		{"Decapsulate", func() {
			for outer := range uint8(4) {
				_ = p.Parse(big)
				Decapsulate(big, &p, outer)
				_ = p.Parse(big6)
				Decapsulate(big6, &p, outer)
				TOS(big6)
			}
		}},
		{"TooBig", func() { TooBig(dst, big, gateway4, 1400); TooBig(dst, big6, gateway6, 1400) }},
		{"Unreachable", func() { Unreachable(dst, big, gateway4); Unreachable(dst, big6, gateway6) }},
		{"Splitter", func() {
			copy(work, frame)
			for _, v := range []VNetHdr{vnet, {}, {Flags: VNetNeedsCsum, CsumStart: 40, CsumOffset: 16}} {
				_ = s.Init(work, v)
				for ok := true; ok; {
					_, ok = s.Next()
				}
			}
		}},
		{"Coalescer", func() { run(c, stream, false); run(c, stream, true) }},
	}
	for _, tt := range tests {
		if n := testing.AllocsPerRun(100, tt.f); n != 0 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
}
