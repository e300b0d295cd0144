// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/policy/compile"
	"github.com/weftnet/weft/policy/filter"
)

// TestLostKernel takes it for a failure when the kernel has lost what it should have and cannot get it back: nothing is admitted, not even what is there, until
// it has the whole again.
func TestLostKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u", "n1", "db"))
			c.SetEndpoint(pod("b", "u", "n1", "db"))
		})
		a, b := attached("ka", "a", "u", "10.32.0.5"), attached("kb", "b", "u", "10.32.0.6")
		if err := s.within(time.Second, a); err != nil {
			t.Fatal(err)
		}
		settledSite()
		s.kernel.take()
		s.takeNotes()
		s.kernel.set(func() { s.kernel.has, s.kernel.fail = nil, errors.New("no memory") })
		s.kernel.health <- filter.Health{Judging: errors.New("nftables are not as they should be, and could not be put right: no memory")}
		synctest.Wait()
		want := "nftables are not as they should be, and could not be put right: no memory"
		if got := s.Status().Failure; got != want {
			t.Errorf("status: %q", got)
		}
		if err := s.Readmit(t.Context(), []Local{a})[0]; err == nil || err.Error() != "the network policies of default/a are not in force yet: waiting for the packet filter, which fails: "+want+"; try again" {
			t.Errorf("what is there already is connected again: %v", err)
		}
		if err := s.within(time.Second, b); err == nil {
			t.Error("admitted by a packet filter that has nothing")
		}
		if got := s.takeNotes(); len(got) == 0 || got[0] != "network policies could not be put in force ("+want+")" {
			t.Errorf("events: %q", got)
		}
		s.kernel.set(func() { s.kernel.fail = nil })
		time.Sleep(lastRetry)
		synctest.Wait()
		if calls := s.kernel.take(); slices.Contains(calls, "update") || !s.kernel.judged("10.32.0.5") {
			t.Errorf("it was given %q", calls)
		}
		if err := s.within(time.Second, b); err != nil || s.Status().Failure != "" {
			t.Errorf("when it works again: %v, status %q", err, s.Status().Failure)
		}
		// What it says of a time before it was put right is put right again, without anybody's doing.
		s.kernel.health <- filter.Health{Judging: errors.New("late")}
		synctest.Wait()
		time.Sleep(firstRetry)
		synctest.Wait()
		if got := s.Status().Failure; got != "" || !s.kernel.judged("10.32.0.5") {
			t.Errorf("status: %q", got)
		}
	})
}

// TestLostKernelOfNobody has the kernel emptied if it has what it should not, and nobody needs anything.
func TestLostKernelOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(Changes) {})
		s.kernel.set(func() { s.kernel.has = compile.NewState() })
		s.kernel.health <- filter.Health{Judging: errors.New("a table of others")}
		time.Sleep(firstRetry)
		synctest.Wait()
		s.kernel.set(func() {
			if s.kernel.has != nil {
				t.Error("it is left")
			}
		})
		if got := s.Status().Failure; got != "" {
			t.Errorf("status: %q", got)
		}
	})
}

// TestLostEarlier gives the kernel what an earlier run has left once more if it was lost before anything newer is known, and connects nothing by it meanwhile.
func TestLostEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u", "n1", "db"))
		})
		a := attached("ka", "a", "u", "10.32.0.5")
		if err := s.within(time.Second, a); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		s.end()
		s.start()
		time.Sleep(restoreLook)
		synctest.Wait()
		s.kernel.set(func() { s.kernel.has, s.kernel.fail = compile.NewState(), errors.New("no memory") })
		s.kernel.health <- filter.Health{Judging: errors.New("emptied")}
		synctest.Wait()
		if err := s.Readmit(t.Context(), []Local{a})[0]; err == nil || s.Status().Failure != "no memory" {
			t.Errorf("connected again: %v, status %q", err, s.Status().Failure)
		}
		s.kernel.set(func() { s.kernel.fail = nil })
		time.Sleep(restoreLook)
		synctest.Wait()
		if err := s.Readmit(t.Context(), []Local{a})[0]; err != nil || !s.kernel.judged("10.32.0.5") || s.Status().Failure != "" {
			t.Errorf("not connected when it is there: %v, status %q", err, s.Status().Failure)
		}
	})
}

// TestUncut tells that connections are not cut, in the status and by events when that begins and ends.
func TestUncut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u", "n1", "db"))
		})
		s.takeNotes()
		for range 2 {
			s.kernel.health <- filter.Health{Cutting: errors.New("no conntrack")}
		}
		if err := s.within(time.Second, attached("ka", "a", "u", "10.32.0.5")); err != nil {
			t.Error(err)
		}
		settledSite()
		if st := s.Status(); st.Uncut != "no conntrack" || st.Failure != "" {
			t.Errorf("status: %+v", st)
		}
		s.kernel.health <- filter.Health{}
		synctest.Wait()
		if got := s.Status().Uncut; got != "" {
			t.Errorf("status: %q", got)
		}
		want := []string{"connections that network policies do not allow any more go on (no conntrack)", "connections that network policies do not allow any more are cut again ()"}
		if got := s.takeNotes(); !slices.Equal(got, want) {
			t.Errorf("events: %q", got)
		}
	})
}
