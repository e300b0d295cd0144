// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"fmt"
	"testing"
)

// ecnDrop stands for no packet in ecnTable.
const ecnDrop = 0xff

// ecnTable is figure 4 of RFC 6040: what leaves a tunnel, by what the inner (first index) and the outer header say.
// ecnOdd has its exclamation marks.
var (
	ecnTable = [4][4]uint8{
		NotECT: {NotECT: NotECT, ECT0: NotECT, ECT1: NotECT, CE: ecnDrop},
		ECT0:   {NotECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
		ECT1:   {NotECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
		CE:     {NotECT: CE, ECT0: CE, ECT1: CE, CE: CE},
	}
	ecnOdd = [4][4]bool{
		NotECT: {ECT0: true, ECT1: true, CE: true},
		ECT1:   {ECT0: true},
		CE:     {ECT1: true},
	}
)

func TestDecapsulate(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for inner := range uint8(4) {
			for outer := range uint8(4) {
				t.Run(fmt.Sprintf("v6 %v, inner %02b, outer %02b", v6, inner, outer), func(t *testing.T) {
					for dscp := range 64 {
						tos := uint8(dscp)<<2 | inner
						b := flow(v6, protoTCP, 1, 100)[0]
						b[0], b[1] = b[0]&0xf0|tos>>4, b[1]&0x0f|tos<<4
						if !v6 {
							b[0], b[1] = 0x45, tos
							checksumIPv4(b[:ipv4HeaderLen])
						}
						before := bytes.Clone(b)
						var p Packet
						if err := p.Parse(b); err != nil || p.TOS != tos || TOS(b) != tos {
							t.Fatal(err, p.TOS, TOS(b))
						}
						// The DSCP outside is of no account.
						ok, odd := Decapsulate(b, &p, uint8(63-dscp)<<2|outer)
						want := ecnTable[inner][outer]
						if ok != (want != ecnDrop) || odd != ecnOdd[inner][outer] {
							t.Fatalf("ok %v, odd %v", ok, odd)
						}
						if !ok {
							want = inner
						}
						if p.TOS != tos&^3|want || TOS(b) != p.TOS {
							t.Fatalf("%08b became %08b, parsed %08b", tos, TOS(b), p.TOS)
						}
						verify(t, b, p.Dst)
						changed := 0
						for i := range b {
							if b[i] != before[i] && i != 1 && (v6 || i != 10 && i != 11) {
								changed++
							}
						}
						if changed > 0 {
							t.Fatalf("other bytes were changed:\n%x\n%x", before, b)
						}
					}
				})
			}
		}
	}
}

// A header whose checksum was wrong does not become right.
func TestDecapsulateKeepsBadChecksum(t *testing.T) {
	b := flow(false, protoUDP, 1, 10)[0]
	b[1] = ECT0
	checksumIPv4(b[:ipv4HeaderLen])
	b[8]++
	var p Packet
	if err := p.Parse(b); err != nil {
		t.Fatal(err)
	}
	if ok, _ := Decapsulate(b, &p, CE); !ok || b[1] != CE || intactIPv4(b) {
		t.Errorf("ok %v, %x", ok, b[:20])
	}
}

func FuzzDecapsulate(f *testing.F) {
	for _, s := range []string{echo4, syn4, syn6, mld6} {
		for outer := range uint8(4) {
			f.Add(unhex(f, s), outer)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, outer uint8) {
		var p Packet
		if p.Parse(b) != nil {
			TOS(b)
			return
		}
		before, was := bytes.Clone(b), p
		ok, odd := Decapsulate(b, &p, outer)
		want := ecnTable[was.TOS&3][outer&3]
		if ok != (want != ecnDrop) || odd != ecnOdd[was.TOS&3][outer&3] {
			t.Fatalf("ok %v, odd %v", ok, odd)
		}
		if !ok || want == was.TOS&3 {
			if !bytes.Equal(b, before) || p != was {
				t.Fatal("changed without need")
			}
			return
		}
		var q Packet
		if err := q.Parse(b); err != nil || q != p || q.TOS != was.TOS&^3|want {
			t.Fatalf("%v: %+v, %+v, was %+v", err, q, p, was)
		}
		if !bytes.Equal(b[ipv4HeaderLen:], before[ipv4HeaderLen:]) || b[0] != before[0] {
			t.Fatal("more than the ECN field was changed")
		}
		if b[0]>>4 == 4 {
			h := p.HeaderLen
			if sum4, was4 := fold(sum(b[:h], 0)), fold(sum(before[:h], 0)); sum4%0xffff != was4%0xffff {
				t.Fatalf("the sum of the header was %#x and is %#x", was4, sum4)
			}
		}
	})
}
