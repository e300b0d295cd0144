// SPDX-License-Identifier: Apache-2.0

package pathmtu

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func encoded(m Message, n int) []byte {
	b := make([]byte, max(n, HeaderLen))
	m.Put(b)
	return b[:n]
}

func TestMessages(t *testing.T) {
	probe := Message{Kind: Probe, Size: 1408, ID: 1<<63 | 7}
	b := encoded(probe, 1408)
	want := append([]byte{0x10, 1, 1, 0, 1408 >> 8, 1408 & 0xff, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 7}, make([]byte, 1408-16)...)
	if !bytes.Equal(b, want) {
		t.Errorf("a probe is %x", b[:HeaderLen])
	}
	for _, c := range []struct {
		name string
		b    []byte
		want Message
		ok   bool
	}{
		{"probe", b, probe, true},
		{"probe, padded", append(slices.Clone(b), 0, 0, 0), probe, true},
		{"probe cut short", b[:1407], Message{}, false},
		{"probe without room for itself", encoded(Message{Kind: Probe, Size: 15}, 16), Message{}, false},
		{"acknowledgement", encoded(Message{Kind: Ack, Size: 1408, ID: 7}, 16), Message{Kind: Ack, Size: 1408, ID: 7}, true},
		{"acknowledgement and more", encoded(Message{Kind: Ack, Size: 1408, ID: 7}, 32), Message{}, false},
		{"piece", encoded(Message{Kind: Piece, Index: 1, Offset: 640, Size: 1280, ID: 7}, 656), Message{Kind: Piece, Index: 1, Offset: 640, Size: 1280, ID: 7}, true},
		{"empty piece", encoded(Message{Kind: Piece, Size: 1280}, 16), Message{}, false},
		{"piece beyond its packet", encoded(Message{Kind: Piece, Offset: 1280, Size: 1280}, 32), Message{}, false},
		{"piece of a packet that needs none", encoded(Message{Kind: Piece, Size: 1281}, 32), Message{}, false},
		{"fifth piece", encoded(Message{Kind: Piece, Index: 4, Size: 1280}, 32), Message{}, false},
		{"fields that are not used", encoded(Message{Kind: Ack, Index: 1}, 16), Message{}, false},
		{"fields that are not used", encoded(Message{Kind: Probe, Offset: 1, Size: 16}, 16), Message{}, false},
		{"another kind", encoded(Message{Kind: 4, Size: 16}, 16), Message{}, false},
		{"another version", append([]byte{0x10, 2, 2}, make([]byte, 13)...), Message{}, false},
		{"short", make([]byte, 15), Message{}, false},
		{"a packet", append([]byte{0x45}, make([]byte, 30)...), Message{}, false},
		{"nothing", nil, Message{}, false},
	} {
		if m, ok := Parse(c.b); ok != c.ok || ok && m != c.want {
			t.Errorf("%s: %+v, %v", c.name, m, ok)
		}
	}
	for _, first := range []byte{0x45, 0x60, 0x00, 0x20} {
		if IsMessage([]byte{first}) {
			t.Errorf("%#x is taken for a message", first)
		}
	}
	if IsMessage(nil) || !IsMessage(b) || !IsMessage([]byte{0x1f}) {
		t.Error("messages are not known by their first four bits")
	}
}

// Packets of any size arrive whole, over any path that is wide enough, whatever the order of the pieces, among others.
func TestPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a Assembler[string]
		type sealed struct {
			from string
			b    []byte
		}
		var way []sealed
		packets := map[string][]byte{}
		for i := range rapid.IntRange(1, assemblies).Draw(t, "packets") {
			mtu := rapid.IntRange(Floor, MinIPv6).Draw(t, "mtu")
			size, ok := PieceSize(mtu)
			if !ok {
				t.Fatalf("%d bytes are not enough", mtu)
			}
			b := make([]byte, rapid.IntRange(1, MinIPv6).Draw(t, "size"))
			for j := range b {
				b[j] = byte(i + 1 + j*7)
			}
			from := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "from")
			m := Message{ID: uint64(i)}
			for dst := make([]byte, mtu); ; {
				n := Split(dst, b, size, &m)
				if n == 0 {
					break
				}
				if n > mtu {
					t.Fatalf("a piece of %d bytes over %d", n, mtu)
				}
				padded := append(slices.Clone(dst[:n]), make([]byte, -n&15)...)
				way = append(way, sealed{from, padded})
				if rapid.Bool().Draw(t, "twice") {
					way = append(way, sealed{from, padded})
				}
			}
			packets[from+string(b)] = b
		}
		got := 0
		for _, s := range rapid.Permutation(way).Draw(t, "order") {
			m, ok := Parse(s.b)
			if !ok {
				t.Fatalf("%x is no piece", s.b[:HeaderLen])
			}
			if b := a.Add(s.from, m, s.b); b != nil {
				if packets[s.from+string(b)] == nil {
					t.Fatalf("%d bytes that %s has not sent", len(b), s.from)
				}
				got++
			}
		}
		if got < len(packets) {
			t.Fatalf("%d packets of %d", got, len(packets))
		}
	})
}

// What is lost costs its own packet only.
func TestLostPieces(t *testing.T) {
	var a Assembler[int]
	b := make([]byte, MinIPv6)
	var dst [1280]byte
	for id := range uint64(100) {
		binary.BigEndian.PutUint64(b, id)
		m := Message{ID: id}
		for {
			n := Split(dst[:], b, 1200, &m)
			if n == 0 {
				break
			}
			if id%3 == 0 && m.Index == 1 {
				continue
			}
			parsed, ok := Parse(dst[:n])
			if !ok {
				t.Fatal("no piece")
			}
			out := a.Add(0, parsed, dst[:n])
			if whole := id%3 != 0 && m.Index == 2; whole != (out != nil) || whole && !bytes.Equal(out, b) {
				t.Fatalf("packet %d, piece %d: %x", id, m.Index, out)
			}
		}
	}
}

// Whoever sends pieces without end takes nothing from others.
func TestPiecesOfOthers(t *testing.T) {
	var a Assembler[string]
	flood := func(id uint64) {
		m := Message{Kind: Piece, Size: MinIPv6, ID: id}
		b := encoded(m, HeaderLen+16)
		if a.Add("flood", m, b) != nil {
			t.Fatal("a packet of one piece of many")
		}
	}
	id := uint64(0)
	for range 10 {
		var half []func() []byte // the second halves
		for _, from := range []string{"a", "b", "c"} {
			for range fairShare {
				for range 2 * assemblies {
					id++
					flood(id)
				}
				id++
				b := bytes.Repeat([]byte{byte(id)}, 1200)
				m := Message{ID: id}
				var dst [MinIPv6]byte
				n := Split(dst[:], b, 800, &m)
				parsed, _ := Parse(dst[:n])
				if a.Add(from, parsed, dst[:n]) != nil {
					t.Fatal("half a packet")
				}
				half = append(half, func() []byte {
					n := Split(dst[:], b, 800, &m)
					parsed, _ := Parse(dst[:n])
					if got := a.Add(from, parsed, dst[:n]); bytes.Equal(got, b) {
						return nil
					}
					return b
				})
			}
		}
		for i, rest := range half {
			id++
			flood(id)
			if b := rest(); b != nil {
				t.Errorf("packet %d did not survive", i)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(encoded(Message{Kind: Probe, Size: 20, ID: 1}, 32))
	f.Add(encoded(Message{Kind: Ack, Size: 1408, ID: 1}, 16))
	f.Add(encoded(Message{Kind: Piece, Index: 1, Offset: 10, Size: 20, ID: 1}, 26))
	var a Assembler[int]
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := Parse(b)
		if !ok {
			return
		}
		if !IsMessage(b) {
			t.Fatal("no message")
		}
		again := slices.Clone(b)
		m.Put(again)
		if !bytes.Equal(again, b) {
			t.Fatalf("%x becomes %x", b, again)
		}
		if m.Kind == Piece {
			if p := a.Add(1, m, b); len(p) > MinIPv6 {
				t.Fatalf("a packet of %d bytes", len(p))
			}
		}
	})
}
