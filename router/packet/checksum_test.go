// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// network returns what the sum acc would be stored as.
func network(acc uint64) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], fold(acc))
	return binary.BigEndian.Uint16(b[:])
}

func TestSumAgainstSlow(t *testing.T) {
	// Every length and alignment up to some unrolled rounds, with bytes that
	// carry as often as can be and with bytes that do not.
	for _, fill := range [][]byte{
		bytes.Repeat([]byte{0xff}, 300), make([]byte, 300), pattern(7, 300),
	} {
		for from := range 9 {
			for n := range 280 {
				b := fill[from : from+n]
				if got, want := network(sum(b, 0)), slowSum(b); got != want {
					t.Fatalf("%d bytes at %d: %#x, want %#x", n, from, got, want)
				}
			}
		}
	}
}

func TestSumRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawBytes(t, 2*rapid.IntRange(0, 200).Draw(t, "na"), "a")
		b := drawBytes(t, rapid.IntRange(0, 70000).Draw(t, "nb"), "b")
		v := rapid.Uint16().Draw(t, "v")
		acc := sumWord(v, sum(b, sum(a, 0)))
		want := slowSum(a, []byte{byte(v >> 8), byte(v)}, b)
		if got := network(acc); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
		var stored [2]byte
		putChecksum(stored[:], acc)
		if s := slowSum(a, []byte{byte(v >> 8), byte(v)}, stored[:], b); s != 0xffff {
			t.Fatalf("with its checksum the sum is %#x", s)
		}
	})
}

func TestPutChecksumNonZero(t *testing.T) {
	var b [2]byte
	putChecksumNonZero(b[:], 0xffff)
	if b != [2]byte{0xff, 0xff} {
		t.Errorf("zero stored as %x", b)
	}
	putChecksumNonZero(b[:], sumWord(0x1234, 0))
	if b != [2]byte{0xed, 0xcb} {
		t.Errorf("complement of 1234 stored as %x", b)
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 60, 576, 1420, 65535} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := pattern(1, n)
			b.SetBytes(int64(n))
			var acc uint64
			for b.Loop() {
				acc = sum(buf, acc)
			}
		})
	}
}
