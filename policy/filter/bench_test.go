// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
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
		f := newFilter(b, newSpace(b))
		must(b, f.Replace(s))
		c := compile.Cell{Identity: 100, Protocol: policy.TCP, First: 7, Last: 7}
		for i := 0; b.Loop(); i++ {
			p := compile.Patch{Set: map[compile.Cell]compile.Verdict{c: by(true, "new")}}
			if i%2 == 1 {
				p = compile.Patch{Drop: []compile.Cell{c}}
			}
			must(b, f.Update(compile.Delta{Patches: map[compile.TableID]compile.Patch{1: p}}))
		}
	})
}

// BenchmarkConnections counts connections per second through the node: without a table, and with a large one that judges both ends.
func BenchmarkConnections(b *testing.B) {
	w := newWorld(b)
	f := newFilter(b, w.node)
	s := large(300_000)
	for id := compile.TableID(1); id <= 2; id++ {
		s.Tables[id].Cells[compile.Cell{Identity: compile.World, Protocol: policy.TCP, First: 1, Last: 99}] = by(true, "open")
	}
	s.Sides[compile.Side{Addr: podAddr(0, false), Direction: policy.Egress}] = 1
	s.Sides[compile.Side{Addr: podAddr(2, false), Direction: policy.Ingress}] = 2
	const most = 1000
	measure := func(n int) time.Duration {
		began := time.Now()
		for range n {
			if o := w.pods[0].tcp(podAddr(0, false), podAddr(2, false), 80, patience); o != refused {
				b.Fatal(o)
			}
		}
		return time.Since(began)
	}
	var without, with time.Duration
	rounds := 0
	for b.Loop() {
		must(b, f.Remove())
		measure(100)
		without += measure(most)
		must(b, f.Replace(s))
		measure(100)
		with += measure(most)
		rounds++
	}
	b.ReportMetric(float64(rounds*most)/without.Seconds(), "without/s")
	b.ReportMetric(float64(rounds*most)/with.Seconds(), "with/s")
	b.ReportMetric(without.Seconds()/with.Seconds(), "ratio")
}
