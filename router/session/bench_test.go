// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"testing"
)

var suites = []Suite{WireGuard, Weft}

func BenchmarkSeal(b *testing.B) {
	for _, s := range suites {
		for _, size := range []int{64, 1400} {
			b.Run(fmt.Sprintf("%s/%d", s, size), func(b *testing.B) {
				k, _ := newDuo(b, s, s).shake(b, epoch)
				plaintext, out := make([]byte, size), make([]byte, 0, size+Padding+Overhead)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := k.Seal(out, plaintext); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, s := range suites {
		for _, size := range []int{64, 1400} {
			b.Run(fmt.Sprintf("%s/%d", s, size), func(b *testing.B) {
				d := newDuo(b, s, s)
				ka, kb := d.shake(b, epoch)
				plaintext := make([]byte, size)
				// Opening is in place and once only, so every round needs a datagram of its own.
				const batch = 256
				var sealed [batch][]byte
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for i := range b.N {
					if i%batch == 0 {
						b.StopTimer()
						for j := range sealed {
							var err error
							if sealed[j], err = ka.Seal(sealed[j][:0], plaintext); err != nil {
								b.Fatal(err)
							}
						}
						b.StartTimer()
					}
					if _, err := kb.Open(sealed[i%batch], epoch); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkKeypairLookup(b *testing.B) {
	d := newDuo(b, Weft, Weft)
	ka, _ := d.shake(b, epoch)
	b.ReportAllocs()
	for b.Loop() {
		if d.a.Keypair(ka.local) != ka {
			b.Fatal("lost")
		}
	}
}

// BenchmarkHandshake is the work of both sides together.
func BenchmarkHandshake(b *testing.B) {
	for _, s := range suites {
		b.Run(s.String(), func(b *testing.B) {
			d := newDuo(b, s, s)
			now := epoch
			b.ReportAllocs()
			for b.Loop() {
				d.shake(b, now)
				now = now.Add(RekeyTimeout)
			}
		})
	}
}
