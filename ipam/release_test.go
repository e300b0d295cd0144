// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// All interfaces of a container are released in one commit, and nobody else's.
func TestReleaseAll(t *testing.T) {
	l := newLone(t, "10.32.0.0/24")
	for _, owner := range []string{"c1/eth0", "c1/eth1", "c1/net2", "c10/eth0", "c2/eth0", "host"} {
		l.must(owner)
	}
	saves := l.store.saves
	if n, err := l.ReleaseAll("c1/"); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if l.store.saves != saves+1 {
		t.Errorf("%d commits", l.store.saves-saves)
	}
	var left []string
	for _, lease := range l.List() {
		left = append(left, lease.Owner)
	}
	if got := strings.Join(left, " "); got != "c10/eth0 c2/eth0 host" {
		t.Errorf("left are %s", got)
	}
	if u := l.Usage(); u.Resting != 3 || u.Allocated != 3 || len(l.store.resting) != 3 || len(l.store.allocs) != 3 {
		t.Errorf("%+v, stored: %v %v", u, l.store.allocs, l.store.resting)
	}
	saves = l.store.saves
	if n, err := l.ReleaseAll("c1/"); n != 0 || err != nil || l.store.saves != saves {
		t.Errorf("again: %d, %v, %d commits", n, err, l.store.saves-saves)
	}
	want := "the owners to release are not named; give the beginning of their keys"
	if _, err := l.ReleaseAll(""); err == nil || err.Error() != want || len(l.List()) != 3 {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// What could not be stored as released is still there, all of it; what may have been stored though its allocation failed is
// made sure of.
func TestReleaseAllFailures(t *testing.T) {
	for _, f := range []fault{failBefore, failAfter} {
		l := newLone(t, "10.32.0.0/24")
		failing := false
		l.store.fault = func(Change) fault {
			if failing {
				return f
			}
			return healthy
		}
		a, b := l.must("c/a"), l.must("c/b")
		failing = true
		if n, err := l.ReleaseAll("c/"); n != 0 || !errors.Is(err, errDisk) || err.Error() != "cannot store that the addresses of c/* are free: disk full" {
			t.Errorf("%d, %v", n, err)
		}
		if _, err := l.Allocate(t.Context(), "c/c"); !errors.Is(err, errDisk) {
			t.Error(err)
		}
		if got := l.List(); len(got) != 2 || got[0] != a || got[1] != b {
			t.Errorf("left are %v", got)
		}
		failing = false
		if n, err := l.ReleaseAll("c/"); n != 2 || err != nil || len(l.store.allocs) != 0 || len(l.List()) != 0 {
			t.Errorf("%d, %v, stored: %v", n, err, l.store.allocs)
		}
		failing = true
		if _, err := l.Allocate(t.Context(), "c/d"); !errors.Is(err, errDisk) {
			t.Error(err)
		}
		failing = false
		if n, err := l.ReleaseAll("c/"); n != 0 || err != nil || len(l.store.allocs) != 0 {
			t.Errorf("%d, %v, stored: %v", n, err, l.store.allocs)
		}
		if l.store.broken != nil {
			t.Error(l.store.broken)
		}
	}
}

// stuck makes the store wait in its next commit until all of n owners have one that is not decided.
func (l *lone) stuck(n int) {
	undecided := func() (k int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, e := range l.byOwner {
			if e.state == staged || e.state == releasing {
				k++
			}
		}
		return k
	}
	l.store.fault = func(Change) fault {
		for undecided() < n {
			time.Sleep(time.Millisecond)
		}
		l.store.fault = nil
		return healthy
	}
}

// A hundred calls at once cost two commits, whatever the disk takes, and be they allocations or releases.
func TestHundredCallsCostTwoCommits(t *testing.T) {
	l := newLone(t, "10.32.0.0/16")
	for what, f := range map[string]func(owner string) error{
		"allocate": func(owner string) error { _, err := l.Allocate(t.Context(), owner); return err },
		"release":  l.Release,
	} {
		if what == "release" {
			for i := range 100 {
				l.must(fmt.Sprint("r", i))
			}
		}
		l.stuck(100)
		saves := l.store.saves
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := f(fmt.Sprint(what[:1], i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := l.store.saves - saves; n > 2 {
			t.Errorf("%s: %d commits for 100 calls", what, n)
		}
	}
	if len(l.List()) != 100 || len(l.store.allocs) != 100 || l.store.broken != nil {
		t.Errorf("%d leases, %d stored, %v", len(l.List()), len(l.store.allocs), l.store.broken)
	}
}

// Releasing everything while some of it is being stored, and some waits for that, takes all of it.
func TestReleaseAllWhileAllocating(t *testing.T) {
	for range 20 {
		l := newLone(t, "10.32.0.0/16")
		l.must("c/held")
		l.stuck(20)
		var wg sync.WaitGroup
		for i := range 19 {
			wg.Go(func() { _, _ = l.Allocate(t.Context(), fmt.Sprint("c/", i)) })
		}
		for {
			if l.mu.Lock(); len(l.byOwner) == 20 {
				l.mu.Unlock()
				break
			}
			l.mu.Unlock()
			time.Sleep(time.Millisecond)
		}
		n, err := l.ReleaseAll("c/")
		if n != 20 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		wg.Wait()
		// A call that had not returned by then may have come after it.
		if again := l.List(); len(l.store.allocs) != len(again) {
			t.Errorf("left: %v, stored %v", again, l.store.allocs)
		} else if n, err := l.ReleaseAll("c/"); n != len(again) || err != nil || len(l.store.allocs) != 0 || len(l.List()) != 0 || l.store.broken != nil {
			t.Errorf("%d, %v; left: %v, stored %v, %v", n, err, l.List(), l.store.allocs, l.store.broken)
		}
		if t.Failed() {
			break
		}
	}
}

// A slot comes up again as late as possible, also where nothing rests.
func TestNextFit(t *testing.T) {
	l := newLone(t, "10.32.0.0/28")
	l.cfg.Quarantine = -1
	l.restart()
	for i := range uint32(30) {
		if lease := l.must("w"); lease.Slot != i%14+1 {
			t.Fatalf("allocation %d is slot %d", i, lease.Slot)
		}
		if err := l.Release("w"); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody sees an allocation before it is durable, nor after its release is.
func TestSeenWhenDurable(t *testing.T) {
	l := newLone(t, "10.32.0.0/28")
	var during []bool
	l.store.fault = func(Change) fault {
		_, ok := l.Lookup("w")
		during = append(during, ok, len(l.List()) == 1)
		return healthy
	}
	lease := l.must("w")
	if got, ok := l.Lookup("w"); !ok || got != lease || len(l.List()) != 1 {
		t.Errorf("%+v, %v", got, ok)
	}
	if err := l.Release("w"); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.Lookup("w"); ok || len(l.List()) != 0 {
		t.Error("still there")
	}
	if want := []bool{false, false, true, true}; !slices.Equal(during, want) {
		t.Errorf("seen during the commits: %v, want %v", during, want)
	}
}
