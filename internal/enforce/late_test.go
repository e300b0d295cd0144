// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// settledSite waits until all that was told is in force.
func settledSite() {
	time.Sleep(gap)
	synctest.Wait()
}

// TestRestoreEmptied gives the kernel what was kept although there is a table, which others have emptied, and has it guarded before the source has told
// anything.
func TestRestoreEmptied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
		})
		a := attached("ka", "a", "u-a", "10.32.0.5")
		if err := s.within(time.Second, a); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		s.end()
		s.kernel.take()
		s.kernel.set(func() { s.kernel.has, s.kernel.runs = compile.NewState(), 0 })
		s.start()
		time.Sleep(restoreLook)
		synctest.Wait()
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace"}) || !s.kernel.judged("10.32.0.5") {
			t.Errorf("a table without rules is taken for what was there: %q", calls)
		}
		s.kernel.set(func() {
			if s.kernel.runs != 1 {
				t.Errorf("watched %d times", s.kernel.runs)
			}
		})
		if err := s.Readmit(t.Context(), []Local{a})[0]; err != nil {
			t.Errorf("connected again: %v", err)
		}
	})
}

// TestRestoreOlder leaves the kernel what it has if a daemon was killed before it had kept that, and gives it what was kept only if there is nothing.
func TestRestoreOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
			c.SetEndpoint(pod("b", "u-b", "n1", "db"))
		})
		if err := s.within(time.Second, attached("ka", "a", "u-a", "10.32.0.5")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := os.Lstat(filepath.Join(s.home, FileName+older)); err == nil {
			t.Error("what is kept is taken for older than what is in force")
		}
		if err := s.within(time.Second, attached("kb", "b", "u-b", "10.32.0.6")); err != nil {
			t.Fatal(err)
		}
		killed := t.TempDir()
		if err := os.CopyFS(killed, os.DirFS(s.home)); err != nil {
			t.Fatal(err)
		}
		s.end()
		s.home = killed
		s.kernel.take()
		s.start()
		time.Sleep(time.Minute)
		if calls := s.kernel.take(); calls != nil || !s.kernel.judged("10.32.0.6") {
			t.Errorf("what was not kept is taken back: %q", calls)
		}
		s.kernel.set(func() { s.kernel.has = nil })
		time.Sleep(restoreLook)
		synctest.Wait()
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace"}) || !s.kernel.judged("10.32.0.5") {
			t.Errorf("nothing is put back: %q", calls)
		}
	})
}

// TestLateNamespace admits nothing before its namespace is known, takes nothing of another node for one of a namespace without labels meanwhile, and keeps
// the labels of one that is gone as long as there is something in it.
func TestLateNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.spaced = true
		s.start()
		tenants := &policy.Policy{
			PolicyKey: policy.PolicyKey{Kind: policy.Admin, Name: policy.Name{Name: "tenants"}}, Tier: policy.Admin,
			Namespaces: &policy.Selector{{Key: "tenant", Operator: policy.Exists}},
			Rules: [2][]policy.Rule{policy.Ingress: {{
				Action: policy.Deny, AnyPort: true, Peers: []policy.Peer{{Namespaces: &policy.Selector{{Key: "tenant", Operator: policy.DoesNotExist}}}},
			}}},
		}
		local := pod("a", "u-a", "n1", "db")
		local.Name.Namespace = "new"
		other := pod("r", "u-r", "n2", "db", "10.32.9.9")
		other.Name.Namespace = "other"
		before := pod("b", "u-b", "n2", "db", "10.32.9.8")
		before.Name.Namespace = "unknown"
		s.Change(func(c Changes) {
			c.SetPolicy(tenants)
			c.SetEndpoint(before)
		})
		s.Synced()
		s.Begin(nil)
		synctest.Wait()
		s.Change(func(c Changes) {
			c.SetEndpoint(local)
			c.SetEndpoint(other)
		})
		l := attached("k", "a", "u-a", "10.32.0.5")
		l.Name.Namespace = "new"
		err := s.within(time.Second, l)
		if want := "the network policies of new/a are not in force yet: waiting for the namespace new to be told of; try again"; err == nil || err.Error() != want {
			t.Errorf("admitted without its namespace: %v", err)
		}
		known := func(a string) (there bool) {
			s.Look(func(w *policy.World) { _, there = w.EndpointAt(netip.MustParseAddr(a)) })
			return there
		}
		if known("10.32.9.9") || known("10.32.9.8") {
			t.Error("what is in a namespace that is not known is taken for what is in one without labels")
		}
		tell := func(name string) {
			s.Change(func(c Changes) {
				c.SetNamespace(policy.Namespace{Name: name, Labels: map[string]string{"tenant": "x"}})
			})
		}
		done := make(chan error)
		go func() { done <- s.within(time.Minute, l) }()
		synctest.Wait()
		tell("new")
		tell("other")
		if err := <-done; err != nil || !s.kernel.judged("10.32.0.5") {
			t.Errorf("when it is known: %v", err)
		}
		settledSite()
		if !known("10.32.9.9") || known("10.32.9.8") {
			t.Error("of a namespace that came later nothing is known, or something of one that did not")
		}
		// They are deleted before what is in them.
		s.Change(func(c Changes) {
			c.DeleteNamespace("new")
			c.DeleteEndpoint(local.Name)
			c.DeleteNamespace("other")
			c.DeleteNamespace("unknown")
		})
		settledSite()
		if !s.kernel.judged("10.32.0.5") {
			t.Error("open since its namespace went, although it is attached")
		}
		s.Change(func(c Changes) {
			c.DeleteEndpoint(other.Name)
			c.DeleteEndpoint(before.Name)
		})
		s.Dismiss("k")
		settledSite()
		left := 0
		s.Look(func(w *policy.World) { left = len(slices.Collect(w.Namespaces())) + len(slices.Collect(w.Endpoints())) })
		if in := s.dir.spaces; left != 0 || len(in.told)+len(in.gone)+len(in.held)+len(in.within)+len(s.dir.told)+len(s.dir.entries) != 0 {
			t.Errorf("%d and %+v are left", left, in)
		}
	})
}

// TestNamespaceOfEarlier judges what an earlier run has attached although its namespace is gone.
func TestNamespaceOfEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.spaced = true
		s.start()
		s.Change(func(c Changes) { c.SetPolicy(isolating("all", "", "")) })
		s.Synced()
		s.Begin([]Local{attached("k", "a", "u-a", "10.32.0.5")})
		settledSite()
		if !s.kernel.judged("10.32.0.5") {
			t.Error("open")
		}
	})
}

// TestGoneNamespaceOverRestart judges what is attached by the labels of its namespace that is gone, also after a restart, and no longer than it is attached.
func TestGoneNamespaceOverRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.spaced = true
		l := attached("k", "a", "u-a", "10.32.0.5")
		tell := func(space bool) {
			s.Change(func(c Changes) {
				p := isolating("fence", "", "")
				p.Kind, p.Tier, p.Namespace, p.Namespaces = policy.Admin, policy.Admin, "", &policy.Selector{{Key: "team", Operator: policy.In, Values: []string{"a"}}}
				p.Isolates, p.Rules = [2]bool{}, [2][]policy.Rule{policy.Ingress: {{Action: policy.Deny, AnyPeer: true, AnyPort: true}}}
				c.SetPolicy(p)
				if space {
					c.SetNamespace(policy.Namespace{Name: "default", Labels: map[string]string{"team": "a", policy.NameLabel: "default"}})
					c.SetEndpoint(pod("a", "u-a", "n1", "db"))
				}
			})
			s.Synced()
		}
		s.start()
		s.Begin(nil)
		tell(true)
		if err := s.within(time.Second, l); err != nil {
			t.Fatal(err)
		}
		s.Change(func(c Changes) {
			c.DeleteEndpoint(named("a"))
			c.DeleteNamespace("default")
		})
		time.Sleep(time.Minute)
		for range 2 {
			if settledSite(); !s.kernel.judged("10.32.0.5") {
				t.Error("open")
			}
			s.end()
			s.start()
			s.Begin([]Local{l})
			tell(false)
			time.Sleep(time.Minute)
		}
		s.Dismiss("k")
		settledSite()
		if labels := s.world.NamespaceLabels("default"); labels["team"] != "" || len(s.dir.spaces.gone) > 0 {
			t.Errorf("%v is left", labels)
		}
	})
}

// TestSettled says when all is in force that was told, and why it is not.
func TestSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.start()
		settled := func(within time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			return s.Settled(ctx)
		}
		s.Awaits("another node")
		if err := settled(time.Second); err == nil || err.Error() != "waiting for another node" {
			t.Error(err)
		}
		s.Begin([]Local{attached("k", "a", "u", "10.32.0.5")})
		s.Change(func(c Changes) { c.SetEndpoint(pod("a", "u", "n1", "db")) })
		s.Synced()
		if err := settled(time.Second); err != nil {
			t.Error(err)
		}
		s.kernel.set(func() { s.kernel.slow = 3 * time.Second })
		begun := time.Now()
		s.Change(func(c Changes) { c.SetPolicy(isolating("db", "app", "db")) })
		if err := settled(time.Second); err == nil || err.Error() != "the packet filter takes its time" {
			t.Error(err)
		}
		if err := settled(time.Minute); err != nil || time.Since(begun) < 3*time.Second || !s.kernel.judged("10.32.0.5") {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		s.kernel.set(func() { s.kernel.slow, s.kernel.fail = 0, errors.New("no memory") })
		s.Change(func(c Changes) {
			c.DeletePolicy(isolating("db", "app", "db").PolicyKey)
			c.SetPolicy(isolating("all", "", ""))
		})
		if err := settled(time.Second); err == nil || err.Error() != "no memory" {
			t.Error(err)
		}
		done := make(chan error)
		go func() { done <- settled(time.Hour) }()
		time.Sleep(lastRetry)
		s.kernel.set(func() { s.kernel.fail = nil })
		begun = time.Now()
		if err := <-done; err != nil || time.Since(begun) > 2*lastRetry {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// TestBehind admits nothing new while the source cannot follow all, and makes the changes that it follows.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			for _, name := range []string{"a", "b"} {
				c.SetEndpoint(pod(name, "u", "n1", "web"))
			}
		})
		a, b := attached("ka", "a", "u", "10.32.0.5"), attached("kb", "b", "u", "10.32.0.6")
		if err := s.within(time.Second, a); err != nil {
			t.Fatal(err)
		}
		s.Behind("the API server's networkpolicies (refused)")
		want := "the network policies of default/b are not in force yet: waiting for the API server's networkpolicies (refused); try again"
		if err := s.within(time.Second, b); err == nil || err.Error() != want {
			t.Errorf("admitted by what was known long ago: %v", err)
		}
		if got := s.Status().Awaits; got != "the API server's networkpolicies (refused)" {
			t.Errorf("status: %q", got)
		}
		if err := s.within(time.Second, a); err != nil {
			t.Errorf("what is there already: %v", err)
		}
		s.Change(func(c Changes) { c.SetEndpoint(pod("a", "u", "n1", "db")) })
		settledSite()
		if !s.kernel.judged("10.32.0.5") {
			t.Error("what is followed is not put in force")
		}
		done := make(chan error)
		go func() { done <- s.within(time.Minute, b) }()
		synctest.Wait()
		begun := time.Now()
		s.Behind("")
		if err := <-done; err != nil || time.Since(begun) != catchUp {
			t.Errorf("when it follows again: %v after %v", err, time.Since(begun))
		}
		if got := s.Status().Awaits; got != "" {
			t.Errorf("status: %q", got)
		}
	})
}

// TestReusedAddress admits nothing under an address that the kernel may still know as that of another one, which has had it before.
func TestReusedAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			for name, app := range map[string]string{"db": "db", "web": "web", "next": "other", "last": "other"} {
				c.SetEndpoint(pod(name, "u", "n1", app))
			}
		})
		if err := s.within(time.Second, attached("kd", "db", "u", "10.32.0.5")); err != nil {
			t.Fatal(err)
		}
		if err := s.within(time.Second, attached("kw", "web", "u", "10.32.0.6")); err != nil {
			t.Fatal(err)
		}
		has := maps.Clone(s.kernel.has.Identities)
		s.kernel.set(func() { s.kernel.fail = errors.New("no memory") })
		s.Dismiss("kw")
		next := attached("kn", "next", "u", "10.32.0.6")
		err := s.within(time.Second, next)
		if err == nil || !strings.Contains(err.Error(), "waiting for the packet filter, which fails: no memory") {
			t.Errorf("admitted as %d: %v", has[next.Addrs[0]], err)
		}
		s.kernel.set(func() { s.kernel.fail = nil })
		time.Sleep(lastRetry)
		if err := s.within(time.Second, next); err != nil {
			t.Errorf("when it works again: %v", err)
		}
	})
}

// TestUnknownKernel admits nothing as long as the kernel has not once had what it should have.
func TestUnknownKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.kernel.stuck = errors.New("busy")
		s.start()
		s.Change(func(c Changes) { c.SetEndpoint(pod("a", "u", "n1", "web")) })
		s.Synced()
		s.Begin(nil)
		if err := s.within(time.Second, attached("k", "a", "u", "10.32.0.5")); err == nil || !strings.Contains(err.Error(), "which fails: busy") {
			t.Errorf("admitted beside what an earlier run has left: %v", err)
		}
		s.kernel.set(func() { s.kernel.stuck = nil })
		time.Sleep(lastRetry)
		if err := s.within(time.Second, attached("k", "a", "u", "10.32.0.5")); err != nil {
			t.Error(err)
		}
	})
}
