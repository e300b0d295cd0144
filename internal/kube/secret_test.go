// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/kube/kubetest"
	"github.com/weftnet/weft/internal/token"
)

// running is a cluster of nodes that have a mesh.
type running struct {
	*world
	daemons []*settled
	ended   []error
	stop    func()
}

// run directs every node of a world that has a mesh.
func (w *world) run(t *testing.T, tok token.Token, change func(i int, c *Config)) *running {
	r := &running{world: w, ended: make([]error, len(w.nodes))}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var members []Member
	for i, n := range w.nodes {
		members = append(members, Member{Name: n.name, NodeID: fmt.Sprintf("%016x", i+1), Alive: true, Guided: true})
	}
	for i, n := range w.nodes {
		d := newSettled(members[i].NodeID, tok)
		for _, m := range members {
			if m.NodeID != d.id {
				d.members = append(d.members, m)
			}
		}
		r.daemons = append(r.daemons, d)
		c := w.config(n.name)
		if change != nil {
			change(i, &c)
		}
		all.Go(func() {
			a := New(c)
			defer a.Close()
			r.ended[i] = a.Run(ctx, d.id, d)
		})
	}
	r.stop = func() {
		cancel()
		all.Wait()
		w.close()
	}
	return r
}

func (s *settled) warned(about string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.warnings[about]
}

// writes counts the requests that changed the Secret, or tried to.
func (w *world) writes() int {
	return w.api.Count(func(r kubetest.Request) bool {
		return r.Resource == "secrets" && (r.Verb == "create" || r.Verb == "patch")
	})
}

func (w *world) publish(t *testing.T, f founding) {
	t.Helper()
	data, err := f.data()
	if err != nil {
		t.Fatal(err)
	}
	w.api.Put("kube-system/secrets/weft", kubetest.Object{"data": data})
}

// TestSecretFollowsTheToken rotates the token of the mesh: new nodes need the new one.
func TestSecretFollowsTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 20)
		old, rotated := newToken(t), newToken(t)
		w.publish(t, founding{token: old, inRange: "10.32.0.0/12", founded: true, mesh: settledMesh})
		r := w.run(t, old, nil)
		defer r.stop()
		time.Sleep(time.Minute)
		if n := w.writes(); n != 0 {
			t.Errorf("a Secret that is right is written %d times", n)
		}
		for _, d := range r.daemons[1:] { // the first is cut off, and knows of nothing
			d.mu.Lock()
			d.past, d.token = d.token, rotated.Reveal()
			d.mu.Unlock()
		}
		time.Sleep(30 * time.Second)
		if f := w.founding(); !f.token.Equal(rotated) || !f.founded || f.mesh != settledMesh || f.inRange != "10.32.0.0/12" {
			t.Errorf("the Secret says %+v", f)
		}
		if n := w.writes(); n > 3 {
			t.Errorf("20 nodes write the Secret %d times", n)
		}
	})
}

// TestSecretIsPublishedAgain deletes it, and has somebody else found a mesh in its place who has not got on with it.
func TestSecretIsPublishedAgain(t *testing.T) {
	for name, c := range map[string]func(w *world){
		"deleted": func(w *world) { w.api.Delete("kube-system/secrets/weft") },
		"taken": func(w *world) {
			w.publish(w.t, founding{token: newToken(w.t), inRange: "10.99.0.0/16", founder: founder{Node: "n9", NodeID: "new"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 20)
				tok := newToken(t)
				w.publish(t, founding{token: tok, inRange: "10.32.0.0/12", founded: true, mesh: settledMesh})
				r := w.run(t, tok, nil)
				defer r.stop()
				time.Sleep(time.Minute)
				c(w)
				time.Sleep(15 * time.Second)
				if f := w.founding(); !f.token.Equal(tok) || !f.founded || f.mesh != settledMesh {
					t.Errorf("the Secret says %+v", f)
				}
				if n := w.writes(); n > 3 {
					t.Errorf("20 nodes write the Secret %d times", n)
				}
			})
		})
	}
}

func TestSecretOfAnotherMeshEndsTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		tok := newToken(t)
		w.publish(t, founding{token: tok, founded: true, mesh: "another"})
		r := w.run(t, tok, nil)
		time.Sleep(time.Minute)
		r.stop()
		want := "this node is of the mesh the mesh, and Secret kube-system/weft names the mesh another; run weft reset on this node to have it join that one, or delete the Secret if it is the wrong one"
		if textOf(r.ended[0]) != want {
			t.Errorf("it ends with %v", r.ended[0])
		}
	})
}

// TestWhatIsWarnedOf has flags that differ from the mesh's, a Secret that somebody has spoilt, a plugin that cannot be installed, and few addresses.
func TestWhatIsWarnedOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		tok := newToken(t)
		w.publish(t, founding{token: tok, inRange: "10.32.0.0/12", encryption: "on", founded: true, mesh: settledMesh})
		tries := 0
		r := w.run(t, tok, func(i int, c *Config) {
			if i == 0 {
				c.Range = "10.244.0.0/16"
				c.Up = func(context.Context) error {
					if tries++; tries < 4 {
						return fmt.Errorf("directory /opt/cni/bin cannot be made: read-only file system")
					}
					return nil
				}
			} else {
				c.Encryption = "off"
			}
		})
		defer r.stop()
		time.Sleep(500 * time.Millisecond)
		if got := r.daemons[0].warned("up"); got != "directory /opt/cni/bin cannot be made: read-only file system" {
			t.Errorf("it warns %q", got)
		}
		time.Sleep(time.Minute)
		if got := r.daemons[0].warned("up"); got != "" || tries != 4 {
			t.Errorf("after %d tries it still warns %q", tries, got)
		}
		if got := r.daemons[0].warned("flags"); got != "--range 10.244.0.0/16 is not that of the mesh, which was founded with 10.32.0.0/12, and keeps it" {
			t.Errorf("it warns %q", got)
		}
		if got := r.daemons[1].warned("flags"); got != "--encryption off is not that of the mesh, which was founded with on, and keeps it" {
			t.Errorf("it warns %q", got)
		}
		w.api.Edit("kube-system/secrets/weft", func(o kubetest.Object) { o["data"].(kubetest.Object)["token"] = "bm9uZQ==" })
		time.Sleep(10 * time.Second)
		want := "Secret kube-system/weft cannot be used: its token: what was given is not a Weft token (it does not begin with \"weft-\"); copy it from `weft token --raw` on a node of the mesh; delete it, and a node publishes it again"
		if got := r.daemons[1].warned("secret"); got != want {
			t.Errorf("it warns %q", got)
		}
	})
}
