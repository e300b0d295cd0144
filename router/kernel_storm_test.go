// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/envelope"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// stormRun is how many datagrams of a storm cross the network as one: a sender on the same machine could not send as many one by one.
const stormRun = 16

// storm sends datagrams from a until it is stopped by the function that it returns, which tells how many there were per second.
func storm(tb testing.TB, a *node, to netip.AddrPort, perSecond int, datagram []byte) (stop func() float64) {
	tb.Helper()
	var conn *underlay.Conn
	a.ns.Do(func() {
		conns, err := underlay.Listen(0, 1, underlay.Options{})
		if err != nil {
			tb.Fatal(err)
		}
		conn = conns[0]
	})
	ms := make([]underlay.Message, 16)
	for i := range ms {
		ms[i] = underlay.Message{Buf: bytes.Repeat(datagram, stormRun), Segment: len(datagram), Addr: to}
	}
	var done atomic.Bool
	var wg sync.WaitGroup
	begin, sent := time.Now(), 0
	wg.Go(func() {
		for !done.Load() {
			if ahead := time.Duration(float64(sent)/float64(perSecond)*1e9) - time.Since(begin); ahead > 0 {
				time.Sleep(ahead)
			}
			n, err := conn.Send(ms)
			if err != nil {
				tb.Error(err)
				return
			}
			sent += n * stormRun
		}
	})
	return func() float64 {
		done.Store(true)
		wg.Wait()
		rate := float64(sent) / time.Since(begin).Seconds()
		closeIt(tb, conn)
		return rate
	}
}

// storms are what may come down on a host: what nobody of the mesh has sent, and what a member has.
func storms(tb testing.TB) map[string][]byte {
	ring := meshKeys(tb, 0).Envelope
	sealed, err := ring.Seal(nil, envelope.Header{Kind: envelope.KindMesh, Source: 9}, make([]byte, 200), random{})
	if err != nil {
		tb.Fatal(err)
	}
	other := meshKeys(tb, 1).Envelope
	foreign, err := other.Seal(nil, envelope.Header{Kind: envelope.KindMesh, Source: 9}, make([]byte, 200), random{})
	if err != nil {
		tb.Fatal(err)
	}
	forged := slices.Clone(sealed)
	forged[len(forged)-1] ^= 1
	return map[string][]byte{"of a member": sealed, "of another mesh": foreign, "forged": forged}
}

// BenchmarkStreamBesideStorm is one TCP stream to a host on which 200,000 control datagrams a second come down.
func BenchmarkStreamBesideStorm(b *testing.B) {
	for name, datagram := range storms(b) {
		for _, shared := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/shared %v", name, shared), func(b *testing.B) {
				s := setup{offload: all, shards: 1, suite: session.Weft, shared: shared}
				from, to := nodes(b, s)
				transfer(b, from, to, 0, 1<<20)
				stop := storm(b, from, s.where(2), 200_000, datagram)
				const size = 32 << 20
				b.SetBytes(size)
				for b.Loop() {
					transfer(b, from, to, 0, size)
				}
				b.ReportMetric(stop(), "storm/s")
				b.ReportMetric(float64(to.Stats().ControlRx)/b.Elapsed().Seconds(), "gossip/s")
			})
		}
	}
}

// BenchmarkGossipBesideStream is what becomes of 200 gossip packets a second between two hosts, while streams fill the way in the same direction.
func BenchmarkGossipBesideStream(b *testing.B) {
	for _, shared := range []bool{true, false} {
		b.Run(fmt.Sprintf("shared %v", shared), func(b *testing.B) {
			s := setup{offload: all, shards: 1, suite: session.Weft, shared: shared}
			from, to := nodes(b, s)
			transfer(b, from, to, 0, 1<<20)
			for b.Loop() {
				gossipBeside(b, s, from, to)
			}
		})
	}
}

func gossipBeside(b *testing.B, s setup, from, to *node) {
	var busy sync.WaitGroup
	// More than is carried, for a session that there is not.
	stop := storm(b, from, s.where(2), 1_000_000, append([]byte{4, 1}, make([]byte, 1400)...))
	busy.Go(func() { transfer(b, from, to, 0, 256<<20) })
	var took []time.Duration
	lost := 0
	text := strings.Repeat("x", 900)
	for i := range 1000 {
		begin := time.Now()
		if err := from.SendControl([]byte(fmt.Sprint(i, text)), router.Addr{Node: 2}); err != nil {
			b.Fatal(err)
		}
		select {
		case <-to.gossip:
			took = append(took, time.Since(begin))
		case <-time.After(200 * time.Millisecond):
			lost++
		}
		time.Sleep(time.Until(begin.Add(5 * time.Millisecond)))
	}
	rate := stop()
	busy.Wait()
	slices.Sort(took)
	if len(took) == 0 {
		b.Fatal("none arrived")
	}
	b.ReportMetric(float64(lost), "lost/1000")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	b.ReportMetric(rate, "flood/s")
}
