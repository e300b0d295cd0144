// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/kube/kubetest"
)

var bootstrapSeeds = flag.Uint64("kube.seeds", 50, "runs of TestBootstrapUnderRandomFaults")

func TestManyNodesAtOnceFoundOneMesh(t *testing.T) {
	for _, nodes := range []int{1, 2, 10, 40} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nodes)
				defer w.close()
				for _, n := range w.nodes {
					n.start()
				}
				w.together(10 * time.Second)
				f := w.founding()
				if !f.founded || f.mesh != "mesh of "+f.founder.NodeID || f.inRange != "10.32.0.0/12" || f.encryption != "on" {
					t.Errorf("the Secret says %+v", f)
				}
			})
		})
	}
}

// TestFounderDiesAtEveryStep kills the first node that writes at each of its requests, before and after it takes effect, and has it come back early,
// late, or with an empty disk.
func TestFounderDiesAtEveryStep(t *testing.T) {
	for _, fate := range []kubetest.Fate{kubetest.Refuse, kubetest.Lose} {
		for _, verb := range []string{"create", "patch"} {
			for _, back := range []time.Duration{time.Second, 31 * time.Second, 5 * time.Minute} {
				for _, wiped := range []bool{false, true} {
					if wiped && verb == "patch" && fate == kubetest.Lose {
						continue // the mesh is founded then, and its only member gone for good: see TestMeshThatIsGone
					}
					t.Run(fmt.Sprintf("%d/%s/%v/wiped=%v", fate, verb, back, wiped), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { dieOnce(t, fate, verb, back, wiped) })
					})
				}
			}
		}
	}
}

func dieOnce(t *testing.T, fate kubetest.Fate, verb string, back time.Duration, wiped bool) {
	w := newWorld(t, 5)
	defer w.close()
	var once sync.Once
	var revived sync.WaitGroup
	w.api.SetFate(func(r kubetest.Request) (f kubetest.Fate) {
		if r.Verb != verb || r.Resource != "secrets" {
			return kubetest.Pass
		}
		once.Do(func() {
			f = fate
			for _, n := range w.nodes {
				if n.name != r.Agent {
					continue
				}
				n.mu.Lock()
				n.kill()
				n.mu.Unlock()
				revived.Go(func() {
					n.stop()
					time.Sleep(back)
					if wiped {
						n.mu.Lock()
						n.disk = disk{}
						n.mu.Unlock()
					}
					n.start()
				})
			}
		})
		return f
	})
	for _, n := range w.nodes {
		n.start()
	}
	revived.Wait()
	w.together(back + 2*time.Minute)
	revived.Wait()
}

// TestLateWrites has the first writes of a kind that a node sends take effect only after a while, whether it still waits for that or not.
func TestLateWrites(t *testing.T) {
	for _, verb := range []string{"create", "patch"} {
		for _, late := range []int{1, 2, 100} {
			for _, by := range []time.Duration{5 * time.Second, 29 * time.Second, 31 * time.Second, 36 * time.Second, 41 * time.Second, time.Minute} {
				t.Run(fmt.Sprintf("%s/%d/%v", verb, late, by), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t, 5)
						defer w.close()
						var mu sync.Mutex
						seen, who := 0, ""
						w.api.SetFate(func(r kubetest.Request) kubetest.Fate {
							if r.Verb == verb && r.Resource == "secrets" {
								mu.Lock()
								seen++
								if who == "" {
									who = r.Agent
								}
								wait := seen <= late && r.Agent == who
								mu.Unlock()
								if wait {
									time.Sleep(by)
								}
							}
							return kubetest.Pass
						})
						for _, n := range w.nodes {
							n.start()
						}
						w.together(by + 2*time.Minute)
						time.Sleep(2 * by) // until the last of them has taken effect
						for _, n := range w.nodes {
							n.stop()
							n.start()
						}
						w.together(time.Minute)
						if f := w.founding(); !f.founded || w.was[f.mesh] == "" {
							t.Errorf("the Secret names the mesh %q, and there is %v", f.mesh, w.was)
						}
					})
				})
			}
		}
	}
}

// TestBootstrapUnderRandomFaults kills nodes and loses requests at random.
func TestBootstrapUnderRandomFaults(t *testing.T) {
	for seed := range *bootstrapSeeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomFaults(t, seed) })
		})
	}
}

func randomFaults(t *testing.T, seed uint64) {
	var mu sync.Mutex
	chance := rand.New(rand.NewPCG(seed, 0))
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return chance.IntN(n)
	}
	w := newWorld(t, 2+draw(6))
	defer w.close()
	end := time.Now().Add(3 * time.Minute)
	var faults sync.WaitGroup
	w.api.SetFate(func(r kubetest.Request) kubetest.Fate {
		if time.Now().After(end) || r.Verb == "watch" || r.Verb == "list" {
			return kubetest.Pass
		}
		time.Sleep(time.Duration(draw(50)) * time.Millisecond)
		return []kubetest.Fate{kubetest.Pass, kubetest.Pass, kubetest.Pass, kubetest.Refuse, kubetest.Lose}[draw(5)]
	})
	for _, n := range w.nodes {
		n.start()
		if draw(2) == 0 {
			time.Sleep(time.Duration(draw(2000)) * time.Millisecond)
		}
	}
	faults.Go(func() {
		for time.Now().Before(end) {
			time.Sleep(time.Duration(draw(20000)) * time.Millisecond)
			n := w.nodes[draw(len(w.nodes))]
			n.stop()
			if draw(4) == 0 {
				w.api.SetDown(true)
			}
			time.Sleep(time.Duration(draw(40000)) * time.Millisecond)
			w.api.SetDown(false)
			n.start()
		}
	})
	faults.Wait()
	w.together(3 * time.Minute)
}
