// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/kube/kubetest"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/policy"
)

// watchesOfNode are on nodes, the Secret, the DaemonSet, pods, namespaces, and the two kinds of policies.
const watchesOfNode = 7

// recording is a sink that keeps what it is told.
type recording struct {
	mu      sync.Mutex
	all     *held
	batches int
	synced  int
	awaits  string
	behind  []string // that what it was told last is no more
}

func newRecording() *recording { return &recording{all: newHeld()} }

func (r *recording) Change(f func(Changes)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r.all)
	r.batches++
}

func (r *recording) Synced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced++
}

func (r *recording) Awaits(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.awaits = what
}

func (r *recording) Behind(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.behind = append(r.behind, what)
}

// last is what it was told last that is not followed.
func (r *recording) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.behind) == 0 {
		return ""
	}
	return r.behind[len(r.behind)-1]
}

// text says how much there is.
func (r *recording) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%d pods, %d namespaces, %d policies, %d nodes", len(r.all.endpoints), len(r.all.namespaces), len(r.all.policies), len(r.all.nodes))
}

func podObject(node, address string) kubetest.Object {
	return kubetest.Object{
		"metadata": kubetest.Object{"labels": kubetest.Object{"app": "a"}},
		"spec":     kubetest.Object{"nodeName": node, "containers": []any{kubetest.Object{"ports": []any{kubetest.Object{"name": "web", "containerPort": 80, "protocol": "TCP"}}}}},
		"status":   kubetest.Object{"phase": "Running", "podIPs": []any{kubetest.Object{"ip": address}}},
	}
}

func policyObject(spec kubetest.Object) kubetest.Object { return kubetest.Object{"spec": spec} }

// fed is a feed of a server, in virtual time.
type fed struct {
	srv  *kubetest.Server
	a    *Agent
	sink *recording
}

// inCluster has f use a feed that has no sink yet, of a cluster with something of everything.
func withFeed(t *testing.T, f func(t *testing.T, w *fed)) {
	synctest.Test(t, func(t *testing.T) {
		w := &fed{srv: kubetest.New(), sink: newRecording()}
		w.srv.Put("nodes/n1", nodeObject("192.0.2.1", "host.example", "2001:db8::1"))
		w.srv.Put("namespaces/default", kubetest.Object{"metadata": kubetest.Object{"labels": kubetest.Object{"a": "b"}}})
		w.srv.Put("default/pods/p", podObject("n1", "10.32.0.1"))
		host := podObject("n1", "192.0.2.1")
		host["spec"].(kubetest.Object)["hostNetwork"] = true
		w.srv.Put("default/pods/host", host)
		w.srv.Put("default/networkpolicies/np", policyObject(kubetest.Object{}))
		w.srv.Put("clusternetworkpolicies/cnp", policyObject(kubetest.Object{"tier": "Admin", "priority": 1, "subject": kubetest.Object{"namespaces": kubetest.Object{}}}))
		w.a = New(Config{Cluster: clusterOf(t, w.srv, "n1"), Node: "n1", Namespace: testNamespace, Rand: rand.Reader, Log: zap.NewNop()})
		defer func() {
			w.a.Close()
			if err := w.srv.Close(); err != nil {
				t.Error(err)
			}
		}()
		f(t, w)
	})
}

func (w *fed) expect(t *testing.T, what string) {
	t.Helper()
	if got := w.sink.text(); got != what {
		t.Errorf("there are %s, not %s", got, what)
	}
}

const wholeWorld = "1 pods, 1 namespaces, 2 policies, 1 nodes"

func TestFeed(t *testing.T) {
	for _, lists := range []bool{false, true} {
		t.Run(fmt.Sprintf("lists only %v", lists), func(t *testing.T) {
			withFeed(t, func(t *testing.T, w *fed) {
				w.srv.SetListsOnly(lists)
				w.a.feed.to(w.sink)
				if want := "the API server's nodes, namespaces, pods, networkpolicies, clusternetworkpolicies"; w.sink.awaits != want {
					t.Error(w.sink.awaits)
				}
				w.a.follow(0)
				time.Sleep(5 * time.Second)
				w.expect(t, wholeWorld)
				if w.sink.synced != 1 {
					t.Errorf("it is told %d times that this is all", w.sink.synced)
				}
				e := w.sink.all.endpoints[policy.Name{Namespace: "default", Name: "p"}]
				if e.Node != "n1" || e.Labels["app"] != "a" || !slices.Equal(e.Addrs, []netip.Addr{netip.MustParseAddr("10.32.0.1")}) || len(e.Ports) != 1 || e.ID == "" {
					t.Errorf("%+v", e)
				}
				if n := w.sink.all.nodes["n1"]; len(n.Addrs) != 2 {
					t.Errorf("%+v", n)
				}
				if n := w.sink.all.namespaces["default"]; n.Labels["kubernetes.io/metadata.name"] != "default" || n.Labels["a"] != "b" {
					t.Errorf("%+v", n)
				}
				w.srv.Put("default/pods/q", podObject("n1", "10.32.0.2"))
				w.srv.Put("nodes/n2", nodeObject("192.0.2.2"))
				w.srv.Edit("default/pods/p", func(o kubetest.Object) { o["status"].(kubetest.Object)["phase"] = "Succeeded" })
				w.srv.Delete("clusternetworkpolicies/cnp")
				w.srv.Delete("namespaces/default")
				time.Sleep(5 * time.Second)
				w.expect(t, "1 pods, 0 namespaces, 1 policies, 2 nodes")
				if watches := w.srv.Watches(); watches != watchesOfNode-1 { // there is no DaemonSet
					t.Errorf("%d watches", watches)
				}
			})
		})
	}
}

// TestFeedLosesSight has objects go, come and be replaced while the API server is away, and while it does not know what happened any more.
func TestFeedLosesSight(t *testing.T) {
	for _, lists := range []bool{false, true} {
		for _, forgets := range []bool{false, true} {
			t.Run(fmt.Sprintf("lists only %v, forgets %v", lists, forgets), func(t *testing.T) {
				withFeed(t, func(t *testing.T, w *fed) {
					w.srv.SetListsOnly(lists)
					for i := range 1200 { // of more than two pages
						w.srv.Put(fmt.Sprintf("default/pods/x%d", i), podObject("n1", fmt.Sprintf("10.33.%d.%d", i/250, 1+i%250)))
					}
					w.a.feed.to(w.sink)
					w.a.follow(0)
					time.Sleep(5 * time.Second)
					w.expect(t, "1201 pods, 1 namespaces, 2 policies, 1 nodes")
					w.srv.SetDown(true)
					time.Sleep(time.Minute)
					if got := w.a.feed.trouble(); !strings.Contains(got, "network policies stay as they were seen last, as these cannot be followed: ") || !strings.Contains(got, "connection refused") {
						t.Error(got)
					}
					if got := w.sink.last(); !strings.HasPrefix(got, "the API server's namespaces (") || !strings.Contains(got, ", networkpolicies (") {
						t.Errorf("what cannot be followed is told as %q", got)
					}
					w.expect(t, "1201 pods, 1 namespaces, 2 policies, 1 nodes")
					for i := range 1199 {
						w.srv.Delete(fmt.Sprintf("default/pods/x%d", i))
					}
					w.srv.Delete("default/networkpolicies/np")
					w.srv.Delete("default/pods/p")
					w.srv.Put("default/pods/p", podObject("n2", "10.32.0.9"))
					w.srv.Put("namespaces/other", kubetest.Object{})
					if forgets {
						w.srv.Forget()
					}
					w.srv.SetDown(false)
					time.Sleep(2 * time.Minute)
					w.expect(t, "2 pods, 2 namespaces, 1 policies, 1 nodes")
					if e := w.sink.all.endpoints[policy.Name{Namespace: "default", Name: "p"}]; e.Node != "n2" {
						t.Errorf("%+v", e)
					}
					if got := w.a.feed.trouble(); got != "" {
						t.Error(got)
					}
					if got := w.sink.last(); got != "" {
						t.Errorf("all is followed, and it is told that %q is not", got)
					}
					if w.sink.synced != 1 {
						t.Errorf("it is told %d times that this is all", w.sink.synced)
					}
				})
			})
		}
	}
}

// TestFeedStandsBy gathers what it tells a sink that comes later, and tells another one all anew.
func TestFeedStandsBy(t *testing.T) {
	withFeed(t, func(t *testing.T, w *fed) {
		w.a.StandBy("another")
		time.Sleep(5 * time.Second)
		w.srv.Put("default/pods/q", podObject("n1", "10.32.0.2"))
		w.srv.Delete("default/pods/p")
		time.Sleep(time.Second)
		asked := w.srv.Count(func(kubetest.Request) bool { return true })
		w.srv.SetDown(true)
		w.a.feed.to(w.sink)
		w.expect(t, wholeWorld)
		synctest.Wait()
		if w.sink.synced != 1 || w.sink.batches != 1 {
			t.Errorf("it is told %d times that this is all, in %d batches", w.sink.synced, w.sink.batches)
		}
		w.srv.SetDown(false)
		time.Sleep(time.Minute)
		first := w.sink
		w.sink = newRecording()
		w.a.feed.to(w.sink)
		time.Sleep(time.Minute)
		w.expect(t, wholeWorld)
		batches := first.batches
		w.srv.Put("default/pods/r", podObject("n1", "10.32.0.3"))
		w.srv.Delete("default/networkpolicies/np")
		time.Sleep(time.Second)
		w.expect(t, "2 pods, 1 namespaces, 1 policies, 1 nodes")
		if first.batches != batches || w.sink.synced != 1 {
			t.Error("the first sink is told as well, or the second one not all")
		}
		if asked == 0 || w.srv.Watches() != watchesOfNode-1 {
			t.Errorf("%d requests, %d watches", asked, w.srv.Watches())
		}
	})
}

// TestResourceComesLater begins without ClusterNetworkPolicy, which is installed, and removed.
func TestResourceComesLater(t *testing.T) {
	withFeed(t, func(t *testing.T, w *fed) {
		w.srv.SetServed("clusternetworkpolicies", false)
		w.a.feed.to(w.sink)
		w.a.follow(0)
		time.Sleep(5 * time.Second)
		w.expect(t, "1 pods, 1 namespaces, 1 policies, 1 nodes")
		if w.sink.synced != 1 || w.a.feed.trouble() != "" {
			t.Error("it waits for what there is not:", w.sink.awaits, w.a.feed.trouble())
		}
		time.Sleep(time.Hour)
		asked := w.srv.Count(func(r kubetest.Request) bool { return r.Resource == "clusternetworkpolicies" })
		if asked < 40 || asked > 62 {
			t.Errorf("it is asked for %d times in an hour", asked)
		}
		w.srv.SetServed("clusternetworkpolicies", true)
		time.Sleep(2 * absentWait)
		w.expect(t, wholeWorld)
		w.srv.SetDown(true) // ends the watch
		time.Sleep(time.Second)
		w.srv.SetServed("clusternetworkpolicies", false)
		w.srv.SetDown(false)
		time.Sleep(10 * time.Second)
		w.expect(t, wholeWorld) // an API server that is starting may not have it for a moment
		time.Sleep(2 * absentSure)
		w.expect(t, "1 pods, 1 namespaces, 1 policies, 1 nodes")
	})
}

// TestRightsAreMissing names what an older manifest does not grant.
func TestRightsAreMissing(t *testing.T) {
	withFeed(t, func(t *testing.T, w *fed) {
		w.srv.SetFate(func(r kubetest.Request) kubetest.Fate {
			if r.Resource == "pods" {
				return kubetest.Forbid
			}
			return kubetest.Pass
		})
		w.a.feed.to(w.sink)
		w.a.follow(0)
		time.Sleep(time.Minute)
		synctest.Wait()
		want := "the API server's pods (the service account lacks the right to do so; apply the manifest again, whose ClusterRole and Role grant it (watch pods is forbidden))"
		if w.sink.synced != 0 || w.sink.awaits != want {
			t.Error(w.sink.awaits)
		}
		w.srv.SetFate(nil)
		time.Sleep(time.Minute)
		w.expect(t, wholeWorld)
		synctest.Wait()
		if w.sink.synced != 1 || w.a.feed.trouble() != "" {
			t.Error(w.a.feed.trouble())
		}
	})
}

// TestProblemsAreTold has three nodes follow policies with problems: one of them writes an Event for each, once for each generation.
func TestProblemsAreTold(t *testing.T) {
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
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		var agents []*Agent
		for i := range 3 {
			name := fmt.Sprintf("n%d", i)
			o := nodeObject(fmt.Sprintf("192.0.2.%d", i+1))
			o["status"].(kubetest.Object)["conditions"] = []any{kubetest.Object{"type": "Ready", "status": "True"}}
			srv.Put("nodes/"+name, o)
			a := New(Config{Cluster: clusterOf(t, srv, name), Node: name, Namespace: testNamespace, Rand: rand.Reader, Log: zap.NewNop(), Up: func(context.Context) error { return nil }})
			agents = append(agents, a)
			running.Go(func() {
				d := newSettled(fmt.Sprintf("%016x", i+1), tok)
				d.policies = newRecording()
				if err := a.Run(ctx, d.id, d); err != nil {
					t.Error(err)
				}
			})
		}
		srv.Put("shop/networkpolicies/good", policyObject(kubetest.Object{}))
		srv.Put("shop/networkpolicies/bad", policyObject(kubetest.Object{"ingress": []any{kubetest.Object{"from": []any{kubetest.Object{"services": kubetest.Object{}}}}}}))
		srv.Put("clusternetworkpolicies/odd", policyObject(kubetest.Object{"tier": "Admin", "priority": 1, "subject": kubetest.Object{"namespaces": kubetest.Object{}}, "log": true}))
		time.Sleep(2 * time.Minute)
		count := func(prefix, message string) (n int) {
			for _, e := range srv.List(prefix) {
				if e["message"] == message && e["reason"] == "NotUnderstood" && e["type"] == "Warning" {
					n++
				}
			}
			return n
		}
		const bad = "spec.ingress[0].from[0].services: such a field is not known here; until that is mended the rule allows nothing"
		const odd = "spec.log: such a field is not known here; until that is mended its rules that accept do not, and those that pass deny"
		if n := count("shop/events/", bad); n != 1 {
			t.Errorf("%d Events on the NetworkPolicy: %v", n, srv.List("shop/events/"))
		}
		if n := count("default/events/", odd); n != 1 {
			t.Errorf("%d Events on the ClusterNetworkPolicy", n)
		}
		for _, e := range srv.List("shop/events/") {
			about := e["involvedObject"].(kubetest.Object)
			if about["kind"] != "NetworkPolicy" || about["name"] != "bad" || about["apiVersion"] != "networking.k8s.io/v1" || about["uid"] != srv.Get("shop/networkpolicies/bad")["metadata"].(kubetest.Object)["uid"] {
				t.Error(about)
			}
		}
		srv.Edit("shop/networkpolicies/bad", func(o kubetest.Object) { o["metadata"].(kubetest.Object)["labels"] = kubetest.Object{"a": "b"} })
		time.Sleep(sameAgain + time.Minute)
		if n := count("shop/events/", bad); n != 1 {
			t.Errorf("%d Events after a change that is none of the spec", n)
		}
		srv.Edit("shop/networkpolicies/bad", func(o kubetest.Object) { o["metadata"].(kubetest.Object)["generation"] = 2 })
		time.Sleep(time.Minute)
		if n := count("shop/events/", bad); n != 2 {
			t.Errorf("%d Events after the next generation", n)
		}
		agents[0].Refused(Pod{Namespace: "shop", Name: "p", UID: "u"}, "its policies are not in force")
		time.Sleep(time.Second)
		found := false
		for _, e := range srv.List("shop/events/") {
			found = found || e["reason"] == "NotAttached" && e["message"] == "its policies are not in force" && e["involvedObject"].(kubetest.Object)["kind"] == "Pod"
		}
		if !found {
			t.Error("no Event on the pod")
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

// TestProblemsAreFewEvents: a policy may have many problems.
func TestProblemsAreFewEvents(t *testing.T) {
	r := newRecorder(nil, "n1", zap.NewNop())
	r.onPolicy(found{policy: policy.PolicyKey{Name: policy.Name{Namespace: "a", Name: "b"}}, problems: []string{"1", "2", "3", "4", "5", "6"}})
	var got []string
	for len(r.queue) > 0 {
		got = append(got, (<-r.queue).Message)
	}
	if want := []string{"1", "2", "3", "4", "and 2 more problems, which weft status names on every node"}; !slices.Equal(got, want) {
		t.Error(got)
	}
}

// nothing is a sink that keeps nothing.
type nothing struct{ pods, synced int }

func (n *nothing) Change(f func(Changes))        { f(n) }
func (n *nothing) Synced()                       { n.synced++ }
func (n *nothing) Awaits(string)                 {}
func (n *nothing) Behind(string)                 {}
func (n *nothing) SetPolicy(*policy.Policy)      {}
func (n *nothing) DeletePolicy(policy.PolicyKey) {}
func (n *nothing) SetEndpoint(policy.Endpoint)   { n.pods++ }
func (n *nothing) DeleteEndpoint(policy.Name)    {}
func (n *nothing) SetNamespace(policy.Namespace) {}
func (n *nothing) DeleteNamespace(string)        {}
func (n *nothing) SetNode(policy.Node)           {}
func (n *nothing) DeleteNode(string)             {}

// TestMemoryOfManyPods reads 30,000 pods as the API server writes them, and measures what is kept, and what is taken at most meanwhile.
func TestMemoryOfManyPods(t *testing.T) {
	const pods, mostKept, mostTaken = 30_000, 15 << 20, 48 << 20
	for _, lists := range []bool{false, true} {
		t.Run(fmt.Sprintf("lists only %v", lists), func(t *testing.T) {
			from := newPodSource(pods, lists)
			defer func() { _ = from.Close() }()
			c, err := ConnectTo(from.dial, "n0")
			if err != nil {
				t.Fatal(err)
			}
			heap := func() uint64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			before := heap()
			sink := &nothing{}
			f := newFeed(c, zap.NewNop(), func(found) {}, func() {})
			f.to(sink)
			f.followNodes(func() map[string]machine { return nil })
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { f.run(ctx, 0); close(ended) }()
			var peak uint64
			var m runtime.MemStats
			begun := time.Now()
			for {
				f.mu.Lock()
				synced := f.synced
				f.mu.Unlock()
				if synced {
					break
				}
				if time.Since(begun) > 3*time.Minute {
					t.Fatal("the pods do not come: ", f.trouble())
				}
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
				time.Sleep(5 * time.Millisecond)
			}
			took := time.Since(begun)
			after := heap()
			t.Logf("%d pods, %d MiB: %d KiB are kept, %d KiB taken at most with garbage, %v", sink.pods, from.sent.Load()>>20, (int64(after)-int64(before))>>10, (int64(peak)-int64(before))>>10, took)
			if sink.pods != pods || after > before+mostKept || peak > before+mostTaken {
				t.Errorf("%d pods take %d bytes, and %d at most", sink.pods, after-before, peak-before)
			}
			stop()
			<-ended
			runtime.KeepAlive(from)
		})
	}
}
