// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// frame makes a frame as a session opens it.
func frame(h Header, message []byte) []byte {
	b := make([]byte, h.Len())
	h.Put(b, len(message))
	b = append(b, message...)
	return append(b, make([]byte, -len(b)&(padding-1))...)
}

func TestLayout(t *testing.T) {
	h := Header{Nodes: [6]uint64{1, 0x7fedcba987654321, 3}, N: 1, At: 1, TOS: 0xb9, Whole: true, Urgent: true}
	b := frame(h, []byte("message"))
	want := "5199b90d" + "0000000000000001" + "7fedcba987654321" + "0000000000000003" + hex.EncodeToString([]byte("message")) + strings.Repeat("00", 13)
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
	if !IsFrame(b) || IsFrame(nil) || IsFrame([]byte{0x45}) || IsFrame([]byte{0x60}) || IsFrame([]byte{0x10}) {
		t.Error("frames are not told from packets and messages")
	}
}

// Whatever is put comes out, and a frame moves from neighbour to neighbour until it is there.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.Uint64Min(1), 3, MaxRelays+2, rapid.ID[uint64]).Draw(t, "nodes")
		h := Header{N: uint8(len(ids) - 2), TOS: rapid.Uint8().Draw(t, "tos"), Whole: rapid.Bool().Draw(t, "whole"), Urgent: rapid.Bool().Draw(t, "urgent")}
		copy(h.Nodes[:], ids)
		message := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "message")
		b := frame(h, message)
		for i := range ids[1:] {
			var got Header
			if !got.Parse(b) {
				t.Fatalf("stretch %d: %x is refused", i, b)
			}
			if !bytes.Equal(got.Message(b), message) || got.Source() != ids[0] || got.Destination() != ids[len(ids)-1] || got.From() != ids[i] || got.To() != ids[i+1] {
				t.Fatalf("stretch %d: %+v", i, got)
			}
			if tos, whole := Tos(b); tos != got.TOS || whole != h.Whole || got.Whole != h.Whole || got.Urgent != h.Urgent || got.TOS != h.TOS+uint8(i) {
				t.Fatalf("stretch %d: type of service %x, whole %v", i, tos, whole)
			}
			if i == int(h.N) {
				if got.Next() != 0 {
					t.Fatalf("behind the destination there is %d", got.Next())
				}
				break
			}
			if got.Next() != ids[i+2] {
				t.Fatalf("stretch %d: next is %d", i, got.Next())
			}
			got.Pass(b, got.TOS+1)
			if got.From() != ids[i+1] {
				t.Fatalf("passed on by %d", got.From())
			}
		}
	})
}

func TestInvalid(t *testing.T) {
	good := Header{Nodes: [6]uint64{1, 2, 3, 4}, N: 2}
	for name, change := range map[string]func(b []byte) []byte{
		"nothing":                 func([]byte) []byte { return nil },
		"one byte":                func(b []byte) []byte { return b[:1] },
		"no message":              func(b []byte) []byte { return b[:48:48] },
		"truncated nodes":         func(b []byte) []byte { return b[:32] },
		"not padded":              func(b []byte) []byte { return append(b, 0) },
		"another version":         func(b []byte) []byte { b[0]++; return b },
		"no relay":                func(b []byte) []byte { b[1] = 0; return b },
		"too many relays":         func(b []byte) []byte { b[1] = 5 << 4; return append(b, make([]byte, 64)...) },
		"beyond the destination":  func(b []byte) []byte { b[1] = 2<<4 | 3; return b },
		"too much padding":        func(b []byte) []byte { b[3] = 16; return b },
		"nothing but padding":     func(b []byte) []byte { b[3] = 12; return b[:48] },
		"no source":               func(b []byte) []byte { clear(b[4:12]); return b },
		"no relay's ID":           func(b []byte) []byte { clear(b[20:28]); return b },
		"the source once more":    func(b []byte) []byte { copy(b[20:28], b[4:12]); return b },
		"a relay twice":           func(b []byte) []byte { copy(b[20:28], b[12:20]); return b },
		"back to the source":      func(b []byte) []byte { copy(b[28:36], b[4:12]); return b },
		"relayed by the receiver": func(b []byte) []byte { copy(b[28:36], b[12:20]); return b },
	} {
		b := frame(good, make([]byte, 32))
		var h Header
		if !h.Parse(b) {
			t.Fatal("the good one is refused")
		}
		if b = change(b); name == "no message" {
			b[3] = 12
		}
		if h.Parse(b) {
			t.Errorf("%s: accepted as %+v", name, h)
		}
	}
}

// MTU is the largest packet that fits.
func TestMTU(t *testing.T) {
	const overhead = 32
	for n := 1; n <= MaxRelays; n++ {
		for f := 100; f < 2000; f += 7 {
			mtu := MTU(f, n, overhead)
			size := func(packet int) int { // of the plaintext
				padded := (packet + padding - 1) &^ (padding - 1)
				return (HeaderLen(n) + overhead + padded + padding - 1) &^ (padding - 1)
			}
			if size(mtu) > f || mtu > 0 && size(mtu+1) <= f {
				t.Fatalf("%d relays, %d bytes: %d, which takes %d, and one byte more takes %d", n, f, mtu, size(mtu), size(mtu+1))
			}
		}
	}
	if got := []int{MTU(1408, 1, 32), MTU(1408, 4, 32), MTU(50, 1, 32)}; fmt.Sprint(got) != "[1344 1312 0]" {
		t.Error(got)
	}
}

// The rows are what the frame says, the columns what the datagram says, in the order 00, 01, 10, 11.
func TestCarry(t *testing.T) {
	want := [4][4]uint8{
		{0, 0, 0, 3},
		{1, 1, 1, 3},
		{2, 1, 2, 3},
		{3, 3, 3, 3},
	}
	for inner := range uint8(4) {
		for outer := range uint8(4) {
			if got := Carry(0xb8|inner, 0x20|outer); got != 0xb8|want[inner][outer] {
				t.Errorf("%02b in %02b becomes %08b", inner, outer, got)
			}
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(frame(Header{Nodes: [6]uint64{1, 2, 3, 4}, N: 2}, []byte("message")))
	f.Add(frame(Header{Nodes: [6]uint64{1, 2, 3, 4, 5, 6}, N: 4, At: 4, Whole: true, TOS: 3}, make([]byte, 148)))
	f.Add([]byte{0x51, 0x10, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Header
		if !h.Parse(b) {
			return
		}
		message := h.Message(b)
		if len(message) == 0 || h.Len()+len(message)+int(h.Padding) != len(b) || !IsFrame(b) {
			t.Fatalf("%d bytes of message in %x", len(message), b)
		}
		if h.From() == 0 || h.To() == 0 || h.From() == h.To() || (h.Next() == 0) != (h.At == h.N) {
			t.Fatalf("%+v", h)
		}
		// What is put is what was parsed, but for padding beyond need.
		again := make([]byte, h.Len())
		h.Put(again, len(message))
		again[3] = h.Padding
		if !bytes.Equal(again, b[:h.Len()]) {
			t.Fatalf("%x becomes %x", b[:h.Len()], again)
		}
		if h.Next() != 0 {
			before := h
			h.Pass(b, 7)
			var next Header
			if !next.Parse(b) || next != h || next.At != before.At+1 || next.Nodes != before.Nodes || next.TOS != 7 {
				t.Fatalf("%+v is passed on as %+v", before, next)
			}
		}
	})
}

func TestParseDoesNotAllocate(t *testing.T) {
	b := frame(Header{Nodes: [6]uint64{1, 2, 3, 4, 5, 6}, N: 4}, make([]byte, 1400))
	var h Header
	if n := testing.AllocsPerRun(100, func() {
		if !h.Parse(b) {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
