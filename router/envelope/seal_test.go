// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
	"pgregory.net/rapid"
)

// key returns the key of a secret that consists of n.
func key(t testing.TB, n byte) Key {
	t.Helper()
	k, err := NewKey([32]byte(bytes.Repeat([]byte{n}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func randomness() io.Reader { return rand.NewChaCha8([32]byte{7}) }

func seal(t testing.TB, r *Keyring, h Header, body []byte) []byte {
	t.Helper()
	b, err := r.Seal(nil, h, body, randomness())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The form on the wire does not change: it is put together here from the primitives.
func TestForm(t *testing.T) {
	secret := [32]byte(bytes.Repeat([]byte{9}, 32))
	derive := func(info string, n int) []byte {
		b, err := hkdf.Key(sha256.New, secret[:], []byte("weft control datagram v1"), info, n)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	aead, err := chacha20poly1305.NewX(derive("key", 32))
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 24)
	_, _ = randomness().Read(nonce)
	header := append([]byte{16, 0x11, 1, 0}, derive("key id", 4)...)
	for _, id := range []uint64{1, 2, 3} {
		header = binary.BigEndian.AppendUint64(header, id)
	}
	want := aead.Seal(slices.Concat(header, nonce), nonce, []byte("hello"), header)
	want[3] = 1

	r := Keyring{Primary: key(t, 9)}
	h := Header{Kind: KindMesh, N: 1, At: 1, Source: 1, Destination: 2, Relays: [4]uint64{3}}
	if got := seal(t, &r, h, []byte("hello")); !bytes.Equal(got, want) {
		t.Errorf("sealed as %x, not %x", got, want)
	}
}

func drawHeader(t *rapid.T) Header {
	ids := rapid.SliceOfNDistinct(rapid.Uint64Min(1), 2+MaxRelays, 2+MaxRelays, rapid.ID).Draw(t, "ids")
	h := Header{
		Kind: rapid.SampledFrom([]Kind{KindMesh, KindPing, KindPong, KindPunch, KindProof, KindAsk}).Draw(t, "kind"),
		N:    rapid.Uint8Range(0, MaxRelays).Draw(t, "relays"), Source: ids[0], Destination: ids[1],
	}
	h.At = rapid.Uint8Range(0, h.N).Draw(t, "at")
	copy(h.Relays[:h.N], ids[2:])
	if h.N == 0 && rapid.Bool().Draw(t, "to whoever is there") {
		h.Destination = 0
	}
	return h
}

// What one keyring seals another opens that has the key, however far it has come; and no other, nor with a bit changed anywhere but in the next hop.
func TestRoundTrip(t *testing.T) {
	old, current, other := key(t, 1), key(t, 2), key(t, 3)
	sender := Keyring{Primary: current}
	receivers := []Keyring{{Primary: current}, {Primary: old, Accept: []Key{current}}, {Primary: other, Accept: []Key{old, {}, current}}}
	rapid.Check(t, func(t *rapid.T) {
		h := drawHeader(t)
		body := rapid.SliceOfN(rapid.Byte(), 0, MaxBody).Draw(t, "body")
		before := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "before")
		b, err := sender.Seal(slices.Clone(before), h, body, randomness())
		if err != nil || !bytes.HasPrefix(b, before) {
			t.Fatalf("not appended: %v", err)
		}
		b = b[len(before):]
		if want := MinSize + int(h.N)*relaySize + len(body); len(b) != want {
			t.Fatalf("%d bytes, not %d", len(b), want)
		}
		h.Key = current.ID()
		for range rapid.IntRange(0, int(h.N-h.At)).Draw(t, "hops") {
			h.At++
			if !Advance(b) {
				t.Fatal("no way on")
			}
		}
		whole := slices.Clone(b)
		r := rapid.SampledFrom(receivers).Draw(t, "receiver")
		got, opened, err := r.Open(slices.Clone(before), b)
		if err != nil || got != h || !bytes.Equal(opened, body) {
			t.Fatalf("opened as %+v, %d bytes, %v", got, len(opened), err)
		}
		if !bytes.Equal(b, whole) {
			t.Fatal("opening has changed it")
		}

		stranger := Keyring{Primary: other, Accept: []Key{old}}
		if _, _, err := stranger.Open(nil, b); !errors.Is(err, ErrKey) {
			t.Fatalf("another mesh: %v", err)
		}
		at := rapid.IntRange(0, len(b)-1).Filter(func(i int) bool { return i != 3 }).Draw(t, "changed")
		b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, body, err := r.Open(nil, b); err == nil || body != nil {
			t.Fatalf("opened with another byte %d", at)
		}
	})
}

func TestSealRefuses(t *testing.T) {
	r := Keyring{Primary: key(t, 1)}
	good := Header{Kind: KindMesh, Source: 1, Destination: 2}
	with := func(change func(h *Header)) Header {
		h := good
		change(&h)
		return h
	}
	for _, c := range []struct {
		name string
		r    Keyring
		h    Header
		body int
		want error
	}{
		{"no key", Keyring{Accept: []Key{key(t, 1)}}, good, 0, ErrKey},
		{"long body", r, good, MaxBody + 1, ErrSize},
		{"no kind", r, with(func(h *Header) { h.Kind = 0 }), 0, ErrVersion},
		{"a kind that does not fit", r, with(func(h *Header) { h.Kind = 17 }), 0, ErrVersion},
		{"no source", r, with(func(h *Header) { h.Source = 0 }), 0, ErrRoute},
		{"five relays", r, with(func(h *Header) { h.N = 5 }), 0, ErrRoute},
		{"a relay that is none", r, with(func(h *Header) { h.N = 1 }), 0, ErrRoute},
		{"a relay that is not used", r, with(func(h *Header) { h.Relays[3] = 9 }), 0, ErrRoute},
		{"a hop too far", r, with(func(h *Header) { h.At = 1 }), 0, ErrRoute},
	} {
		b, err := c.r.Seal([]byte("before"), c.h, make([]byte, c.body), randomness())
		if !errors.Is(err, c.want) || string(b) != "before" {
			t.Errorf("%s: %q, %v", c.name, b, err)
		}
	}
	if b, err := r.Seal(nil, good, nil, strings.NewReader("short")); b != nil || err == nil ||
		err.Error() != "making the nonce of a control datagram: unexpected EOF" {
		t.Errorf("without randomness: %x, %v", b, err)
	}
	if _, _, err := (&Keyring{}).Open(nil, seal(t, &r, good, nil)); !errors.Is(err, ErrKey) {
		t.Errorf("the empty keyring: %v", err)
	}
}

// Two keys with one ID, which is rare, but the ID is short.
func TestSameID(t *testing.T) {
	a, b := key(t, 1), key(t, 2)
	b.id = a.id
	datagram := seal(t, &Keyring{Primary: b}, Header{Kind: KindMesh, Source: 1}, []byte("hello"))
	if _, body, err := (&Keyring{Primary: a, Accept: []Key{b}}).Open(nil, datagram); err != nil || string(body) != "hello" {
		t.Errorf("%q, %v", body, err)
	}
	if _, _, err := (&Keyring{Primary: a}).Open(nil, datagram); !errors.Is(err, ErrAuth) {
		t.Errorf("with the other one: %v", err)
	}
}

func TestKeysAreHidden(t *testing.T) {
	k := key(t, 1)
	if k.ID() == 0 || k.ID() == key(t, 2).ID() || k.ID() != key(t, 1).ID() || !k.Valid() || (Key{}).Valid() {
		t.Errorf("ID %v", k.ID())
	}
	want := fmt.Sprintf("%08x", k.ID())
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		if got := fmt.Sprintf(verb, k); got != want {
			t.Errorf("%s prints %s", verb, got)
		}
		if got := fmt.Sprintf(verb, Keyring{Primary: k, Accept: []Key{k}}); strings.Count(got, want) != 2 || len(got) > 100 {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}

func TestIDs(t *testing.T) {
	a, b := key(t, 1), key(t, 2)
	if got := (&Keyring{Primary: a, Accept: []Key{{}, b}}).IDs(); !slices.Equal(got, []uint32{a.ID(), b.ID()}) {
		t.Errorf("IDs %x", got)
	}
	if got := (&Keyring{}).IDs(); len(got) != 0 {
		t.Errorf("IDs of the empty keyring: %x", got)
	}
	sealed := seal(t, &Keyring{Primary: b}, Header{Kind: KindMesh, Source: 1}, nil)
	if got := binary.BigEndian.Uint32(sealed[KeyOffset:]); got != b.ID() {
		t.Errorf("the ID in a datagram is %x", got)
	}
}

func TestNoAllocation(t *testing.T) {
	r := Keyring{Primary: key(t, 1), Accept: []Key{key(t, 2)}}
	h := Header{Kind: KindMesh, N: 2, Source: 1, Destination: 2, Relays: [4]uint64{3, 4}}
	body := make([]byte, MaxBody)
	buf, out := make([]byte, 0, MaxSize), make([]byte, 0, MaxBody)
	sealed := seal(t, &r, h, body)
	forged := set(sealed, len(sealed)-1, sealed[len(sealed)-1]^1)
	pong := Pong{Echo: 1, Boot: 2}.Append(nil)
	source := randomness()
	for name, f := range map[string]func(){
		"Seal":   func() { _, _ = r.Seal(buf, h, body, source) },
		"Open":   func() { _, _, _ = r.Open(out, sealed) },
		"forged": func() { _, _, _ = r.Open(out, forged) },
		"Parse":  func() { _, _ = Parse(sealed); _, _ = Parse(sealed[:10]) },
		"bodies": func() {
			_, _ = ParsePing(pong[:24])
			_, _ = ParsePong(pong)
			_ = Ping{Echo: 1}.Append(buf)
			_ = Pong{Echo: 1}.Append(buf)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	r := Keyring{Primary: key(b, 1)}
	buf, body, source := make([]byte, 0, MaxSize), make([]byte, 1152), randomness()
	b.ReportAllocs()
	for b.Loop() {
		_, _ = r.Seal(buf, Header{Kind: KindMesh, Source: 1, Destination: 2}, body, source)
	}
}

func BenchmarkOpen(b *testing.B) {
	r := Keyring{Primary: key(b, 1)}
	for _, n := range []int{8, 1152} {
		sealed := seal(b, &r, Header{Kind: KindMesh, Source: 1, Destination: 2}, make([]byte, n))
		out := make([]byte, 0, MaxBody)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = r.Open(out, sealed)
			}
		})
	}
}
