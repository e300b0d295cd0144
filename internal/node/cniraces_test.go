// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/hostnet"
)

// fakeRuntime asks as container runtimes do: for one container one thing after the other, and with GC for all that it knows.
type fakeRuntime struct {
	t   *testing.T
	m   *machine
	net string

	mu    sync.RWMutex // held for reading when an ADD begins, and for writing by GC
	known map[cni.Key]bool
}

func (r *fakeRuntime) know(k cni.Key, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known {
		r.known[k] = true
	} else {
		delete(r.known, k)
	}
}

func (r *fakeRuntime) gc() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var valid []cni.Key
	for k := range r.known {
		valid = append(valid, k)
	}
	if err := r.m.service().CNIDetach(r.t.Context(), cni.Release{Network: r.net, Valid: valid}); err != nil {
		r.t.Errorf("GC: %v", err)
	}
}

// live has containers come and go, some of which are never deleted but forgotten.
func (r *fakeRuntime) live(q cni.Request, rounds int) {
	svc := r.m.service()
	for range rounds {
		r.know(q.Key, true)
		a, err := svc.CNIAttach(r.t.Context(), q)
		if err != nil {
			r.t.Errorf("adding %s: %v", q.ContainerID, err)
			return
		}
		time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
		check := cni.CheckRequest{Key: q.Key, Network: q.Network, Netns: q.Netns, AddressesOnly: q.AddressesOnly, Want: a}
		if err := svc.CNICheck(r.t.Context(), check); err != nil {
			r.t.Errorf("%s is known, and has gone: %v", q.ContainerID, err)
		}
		switch rand.IntN(4) {
		case 0: // it asks again
			if again, err := svc.CNIAttach(r.t.Context(), q); err != nil || !slices.Equal(again.Addresses, a.Addresses) {
				r.t.Errorf("adding %s again: %+v, %v", q.ContainerID, again, err)
			}
		case 1: // it crashes, and so forgets it
			r.know(q.Key, false)
			continue
		}
		r.know(q.Key, false)
		if err := svc.CNIDetach(r.t.Context(), release(q)); err != nil {
			r.t.Errorf("deleting %s: %v", q.ContainerID, err)
		}
	}
}

// Two hundred containers of two networks come and go at once, while GCs run, the host is reconciled, and an attach by hand stays.
func TestCNIConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		byHand := c.attach(n1, "byhand")
		e := n1.service().(*Node).engines()
		runtimes := []*fakeRuntime{{t: t, m: n1, net: "net1", known: map[cni.Key]bool{}}, {t: t, m: n1, net: "net2", known: map[cni.Key]bool{}}}
		done := make(chan struct{})
		var others, containers sync.WaitGroup
		for _, r := range runtimes {
			others.Go(func() {
				for {
					select {
					case <-done:
						return
					case <-time.After(2 * time.Millisecond):
						r.gc()
					}
				}
			})
		}
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(5 * time.Millisecond):
					if undone, err := e.workloads.reconcile(); undone != nil || err != nil {
						t.Errorf("reconcile: %v, %v", undone, err)
					}
				}
			}
		})
		for i := range 200 {
			r := runtimes[i%2]
			q := request(n1, fmt.Sprint("c", i))
			q.Network, q.AddressesOnly = r.net, i%5 == 0
			containers.Go(func() { r.live(q, 2) })
		}
		containers.Wait()
		close(done)
		others.Wait()
		for _, r := range runtimes {
			r.gc()
		}
		if left := owners(n1); !slices.Equal(left, []string{hostOwner, byHand.ID}) {
			t.Errorf("left are %v", left)
		}
		if l := n1.service().Workloads(); len(l) != 1 || len(n1.host.up) != 1 {
			t.Errorf("left are %+v, %v", l, n1.host.up)
		}
		stored, err := loadWorkloads(n1.service().(*Node).store)
		if err != nil || len(stored) != 1 {
			t.Errorf("stored are %v, %v", stored, err)
		}
	})
}

// A delete ends an add of the same that waits for an address, and comes after it.
func TestCNIDeleteEndsAWaitingAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		tiny := func(cfg *Config) { cfg.Range = "10.32.0.0/29" }
		c.start(n1, tiny)
		c.ready(n1)
		c.start(n2, tiny, "n1")
		c.ready(n2)
		n1.net.Dark(true) // alive for a while, and silent
		r := request(n2, "c1")
		for i := 0; ; i++ { // what is left here
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			filler := request(n2, fmt.Sprint("filler", i))
			_, err := n2.service().CNIAttach(ctx, filler)
			cancel()
			if err != nil {
				break
			}
		}
		before := owners(n2)
		var got error
		var added sync.WaitGroup
		begun := time.Now()
		added.Go(func() { _, got = n2.service().CNIAttach(t.Context(), r) })
		time.Sleep(200 * time.Millisecond)
		ws := n2.service().(*Node).engines().workloads
		other := release(r)
		other.Network = "net2" // the runtime deletes what it was refused there
		ws.hurry(other)
		synctest.Wait()
		if !ws.expected("cni/c1/eth0") {
			t.Error("another network's delete has ended the add")
		}
		c.del(n2, release(r))
		if d := time.Since(begun); d > 300*time.Millisecond {
			t.Errorf("it took %v", d)
		}
		added.Wait()
		var ce *cni.Error
		if !errors.As(got, &ce) || ce.Code != cni.CodeTryLater || !slices.Equal(owners(n2), before) {
			t.Errorf("the add ended in %v, and left %v", got, owners(n2))
		}
	})
}

// Whoever asked is killed: what has been begun is completed, and what has not is not begun, in whatever order it comes.
func TestCNIClientGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		ctx, cancel := context.WithCancel(t.Context())
		r := request(n1, "c1")
		n1.host.mu.Lock()
		n1.host.visited = func(hostnet.Workload) { cancel() }
		n1.host.mu.Unlock()
		if _, err := n1.service().CNIAttach(ctx, r); err != nil {
			t.Fatal(err)
		}
		check := func() {
			t.Helper()
			if err := n1.service().CNICheck(t.Context(), cni.CheckRequest{Key: r.Key, Network: r.Network, Netns: r.Netns}); err != nil {
				t.Error(err)
			}
		}
		check()
		const msg, details = "whoever asked for it has gone", "ask again"
		refused(t, n1.service().CNIDetach(ctx, release(r)), cni.CodeTryLater, msg, details)
		refused(t, n1.service().CNIDetach(ctx, cni.Release{Network: r.Network}), cni.CodeTryLater, msg, details)
		check()
		c.del(n1, release(r))
		_, err := n1.service().CNIAttach(ctx, r)
		refused(t, err, cni.CodeTryLater, msg, details)
		if got := owners(n1); !slices.Equal(got, []string{hostOwner}) {
			t.Errorf("left are %v", got)
		}
	})
}

// A GC that comes while an attach is under way, or came before it ended, leaves it.
func TestCNIGCLeavesWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		ws := n1.service().(*Node).engines().workloads
		old := request(n1, "old")
		c.add(n1, old)
		known := ws.count()
		later := request(n1, "later")
		c.add(n1, later)
		if err := ws.keepOnly(t.Context(), cni.Release{Network: "net1"}, known); err != nil {
			t.Fatal(err)
		}
		if got, want := owners(n1), []string{"cni/later/eth0", hostOwner}; !slices.Equal(got, want) {
			t.Errorf("left are %v, want %v", got, want)
		}
		// Being asked for again is as good as new.
		known = ws.count()
		c.add(n1, later)
		if err := ws.keepOnly(t.Context(), cni.Release{Network: "net1"}, known); err != nil {
			t.Fatal(err)
		}
		if got, want := owners(n1), []string{"cni/later/eth0", hostOwner}; !slices.Equal(got, want) {
			t.Errorf("left are %v, want %v", got, want)
		}
	})
}

// An address that was looked up before its workload was forgotten is not attached.
func TestAttachWithAnAddressThatWasReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		ws := n1.service().(*Node).engines().workloads
		r := request(n1, "c1")
		was := c.add(n1, r)
		ws.gate.Lock()
		var again cni.Attachment
		var err error
		var added sync.WaitGroup
		added.Go(func() { again, err = n1.service().CNIAttach(t.Context(), r) })
		for !ws.expected("cni/c1/eth0") {
			runtime.Gosched()
		}
		for range 10_000 { // by the end it has the address, and waits for the gate
			runtime.Gosched()
		}
		w, _ := ws.get("cni/c1/eth0")
		if failed := ws.forgetAll([]workload{w}); len(failed) > 0 {
			t.Fatal(failed)
		}
		ws.gate.Unlock()
		added.Wait()
		if err != nil || slices.Equal(again.Addresses, was.Addresses) { // which rest
			t.Errorf("got %+v, %v", again, err)
		}
		c.distinct()
		lease, ok := ws.alloc.Lookup("cni/c1/eth0")
		if !ok || !slices.Equal(addresses(lease), again.Addresses) || !slices.Equal(n1.host.up["cni/c1/eth0"].Addrs, again.Addresses) {
			t.Errorf("allocated are %+v, attached %+v", lease, n1.host.up)
		}
	})
}
