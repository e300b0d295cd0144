// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
)

// Whatever arrives is refused, or is a datagram that Seal could have made, up to its seal.
func FuzzParse(f *testing.F) {
	r := Keyring{Primary: key(f, 1)}
	f.Add(seal(f, &r, Header{Kind: KindMesh, Source: 1}, []byte("hello")))
	f.Add(seal(f, &r, Header{Kind: KindPunch, N: 4, At: 2, Source: 1, Destination: 2, Relays: [4]uint64{3, 4, 5, 6}}, nil))
	f.Add([]byte{16})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		if err != nil {
			return
		}
		again := h.appendTo(nil)
		again[3] = h.At
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%+v is not what %x says", h, b)
		}
		if h.Next() == 0 && h.N > 0 || h.Next() == h.Source {
			t.Fatalf("next hop of %+v is %d", h, h.Next())
		}
		hops := 0
		for Advance(b) {
			hops++
		}
		if hops != int(h.N-h.At) {
			t.Fatalf("%d hops of %+v", hops, h)
		}
		if h, err = Parse(b); err != nil || !h.Final() || h.Next() != h.Destination {
			t.Fatalf("at the end %+v, %v", h, err)
		}
	})
}

// Nothing opens but what was sealed, whatever its next hop is.
func FuzzOpen(f *testing.F) {
	r := Keyring{Primary: key(f, 1), Accept: []Key{key(f, 2)}}
	var genuine [][]byte
	for i, h := range []Header{
		{Kind: KindMesh, Source: 1},
		{Kind: KindPing, N: 2, At: 1, Source: 1, Destination: 2, Relays: [4]uint64{3, 4}},
	} {
		sender := Keyring{Primary: key(f, byte(i+1))}
		genuine = append(genuine, seal(f, &sender, h, []byte("genuine")))
		f.Add(genuine[i])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		h, body, err := r.Open(nil, b)
		if !bytes.Equal(b, before) {
			t.Fatal("changed")
		}
		known := slices.ContainsFunc(genuine, func(g []byte) bool {
			return len(b) == len(g) && bytes.Equal(set(b, 3, 0), set(g, 3, 0)) && b[3] <= b[2]
		})
		if known != (err == nil) || known && string(body) != "genuine" || !known && (body != nil || h != Header{}) {
			t.Fatalf("genuine %v: %+v, %q, %v", known, h, body, err)
		}
	})
}

// A body is refused, or is what Append makes of what was read.
func FuzzBodies(f *testing.F) {
	a := netip.MustParseAddrPort("10.0.3.1:6783")
	f.Add(Ping{Echo: 1, Tag: Tag{2}}.Append(nil))
	f.Add(Pong{Echo: 1, Seen: a, Boot: 2}.Append(nil))
	f.Add(Pong{Echo: 1}.Append(nil))
	f.Add(Punch{Echo: 1, Candidates: []netip.AddrPort{a, a}}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParsePing(b); err == nil && !bytes.Equal(p.Append(nil), b) {
			t.Fatalf("ping %+v of %x", p, b)
		}
		if p, err := ParseProof(b); err == nil && !bytes.Equal(p.Append(nil), b) {
			t.Fatalf("proof %+v of %x", p, b)
		}
		if p, err := ParsePong(b); err == nil && !bytes.Equal(p.Append(nil), b) {
			t.Fatalf("pong %+v of %x", p, b)
		}
		if p, err := ParsePunch(b); err == nil && (!bytes.Equal(p.Append(nil), b) || len(p.Candidates) > MaxCandidates) {
			t.Fatalf("punch %+v of %x", p, b)
		}
	})
}
