// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy/compile"
	"github.com/weftnet/weft/policy/filter"
)

// TestRealKernel goes through a life with the kernel's packet filter: nothing, a policy, a restart, a flush, nothing.
func TestRealKernel(t *testing.T) {
	f, err := filter.New(filter.Config{Log: zap.NewNop(), NetNS: emptyNamespace(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	home := t.TempDir()
	begin := func() (e *Enforcer, end func()) {
		e = New(Config{
			Node: "n1", Kernel: f, Compiler: compile.New("n1", compile.Limits{}), File: home + "/" + FileName, Boot: "b", Log: zap.NewNop(),
			Note: func(text, cause string) { t.Log(text, cause) },
		})
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.Run(ctx)
		}()
		return e, func() {
			stop()
			<-done
		}
	}
	there := func(want bool, what string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			got, err := f.Present()
			if err != nil {
				t.Fatal(err)
			}
			if got == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the table being there is %t", what, got)
			}
		}
	}
	tell := func(e *Enforcer) {
		e.Change(func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			for i := range 50 {
				c.SetEndpoint(pod(fmt.Sprint("p", i), "u", "n1", []string{"db", "other"}[i%2]))
			}
		})
		e.Synced()
	}
	admit := func(e *Enforcer, i int) time.Duration {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		begun := time.Now()
		if err := e.Admit(ctx, attached(fmt.Sprint("k", i), fmt.Sprint("p", i), "u", fmt.Sprint("10.32.0.", i))); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun)
	}

	e, end := begin()
	tell(e)
	e.Begin(nil)
	admit(e, 1) // which no policy selects
	there(false, "nothing is selected")
	admit(e, 0)
	there(true, "something is")
	var took [2][]time.Duration
	for i := 2; i < 50; i++ {
		took[i%2] = append(took[i%2], admit(e, i))
	}
	for i := range took {
		slices.Sort(took[i])
		t.Logf("admitted in %v (median), selected is %t", took[i][len(took[i])/2], i == 0)
	}
	if e.Status().Subjects != 25 {
		t.Errorf("%+v", e.Status())
	}
	end()
	there(true, "the daemon has ended")

	if err := f.Remove(); err != nil { // somebody flushes, while there is no daemon
		t.Fatal(err)
	}
	e, end = begin()
	there(true, "what was kept is put back")
	var locals []Local
	for i := range 50 {
		locals = append(locals, attached(fmt.Sprint("k", i), fmt.Sprint("p", i), "u", fmt.Sprint("10.32.0.", i)))
	}
	tell(e)
	e.Begin(locals)
	admit(e, 0)
	for i := range 50 {
		e.Dismiss(fmt.Sprint("k", i))
	}
	there(false, "all are detached")
	end()
}

// emptyNamespace makes a network namespace that ends with the test, and returns its descriptor.
func emptyNamespace(t *testing.T) int {
	t.Helper()
	type made struct {
		file *os.File
		err  error
	}
	done := make(chan made)
	var enter func()
	enter = func() {
		runtime.LockOSThread() // for good
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			again := make(chan struct{})
			go func() {
				defer close(again)
				enter()
			}()
			<-again
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: fmt.Errorf("making a network namespace: %w; run the tests as root", err)}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		done <- made{file, err}
	}
	go enter()
	m := <-done
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() {
		if err := m.file.Close(); err != nil {
			t.Error(err)
		}
	})
	return int(m.file.Fd())
}
