// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// WaitError is why a workload is not admitted yet: it may be if it is tried again.
type WaitError struct {
	Name policy.Name
	For  string // what is waited for
}

func (e *WaitError) Error() string {
	return fmt.Sprintf("the network policies of %s are not in force yet: waiting for %s; try again", nameText(e.Name), e.For)
}

// LackError is why a workload is not admitted, as long as policies select it and the kernel is what it is.
type LackError struct {
	Name policy.Name
	Err  error // see [Kernel]
}

func (e *LackError) Error() string {
	return fmt.Sprintf("network policies select %s and cannot be enforced on this host: %v", nameText(e.Name), e.Err)
}

func (e *LackError) Unwrap() error { return e.Err }

// errEnded is what is waited for where nobody works on it any more.
var errEnded = errors.New("the daemon to start again")

// waiter is who waits for a workload to be in force.
type waiter struct {
	local Local
	done  chan error // capacity 1
	now   bool       // or an answer at once

	fresh bool  // the workload came with it; of Run's goroutine
	why   error // what it waits for; guarded by Enforcer.mu
}

// Admit waits until all that policies say of a workload is in force, and returns nil then: it may be connected. Otherwise it returns a [WaitError]
// when ctx ends, or a [LackError]; a workload that was not there before is not there afterwards. It may be called again for one that is
// there.
func (e *Enforcer) Admit(ctx context.Context, l Local) error {
	return e.admit(ctx, &waiter{local: l, done: make(chan error, 1)})
}

// Readmit says of workloads that are attached, in this run or, as Begin has said, an earlier one, why they may not be connected again: nil for each that may, as
// Admit would, but at once and of all of them together. Before anything is put in force one may be if the kernel has what the earlier run gave it for that
// workload.
func (e *Enforcer) Readmit(ctx context.Context, all []Local) []error {
	b, waiters := newBatch(), make([]*waiter, len(all))
	for i, l := range all {
		waiters[i] = &waiter{local: l, done: make(chan error, 1), now: true}
		b.locals = append(b.locals, localChange{waits: waiters[i]})
	}
	e.submit(b)
	errs := make([]error, len(all))
	for i, w := range waiters {
		errs[i] = e.await(ctx, w)
	}
	return errs
}

func (e *Enforcer) admit(ctx context.Context, w *waiter) error {
	b := newBatch()
	b.locals = append(b.locals, localChange{bind: &w.local, waits: w})
	e.submit(b)
	return e.await(ctx, w)
}

// await waits for the answer.
func (e *Enforcer) await(ctx context.Context, w *waiter) error {
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	case <-e.ended:
		return &WaitError{w.local.Name, errEnded.Error()}
	}
	b := newBatch()
	b.locals = append(b.locals, localChange{gone: w})
	e.submit(b)
	e.mu.Lock()
	defer e.mu.Unlock()
	if w.why == nil {
		return &WaitError{w.local.Name, "the packet filter"}
	}
	return &WaitError{w.local.Name, w.why.Error()}
}

// Dismiss says that a workload is not connected any more. It does not wait.
func (e *Enforcer) Dismiss(key string) {
	b := newBatch()
	b.locals = append(b.locals, localChange{dismiss: key})
	e.submit(b)
}

// Relabel says what a workload that is attached is called now, and which labels and ports it has. It does not wait.
func (e *Enforcer) Relabel(l Local) {
	b := newBatch()
	b.locals = append(b.locals, localChange{bind: &l, there: true})
	e.submit(b)
}

// changeLocal makes a change of what is attached here.
func (e *Enforcer) changeLocal(c localChange) {
	switch {
	case c.bind != nil:
		if c.there && e.dir.locals[c.bind.Key] == nil {
			return
		}
		if c.waits != nil {
			_, there := e.dir.locals[c.bind.Key]
			c.waits.fresh = !there
			e.waiting = append(e.waiting, c.waits)
		}
		e.dir.bind(*c.bind, c.old)
	case c.waits != nil:
		e.waiting = append(e.waiting, c.waits)
	case c.gone != nil:
		e.waiting = slices.DeleteFunc(e.waiting, func(w *waiter) bool { return w == c.gone })
		if c.gone.fresh {
			e.dir.dismiss(c.gone.local.Key)
		}
	default:
		e.dir.dismiss(c.dismiss)
	}
}

// answer lets go of those for whom there is nothing to wait for any more.
func (e *Enforcer) answer() {
	e.waiting = slices.DeleteFunc(e.waiting, func(w *waiter) bool {
		err, final := e.verdict(w)
		if final || w.now {
			w.done <- err
			return true
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		w.why = errors.New(waitsFor(err))
		return false
	})
}

func waitsFor(err error) string {
	var wait *WaitError
	if errors.As(err, &wait) {
		return wait.For
	}
	return err.Error()
}

// verdict says why a workload cannot be connected, nil if it can, and whether that will stay so.
func (e *Enforcer) verdict(w *waiter) (err error, final bool) { //nolint:revive // the error is the verdict
	name := w.local.Name
	if !e.committed {
		if w.now && e.restGone == nil && e.earlier.state != nil && concerned(e.earlier.state.Sides, w.local.Addrs) {
			return nil, true
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		return &WaitError{name, e.awaits}, false
	}
	b := e.dir.locals[w.local.Key]
	switch {
	case b == nil: // it was dismissed meanwhile
		return &WaitError{name, "nothing: it was detached meanwhile"}, true
	case !b.known:
		return &WaitError{name, fmt.Sprintf("%s to be told of%s", nameText(name), withID(w.local.ID))}, false
	case !e.dir.spaces.placed(b.Namespace):
		return &WaitError{name, fmt.Sprintf("the namespace %s to be told of", b.Namespace)}, false
	}
	if w.fresh && !w.now {
		if what := e.lags(); what != "" {
			return &WaitError{name, what}, false
		}
	}
	judged := concerned(e.sides, b.Addrs)
	switch {
	case e.failure == nil:
		return nil, true
	case e.lack != nil && judged:
		return &LackError{name, e.lack}, true
	case e.lack != nil, e.took && !judged && !slices.ContainsFunc(b.Addrs, func(a netip.Addr) bool { return e.late[a] }):
		return nil, true
	}
	return &WaitError{name, fmt.Sprintf("the packet filter, which fails: %v", e.failure)}, false
}

func nameText(n policy.Name) string { return n.Namespace + "/" + n.Name }

func withID(id string) string {
	if id == "" {
		return ""
	}
	return " with the ID " + id
}

// concerned tells whether policies say anything of what has these addresses.
func concerned(sides map[compile.Side]compile.TableID, addrs []netip.Addr) bool {
	for _, a := range addrs {
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			if _, ok := sides[compile.Side{Addr: a, Direction: d}]; ok {
				return true
			}
		}
	}
	return false
}
