// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// large is what 10,000 policies may come to on a node with 100 pods: two tables for each pod, 100 identities or so in each, several ports.
func large(elements int) *compile.State {
	s := compile.NewState()
	const pods, ports = 100, 15
	var verdicts []compile.Verdict
	for i := range 1000 {
		verdicts = append(verdicts, by(true, fmt.Sprint("policy", i)))
	}
	each := elements / (2 * pods)
	for i := range 2 * pods {
		t := &compile.Table{ID: compile.TableID(i + 1), Default: by(false, "isolate"), Cells: map[compile.Cell]compile.Verdict{}}
		for n := range each {
			c := compile.Cell{Identity: compile.Identity(100 + n/ports), Protocol: policy.TCP, First: uint16(1000 + n%ports), Last: uint16(1000 + n%ports)}
			t.Cells[c] = verdicts[(i*each+n)%len(verdicts)]
		}
		s.Tables[t.ID] = t
		a := netip.AddrFrom4([4]byte{10, 200, byte(i / 2), 1})
		s.Sides[compile.Side{Addr: a, Direction: policy.Direction(i % 2)}] = t.ID
	}
	for n := range 10_000 {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24|100<<16+uint32(n))))
		s.Identities[a] = compile.Identity(100 + n%(each/ports+1))
	}
	return s
}

// processor is how long the process has had one.
func processor(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkProgram puts 300,000 elements into the kernel, and takes them over again.
func BenchmarkProgram(b *testing.B) {
	s := large(300_000)
	b.Run("anew", func(b *testing.B) {
		f := newFilter(b, newSpace(b))
		for b.Loop() {
			began := processor(b)
			must(b, f.Replace(s))
			b.ReportMetric(float64((processor(b) - began).Milliseconds()), "cpu-ms")
			b.StopTimer()
			must(b, f.Remove())
			b.StartTimer()
		}
	})
	b.Run("equal", func(b *testing.B) {
		f := newFilter(b, newSpace(b))
		must(b, f.Replace(s))
		for b.Loop() {
			must(b, f.Replace(s))
		}
	})
	b.Run("one", func(b *testing.B) {
		var took []time.Duration
		f := newFilter(b, newSpace(b))
		must(b, f.Replace(s))
		c := compile.Cell{Identity: 100, Protocol: policy.TCP, First: 7, Last: 7}
		for i := 0; b.Loop(); i++ {
			p := compile.Patch{Set: map[compile.Cell]compile.Verdict{c: by(true, "new")}}
			if i%2 == 1 {
				p = compile.Patch{Drop: []compile.Cell{c}}
			}
			began := time.Now()
			must(b, f.Update(compile.Delta{Patches: map[compile.TableID]compile.Patch{1: p}}))
			took = append(took, time.Since(began))
			time.Sleep(50 * time.Millisecond) // as endpoints come
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us/median")
	})
}

// BenchmarkConnections measures connections through the node, where connection tracking is on: without the table, with it but at endpoints
// without sides, and with a large one that judges both ends. The ratios are of the medians to the first.
func BenchmarkConnections(b *testing.B) {
	w := newWorld(b)
	f := newFilter(b, w.node)
	s := large(300_000)
	for id := compile.TableID(1); id <= 2; id++ {
		s.Tables[id].Cells[compile.Cell{Identity: 5, Protocol: policy.TCP, First: 80, Last: 80}] = by(true, "open")
	}
	s.Identities[podAddr(0, false)], s.Identities[podAddr(2, false)] = 5, 5
	s.Sides[compile.Side{Addr: podAddr(0, false), Direction: policy.Egress}] = 1
	s.Sides[compile.Side{Addr: podAddr(2, false), Direction: policy.Ingress}] = 2
	w.node.nft(b, "add table inet other")
	w.node.nft(b, "add chain inet other forward { type filter hook forward priority 1; }")
	w.node.nft(b, "add rule inet other forward ct state established accept")
	must(b, f.Replace(s))
	// Packets meet the table or not by whether it has its hook's chain.
	hook := func(on bool) {
		var c buffer
		for _, x := range f.layout.chains() {
			if outer(x) {
				c.composeOuter(x, on)
			}
		}
		must(b, f.conn.commit(c))
	}
	// Processor time is that of the packets, too: all is one process's. The rest of the machine, and the collector, are left out.
	measure := func(from, to int) float64 {
		const batch = 200
		began := processor(b)
		for range batch {
			if o := w.of(podAddr(from, false)).tcp(podAddr(from, false), podAddr(to, false), 80, patience); o != refused {
				b.Fatal(o)
			}
		}
		return float64((processor(b) - began).Microseconds()) / batch
	}
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var without, open, judged []float64
	for b.Loop() {
		hook(false)
		measure(0, 2)
		without = append(without, measure(0, 2))
		hook(true)
		measure(0, 2)
		judged, open = append(judged, measure(0, 2)), append(open, measure(1, 3))
	}
	for _, x := range [][]float64{without, open, judged} {
		slices.Sort(x)
	}
	base := without[len(without)/2]
	b.ReportMetric(base, "cpu-us/connection")
	b.ReportMetric(base/judged[len(judged)/2], "judged")
	b.ReportMetric(base/open[len(open)/2], "open")
}

// composeOuter adds or deletes a chain that packets meet first.
func (b *buffer) composeOuter(c *chain, add bool) {
	if add {
		b.composeChain(Table, c)
		b.composeRulesOf(Table, c)
		return
	}
	at := b.begin(nft(unix.NFT_MSG_DELCHAIN), 0, unix.NFPROTO_INET, 0)
	b.text(unix.NFTA_CHAIN_TABLE, Table)
	b.text(unix.NFTA_CHAIN_NAME, c.name)
	b.end(at)
}

// BenchmarkHostSends measures datagrams that the host itself sends, as what a daemon tells its peers: without the table, and with it.
func BenchmarkHostSends(b *testing.B) {
	w := newWorld(b)
	f := newFilter(b, w.node)
	w.node.nft(b, "add table inet other")
	w.node.nft(b, "add chain inet other output { type filter hook output priority 1; }")
	w.node.nft(b, "add rule inet other output ct state established accept")
	must(b, f.Replace(large(300_000)))
	hook := func(on bool) {
		var c buffer
		for _, x := range f.layout.chains() {
			if outer(x) {
				c.composeOuter(x, on)
			}
		}
		must(b, f.conn.commit(c))
	}
	server, err := w.client.socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, clientAddr(false), 7)
	must(b, err)
	defer func() { _ = unix.Close(server) }()
	fd, err := w.node.socket(unix.SOCK_DGRAM, netip.MustParseAddr("192.0.2.1"), 7)
	must(b, err)
	defer func() { _ = unix.Close(fd) }()
	must(b, unix.Connect(fd, sockaddr(clientAddr(false), 7)))
	must(b, unix.Connect(server, sockaddr(netip.MustParseAddr("192.0.2.1"), 7)))
	p := pipe{fd, server}
	must(b, p.echo(patience))
	data := make([]byte, 1400)
	measure := func() float64 {
		const batch = 20_000
		began := processor(b)
		for range batch {
			_, _ = unix.Write(fd, data) // nobody reads them
		}
		return float64((processor(b) - began).Nanoseconds()) / batch
	}
	var without, with []float64
	for b.Loop() {
		hook(false)
		without = append(without, measure())
		hook(true)
		with = append(with, measure())
	}
	slices.Sort(without)
	slices.Sort(with)
	base, now := without[len(without)/2], with[len(with)/2]
	b.ReportMetric(base, "cpu-ns/datagram")
	b.ReportMetric(now-base, "more-ns/datagram")
}
