// SPDX-License-Identifier: Apache-2.0

package router

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// strangers returns initiations for b by keys that it does not know, from as many addresses.
func (x *bench) strangers(tb testing.TB, n int) (all []underlay.Message) {
	tb.Helper()
	for i := range n {
		m, err := session.New(session.Config{Private: session.PrivateKey{1: byte(i), 2: 9, 31: 64}, Rand: rand.NewChaCha8([32]byte{byte(i)})})
		if err != nil {
			tb.Fatal(err)
		}
		p, err := m.AddPeer(session.PeerConfig{Public: x.b.r.public, Suite: session.Weft})
		if err != nil {
			tb.Fatal(err)
		}
		msg, ok := p.Initiate(nil, x.now)
		if !ok {
			tb.Fatal("no initiation")
		}
		all = append(all, underlay.Message{Buf: msg, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), 5)})
	}
	return all
}

// BenchmarkFlood is what an initiation costs a host that is flooded with them.
func BenchmarkFlood(b *testing.B) {
	x := newBench(b, session.Weft, true)
	flood := x.strangers(b, receiveBatch)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		x.lb.replies = x.lb.replies[:0]
		x.lb.incoming = flood
		if _, err := x.b.receive(x.now); err != nil {
			b.Fatal(err)
		}
		n += len(flood)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/initiation")
}
