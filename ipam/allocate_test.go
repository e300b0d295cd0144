// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weftnet/weft/ipam/ring"
)

// nobody is a Net without other nodes.
type nobody struct{}

func (nobody) Send(ring.Owner, []byte) error { return errors.New("nobody there") }
func (nobody) Broadcast([]byte)              {}
func (nobody) Peers() []Peer                 { return nil }

// clock is a clock that is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// lone is one node, alone and founding, on a fake store and clock.
type lone struct {
	*Allocator
	t     testing.TB
	store *fakeStore
	clock *clock
	cfg   Config
}

func newLone(t testing.TB, universe string) *lone {
	u := mustUniverse(t, universe)
	l := &lone{t: t, store: newFakeStore(u.Size()), clock: &clock{now: time.Unix(1_000_000, 0)}}
	l.cfg = Config{Self: 1, Universe: u, Seed: Seed{Owners: []ring.Owner{1}}, Store: l.store, Net: nobody{}, Now: l.clock.Now}
	l.restart()
	return l
}

func (l *lone) restart() {
	l.t.Helper()
	a, err := New(l.cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.Allocator = a
}

func (l *lone) must(owner string) Lease {
	l.t.Helper()
	lease, err := l.Allocate(l.t.Context(), owner)
	if err != nil {
		l.t.Fatal(err)
	}
	return lease
}

func TestAllocateGoesRound(t *testing.T) {
	l := newLone(t, "10.32.0.0/29,fd00::/64")
	l.clock.add(time.Minute)
	for i := range 20 {
		owner := fmt.Sprint(i)
		lease := l.must(owner)
		slot := uint32(i%6) + 1
		want := Lease{Owner: owner, Slot: slot, V4: netip.AddrFrom4([4]byte{10, 32, 0, byte(slot)}), V6: netip.MustParseAddr(fmt.Sprintf("fd00::%d", slot))}
		if lease != want {
			t.Fatalf("lease %d is %+v, want %+v", i, lease, want)
		}
		if again := l.must(owner); again != lease {
			t.Errorf("asked again: %+v", again)
		}
		if got, ok := l.Lookup(owner); !ok || got != lease {
			t.Errorf("looked up: %+v, %v", got, ok)
		}
		if err := l.Release(owner); err != nil {
			t.Fatal(err)
		}
		if _, ok := l.Lookup(owner); ok {
			t.Error("found after its release")
		}
		l.clock.add(10 * time.Second) // six at a time rest
	}
	if err := l.Release("unknown"); err != nil {
		t.Errorf("release of something unknown: %v", err)
	}
}

func TestQuarantine(t *testing.T) {
	l := newLone(t, "10.32.0.0/29")
	l.clock.add(time.Minute)
	for i := range 6 {
		l.must(fmt.Sprint(i))
	}
	if err := l.Release("3"); err != nil {
		t.Fatal(err)
	}
	full := func() {
		t.Helper()
		var e *ExhaustedError
		if _, err := l.Allocate(t.Context(), "x"); !errors.As(err, &e) {
			t.Fatalf("error %v", err)
		}
	}
	full()
	l.clock.add(DefaultQuarantine - time.Second)
	full()
	l.restart() // the rest outlives the process
	l.clock.add(500 * time.Millisecond)
	full()
	if u := l.Usage(); u.Resting != 1 || u.Allocated != 5 || u.Free != 0 || u.Size != 6 {
		t.Errorf("usage %+v", u)
	}
	l.clock.add(500 * time.Millisecond)
	if lease := l.must("x"); lease.Slot != 4 {
		t.Errorf("lease %+v", lease)
	}
	if len(l.store.resting) != 0 {
		t.Errorf("stored as resting: %v", l.store.resting)
	}

	// By name an address can be had before its time. If that fails it rests on.
	if err := l.Release("x"); err != nil {
		t.Fatal(err)
	}
	l.store.fault = func(Change) fault { return failBefore }
	if _, err := l.AllocateExact(t.Context(), "y", netip.MustParseAddr("10.32.0.4")); !errors.Is(err, errDisk) {
		t.Fatalf("error %v", err)
	}
	l.store.fault = nil
	full()
	if lease, err := l.AllocateExact(t.Context(), "y", netip.MustParseAddr("10.32.0.4")); err != nil || lease.Slot != 4 {
		t.Errorf("%+v, %v", lease, err)
	}

	// A clock that was set back keeps nothing for longer than the rest would be.
	if err := l.Release("y"); err != nil {
		t.Fatal(err)
	}
	l.clock.add(-24 * time.Hour)
	l.restart()
	l.clock.add(DefaultQuarantine)
	l.must("z")

	l.cfg.Quarantine = -1
	l.restart()
	if err := l.Release("z"); err != nil {
		t.Fatal(err)
	}
	l.must("at once")
}

func TestAllocateExactHere(t *testing.T) {
	l := newLone(t, "10.32.0.0/12,fd00::/64")
	l.cfg.Now = l.clock.Now
	exact := func(owner, addr, want string) {
		t.Helper()
		lease, err := l.AllocateExact(t.Context(), owner, netip.MustParseAddr(addr))
		switch {
		case want == "" && (err != nil || lease.V4.String() != addr && lease.V6.String() != addr):
			t.Errorf("%s: %+v, %v", addr, lease, err)
		case want != "" && (err == nil || err.Error() != want):
			t.Errorf("%s: %+v, %v\nwant %s", addr, lease, err, want)
		}
	}
	exact("X", "10.32.0.9", "")
	exact("X", "10.32.0.9", "")
	exact("X", "fd00::9", "") // the same one
	exact("Y", "fd00::a", "")
	exact("Z", "10.48.0.9", "address 10.48.0.9 lies outside the mesh's range 10.32.0.0/12,fd00::/64; choose one inside it")
	exact("Z", "fd00::f:0:0", "address fd00::f:0:0 lies outside the mesh's range 10.32.0.0/12,fd00::/64; choose one inside it")
	exact("Z", "10.32.0.9", "address 10.32.0.9 is in use by workload X on this node; detach it first or choose another")
	exact("Z", "10.32.0.0", "address 10.32.0.0 is the first or last of the mesh's range 10.32.0.0/12,fd00::/64 and is never handed out; choose another")
	exact("Z", "10.47.255.255", "address 10.47.255.255 is the first or last of the mesh's range 10.32.0.0/12,fd00::/64 and is never handed out; choose another")
	exact("X", "10.32.0.10", "workload X already has address 10.32.0.9, so it cannot get 10.32.0.10; detach it first")
	exact("", "10.32.0.11", "workload key of 0 bytes; it must have 1 to 512")
	if _, err := l.Allocate(t.Context(), strings.Repeat("x", 513)); err == nil {
		t.Error("a key that is too long was taken")
	}
	for _, lease := range l.List() {
		if lease.Slot != 9 && lease.Slot != 10 {
			t.Errorf("lease %+v", lease)
		}
	}
}

// An allocation is seen by nobody before it is durable, and one that could not be made durable is not made.
func TestStoreFailures(t *testing.T) {
	for _, f := range []fault{failBefore, failAfter} {
		t.Run(fmt.Sprint(f), func(t *testing.T) {
			l := newLone(t, "10.32.0.0/29")
			failing, first := false, true
			l.store.fault = func(Change) fault {
				if first && len(l.List()) > 0 {
					t.Error("seen before it was stored")
				}
				first = false
				if failing {
					return f
				}
				return healthy
			}
			failing = true
			if _, err := l.Allocate(t.Context(), "a"); err == nil || err.Error() != "cannot store the address of a: disk full" || !errors.Is(err, errDisk) {
				t.Fatalf("error %v", err)
			}
			if _, ok := l.Lookup("a"); ok || len(l.List()) != 0 || !l.Usage().Failing {
				t.Error("seen though it was not stored")
			}
			failing = false
			// Whatever was written is put right with the next commit.
			b := l.must("b")
			if len(l.store.allocs) != 1 || l.store.allocs["b"] != b.Slot {
				t.Fatalf("stored: %v", l.store.allocs)
			}
			failing = true
			if err := l.Release("b"); err == nil || !strings.HasPrefix(err.Error(), "cannot store that the address of b is free: ") {
				t.Fatalf("error %v", err)
			}
			if _, err := l.Allocate(t.Context(), "b"); !errors.Is(err, errDisk) {
				t.Fatalf("a lease that may be gone from the disk was returned: %v", err)
			}
			failing = false
			if again := l.must("b"); again != b || l.store.allocs["b"] != b.Slot || len(l.store.resting) != 0 {
				t.Fatalf("%+v, stored: %v %v", again, l.store.allocs, l.store.resting)
			}
			// Release of what may have been stored makes sure that it is not.
			failing = true
			if _, err := l.Allocate(t.Context(), "c"); err == nil {
				t.Fatal("no error")
			}
			failing = false
			if err := l.Release("c"); err != nil || len(l.store.allocs) != 1 {
				t.Fatalf("%v, stored: %v", err, l.store.allocs)
			}
			l.restart()
			if again := l.must("b"); again != b || len(l.List()) != 1 || l.store.broken != nil {
				t.Fatalf("%+v, %v, %v", again, l.List(), l.store.broken)
			}
		})
	}
}

func TestFailingStoreIsLoggedOnce(t *testing.T) {
	l := newLone(t, "10.32.0.0/24")
	core, logs := observer.New(zapcore.InfoLevel)
	l.cfg.Log = zap.New(core)
	l.restart()
	f := failBefore
	l.store.fault = func(Change) fault { return f }
	for range 5 {
		if _, err := l.Allocate(t.Context(), "a"); err == nil {
			t.Fatal("no error")
		}
	}
	f = healthy
	l.must("a")
	if n := logs.Len(); n != 2 {
		t.Errorf("%d lines: %v", n, logs.All())
	}
}

// Calls that come while a commit is under way share the next one.
func TestCommitsAreShared(t *testing.T) {
	l := newLone(t, "10.32.0.0/12")
	const n = 64
	slow := make(chan struct{})
	l.store.fault = func(Change) fault { <-slow; return healthy }
	before := l.store.saves
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := l.Allocate(t.Context(), fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	staged := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.byOwner)
	}
	for staged() < n {
		time.Sleep(time.Millisecond)
	}
	close(slow)
	wg.Wait()
	if saves := l.store.saves - before; saves > 2 {
		t.Errorf("%d commits for %d allocations", saves, n)
	}
	if len(l.List()) != n || l.store.broken != nil {
		t.Errorf("%d leases, %v", len(l.List()), l.store.broken)
	}
}

// Many calls at once, about the same few owners, with a store that fails now and then.
func TestConcurrentCalls(t *testing.T) {
	l := newLone(t, "10.32.0.0/26")
	l.cfg.Quarantine = -1
	l.restart()
	saves := 0
	l.store.fault = func(Change) fault {
		saves++
		return []fault{healthy, healthy, failBefore, healthy, failAfter}[saves%5]
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				owner := fmt.Sprint((i + j) % 5)
				var err error
				switch j % 4 {
				case 0, 1:
					_, err = l.Allocate(t.Context(), owner)
				case 2:
					_, err = l.AllocateExact(t.Context(), owner, netip.AddrFrom4([4]byte{10, 32, 0, byte(1 + j%60)}))
				default:
					err = l.Release(owner)
				}
				var used *InUseError
				var other *OtherAddressError
				if err != nil && !errors.Is(err, errDisk) && !errors.As(err, &used) && !errors.As(err, &other) {
					t.Errorf("%s: %v", owner, err)
				}
			}
		})
	}
	wg.Wait()
	l.store.fault = nil
	for i := range 5 {
		if err := l.Release(fmt.Sprint(i)); err != nil {
			t.Error(err)
		}
	}
	if l.store.broken != nil || len(l.store.allocs) != 0 || l.Usage().Free != 62 {
		t.Errorf("%v, stored %v, %+v", l.store.broken, l.store.allocs, l.Usage())
	}
}

// What is being granted is not handed out while the grant is on its way to the disk, and is again if it does not get there.
func TestAllocateWhileGranting(t *testing.T) {
	for _, f := range []fault{healthy, failBefore, failAfter} {
		l := newLone(t, "10.32.0.0/26")
		l.cfg.Net = &peerNet{peers: []ring.Owner{2}}
		l.restart()
		var batch *batch
		l.store.fault = func(c Change) fault {
			if c.Ring == nil {
				return healthy
			}
			for i := 0; l.space.left() > 0; i++ {
				if _, b, _, err := l.begin(fmt.Sprint(i), nil); err != nil || b == nil {
					t.Fatal(b, err)
				} else {
					batch = b
				}
			}
			l.store.fault = nil
			return f
		}
		l.HandleMessage(2, (&message{kind: kindRequest, urgent: true, boot: 1, ring: l.ledger.ring}).encode())
		if err := l.commit(batch); err != nil {
			t.Fatal(err)
		}
		given := l.ledger.ring.OwnedBy(2)
		if f == healthy != (len(given) > 0) {
			t.Errorf("fault %d: %v was given", f, given)
		}
		want := uint64(62) - usable(given, 64)
		if f != healthy {
			want = 31 // what was kept back is there again
			if u := l.Usage(); u.Free+u.Allocated != 62 {
				t.Errorf("fault %d: %+v", f, u)
			}
		}
		for _, lease := range l.List() {
			if given.Contains(lease.Slot) {
				t.Errorf("fault %d: %+v was handed out and given away", f, lease)
			}
		}
		if n := uint64(len(l.List())); n < want || len(l.store.allocs) != len(l.List()) {
			t.Errorf("fault %d: %d leases, %d stored, want %d", f, n, len(l.store.allocs), want)
		}
	}
}

func TestOnChange(t *testing.T) {
	l := newLone(t, "10.32.0.0/24")
	changes := 0
	l.cfg.OnChange = func() { changes++; l.Owned() }
	l.restart()
	expect := func(what string, n int) {
		t.Helper()
		if changes != n {
			t.Errorf("%s: %d calls, want %d", what, changes, n)
		}
		changes = 0
	}
	l.must("a")
	expect("allocate", 1)
	l.must("a")
	expect("the same again", 0)
	if err := l.Release("a"); err != nil {
		t.Fatal(err)
	}
	expect("release", 1)
	o := l.ledger.ring.Clone()
	if _, err := l.Merge(o.Encode()); err != nil {
		t.Fatal(err)
	}
	expect("nothing new", 0)
}

func TestMerge(t *testing.T) {
	l := newLone(t, "10.32.0.0/24")
	l.cfg.Seed = Seed{Owners: []ring.Owner{2}}
	l.store.ring = nil
	l.restart()
	o := l.ledger.ring.Clone()
	if err := o.Grant(2, 3, ring.Interval{First: 128, Last: 255}); err != nil {
		t.Fatal(err)
	}
	delta, err := l.Merge(o.Encode())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ring.Decode(delta)
	if err != nil || d.Known().Len() != 128 || d.At(200).Owner != 3 {
		t.Errorf("delta %v, %v", d, err)
	}
	if string(l.store.ring) != string(l.Encode()) {
		t.Error("what was merged is not stored")
	}
	if delta, err := l.Merge(o.Encode()); delta != nil || err != nil {
		t.Errorf("merged again: %v, %v", delta, err)
	}
	if _, err := l.Merge([]byte("junk")); !errors.Is(err, ring.ErrFormat) {
		t.Errorf("error %v", err)
	}
	if _, err := l.Merge(ring.New(16).Encode()); !errors.Is(err, ring.ErrSize) {
		t.Errorf("error %v", err)
	}
	if err := o.Grant(2, 3, ring.Interval{First: 0, Last: 63}); err != nil {
		t.Fatal(err)
	}
	l.store.fault = func(Change) fault { return failAfter }
	if delta, err := l.Merge(o.Encode()); delta != nil || !errors.Is(err, errDisk) {
		t.Errorf("%v, error %v", delta, err)
	}
	if l.ledger.ring.At(0).Owner != 2 {
		t.Error("what was not stored is seen")
	}
	holdings := l.Owned()
	if len(holdings) != 2 || holdings[1].Owner != 3 || holdings[1].Slots != 128 || holdings[1].Prefixes[0].String() != "10.32.0.128/25" {
		t.Errorf("holdings %+v", holdings)
	}
}
