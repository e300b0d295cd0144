// SPDX-License-Identifier: Apache-2.0

package aesgcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"testing"
)

// standard is what the package is to be like.
func standard(t testing.TB, key *[KeySize]byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key[:])
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ours(t testing.TB, key *[KeySize]byte) cipher.AEAD {
	t.Helper()
	a, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Every length of packets that there is, and some longer ones: sealed and opened as the standard library does, in place and apart.
func TestLikeTheStandard(t *testing.T) {
	t.Logf("wide instructions: %v", isWide())
	r := rand.New(rand.NewPCG(1, 2))
	for n := 0; n <= 9216+64; n++ {
		if n > 600 && n%blockSize > 1 {
			continue
		}
		var key [KeySize]byte
		copy(key[:], random(r, KeySize))
		compare(t, &key, random(r, NonceSize), random(r, n), random(r, blockSize))
	}
}

func compare(t *testing.T, key *[KeySize]byte, nonce, plaintext, additional []byte) {
	t.Helper()
	a, std := ours(t, key), standard(t, key)
	n := len(plaintext)
	want := std.Seal(nil, nonce, plaintext, additional)
	if got := a.Seal(nil, nonce, plaintext, additional); !bytes.Equal(got, want) {
		t.Fatalf("%d bytes: sealed\n%x, want\n%x", n, got, want)
	}
	prefix := []byte("before")
	place := append(bytes.Clone(prefix), plaintext...)
	place = append(place, "the sixteen behind, and what stays"...)
	stays := bytes.Clone(place[len(prefix)+n+TagSize:])
	got := a.Seal(place[:len(prefix)], nonce, place[len(prefix):len(prefix)+n], additional)
	if &got[0] != &place[0] || !bytes.Equal(got, append(bytes.Clone(prefix), want...)) || !bytes.Equal(place[len(got):], stays) {
		t.Fatalf("%d bytes: sealed in place\n%x, want\n%x", n, place, want)
	}
	opened, err := a.Open(nil, nonce, want, additional)
	if err != nil || !bytes.Equal(opened, plaintext) {
		t.Fatalf("%d bytes: opened %x, %v", n, opened, err)
	}
	sealed := bytes.Clone(want)
	opened, err = a.Open(sealed[:0], nonce, sealed, additional)
	if err != nil || !bytes.Equal(opened, plaintext) || !bytes.Equal(sealed[n:], want[n:]) {
		t.Fatalf("%d bytes: opened in place %x, %v", n, opened, err)
	}
}

// Whichever bit is flipped, nothing opens, and nothing of it is left in the memory.
func TestForged(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var key [KeySize]byte
	copy(key[:], random(r, KeySize))
	a := ours(t, &key)
	for _, n := range []int{0, 16, 240, 256, 272, 1408} {
		nonce, additional := random(r, NonceSize), random(r, blockSize)
		sealed := a.Seal(nil, nonce, random(r, n), additional)
		for _, part := range [][]byte{sealed, nonce, additional} {
			for bit := range 8 * len(part) {
				part[bit/8] ^= 1 << (bit % 8)
				out := bytes.Repeat([]byte{1}, n)
				if got, err := a.Open(out[:0], nonce, sealed, additional); err == nil || got != nil {
					t.Fatalf("%d bytes: bit %d: opened", n, bit)
				}
				if !bytes.Equal(out, make([]byte, n)) {
					t.Fatalf("%d bytes: bit %d: left %x", n, bit, out)
				}
				part[bit/8] ^= 1 << (bit % 8)
			}
		}
		if _, err := a.Open(nil, nonce, sealed, additional); err != nil {
			t.Fatal(err)
		}
		for short := range TagSize {
			if _, err := a.Open(nil, nonce, sealed[:short], additional); err == nil {
				t.Fatalf("%d bytes opened", short)
			}
		}
	}
}

// What the wide instructions are not for is done all the same.
func TestOtherShapes(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var key [KeySize]byte
	for _, additional := range []int{0, 1, 15, 17, 32} {
		for _, n := range []int{0, 1, 16, 100, 256} {
			compare(t, &key, random(r, NonceSize), random(r, n), random(r, additional))
		}
	}
	a := ours(t, &key)
	if a.NonceSize() != NonceSize || a.Overhead() != TagSize {
		t.Error(a.NonceSize(), a.Overhead())
	}
}

func TestOverlap(t *testing.T) {
	var key [KeySize]byte
	a := ours(t, &key)
	nonce, additional := make([]byte, NonceSize), make([]byte, blockSize)
	b := make([]byte, 256)
	for name, f := range map[string]func(){
		"seal forward":    func() { a.Seal(b[16:16], nonce, b[:64], additional) },
		"seal backward":   func() { a.Seal(b[:0], nonce, b[16:80], additional) },
		"seal additional": func() { a.Seal(b[:0], nonce, b[:64], b[64:80]) },
		"open":            func() { _, _ = a.Open(b[16:16], nonce, b[:80], additional) },
		"open additional": func() { _, _ = a.Open(b[:0], nonce, b[:80], b[48:64]) },
		"nonce":           func() { a.Seal(nil, nonce[:8], b[:64], additional) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestAllocations(t *testing.T) {
	var key [KeySize]byte
	a := ours(t, &key)
	nonce, additional, b := make([]byte, NonceSize), make([]byte, blockSize), make([]byte, 1424)
	if n := testing.AllocsPerRun(100, func() {
		sealed := a.Seal(b[:0], nonce, b[:1408], additional)
		if _, err := a.Open(sealed[:0], nonce, sealed, additional); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzLikeTheStandard(f *testing.F) {
	f.Add(make([]byte, KeySize+NonceSize+blockSize+300))
	f.Add(make([]byte, KeySize+NonceSize+blockSize+512))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < KeySize+NonceSize+blockSize {
			return
		}
		key := [KeySize]byte(b)
		b = b[KeySize:]
		nonce, additional, plaintext := b[:NonceSize], b[NonceSize:NonceSize+blockSize], b[NonceSize+blockSize:]
		compare(t, &key, nonce, plaintext, additional)
		_, got := ours(t, &key).Open(nil, nonce, plaintext, additional)
		if _, want := standard(t, &key).Open(nil, nonce, plaintext, additional); (got == nil) != (want == nil) {
			t.Errorf("opened as it came: %v, want %v", got, want)
		}
	})
}

func Benchmark(b *testing.B) {
	var key [KeySize]byte
	nonce, additional := make([]byte, NonceSize), make([]byte, blockSize)
	for _, kind := range []struct {
		name string
		a    cipher.AEAD
	}{{"standard", standard(b, &key)}, {"ours", ours(b, &key)}} {
		for _, n := range []int{0, 64, 512, 1408, 8960} {
			buf := make([]byte, n+TagSize)
			b.Run(fmt.Sprintf("Seal/%s/%d", kind.name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					kind.a.Seal(buf[:0], nonce, buf[:n], additional)
				}
			})
			sealed := kind.a.Seal(nil, nonce, make([]byte, n), additional)
			b.Run(fmt.Sprintf("Open/%s/%d", kind.name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					if _, err := kind.a.Open(buf[:0], nonce, sealed, additional); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
