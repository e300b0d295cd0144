// SPDX-License-Identifier: Apache-2.0

//go:build !purego

package aesgcm

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// Where the kernel says that there are the instructions, they are used.
func TestIsWide(t *testing.T) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	var flags []string
	for line := range strings.Lines(string(info)) {
		if name, list, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "flags" {
			flags = strings.Fields(list)
			break
		}
	}
	want := true
	for _, f := range []string{"aes", "pclmulqdq", "avx2", "vaes", "vpclmulqdq"} {
		want = want && slices.Contains(flags, f)
	}
	if isWide() != want {
		t.Errorf("wide: %v; the processor has %v", isWide(), flags)
	}
}

// The example of FIPS 197, A.3.
func TestExpand(t *testing.T) {
	key, err := hex.DecodeString("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
	if err != nil {
		t.Fatal(err)
	}
	var k wide
	k.expand((*[KeySize]byte)(key))
	for round, want := range map[int]string{
		0: "603deb1015ca71be2b73aef0857d7781", 1: "1f352c073b6108d72d9810a30914dff4", 2: "9ba354118e6925afa51a8b5f2067fcde",
		3: "a8b09c1a93d194cdbe49846eb75d5b9a", 13: "cafaaae3e4d59b349adf6acebd10190d", 14: "fe4890d1e6188d0b046df344706c631e",
	} {
		if got := hex.EncodeToString(k.schedule[round][:]); got != want {
			t.Errorf("round %d: %s, want %s", round, got, want)
		}
	}
}

// polynomial is the element as a number, the coefficient of x^n its bit n.
func polynomial(f field) *big.Int {
	p := new(big.Int)
	for i := range 64 {
		p.SetBit(p, i, uint(f.hi>>(63-i)&1))
		p.SetBit(p, 64+i, uint(f.lo>>(63-i)&1))
	}
	return p
}

// Products are those of polynomials by the rules of school.
func TestTimes(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	modulus := new(big.Int).SetBit(big.NewInt(0x87), 128, 1)
	for range 200 {
		f, g := field{r.Uint64(), r.Uint64()}, field{r.Uint64(), r.Uint64()}
		want, q := new(big.Int), polynomial(g)
		for i := range 128 {
			if polynomial(f).Bit(i) == 1 {
				want.Xor(want, new(big.Int).Lsh(q, uint(i)))
			}
		}
		for want.BitLen() > 128 {
			want.Xor(want, new(big.Int).Lsh(modulus, uint(want.BitLen()-129)))
		}
		if got := polynomial(f.times(g)); got.Cmp(want) != 0 {
			t.Fatalf("%x times %x is %x, want %x", f, g, got, want)
		}
	}
}

// What is called in place of New on a processor that has the instructions is what New returns there.
func TestChosen(t *testing.T) {
	var key [KeySize]byte
	if _, chosen := ours(t, &key).(*aead); chosen != isWide() {
		t.Errorf("wide code: %v, instructions: %v", chosen, isWide())
	}
}

// Hash keys with every single bit, with carries in all places of the products.
func TestHashKeys(t *testing.T) {
	if !isWide() {
		t.Skip("the processor lacks VAES or VPCLMULQDQ: there is no such code to test")
	}
	r := rand.New(rand.NewPCG(9, 10))
	nonce, additional := random(r, NonceSize), random(r, blockSize)
	for bit := range 128 {
		for _, n := range []int{0, 16, 32, 256, 512 + 48} {
			plaintext := make([]byte, n)
			k := &wide{}
			k.expand(&[KeySize]byte{})
			var h [blockSize]byte
			h[bit/8] = 0x80 >> (bit % 8)
			k.raise(h)
			sealed := make([]byte, n)
			tag := k.seal(sealed, plaintext, nonce, additional)
			if want := obvious(t, h, sealed, nonce, additional); !bytes.Equal(tag[:], want) {
				t.Fatalf("bit %d, %d bytes: %x, want %x", bit, n, tag, want)
			}
		}
	}
}

// obvious is the tag of a ciphertext under the key zero and any hash key, block by block.
func obvious(t *testing.T, h [blockSize]byte, sealed, nonce, additional []byte) []byte {
	t.Helper()
	var sum field
	var lengths [blockSize]byte
	lengths[7] = 128
	lengths[14], lengths[15] = byte(len(sealed)*8>>8), byte(len(sealed)*8)
	for b := range slices.Chunk(slices.Concat(additional, sealed, lengths[:]), blockSize) {
		e := element([blockSize]byte(b))
		sum = field{sum.hi ^ e.hi, sum.lo ^ e.lo}.times(element(h))
	}
	block, err := aes.NewCipher(make([]byte, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	tag := append(bytes.Clone(nonce), 0, 0, 0, 1)
	block.Encrypt(tag, tag)
	for i := range 8 {
		tag[i] ^= byte(sum.hi >> (56 - 8*i))
		tag[8+i] ^= byte(sum.lo >> (56 - 8*i))
	}
	return tag
}
