// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// plain returns a datagram with that header that nobody has sealed.
func plain(h Header, body int) []byte {
	b := append(h.appendTo(nil), make([]byte, nonceSize+body+tagSize)...)
	b[3] = h.At
	return b
}

// set returns a copy of b with other bytes from i on.
func set(b []byte, i int, to ...byte) []byte {
	b = slices.Clone(b)
	copy(b[i:], to)
	return b
}

func TestHeader(t *testing.T) {
	h := Header{Kind: KindPing, N: 2, At: 1, Key: 0x01020304, Source: 0x1112131415161718, Destination: 0x2122232425262728, Relays: [4]uint64{0x31, 0x41}}
	b := plain(h, 8)
	want := []byte{
		16, 0x12, 2, 1, 1, 2, 3, 4,
		0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
		0, 0, 0, 0, 0, 0, 0, 0x31, 0, 0, 0, 0, 0, 0, 0, 0x41,
	}
	if !bytes.Equal(b[:40], want) {
		t.Errorf("the header is %x", b[:40])
	}
	if got, err := Parse(b); err != nil || got != h {
		t.Errorf("%+v, %v", got, err)
	}
	if MinSize != 64 || MaxSize != 64+32+1280 {
		t.Errorf("datagrams have from %d to %d bytes", MinSize, MaxSize)
	}

	direct := plain(Header{Kind: KindMesh, Source: 1, Destination: 2}, 0)
	two := plain(Header{Kind: KindMesh, N: 2, Source: 1, Destination: 2, Relays: [4]uint64{3, 4}}, 0)
	four := Header{Kind: KindPunch, N: 4, At: 4, Source: 1, Destination: 2, Relays: [4]uint64{3, 4, 5, 6}}
	id := func(b byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, b} }
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"the shortest", direct, nil},
		{"the longest", plain(four, MaxBody), nil},
		{"to whoever is there", set(direct, 16, id(0)...), nil},
		{"nothing", nil, ErrSize},
		{"a byte too short", direct[:MinSize-1], ErrSize},
		{"no room for the relays", two[:len(two)-1], ErrSize},
		{"a byte too long", append(plain(four, MaxBody), 0), ErrSize},
		{"a body too long", plain(Header{Kind: KindMesh, Source: 1, Destination: 2}, MaxBody+1), ErrSize},
		{"another type", set(direct, 0, 4), ErrVersion},
		{"another version", set(direct, 1, 0x21), ErrVersion},
		{"kind 0", set(direct, 1, 0x10), ErrVersion},
		{"kind 7", set(direct, 1, 0x17), ErrVersion},
		{"five relays", set(append(two, make([]byte, 100)...), 2, 5), ErrRoute},
		{"255 relays", set(two, 2, 255), ErrRoute},
		{"next hop behind the destination", set(two, 3, 3), ErrRoute},
		{"next hop behind the destination, without relays", set(direct, 3, 1), ErrRoute},
		{"source 0", set(direct, 8, id(0)...), ErrRoute},
		{"to itself", set(direct, 8, id(2)...), ErrRoute},
		{"relays to whoever is there", set(two, 16, id(0)...), ErrRoute},
		{"relay 0", set(two, 24, id(0)...), ErrRoute},
		{"the source as relay", set(two, 24, id(1)...), ErrRoute},
		{"the destination as relay", set(two, 32, id(2)...), ErrRoute},
		{"a relay twice", set(two, 32, id(3)...), ErrRoute},
	} {
		h, err := Parse(c.b)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, not %v", c.name, err, c.want)
		}
		if err != nil && h != (Header{}) {
			t.Errorf("%s: refused, and yet %+v", c.name, h)
		}
	}
}

func TestHops(t *testing.T) {
	h := Header{Kind: KindMesh, N: 3, Source: 1, Destination: 2, Relays: [4]uint64{3, 4, 5}}
	b := plain(h, 0)
	for i, next := range []uint64{3, 4, 5, 2} {
		got, err := Parse(b)
		if err != nil || got.Next() != next || got.Final() != (i == 3) {
			t.Fatalf("hop %d: next is %d, final %v, %v", i, got.Next(), got.Final(), err)
		}
		if Advance(b) != (i < 3) {
			t.Fatalf("hop %d: no way on, or one too far", i)
		}
	}
	if h.Reversed() != [4]uint64{5, 4, 3} {
		t.Errorf("the way back is %v", h.Reversed())
	}
	if h.N = 0; h.Reversed() != [4]uint64{} {
		t.Errorf("the way back without relays is %v", h.Reversed())
	}
}

func TestErrors(t *testing.T) {
	for err, want := range map[error]string{
		ErrSize:    "control datagram is too short or too long: dropped",
		ErrVersion: "control datagram is of an unknown version or kind: dropped",
		ErrRoute:   "control datagram has a route that cannot be: dropped",
		ErrKey:     "control datagram is sealed with a key that this node does not have: dropped",
		ErrAuth:    "control datagram does not authenticate: dropped",
		ErrBody:    "control datagram has a body that its kind cannot have: dropped",
	} {
		if err.Error() != want {
			t.Errorf("%q, not %q", err, want)
		}
	}
}
