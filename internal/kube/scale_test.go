// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/kube/kubetest"
	"github.com/weftnet/weft/internal/token"
)

var scaleNodes = flag.Int("kube.nodes", 40, "nodes of TestLoadOnAPIServer")

// settled is a node that has a mesh, and is well.
type settled struct {
	id string

	mu       sync.Mutex
	token    string
	past     string // that was given up
	hosts    []string
	warnings map[string]string
	members  []Member
	forgot   []string
	policies Sink
}

const settledMesh = "the mesh"

func newSettled(id string, t token.Token) *settled {
	return &settled{id: id, token: t.Reveal(), warnings: map[string]string{}}
}

func (s *settled) Phase() (api.Phase, string) { return api.Ready, "" }
func (s *settled) Status() api.Status {
	return api.Status{MeshID: settledMesh, Universe: "10.32.0.0/12"}
}
func (s *settled) IPAM() api.IPAM { return api.IPAM{Size: 1 << 20, Free: 1 << 10} }

func (s *settled) Token() (api.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return api.Token{Token: s.token}, nil
}

func (s *settled) GaveUp(t token.Token) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.past != "" && s.past == t.Reveal()
}

func (s *settled) Adopt(_ context.Context, t token.Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.past = t.Reveal(), s.token
	return nil
}

func (s *settled) Members() []Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.members)
}

func (s *settled) Direct(hosts []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts = hosts
	return nil
}

func (s *settled) Policies() Sink { return s.policies }

func (s *settled) Warn(about, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings[about] = text
}

func (s *settled) Forget(_ context.Context, r api.ForgetRequest, _ func(api.ForgetProgress)) (api.ForgetResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgot = append(s.forgot, r.Node)
	return api.ForgetResult{}, nil
}

// TestLoadOnAPIServer counts what the nodes of a cluster that has a mesh ask the API server: when all of them start at once, while nothing
// happens, and when it comes back after five minutes. It grows with the square of -kube.nodes, as every node hears of every node; what a node asks does not.
func TestLoadOnAPIServer(t *testing.T) {
	nodes := *scaleNodes
	synctest.Test(t, func(t *testing.T) {
		srv := kubetest.New()
		tok, err := token.New(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		data, err := founding{token: tok, inRange: "10.32.0.0/12", encryption: "on", founded: true, mesh: settledMesh}.data()
		if err != nil {
			t.Fatal(err)
		}
		srv.Put("kube-system/secrets/weft", kubetest.Object{"data": data})
		srv.Put("kube-system/daemonsets/weft", kubetest.Object{})
		srv.Put("namespaces/default", kubetest.Object{})
		srv.Put("default/pods/p", podObject("n1", "10.32.0.1"))
		for i := range nodes {
			srv.Put(fmt.Sprintf("nodes/n%d", i), nodeObject(fmt.Sprintf("192.0.%d.%d", i/250, 1+i%250)))
		}
		var mu sync.Mutex
		seconds, kinds := map[int64]int{}, map[string]int{}
		srv.SetFate(func(r kubetest.Request) kubetest.Fate {
			mu.Lock()
			defer mu.Unlock()
			seconds[time.Now().Unix()]++
			kinds[r.Verb+" "+r.Resource]++
			return kubetest.Pass
		})
		count := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			all, most := 0, 0
			for _, n := range seconds {
				all, most = all+n, max(most, n)
			}
			t.Logf("%s: %d nodes ask %d times, at most %d in a second: %v", what, nodes, all, most, kinds)
			if limit := 4 * nodes; most > limit {
				t.Errorf("%s: %d requests in one second, %d nodes should make no more than %d", what, most, nodes, limit)
			}
			if all > 20*nodes {
				t.Errorf("%s: %d requests of %d nodes", what, all, nodes)
			}
			clear(seconds)
			clear(kinds)
		}
		var running sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		var agents []*Agent
		var sinks []*recording
		for i := range nodes {
			name := fmt.Sprintf("n%d", i)
			a := New(Config{
				Cluster: clusterOf(t, srv, name), Node: name, Namespace: testNamespace, DaemonSet: "weft", Rand: rand.Reader, Log: zap.NewNop(),
				Up: func(context.Context) error { return nil },
			})
			agents = append(agents, a)
			id := fmt.Sprintf("%016x", i+1)
			d := newSettled(id, tok)
			sink := newRecording()
			sinks, d.policies = append(sinks, sink), sink
			running.Go(func() {
				if err := a.Run(ctx, id, d); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Minute)
		count("all start at once")
		if w := srv.Watches(); w != watchesOfNode*nodes {
			t.Errorf("%d watches of %d nodes, not %d of each", w, nodes, watchesOfNode)
		}
		for i := range nodes {
			srv.Edit(fmt.Sprintf("nodes/n%d", i), func(o kubetest.Object) { o["spec"] = kubetest.Object{"unschedulable": true} })
		}
		time.Sleep(4 * time.Minute)
		mu.Lock()
		if len(kinds) > 0 {
			t.Errorf("while nothing happens the API server is asked: %v", kinds)
		}
		mu.Unlock()
		srv.SetDown(true)
		time.Sleep(5 * time.Minute)
		mu.Lock()
		clear(seconds)
		clear(kinds)
		mu.Unlock()
		srv.SetDown(false)
		time.Sleep(2 * time.Minute)
		count("the API server comes back")
		if w := srv.Watches(); w != watchesOfNode*nodes {
			t.Errorf("%d watches of %d nodes after that, not %d of each", w, nodes, watchesOfNode)
		}
		for _, sink := range sinks {
			if got := sink.text(); got != "1 pods, 1 namespaces, 0 policies, "+strconv.Itoa(nodes)+" nodes" {
				t.Error(got)
			}
		}
		stop()
		running.Wait()
		for _, a := range agents {
			a.Close()
		}
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestMemoryOfManyNodes has a node follow 1,000 others, whose objects are as large as those of real clusters.
func TestMemoryOfManyNodes(t *testing.T) {
	const nodes, most = 1000, 8 << 20
	srv := kubetest.New()
	defer func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range nodes {
		o := nodeObject(fmt.Sprintf("192.0.%d.%d", i/250, 1+i%250))
		images := []any{}
		for j := range 15 {
			images = append(images, kubetest.Object{"names": []any{fmt.Sprintf("registry.example/team/image-%d@sha256:%064d", j, i), fmt.Sprintf("registry.example/team/image-%d:v1", j)}, "sizeBytes": 123456789})
		}
		o["status"].(kubetest.Object)["images"] = images
		labels := kubetest.Object{}
		for j := range 15 {
			labels[fmt.Sprintf("topology.example/label-%d", j)] = strings.Repeat("x", 40)
		}
		o["metadata"] = kubetest.Object{"labels": labels}
		srv.Put(fmt.Sprintf("nodes/n%d", i), o)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	a := New(Config{Cluster: clusterOf(t, srv, "n0"), Node: "n0", Namespace: testNamespace, Rand: rand.Reader, Log: zap.NewNop()})
	defer a.Close()
	before := heap()
	a.follow(0)
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if all, synced := a.nodes.snapshot(); synced {
			if len(all) != nodes || len(slices.Collect(maps.Keys(all))) != nodes {
				t.Errorf("%d nodes are known", len(all))
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("the nodes do not come: ", a.nodes.why())
		}
	}
	time.Sleep(200 * time.Millisecond)
	after := heap()
	t.Logf("%d nodes take %d KiB", nodes, (int64(after)-int64(before))/1024)
	if after > before+most {
		t.Errorf("%d nodes take %d bytes, more than %d", nodes, after-before, most)
	}
	runtime.KeepAlive(srv)
}
