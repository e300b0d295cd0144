// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/kube/kubetest"
	"github.com/weftnet/weft/internal/token"
)

func newToken(t testing.TB) token.Token {
	t.Helper()
	tok, err := token.New(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestSecretIsReadAsItIsWritten(t *testing.T) {
	f := founding{
		token: newToken(t), inRange: "10.32.0.0/12", encryption: "off", founded: true, mesh: "m", version: "7",
		founder: founder{Node: "n1", UID: "u", NodeID: "0123456789abcdef"},
	}
	data, err := f.data()
	if err != nil {
		t.Fatal(err)
	}
	got, err := readFounding(&secret{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}, Data: data})
	if err != nil || got != f {
		t.Errorf("%+v became %+v, %v", f, got, err)
	}
}

func TestSecretThatIsOfNoUse(t *testing.T) {
	good := []byte(newToken(t).Reveal())
	for want, data := range map[string]map[string][]byte{
		"its token: what was given is not a Weft token (it does not begin with \"weft-\"); copy it from `weft token --raw` on a node of the mesh": {},
		"its range has 1025 bytes, 1024 are the most":                                                                    {keyToken: good, keyRange: bytes.Repeat([]byte("1"), 1025)},
		`its founded is "perhaps", neither true nor false`:                                                               {keyToken: good, keyFounded: []byte("perhaps")},
		"its founder is no JSON object with node, uid and node_id: invalid character 'x' looking for beginning of value": {keyToken: good, keyFounder: []byte("x")},
	} {
		if _, err := readFounding(&secret{Data: data}); textOf(err) != want {
			t.Errorf("%v: %v", data, err)
		}
	}
}

func FuzzReadFounding(f *testing.F) {
	tok := []byte(newToken(f).Reveal())
	f.Add(tok, []byte("10.32.0.0/12"), []byte(`{"node":"n1","uid":"u","node_id":"1"}`), []byte("true"), []byte("m"))
	f.Add([]byte{}, []byte{}, []byte(`{`), []byte("x"), []byte{})
	f.Fuzz(func(t *testing.T, tok, inRange, who, founded, mesh []byte) {
		s := &secret{Data: map[string][]byte{keyToken: tok, keyRange: inRange, keyFounder: who, keyFounded: founded, keyMesh: mesh}}
		got, err := readFounding(s)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has several lines", err)
			}
			return
		}
		data, err := got.data()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := readFounding(&secret{Data: data}); err == nil && again != got {
			t.Errorf("%+v became %+v", got, again)
		}
	})
}

// begin has one node begin, and returns what it waits for, or what it got.
func begin(ctx context.Context, w *world, name, id string) (o Orders, waits []string, err error) {
	a := New(w.config(name))
	defer a.Close()
	o, err = a.Begin(ctx, Known{NodeID: id}, func(reason string) { waits = append(waits, reason) })
	return o, waits, err
}

// TestWhatANodeWaitsFor pins the reasons that a user reads.
func TestWhatANodeWaitsFor(t *testing.T) {
	published := func(t *testing.T, f founding) kubetest.Object {
		f.token = newToken(t)
		data, err := f.data()
		if err != nil {
			t.Fatal(err)
		}
		return kubetest.Object{"data": data}
	}
	for name, c := range map[string]struct {
		is   func(t *testing.T, w *world)
		node string
		want string // the last reason
		err  string // instead of it
	}{
		"no API server": {
			is: func(_ *testing.T, w *world) { w.api.SetDown(true) }, node: "n1",
			want: "the Kubernetes API server at http://kubernetes: the API server cannot be reached: dial tcp: connection refused",
		},
		"no Node": {
			is: func(*testing.T, *world) {}, node: "n9",
			want: "Node n9, which the API server does not know; --name or NODE_NAME has to be the name of this host's Node object",
		},
		"a founder": {
			is: func(t *testing.T, w *world) {
				w.api.Put("kube-system/secrets/weft", published(t, founding{founder: founder{Node: "n2", NodeID: "x"}}))
			}, node: "n1",
			want: "Node n2 to found the mesh; another one does if it takes longer than 30s",
		},
		"a Secret that somebody took away": {
			is: func(_ *testing.T, w *world) {
				w.api.Edit("nodes/n2", func(o kubetest.Object) {
					o["metadata"].(kubetest.Object)["annotations"] = kubetest.Object{AnnotationNodeID: "x"}
				})
			}, node: "n1",
			want: "Node n2, which has been in a mesh, to publish Secret kube-system/weft again",
		},
		"a mesh that is gone": {
			is: func(t *testing.T, w *world) {
				w.api.Delete("nodes/n2")
				w.api.Put("kube-system/secrets/weft", published(t, founding{founded: true, founder: founder{Node: "n2", NodeID: "x"}}))
			}, node: "n1",
			want: "another Node with an address, as Secret kube-system/weft says that there is a mesh; if this is the only node and was set up anew, that mesh is gone: delete the Secret to have one founded anew",
		},
		"the right to create": {
			is: func(_ *testing.T, w *world) {
				w.api.SetFate(func(r kubetest.Request) kubetest.Fate {
					if r.Verb == "create" {
						return kubetest.Forbid
					}
					return kubetest.Pass
				})
			}, node: "n1",
			want: "creating Secret kube-system/weft: the service account lacks the right to do so; apply the manifest again, whose ClusterRole and Role grant it (create secrets is forbidden)",
		},
		"a Secret of no use": {
			is: func(_ *testing.T, w *world) {
				w.api.Put("kube-system/secrets/weft", kubetest.Object{"data": kubetest.Object{"token": "bm9uZQ=="}})
			}, node: "n1",
			err: "the Secret kube-system/weft cannot be used: its token: what was given is not a Weft token (it does not begin with \"weft-\"); copy it from `weft token --raw` on a node of the mesh; put it right, or delete it to have a mesh founded anew",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				defer w.close()
				c.is(t, w)
				ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
				defer cancel()
				_, waits, err := begin(ctx, w, c.node, "me")
				if c.err != "" {
					if textOf(err) != c.err {
						t.Errorf("the error is %v", err)
					}
					return
				}
				if err == nil || len(waits) == 0 || waits[len(waits)-1] != c.want {
					t.Errorf("it waits for %q (%v)", waits, err)
				}
			})
		})
	}
}

// TestSecretOfAUser has a Secret with nothing but a token, which somebody has made before.
func TestSecretOfAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4)
		defer w.close()
		tok := newToken(t)
		w.api.Put("kube-system/secrets/weft", kubetest.Object{"data": map[string][]byte{"token": []byte(tok.Reveal() + "\n")}})
		for _, n := range w.nodes {
			n.start()
		}
		w.together(time.Minute)
		if f := w.founding(); !f.token.Equal(tok) || !f.founded || f.inRange != "10.32.0.0/12" {
			t.Errorf("the Secret says %+v", f)
		}
	})
}

// TestMeshThatIsGone has all nodes set up anew at once; when the Secret is deleted they found a mesh.
func TestMeshThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.close()
		for _, n := range w.nodes {
			n.start()
		}
		w.together(10 * time.Second)
		for _, n := range w.nodes {
			n.stop()
			n.disk = disk{}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		a := New(w.config("n1"))
		defer a.Close()
		o, err := a.Begin(ctx, Known{NodeID: "me"}, func(string) {})
		if err != nil || len(o.Peers) != 2 {
			t.Fatalf("it is to join by %v, %v", o.Peers, err)
		}
		d := &joining{settled: newSettled("me", o.Token)}
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx, "me", d) }()
		time.Sleep(time.Minute)
		want := "no node of the mesh that Secret kube-system/weft names answers; if all nodes were set up anew, that mesh is gone: delete the Secret to have one founded anew"
		if got := d.warned("join"); got != want {
			t.Errorf("it warns %q", got)
		}
		found := false
		for _, e := range w.api.List("default/events/") {
			found = found || e["reason"] == "NoMesh" && e["message"] == want
		}
		if !found {
			t.Error("no Event says so")
		}
		w.api.Delete("kube-system/secrets/weft")
		if err := <-ended; textOf(err) != "another node founds the mesh: Secret kube-system/weft has changed" {
			t.Errorf("without the Secret it ends with %v", err)
		}
		for _, n := range w.nodes {
			w.api.Edit("nodes/"+n.name, func(o kubetest.Object) { delete(o["metadata"].(kubetest.Object), "annotations") })
		}
		w.was = map[string]string{}
		for _, n := range w.nodes {
			n.start()
		}
		w.together(time.Minute)
	})
}

// joining is a node that nobody answers.
type joining struct{ *settled }

func (j *joining) Phase() (p api.Phase, waitsFor string) { return "joining", "an answer" }

// TestEventsAreFew writes many, and the same.
func TestEventsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := kubetest.New()
		defer func() { _ = srv.Close() }()
		r := newRecorder(clusterOf(t, srv, "n1"), "n1", zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.run(ctx); close(done) }()
		for range 100 {
			r.onNode(normal, "Same", "the same")
		}
		time.Sleep(time.Minute)
		if n := len(srv.List("default/events/")); n != 1 {
			t.Errorf("the same 100 times made %d Events", n)
		}
		for i := range 1000 {
			r.onNode(warning, "Many", fmt.Sprint("number ", i))
		}
		time.Sleep(time.Minute)
		if n := len(srv.List("default/events/")); n > 1+eventBurst {
			t.Errorf("1000 at once made %d Events", n)
		}
		time.Sleep(sameAgain)
		r.onNode(normal, "Same", "the same")
		r.onNode(normal, "Long", strings.Repeat("x", 5000))
		srv.SetDown(true)
		time.Sleep(5 * time.Second)
		srv.SetDown(false)
		time.Sleep(time.Minute)
		same := 0
		for _, e := range srv.List("default/events/") {
			if e["reason"] == "Same" {
				same++
			}
			if len(e["message"].(string)) > 1024 {
				t.Error("a message is longer than the API server takes")
			}
			about := e["involvedObject"].(kubetest.Object)
			if about["kind"] != "Node" || about["name"] != "n1" || about["uid"] != "n1" {
				t.Errorf("the Event is about %v", about)
			}
		}
		if same != 2 {
			t.Errorf("after %v the same made %d Events", sameAgain, same)
		}
		cancel()
		<-done
	})
}

func TestProbes(t *testing.T) {
	srv := kubetest.New()
	defer func() { _ = srv.Close() }()
	a := New(Config{Cluster: clusterOf(t, srv, "n1"), Node: "n1", Namespace: testNamespace, Log: zap.NewNop()})
	defer a.Close()
	pod := "weft-test-" + newID()
	if _, _, err := Probe(t.Context(), pod); err == nil || !strings.HasPrefix(err.Error(), "the daemon of pod "+pod+" does not answer: ") {
		t.Errorf("nobody there: %v", err)
	}
	stop, err := a.ServeProbes(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.ServeProbes(t.Context(), pod); err == nil || !strings.HasSuffix(err.Error(), "; does this pod run a second time in this network namespace?") {
		t.Errorf("twice: %v", err)
	}
	for _, c := range []struct {
		do    func()
		ready bool
		text  string
	}{
		{func() {}, false, "starting"},
		{func() { a.stage = standingBy }, true, "standing by"},
		{func() { a.stage = "waiting for more" }, false, "waiting for more"},
		{func() { a.phase = "ready" }, false, "ready, but for the CNI configuration"},
		{func() { a.up = true }, true, "ready"},
		{func() { a.phase = "retired" }, false, "retired"},
	} {
		a.mu.Lock()
		c.do()
		a.mu.Unlock()
		if ready, text, err := Probe(t.Context(), pod); err != nil || ready != c.ready || text != c.text {
			t.Errorf("ready=%v, %q, %v, want %v, %q", ready, text, err, c.ready, c.text)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
