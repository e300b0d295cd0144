// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// maxOwner bounds the key of an allocation, in bytes.
const maxOwner = 512

// Lease is an allocation with its addresses.
type Lease struct {
	Owner  string
	Slot   uint32
	V4, V6 netip.Addr // the zero Addr if the universe has no such family
}

func (a *Allocator) lease(e *entry) Lease {
	l := Lease{Owner: e.owner, Slot: e.slot}
	l.V4, l.V6 = a.cfg.Universe.Addrs(e.slot)
	return l
}

// waiter is a call that waits for an address to become available here.
type waiter struct {
	owner string
	exact bool
	slot  uint32 // if exact
	since time.Time
	done  chan struct{} // closed when entry or err is set; made when it has to wait

	entry *entry // staged; to be committed
	err   error

	asked time.Time // if exact: when its owner was last asked
}

// Allocate returns the lease of owner, a key of at most 512 bytes: the one that it has, or else a new one, which is
// durable by then. While a free address is left on this node that needs no other node; otherwise it waits, until ctx
// ends, for others to grant some. It fails at once, with an ExhaustedError, if nobody can. Other errors are ErrLeaving,
// a WaitError when ctx ends, and those of the store.
func (a *Allocator) Allocate(ctx context.Context, owner string) (Lease, error) {
	return a.obtain(ctx, owner, nil)
}

// AllocateExact is Allocate for one given address, of either family. An address that rests here is not too fresh to be
// asked for by name; one that is free on another node is moved here, which takes a while. Errors are OutsideError,
// ReservedError, InUseError, OtherAddressError and ElsewhereError, besides those of Allocate.
func (a *Allocator) AllocateExact(ctx context.Context, owner string, addr netip.Addr) (Lease, error) {
	slot, ok := a.cfg.Universe.Slot(addr)
	if !ok {
		return Lease{}, &OutsideError{Addr: addr, Universe: a.cfg.Universe}
	}
	if a.cfg.Universe.reserved(slot) {
		return Lease{}, &ReservedError{Addr: addr, Universe: a.cfg.Universe}
	}
	return a.obtain(ctx, owner, &slot)
}

func (a *Allocator) obtain(ctx context.Context, owner string, slot *uint32) (Lease, error) {
	if owner == "" || len(owner) > maxOwner {
		return Lease{}, fmt.Errorf("workload key of %d bytes; it must have 1 to %d", len(owner), maxOwner)
	}
	for {
		e, b, w, err := a.begin(owner, slot)
		if w != nil {
			e, b, err = a.await(ctx, w)
		}
		if err != nil {
			return Lease{}, a.named(err)
		}
		if b != nil {
			if err := a.commit(b); err != nil {
				return Lease{}, fmt.Errorf("cannot store the address of %s: %w", owner, err)
			}
		}
		a.report()
		if e != nil && a.stands(e) {
			return a.lease(e), nil
		}
		// Another call decided about the same owner, or the slot was taken away: look again.
	}
}

// stands reports whether an allocation came to be.
func (a *Allocator) stands(e *entry) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return e.state != void
}

// begin finds or stages an allocation. Of its results, e and b are the allocation and the commit to wait for, which may
// be one that decides about something else first (e is nil then); or w has to be waited for.
func (a *Allocator) begin(owner string, slot *uint32) (e *entry, b *batch, w *waiter, err error) {
	a.mu.Lock()
	if err := a.expelled(); err != nil {
		a.mu.Unlock()
		return nil, nil, nil, err
	}
	if e := a.byOwner[owner]; e != nil {
		defer a.mu.Unlock()
		return a.again(e, slot)
	}
	if a.leaving {
		a.mu.Unlock()
		return nil, nil, nil, ErrLeaving
	}
	w = &waiter{owner: owner, since: a.cfg.Now()}
	if slot != nil {
		w.exact, w.slot = true, *slot
	}
	a.expire()
	if a.satisfy(w) {
		defer a.mu.Unlock()
		if w.err != nil {
			return nil, nil, nil, w.err
		}
		return w.entry, w.entry.batch, nil, nil
	}
	w.done = make(chan struct{})
	a.waiters = append(a.waiters, w)
	a.mu.Unlock()
	a.finish() // asks others, or finds that nobody can help
	a.Wake()
	return nil, nil, w, nil
}

// again handles an owner that has an allocation, if only one that is being made or removed. a.mu must be held.
func (a *Allocator) again(e *entry, slot *uint32) (*entry, *batch, *waiter, error) {
	switch {
	case e.state == staged, e.state == releasing:
		return nil, e.batch, nil, nil
	case slot != nil && *slot != e.slot:
		return nil, nil, nil, &OtherAddressError{Owner: e.owner, Addr: a.addr(*slot), Has: a.addr(e.slot)}
	case a.doubt.owners[e.owner]:
		return e, a.nextBatch(), nil, nil
	}
	return e, nil, nil, nil
}

// nextBatch returns the batch of the next commit. a.mu must be held.
func (a *Allocator) nextBatch() *batch {
	if a.batch == nil {
		a.batch = new(batch)
	}
	return a.batch
}

// await waits until a waiter is served, or fails, or ctx ends.
func (a *Allocator) await(ctx context.Context, w *waiter) (*entry, *batch, error) {
	select {
	case <-w.done:
	case <-ctx.Done():
	}
	v := a.look()
	a.mu.Lock()
	select {
	case <-w.done:
		defer a.mu.Unlock()
		if w.err != nil || w.entry == nil {
			return nil, nil, w.err
		}
		return w.entry, w.entry.batch, nil
	default:
	}
	r := a.reason(w, v)
	a.waiters = slices.DeleteFunc(a.waiters, func(o *waiter) bool { return o == w })
	a.mu.Unlock()
	return nil, nil, &WaitError{Owner: w.owner, Reason: a.text(r), Err: context.Cause(ctx)}
}

// satisfy stages what a waiter waits for, if it is here, or finds that it cannot be had here. It reports whether the
// waiter is done. a.mu must be held.
func (a *Allocator) satisfy(w *waiter) bool {
	if e := a.byOwner[w.owner]; e != nil {
		return true // by another call; obtain looks again
	}
	if a.hold {
		return false
	}
	slot := w.slot
	var rest time.Time
	if w.exact {
		if !a.space.domain.Contains(slot) {
			return false
		}
		if e := a.bySlot[slot]; e != nil {
			w.err = &InUseError{Addr: a.addr(slot), By: e.owner}
			return true
		}
		if rest = a.space.rests[slot]; a.space.wake(slot) {
			a.space.free(slot)
			a.woken = append(a.woken, slot)
		}
	} else {
		var ok bool
		if slot, ok = a.space.next(); !ok {
			return false
		}
	}
	a.space.take(slot)
	w.entry = &entry{owner: w.owner, slot: slot, rest: rest}
	a.byOwner[w.owner], a.bySlot[slot] = w.entry, w.entry
	a.stage(w.entry, staged)
	return true
}

// serve satisfies the waiters that can be, those with a given address first. a.mu must be held.
func (a *Allocator) serve() {
	if len(a.waiters) == 0 {
		return
	}
	a.expire()
	for _, exact := range []bool{true, false} {
		a.waiters = slices.DeleteFunc(a.waiters, func(w *waiter) bool {
			if w.exact != exact || !a.satisfy(w) {
				return false
			}
			close(w.done)
			return true
		})
	}
}

// expire frees the slots that have rested long enough. a.mu must be held.
func (a *Allocator) expire() {
	if len(a.space.resting) > 0 {
		a.woken = append(a.woken, a.space.expire(a.cfg.Now())...)
	}
}

// Release frees the address of owner; it rests for the quarantine. Nil is returned if owner has none. Once it has
// returned nil the address is free for good.
func (a *Allocator) Release(owner string) error {
	for {
		a.mu.Lock()
		e := a.byOwner[owner]
		var b *batch
		switch {
		case e == nil && !a.doubt.owners[owner]:
			a.mu.Unlock()
			return nil
		case e == nil:
			b = a.nextBatch() // a commit that failed may have stored it
		case e.state == held:
			b = a.stage(e, releasing)
		default:
			b = e.batch
		}
		first := e != nil && e.state == staged // to be released once it is there
		a.mu.Unlock()
		if err := a.commit(b); err != nil {
			return fmt.Errorf("cannot store that the address of %s is free: %w", owner, err)
		}
		a.report()
		if !first {
			return nil
		}
	}
}

// ReleaseAll frees the addresses of all owners whose keys begin with prefix, which must not be empty, in one commit: those of
// a container's interfaces, if keys are the container and the interface. They rest for the quarantine. It returns how many
// there were; once the error is nil they are free for good.
func (a *Allocator) ReleaseAll(prefix string) (int, error) {
	if prefix == "" {
		return 0, errors.New("the owners to release are not named; give the beginning of their keys")
	}
	n := 0
	for more := true; more; {
		var own *batch
		var others []*batch
		mine := 0
		a.mu.Lock()
		if a.uncertain(prefix) {
			own = a.nextBatch() // a commit that failed may have stored it
		}
		for owner, e := range a.byOwner {
			switch {
			case !strings.HasPrefix(owner, prefix):
			case e.state == held:
				own = a.stage(e, releasing)
				mine++
			default: // another call allocates or releases it: look again when that is decided
				others = append(others, e.batch)
			}
		}
		a.mu.Unlock()
		if own != nil {
			if err := a.commit(own); err != nil {
				return n, fmt.Errorf("cannot store that the addresses of %s* are free: %w", prefix, err)
			}
		}
		n += mine
		for _, b := range others {
			_ = a.commit(b) // those who wait for it learn of the error
		}
		more = len(others) > 0
	}
	a.report()
	return n, nil
}

// uncertain reports whether the store may hold an allocation, to an owner whose key begins with prefix, that is not one. a.mu
// must be held.
func (a *Allocator) uncertain(prefix string) bool {
	for owner := range a.doubt.owners {
		if strings.HasPrefix(owner, prefix) && a.byOwner[owner] == nil {
			return true
		}
	}
	return false
}

// report tells what a commit has changed, and has Run look for more addresses if few are left.
func (a *Allocator) report() {
	a.mu.Lock()
	changed, low := a.changed, a.low()
	a.changed = false
	a.mu.Unlock()
	if changed && a.cfg.OnChange != nil {
		a.cfg.OnChange()
	}
	if low {
		a.Wake()
	}
}

// Lookup returns the lease of owner, if it has one.
func (a *Allocator) Lookup(owner string) (Lease, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.byOwner[owner]
	if e == nil || e.state == staged {
		return Lease{}, false
	}
	return a.lease(e), true
}

// List returns all leases of this node, by slot.
func (a *Allocator) List() []Lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Lease, 0, len(a.byOwner))
	for _, e := range a.byOwner {
		if e.state != staged {
			out = append(out, a.lease(e))
		}
	}
	slices.SortFunc(out, func(x, y Lease) int { return cmp.Compare(x.Slot, y.Slot) })
	return out
}

// named fills in the names of the nodes in an error. No lock must be held.
func (a *Allocator) named(err error) error {
	var full *ExhaustedError
	var elsewhere *ElsewhereError
	var retired *RetiredError
	var alive *AliveError
	var doomed *DoomedError
	var adopted *AdoptedError
	var forgotten *ForgottenError
	switch {
	case errors.As(err, &full):
		for i := range full.Holders {
			full.Holders[i].Name = a.name(full.Holders[i].Owner)
		}
	case errors.As(err, &elsewhere):
		elsewhere.Node = a.name(elsewhere.Owner)
	case errors.As(err, &adopted):
		adopted.Name = a.name(adopted.By)
	case errors.As(err, &forgotten):
		forgotten.HeirName, forgotten.ByName = a.name(forgotten.Heir), a.name(forgotten.By)
	case errors.As(err, &alive):
		alive.Name = a.name(alive.Owner)
	case errors.As(err, &doomed):
		doomed.ByName = a.name(doomed.By)
	case errors.As(err, &retired):
		retired.HeirName, retired.ByName = a.name(retired.Heir), a.name(retired.By)
	}
	return err
}
