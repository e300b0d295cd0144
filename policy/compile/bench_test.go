// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"

	"github.com/weftnet/weft/policy"
)

// Sizes of the cluster of the benchmarks.
const (
	benchPolicies  = 10_000
	benchEndpoints = 30_000
	benchLocals    = 100
)

// shapes are what the policies of the benchmarks say: 10,000 of them select all 100 endpoints of this node, or a few each.
func shapes() map[string]func(i int) (pods policy.Selector, r policy.Rule) {
	all := policy.Selector{}
	tcp := func(first, last int) []policy.Ports {
		return []policy.Ports{{Protocol: policy.TCP, First: uint16(first), Last: uint16(last)}}
	}
	app := func(i int) []policy.Peer {
		s := policy.Selector{{Key: "app", Operator: policy.In, Values: []string{fmt.Sprint("a", i%(benchEndpoints/3))}}}
		return []policy.Peer{{Pods: &s}}
	}
	return map[string]func(int) (policy.Selector, policy.Rule){
		"few": func(i int) (policy.Selector, policy.Rule) {
			s := policy.Selector{{Key: "app", Operator: policy.In, Values: []string{fmt.Sprint("a", i%benchLocals/3)}}}
			return s, policy.Rule{Peers: app(i), Ports: tcp(80, 80)}
		},
		"all": func(i int) (policy.Selector, policy.Rule) { return all, policy.Rule{Peers: app(i), Ports: tcp(80, 80)} },
		"blocks": func(i int) (policy.Selector, policy.Rule) {
			a := [4]byte{100, byte(i >> 8), byte(i), 0}
			b := &policy.Block{Prefix: netip.PrefixFrom(netip.AddrFrom4(a), 24)}
			b.Except = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(a), 28)}
			return all, policy.Rule{Peers: []policy.Peer{{Block: b}}, AnyPort: true}
		},
		"ranges": func(i int) (policy.Selector, policy.Rule) {
			return all, policy.Rule{Peers: app(i), Ports: tcp(1000+i, 1050+i)}
		},
		"wildcards": func(i int) (policy.Selector, policy.Rule) {
			return all, policy.Rule{AnyPeer: true, Ports: tcp(1000+i, 1000+i)}
		},
		"named": func(i int) (policy.Selector, policy.Rule) {
			return all, policy.Rule{Peers: app(i), Ports: []policy.Ports{{Protocol: policy.TCP, Name: "http"}}}
		},
	}
}

// benchPolicy returns the i-th policy of a shape.
func benchPolicy(i int, pods policy.Selector, r policy.Rule) *policy.Policy {
	p := &policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "ns", Name: fmt.Sprintf("p%05d", i)}},
		Tier:      policy.Network, Pods: &pods, Isolates: [2]bool{true, true},
	}
	p.Rules = [2][]policy.Rule{{r}, {r}}
	return p
}

// benchEndpoint returns the i-th endpoint, the first ones of this node. Three have the same labels.
func benchEndpoint(i int) policy.Endpoint {
	e := policy.Endpoint{
		Name: policy.Name{Namespace: "ns", Name: fmt.Sprintf("workload-%d-7d4f9c6b5d-%05d", i/3, i)},
		ID:   fmt.Sprintf("8c7c2b0e-5d0b-4e0e-9a58-%012d", i), Node: fmt.Sprintf("node-%d", i/benchLocals),
		Labels: map[string]string{
			"app": fmt.Sprint("a", i/3), "pod-template-hash": fmt.Sprintf("7d4f9c%d", i/3), "app.kubernetes.io/part-of": "shop", "tier": "backend",
		},
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 32, byte(i >> 8), byte(i)})},
		Ports: []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: uint16(8080 + i%4)}},
	}
	if i < benchLocals {
		e.Node = here
	}
	return e
}

// benchCompiler returns one with the objects of a shape, not committed. With no shape there are no policies.
func benchCompiler(shape string, endpoints int) *Compiler {
	c := New(here, Limits{})
	for i := range endpoints / benchLocals {
		c.SetNode(policy.Node{Name: fmt.Sprint("node-", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})}})
	}
	for i := range endpoints {
		c.SetEndpoint(benchEndpoint(i))
	}
	if of := shapes()[shape]; of != nil {
		for i := range benchPolicies {
			pods, r := of(i)
			c.SetPolicy(benchPolicy(i, pods, r))
		}
	}
	return c
}

// BenchmarkFirst is the first Commit, with all policies and endpoints.
func BenchmarkFirst(b *testing.B) {
	for shape := range shapes() {
		b.Run(shape, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				c := benchCompiler(shape, benchEndpoints)
				runtime.GC()
				b.StartTimer()
				before := cpu()
				c.Commit()
				b.StopTimer()
				b.ReportMetric(cpu()-before, "cpu-ms")
				b.ReportMetric(float64(len(c.identities)), "addresses")
				b.ReportMetric(float64(c.cells), "cells")
				b.ReportMetric(float64(len(c.tables)), "tables")
				if p := c.Problems(); len(p) > 0 {
					b.Fatal(p)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkLabel is a change of one label of one endpoint, elsewhere or of this node, and of one policy.
func BenchmarkLabel(b *testing.B) {
	for shape, of := range shapes() {
		c := benchCompiler(shape, benchEndpoints)
		c.Commit()
		change := func(b *testing.B, change func(i int)) {
			n := 0
			before := cpu()
			for i := 0; b.Loop(); i++ {
				change(i)
				n += size(c.Commit())
			}
			b.ReportMetric((cpu()-before)/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(n)/float64(b.N), "elements/op")
		}
		relabel := func(e policy.Endpoint, i int) {
			if i%2 == 0 {
				e.Labels["app"] = "a7000"
			}
			c.SetEndpoint(e)
		}
		b.Run(shape+"/remote", func(b *testing.B) { change(b, func(i int) { relabel(benchEndpoint(15_000), i) }) })
		b.Run(shape+"/local", func(b *testing.B) { change(b, func(i int) { relabel(benchEndpoint(50), i) }) })
		b.Run(shape+"/policy", func(b *testing.B) {
			change(b, func(i int) {
				pods, r := of(5000 + i%2)
				c.SetPolicy(benchPolicy(5000, pods, r))
			})
		})
	}
}

// size is how many elements a delta changes.
func size(d Delta) int {
	n := len(d.SetSides) + len(d.DropSides) + len(d.SetIdentities) + len(d.DropIdentities) + len(d.SetBlocks) + len(d.DropBlocks) +
		len(d.SetSelves) + len(d.DropSelves) + len(d.DropTables)
	for _, t := range d.AddTables {
		n += len(t.Cells)
	}
	for _, p := range d.Patches {
		n += len(p.Set) + len(p.Drop)
	}
	return n
}

// BenchmarkMemory is what is kept of 30,000 endpoints, world and labels among it, and of policies.
func BenchmarkMemory(b *testing.B) {
	b.Run("world alone", func(b *testing.B) {
		for b.Loop() {
			before := heap()
			w := policy.NewWorld()
			for i := range benchEndpoints {
				w.SetEndpoint(benchEndpoint(i))
			}
			b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
			runtime.KeepAlive(w)
		}
	})
	for _, shape := range []string{"none", "few", "all", "blocks", "ranges", "wildcards", "named"} {
		b.Run(shape, func(b *testing.B) {
			for b.Loop() {
				before := heap()
				c := benchCompiler(shape, benchEndpoints)
				c.Commit()
				b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
				runtime.KeepAlive(c)
			}
		})
	}
}

// cpu returns what the process has used, in milliseconds: other than the time that benchmarks take, it does not depend on what else runs. Garbage
// collection is in it.
func cpu() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e6
}

// heap is how much memory is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
