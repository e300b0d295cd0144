// SPDX-License-Identifier: Apache-2.0

//go:build !race

package node

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/mesh/memnet"
)

var (
	scaleNodes = flag.Int("scale.nodes", 100, "how many nodes TestScale has")
	scaleDoc   = flag.String("scale.doc", "", "write what TestScale measured into the table of this document")
	scaleAll   = flag.Bool("scale.all", false, "let a mesh of more than 1000 nodes rest, and cut it in two, too")
	scaleBrief = flag.Bool("scale.brief", false, "do with a mesh of up to 1000 nodes what is done with larger ones, and no more")
	scaleShare = flag.Bool("scale.share", false, "let the nodes of a mesh of up to 1000 share what larger ones do")
	scaleHeap  = flag.Int64("scale.heap", 11<<30, "bytes from where on TestScale collects garbage more often")
	scaleFiles = flag.String("scale.profiles", "", "write heap profiles to files whose names begin so")
)

// scaleResult is what a run came to.
type scaleResult struct {
	nodes                        int
	joined, known, granted       time.Duration
	failed, failedAll, back      time.Duration
	healed, agreed               time.Duration
	joining, steady, most, storm float64 // bytes per second and node; most: of any node while nothing happens
	heap, stacks                 uint64  // bytes per node
	peak                         scalePeak
	real                         time.Duration
}

func (r scaleResult) String() string {
	known := func(format string, v float64) string {
		if v == 0 {
			return "-" // it has not been measured
		}
		return fmt.Sprintf(format, v)
	}
	s := func(d time.Duration) string { return known("%.1f s", d.Seconds()) }
	k := func(v float64) string { return known("%.3g kB/s", v/1e3) }
	m := func(v uint64) string { return known("%.2f MiB", float64(v)/(1<<20)) }
	return fmt.Sprintf("| %d | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %.0f min |", r.nodes, s(r.joined), s(r.known), s(r.failed), k(r.steady), k(r.most),
		m(r.heap+r.stacks), m(r.peak.bytes), s(r.healed), s(r.healed+r.agreed), k(r.joining), known("%.1f MB", r.storm*(r.healed+r.agreed).Seconds()/1e6), r.real.Minutes())
}

// write puts the result into the table of the document.
func (r scaleResult) write(t *testing.T, doc string) {
	t.Helper()
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	done := false
	for line := range strings.Lines(string(b)) {
		switch n := 0; {
		case strings.HasPrefix(line, fmt.Sprintf("| %d |", r.nodes)):
			continue // from an earlier run
		case done || !strings.HasPrefix(line, "|"):
			if len(lines) > 0 && !done && strings.HasPrefix(lines[len(lines)-1], "|") {
				lines, done = append(lines, r.String()+"\n"), true
			}
		default:
			if _, err := fmt.Sscanf(line, "| %d |", &n); err == nil && n > r.nodes {
				lines, done = append(lines, r.String()+"\n"), true
			}
		}
		lines = append(lines, line)
	}
	if len(lines) > 0 && !done && strings.HasPrefix(lines[len(lines)-1], "|") {
		lines, done = append(lines, r.String()+"\n"), true
	}
	if !done {
		t.Fatalf("%s has no table", doc)
	}
	if err := os.WriteFile(doc, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What a mesh of a thousand must keep to. Larger ones must come together all the same, only not as soon.
const (
	scaleJoin   = 60 * time.Second
	scaleKnown  = 5 * time.Second
	scaleFailed = 15 * time.Second
	scaleHeal   = 30 * time.Second
	scaleSteady = 20e3 // bytes per second and node
	scaleMemory = 4 << 20
	scaleBusy   = 60 // goroutines of a node, however many others it has lost or meets again
)

// TestScale has a large mesh join, hear of one more node, lose one, and be cut in two and healed.
func TestScale(t *testing.T) {
	began := time.Now()
	defer debug.SetGCPercent(debug.SetGCPercent(200))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(min(*scaleHeap, debug.SetMemoryLimit(-1))))
	var r scaleResult
	synctest.Test(t, func(t *testing.T) { r = scale(t, *scaleNodes) })
	r.real = time.Since(began)
	t.Log(r)
	if *scaleDoc != "" && !t.Failed() {
		r.write(t, *scaleDoc)
	}
}

func scale(t *testing.T, size int) scaleResult {
	r := scaleResult{nodes: size}
	allow := func(d time.Duration) time.Duration {
		if size > 1000 {
			return 4 * d
		}
		return d
	}
	s := newScaleMesh(t)
	if size > 1000 || *scaleShare {
		s.shared = &mesh.Shared{}
	}
	s.join(&r, size, allow(scaleJoin))
	s.profile("joined")
	time.Sleep(30 * time.Second)
	s.oneMore(&r, allow(scaleKnown))
	whole := size <= 1000 && !*scaleBrief || *scaleAll
	if whole {
		s.rest(&r)
		s.profile("rest")
	}
	s.oneLess(&r, allow(scaleFailed))
	if whole {
		s.cut(&r, allow(scaleHeal))
	}
	return r
}

// profile writes of what the heap is after a part of the test.
func (s *scaleMesh) profile(part string) {
	if *scaleFiles == "" {
		return
	}
	runtime.GC()
	f, err := os.Create(*scaleFiles + "." + part)
	if err == nil {
		err = errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
	}
	if err != nil {
		s.t.Error(err)
	}
}

// join starts all nodes and waits until they agree.
func (s *scaleMesh) join(r *scaleResult, size int, limit time.Duration) {
	s.count(true)
	begin := time.Now()
	for range size {
		s.start()
		time.Sleep(startAll / time.Duration(size))
	}
	granted := make([]bool, size)
	granted[0] = true
	s.until(limit-startAll, "it sees all others and has its grant", 1, s.nodes, func(n *scaleNode) bool {
		i := n.number - 1
		if !granted[i] {
			select {
			case <-n.Joined():
				granted[i] = true
				s.grant(s.nodes[0], n, i)
			default:
			}
		}
		return granted[i] && n.Alive() == size-1
	})
	s.equal(limit-time.Since(begin), s.nodes)
	r.joined = time.Since(begin)
	r.joining, _ = s.rate(r.joined)
	s.t.Logf("joined after %v (%s)", r.joined, spent())
}

// oneMore starts another node.
func (s *scaleMesh) oneMore(r *scaleResult, limit time.Duration) {
	size := len(s.nodes)
	fresh := s.start()
	r.known = s.until(limit, "it knows the new node", 1, s.nodes, func(n *scaleNode) bool {
		k, ok := n.Node(fresh.id)
		return n.Alive() == size && ok && (k.Status == mesh.Alive || n == fresh)
	})
	s.grant(s.nodes[0], fresh, size)
	r.granted = s.until(limit, "it knows the grant", 1, s.nodes, func(n *scaleNode) bool {
		r := n.ring.at(uint32(size * scaleBlock))
		return r.Owner == ring.Owner(fresh.id) && r.From == 0
	})
	s.t.Logf("one more is known after %v, its grant after %v (%s)", r.known, r.granted, spent())
}

// rest measures what nothing costs.
func (s *scaleMesh) rest(r *scaleResult) {
	time.Sleep(time.Minute)
	s.count(true)
	time.Sleep(time.Minute)
	r.steady, r.most = s.rate(time.Minute)
	s.count(false)
	runtime.GC()
	runtime.GC() // what was kept for reuse goes the second time
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	n := uint64(len(s.nodes))
	r.heap, r.stacks = stats.HeapAlloc/n, stats.StackInuse/n
	s.t.Logf("at rest %.2f kB/s, at most %.2f; %d kB heap and %d kB stacks per node", r.steady/1e3, r.most/1e3, r.heap/1e3, r.stacks/1e3)
	if r.most > scaleSteady {
		s.t.Errorf("a node has %.1f kB/s of traffic while nothing happens, more than %.1f", r.most/1e3, scaleSteady/1e3)
	}
	if r.heap+r.stacks > scaleMemory {
		s.t.Errorf("a node takes %d bytes, more than %d", r.heap+r.stacks, scaleMemory)
	}
}

// oneLess takes a node off the network for a while.
func (s *scaleMesh) oneLess(r *scaleResult, limit time.Duration) {
	size := len(s.nodes)
	others := slices.Delete(slices.Clone(s.nodes), size/2, size/2+1)
	lost := s.nodes[size/2]
	lost.host.Dark(true)
	r.failed = s.until(limit, "it misses the node that failed", 0.99, others, sees(size-2))
	r.failedAll = r.failed + s.until(limit, "it misses the node that failed", 1, others, sees(size-2))
	lost.host.Dark(false)
	r.back = s.until(2*limit, "all are back", 1, s.nodes, sees(size-1))
	s.t.Logf("a failure is known to 99%% after %v, to all after %v; that it is back after %v (%s)", r.failed, r.failedAll, r.back, spent())
}

// cut parts the mesh in two halves that go on, and puts them together again.
func (s *scaleMesh) cut(r *scaleResult, limit time.Duration) {
	size := len(s.nodes)
	half := size / 2
	var side []*memnet.Host
	for _, n := range s.nodes[:half] {
		side = append(side, n.host)
	}
	s.net.Partition(side)
	s.peak = scalePeak{}
	cut := s.until(5*limit, "it has lost the other half", 1, s.nodes, func(n *scaleNode) bool { return n.Alive() == half-1 || n.Alive() == size-half-1 })
	for i, n := range s.nodes {
		if i%10 != 0 {
			continue
		}
		if err := n.SetRecord(func(r *mesh.Record) { r.MTU = 1300 }); err != nil {
			s.t.Fatal(err)
		}
		if i > 0 && i+1 < size && i+1 != half { // part of its block goes to another of its side
			s.pass(n, s.nodes[i+1], i)
		}
	}
	for range 30 {
		time.Sleep(time.Second)
		s.look()
	}
	s.net.Heal()
	s.count(true)
	r.healed = s.until(limit, "it sees all others again", 1, s.nodes, sees(size-1))
	r.agreed = s.equal(limit-r.healed, s.nodes)
	r.storm, _ = s.rate(r.healed + r.agreed)
	s.t.Logf("parted after %v; see each other %v after the end of it, and agree after %v", cut, r.healed, r.healed+r.agreed)
	r.peak = s.peak
	s.t.Logf("meanwhile at most %d kB and %d goroutines per node", r.peak.bytes/1e3, r.peak.goroutines)
	if r.peak.bytes > scaleMemory {
		s.t.Errorf("a node takes %d bytes in the cut or after it, more than %d", r.peak.bytes, scaleMemory)
	}
	if r.peak.goroutines > scaleBusy {
		s.t.Errorf("a node takes %d goroutines in the cut or after it, more than %d", r.peak.goroutines, scaleBusy)
	}
}
