// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/policy"
)

// TestAnyOrder has sources, runtimes and the kernel do anything at any time. Whatever is admitted is in force then; and in the end the
// kernel has what it would have had at once.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { anyOrder(t, rand.New(rand.NewPCG(seed, 9))) })
		})
	}
}

func anyOrder(t *testing.T, r *rand.Rand) {
	s := newSite(t)
	s.kernel.slow = time.Duration(r.IntN(30)) * time.Millisecond
	s.start()
	addr := func(i int) string { return fmt.Sprint("10.32.0.", i) }
	var runtimes sync.WaitGroup
	attach := map[int]string{} // by address: key
	keys, tell := 0, func(c Changes) {
		name, id, app := fmt.Sprint("p", r.IntN(3)), fmt.Sprint("u", r.IntN(2)), []string{"db", "web"}[r.IntN(2)]
		switch r.IntN(6) {
		case 0:
			c.SetPolicy(isolating("db", "app", []string{"db", "web"}[r.IntN(2)]))
		case 1:
			c.DeletePolicy(isolating("db", "", "").PolicyKey)
		case 2:
			c.DeleteEndpoint(named(name))
		case 3:
			c.SetEndpoint(pod(name, id, "n2", app, addr(r.IntN(8))))
		default:
			c.SetEndpoint(pod(name, id, "n1", app, addr(r.IntN(8))))
		}
	}
	last := map[string]func(c Changes){} // what a source would tell now
	for range 200 {
		switch r.IntN(8) {
		case 0:
			s.Synced()
		case 1:
			s.mu.Lock()
			begun := s.begun
			s.mu.Unlock()
			if !begun {
				s.Begin(nil)
			}
		case 2:
			s.kernel.set(func() {
				s.kernel.fail, s.kernel.failing = nil, nil
				if r.IntN(2) == 0 {
					s.kernel.failing = errors.New("a part")
				}
				if r.IntN(3) == 0 {
					s.kernel.fail = errors.New("all")
				}
			})
		case 3, 4:
			i := r.IntN(8)
			if key, ok := attach[i]; ok {
				s.Dismiss(key)
				delete(attach, i)
				break
			}
			keys++
			l := attached(fmt.Sprint("k", keys), fmt.Sprint("p", r.IntN(3)), fmt.Sprint("u", r.IntN(2)), addr(i))
			attach[i] = l.Key
			patience := time.Duration(r.IntN(200)) * time.Millisecond
			runtimes.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				if s.Admit(ctx, l) == nil {
					s.admitted(l)
				}
			})
			synctest.Wait() // one after the other for each workload
		default:
			s.Change(func(c Changes) {
				for range 1 + r.IntN(3) {
					tell(recorder{c, last})
				}
			})
		}
		time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
	}
	runtimes.Wait()
	s.kernel.set(func() { s.kernel.fail, s.kernel.failing = nil, nil })
	s.Synced()
	if !s.begun {
		s.Begin(nil)
	}
	time.Sleep(2 * lastRetry)
	synctest.Wait()
	if s.failure != nil || len(s.waiting) != 0 {
		t.Errorf("it has not come to rest: %v, %d wait", s.failure, len(s.waiting))
	}
	// The same at once.
	fresh := newSite(t)
	fresh.start()
	fresh.Change(func(c Changes) {
		for _, f := range last {
			f(c)
		}
	})
	s.Look(func(w *policy.World) {
		fresh.Begin(nil)
		fresh.Synced()
		synctest.Wait()
		fresh.Look(func(again *policy.World) {
			for p := range w.Policies() {
				if again.Policy(p.PolicyKey) != p {
					t.Errorf("policy %v is left", p.PolicyKey)
				}
			}
		})
		for e := range w.Endpoints() {
			for _, a := range e.Addrs {
				at, _ := w.EndpointAt(a)
				want := e.Node == "n1" && at.Name == e.Name && len(w.Selecting(e, policy.Network, policy.Ingress)) > 0
				if at.Name == e.Name && s.kernel.judged(a.String()) != want {
					t.Errorf("%v of %v: judged is %t", a, e.Name, !want)
				}
			}
			if told, ok := s.dir.told[e.Name]; ok && len(s.dir.named[e.Name]) == 0 && told.Node == "n1" && len(e.Addrs) > 0 {
				t.Errorf("%v is not attached, and has %v", e.Name, e.Addrs)
			}
		}
	})
	for i, key := range attach {
		s.Dismiss(key)
		delete(attach, i)
	}
	time.Sleep(time.Second)
	synctest.Wait()
	if len(s.dir.locals)+len(s.dir.taken)+len(s.dir.named) != 0 || s.kernel.has != nil {
		t.Errorf("all is detached, and there is %v, and in the kernel %v", s.dir.locals, s.kernel.has)
	}
}

// admitted checks what must hold when a workload is admitted. Other changes may have come since, which are in force, or will be.
func (s *site) admitted(l Local) {
	for range 3 {
		s.model.RLock()
		e, ok := s.world.EndpointAt(l.Addrs[0])
		selected := ok && len(s.world.Selecting(e, policy.Network, policy.Ingress)) > 0
		s.model.RUnlock()
		if !ok || !selected || s.kernel.judged(l.Addrs[0].String()) {
			return
		}
		time.Sleep(50 * time.Millisecond) // a later change may be on its way to the kernel
		if s.Status().Failure != "" {
			return
		}
	}
	s.t.Errorf("%v is admitted and open", l.Name)
}

// recorder remembers what of an object was told last.
type recorder struct {
	Changes
	last map[string]func(c Changes)
}

func (r recorder) SetPolicy(p *policy.Policy) {
	r.last["p"+p.Name.Name] = func(c Changes) { c.SetPolicy(p) }
	r.Changes.SetPolicy(p)
}

func (r recorder) DeletePolicy(k policy.PolicyKey) {
	delete(r.last, "p"+k.Name.Name)
	r.Changes.DeletePolicy(k)
}

func (r recorder) SetEndpoint(e policy.Endpoint) {
	r.last["e"+e.Name.Name] = func(c Changes) { c.SetEndpoint(e) }
	r.Changes.SetEndpoint(e)
}

func (r recorder) DeleteEndpoint(n policy.Name) {
	delete(r.last, "e"+n.Name)
	r.Changes.DeleteEndpoint(n)
}
