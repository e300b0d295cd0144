// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"
)

// TestSpoofedFlood sends initiations with the right mac1 from ever new addresses. The work that they cause is bounded, and a peer
// whose address is known comes through with its second try.
func TestSpoofedFlood(t *testing.T) {
	for _, s := range suites {
		d := newDuo(t, s, s)
		const worth = 40 // handshakes per second
		d.b.gate.init(worth)
		now := epoch
		d.shake(t, now)
		junk := make([]byte, InitiationSize)
		copy(junk[4:], bytes.Repeat([]byte{9}, initiationNoiseEnd-4))
		junk[0], junk[1] = TypeInitiation, byte(s)
		fixMAC1(t, junk, d.b.Public())

		const rate = 20 * worth
		var worked, cookies, seconds int
		source := uint32(1 << 24)
		flood := func(n int) {
			seconds += n
			for range n * rate {
				now = now.Add(time.Second / rate)
				source++
				from := netip.AddrPortFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, source))), 1000)
				r, err := d.b.Receive(nil, junk, from, now)
				if !errors.Is(err, ErrUnderLoad) {
					worked++
				}
				if len(r.Reply) > 0 {
					cookies++
				}
			}
		}
		flood(6)
		first := initiation(t, d.ab, now)
		r, err := d.b.Receive(nil, first, addrA, now)
		if !errors.Is(err, ErrUnderLoad) || len(r.Reply) != CookieSize {
			t.Fatalf("%v: a peer gets no cookie: %v", s, err)
		}
		receive(t, d.a, r.Reply, addrB, now)
		flood(6)
		second, _ := d.ab.Tick(nil, now)
		r = receive(t, d.b, second, addrA, now)
		if r = receive(t, d.a, r.Reply, addrB, now); !r.Established {
			t.Errorf("%v: no key", s)
		}
		flood(1)
		if most := (loadBurst + 1) * worth; worked > most || worked < most/2 {
			t.Errorf("%v: %d initiations of the flood were worked on, at most %d", s, worked, most)
		}
		if most := (seconds + 1) * worth * cookieShare; cookies > most || cookies < most/2 {
			t.Errorf("%v: %d cookies in %d seconds, at most %d", s, cookies, seconds, most)
		}
	}
}
