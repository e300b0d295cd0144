// SPDX-License-Identifier: Apache-2.0

package router

import (
	"math/rand/v2"
	"testing"

	"github.com/weftnet/weft/router/session"
)

// Frames leave the shelf in their order and as they came, it holds no more than it may, and small ones find room when it is full.
func TestShelf(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, bits := range []uint64{1, 20e6, 1e9, 1 << 62} {
		var f shelf
		f.init(bits, 2)
		if f.limit < leastShelf || f.limit > mostShelf {
			t.Errorf("%d bit/s: %d bytes", bits, f.limit)
		}
		peers := []*peer{{}, {}}
		var want []shelved
		buf := make([]byte, 1500)
		for range 20000 {
			if rng.IntN(3) == 0 && !f.empty() {
				got := f.take()
				if got.to != want[0].to || string(got.frame) != string(want[0].frame) {
					t.Fatalf("%x for %p, want %x for %p", got.frame, got.to, want[0].frame, want[0].to)
				}
				f.keep(got.frame)
				want = want[1:]
				continue
			}
			n, small := 100+rng.IntN(1400), rng.IntN(4) == 0
			if small {
				n = 100
			}
			for i := range 8 {
				buf[i] = byte(rng.Uint32())
			}
			to, before := peers[rng.IntN(2)], f.bytes
			limit := f.limit
			if small {
				limit *= 2
			}
			ok := f.put(to, buf[:n], small)
			if fits := before+n+session.Overhead <= limit; ok != fits {
				t.Fatalf("%d bytes besides %d of %d: %v", n, before, f.limit, ok)
			}
			if ok {
				want = append(want, shelved{to, append([]byte(nil), buf[:n]...)})
			}
		}
		for !f.empty() {
			f.keep(f.take().frame)
		}
		if f.bytes != 0 || len(f.to) != 0 || len(f.spare) > maxSpare {
			t.Errorf("%d bytes and %d peers are left, %d buffers", f.bytes, len(f.to), len(f.spare))
		}
	}
}
