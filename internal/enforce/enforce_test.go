// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/policy"
)

// TestBarrier holds back everything until the source and the node have told all that there was, which is one commit then.
func TestBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.start()
		s.Awaits("the API server to tell the pods")
		for i := range 10_000 {
			s.Change(func(c Changes) { c.SetEndpoint(pod(fmt.Sprint("p", i), fmt.Sprint("u", i), "n2", "web")) })
		}
		s.Change(func(c Changes) {
			c.SetPolicy(isolating("all", "", ""))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
		})
		err := s.within(2*time.Second, attached("k", "a", "u-a", "10.32.0.5"))
		want := "the network policies of default/a are not in force yet: waiting for the API server to tell the pods; try again"
		var wait *WaitError
		if !errors.As(err, &wait) || err.Error() != want {
			t.Errorf("admitted before anything is known: %v", err)
		}
		if got := s.Status(); got.Awaits == "" || got.Policies != 0 || !got.Pending {
			t.Errorf("status: %+v", got)
		}
		s.Synced()
		synctest.Wait()
		if calls := s.kernel.take(); calls != nil {
			t.Errorf("before the node has told what it has: %q", calls)
		}
		s.Begin([]Local{attached("k0", "b", "u-b", "10.32.0.4")})
		synctest.Wait()
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace"}) {
			t.Errorf("a burst at the start: %q", calls)
		}
		if !s.kernel.judged("10.32.0.4") {
			t.Error("what nobody knows, and was attached before, is open")
		}
		if got := s.Status(); got != (Status{Policies: 1, Subjects: 1}) {
			t.Errorf("status: %+v", got)
		}
		if err := s.within(time.Second, attached("k", "a", "u-a", "10.32.0.5")); err != nil || !s.kernel.judged("10.32.0.5") {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// ready is a site that has begun.
func ready(t *testing.T, told func(c Changes)) *site {
	s := newSite(t)
	s.start()
	s.Change(told)
	s.Synced()
	s.Begin(nil)
	time.Sleep(gap)
	synctest.Wait()
	s.kernel.take()
	return s
}

// TestAtOnce makes a change without waiting, and those that follow too soon together.
func TestAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u-a", "n1", "web"))
		})
		if err := s.within(time.Second, attached("k", "a", "u-a", "10.32.0.5")); err != nil || s.kernel.judged("10.32.0.5") {
			t.Fatal(err)
		}
		begun := time.Now()
		s.Change(func(c Changes) { c.SetEndpoint(pod("a", "u-a", "n1", "db", "10.32.9.9")) })
		synctest.Wait()
		if !s.kernel.judged("10.32.0.5") || s.kernel.judged("10.32.9.9") || time.Since(begun) != 0 {
			t.Errorf("a change of labels is not in force after %v", time.Since(begun))
		}
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace"}) {
			t.Errorf("a change of labels: %q", calls)
		}
		for i := range 100 {
			s.Change(func(c Changes) { c.SetEndpoint(pod(fmt.Sprint("p", i), "u", "n2", "web", fmt.Sprint("10.33.0.", i))) })
			synctest.Wait()
		}
		time.Sleep(gap)
		synctest.Wait()
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"update"}) {
			t.Errorf("100 changes at a time: %q", calls)
		}
	})
}

// TestNothing keeps out of the kernel, and off the disk, what no policy asks for.
func TestNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.start()
		s.Synced()
		s.Begin(nil)
		synctest.Wait()
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"remove"}) {
			t.Errorf("what an earlier run may have left: %q", calls)
		}
		for i := range 10 {
			name := fmt.Sprint("p", i)
			s.Change(func(c Changes) { c.SetEndpoint(pod(name, name, "n1", "web")) })
			if err := s.within(time.Second, attached(name, name, name, fmt.Sprint("10.32.0.", i))); err != nil {
				t.Error(err)
			}
			s.Dismiss(name)
		}
		time.Sleep(time.Minute)
		if calls := s.kernel.take(); calls != nil {
			t.Errorf("without a policy: %q", calls)
		}
		s.Change(func(c Changes) { c.SetPolicy(isolating("db", "app", "db")) })
		s.Change(func(c Changes) { c.SetEndpoint(pod("d", "u-d", "n1", "db")) })
		if err := s.within(time.Second, attached("d", "d", "u-d", "10.32.1.1")); err != nil || !s.kernel.judged("10.32.1.1") {
			t.Error(err)
		}
		s.Change(func(c Changes) { c.DeletePolicy(isolating("db", "", "").PolicyKey) })
		time.Sleep(time.Minute)
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace", "remove"}) || s.kernel.has != nil {
			t.Errorf("a policy that comes and goes: %q", calls)
		}
		if kept, err := s.saver.load(); err != nil || kept.state != nil {
			t.Errorf("kept on disk: %v %v", kept, err)
		}
	})
}

// TestAdmit waits for what the source says of a pod, by its ID, and lets go of it if it does not come in time.
func TestAdmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "old", "n1", "web"))
		})
		l := attached("k", "a", "new", "10.32.0.5")
		err := s.within(time.Second, l)
		if want := "the network policies of default/a are not in force yet: waiting for default/a to be told of with the ID new; try again"; err == nil || err.Error() != want {
			t.Errorf("another one of its name is known: %v", err)
		}
		synctest.Wait()
		if got := len(s.dir.locals); got != 0 {
			t.Errorf("%d are left of what was not admitted", got)
		}
		done := make(chan error)
		go func() { done <- s.within(time.Minute, l) }()
		time.Sleep(10 * time.Second)
		s.Change(func(c Changes) { c.DeleteEndpoint(named("a")) })
		s.Change(func(c Changes) { c.SetEndpoint(pod("a", "new", "n1", "db")) })
		begun := time.Now()
		if err := <-done; err != nil || !s.kernel.judged("10.32.0.5") || time.Since(begun) > 0 {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		if err := s.within(time.Second, l); err != nil {
			t.Errorf("again: %v", err)
		}
		// The same from one who says all by itself.
		l = attached("g", "g", "", "10.32.0.6")
		l.Given, l.Labels = true, map[string]string{"app": "db"}
		if err := s.within(time.Second, l); err != nil || !s.kernel.judged("10.32.0.6") {
			t.Error(err)
		}
		s.Dismiss("g")
		synctest.Wait()
		time.Sleep(gap)
		synctest.Wait()
		if s.kernel.judged("10.32.0.6") {
			t.Error("what was detached is judged")
		}
	})
}

// TestSuccessor gives nothing of a pod to the next one of its name, and leaves it as it is until it is detached.
func TestSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "old", "n1", "db", "10.32.7.7"))
		})
		settled := func() {
			time.Sleep(gap)
			synctest.Wait()
		}
		if err := s.within(time.Second, attached("k1", "a", "old", "10.32.0.5")); err != nil || !s.kernel.judged("10.32.0.5") {
			t.Fatal(err)
		}
		s.Change(func(c Changes) { c.DeleteEndpoint(named("a")) })
		settled()
		if !s.kernel.judged("10.32.0.5") {
			t.Error("it is open since its object went, although it is attached")
		}
		s.Change(func(c Changes) { c.SetEndpoint(pod("a", "new", "n1", "web", "10.32.0.5")) })
		settled()
		if !s.kernel.judged("10.32.0.5") {
			t.Error("the next one of its name took over its address")
		}
		if err := s.within(time.Second, attached("k2", "a", "new", "10.32.0.6")); err != nil || s.kernel.judged("10.32.0.6") {
			t.Errorf("the next one: %v", err)
		}
		var names []string
		s.Look(func(w *policy.World) {
			for e := range w.Endpoints() {
				names = append(names, fmt.Sprint(nameText(e.Name), e.Addrs))
			}
		})
		if want := []string{"default/a[10.32.0.6]", "default/a (k1)[10.32.0.5]"}; !slices.Equal(names, want) {
			t.Errorf("%q", names)
		}
		// A new sandbox of the same pod comes before the old one goes.
		if err := s.within(time.Second, attached("k3", "a", "new", "10.32.0.8")); err != nil {
			t.Error(err)
		}
		s.Change(func(c Changes) { c.SetEndpoint(pod("a", "new", "n1", "db")) })
		settled()
		if !s.kernel.judged("10.32.0.6") || !s.kernel.judged("10.32.0.8") {
			t.Error("of two with one ID one is open")
		}
		s.Dismiss("k1")
		s.Dismiss("k2")
		settled()
		if s.kernel.judged("10.32.0.5") || s.kernel.judged("10.32.0.6") || !s.kernel.judged("10.32.0.8") {
			t.Error("what was detached is judged, or what was not is not")
		}
	})
}

// TestFailing refuses what is selected while the kernel takes nothing, and nothing else, and tries again.
func TestFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			for i, app := range []string{"db", "db", "other"} {
				c.SetEndpoint(pod(fmt.Sprint("p", i), "u", "n1", app))
			}
		})
		admit := func(i int) error {
			return s.within(time.Second, attached(fmt.Sprint("k", i), fmt.Sprint("p", i), "u", fmt.Sprint("10.32.0.", i)))
		}
		if err := admit(0); err != nil {
			t.Fatal(err)
		}
		s.kernel.set(func() { s.kernel.failing = errors.New("a part only") })
		if err := admit(1); err != nil || !s.kernel.judged("10.32.0.1") {
			t.Errorf("a change that fails is not made as a whole: %v", err)
		}
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace", "update", "replace"}) {
			t.Errorf("calls: %q", calls)
		}
		s.Dismiss("k1")
		time.Sleep(time.Second)
		s.kernel.set(func() { s.kernel.fail = errors.New("no memory") })
		err := admit(1)
		if want := "the network policies of default/p1 are not in force yet: waiting for the packet filter, which fails: no memory; try again"; err == nil || err.Error() != want {
			t.Errorf("selected: %v", err)
		}
		if got := s.Status().Failure; got != "no memory" {
			t.Errorf("status: %q", got)
		}
		if err := admit(2); err != nil {
			t.Errorf("not selected: %v", err)
		}
		if !s.kernel.judged("10.32.0.0") {
			t.Error("what was in force is not")
		}
		s.kernel.take()
		time.Sleep(time.Minute)
		if n := len(s.kernel.take()); n < 11 || n > 14 {
			t.Errorf("%d attempts in a minute", n)
		}
		s.kernel.set(func() { s.kernel.fail = nil })
		time.Sleep(lastRetry)
		if err := admit(1); err != nil || !s.kernel.judged("10.32.0.1") || s.Status().Failure != "" {
			t.Errorf("when it works again: %v", err)
		}
		want := []string{"network policies could not be put in force (no memory)", "network policies are in force again ()"}
		if notes := s.takeNotes(); !slices.Equal(notes, want) {
			t.Errorf("%q", notes)
		}
	})
}

// TestLacking refuses at once what is selected where policies cannot be enforced.
func TestLacking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u", "n1", "db"))
			c.SetEndpoint(pod("b", "u", "n1", "web"))
		})
		lack := errors.New("the kernel has no nf_tables; load the module")
		s.kernel.set(func() { s.kernel.fail, s.kernel.stuck, s.kernel.lacks = lack, lack, lack })
		begun := time.Now()
		err := s.within(time.Minute, attached("k", "a", "u", "10.32.0.5"))
		var is *LackError
		if want := "network policies select default/a and cannot be enforced on this host: the kernel has no nf_tables; load the module"; !errors.As(err, &is) || err.Error() != want {
			t.Errorf("selected: %v", err)
		}
		if err := s.within(time.Minute, attached("k2", "b", "u", "10.32.0.6")); err != nil || time.Since(begun) != 0 {
			t.Errorf("not selected: %v after %v", err, time.Since(begun))
		}
		s.Change(func(c Changes) { c.DeletePolicy(isolating("db", "", "").PolicyKey) })
		time.Sleep(time.Minute)
		if got := s.Status(); got.Failure != "" {
			t.Errorf("without a policy nothing is lacking: %+v", got)
		}
	})
}

// TestEnd lets go of whoever waits.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(Changes) {})
		done := make(chan error)
		go func() { done <- s.Admit(context.Background(), attached("k", "a", "u", "10.32.0.5")) }()
		synctest.Wait()
		s.end()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "waiting for the daemon to start again") {
			t.Error(err)
		}
		if err := s.Admit(context.Background(), attached("k", "a", "u", "10.32.0.5")); err == nil {
			t.Error("admitted by one that has ended")
		}
		s.Follow(context.Background(), 0, func(Denied, uint64) {})
	})
}

// TestProblems makes an event of each thing about a policy that is not understood, once.
func TestProblems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := isolating("odd", "", "")
		p.Problems = []string{"spec.colour is not known; it is left out"}
		s := ready(t, func(c Changes) { c.SetPolicy(p) })
		again := *p
		again.Problems = append(slices.Clone(p.Problems), "rule 2 is not understood; it allows nothing")
		s.Change(func(c Changes) { c.SetPolicy(&again) })
		synctest.Wait()
		want := []string{
			"NetworkPolicy odd of namespace default is enforced more strictly than it says (spec.colour is not known; it is left out)",
			"NetworkPolicy odd of namespace default is enforced more strictly than it says (rule 2 is not understood; it allows nothing)",
		}
		if notes := s.takeNotes(); !slices.Equal(notes, want) {
			t.Errorf("%q", notes)
		}
		want = []string{
			"NetworkPolicy odd of namespace default: spec.colour is not known; it is left out",
			"NetworkPolicy odd of namespace default: rule 2 is not understood; it allows nothing",
		}
		if got := s.Problems(); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}

// TestGuard has the kernel watched again when that ends.
func TestGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u", "n1", "db"))
		})
		s.kernel.set(func() { s.kernel.unguard = errors.New("netlink") })
		if s.kernel.runs != 0 {
			t.Error("what nobody needs is watched")
		}
		if err := s.within(time.Second, attached("k", "a", "u", "10.32.0.5")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		s.kernel.set(func() { s.kernel.unguard = nil })
		time.Sleep(time.Minute)
		s.kernel.mu.Lock()
		defer s.kernel.mu.Unlock()
		if s.kernel.runs < 3 || s.kernel.runs > 6 {
			t.Errorf("%d runs", s.kernel.runs)
		}
	})
}
