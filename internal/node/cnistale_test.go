// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/hostnet"
)

// A path that leads to a file system that does not answer holds up who names it, and nobody else.
func TestCNIPathThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		r := request(n1, "c1")
		c.add(n1, r)
		const path = "/mnt/gone/netns"
		hung := make(chan struct{})
		n1.mu.Lock()
		n1.hung = map[string]chan struct{}{path: hung}
		n1.mu.Unlock()
		ended := make(chan error, 2)
		go func() {
			ended <- n1.service().CNICheck(t.Context(), cni.CheckRequest{Key: r.Key, Network: r.Network, Netns: path})
		}()
		q := request(n1, "c2")
		q.Netns = path
		go func() {
			_, err := n1.service().CNIAttach(t.Context(), q)
			ended <- err
		}()
		synctest.Wait()
		if ws := n1.service().(*Node).engines().workloads; !ws.gate.TryLock() {
			close(hung)
			t.Fatal("whoever reconciles waits for it, and so does everybody")
		} else {
			ws.gate.Unlock()
		}
		time.Sleep(2 * repairInterval)
		others := make(chan struct{})
		go func() {
			defer close(others)
			c.add(n1, request(n1, "c3"))
			c.del(n1, release(r))
			c.del(n1, cni.Release{Network: r.Network})
		}()
		select {
		case <-others:
		case <-time.After(time.Second):
			t.Error("others wait for it")
		}
		close(hung)
		for range 2 {
			if <-ended == nil {
				t.Error("it is no namespace, and was taken for one")
			}
		}
		<-others
	})
}

// What the socket still had of plugins that have ended comes after what newer ones have asked: it does nothing.
func TestCNIStaleRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		r := request(n1, "c1")
		old := release(r)
		old.Begun = n1.uptime()
		time.Sleep(time.Second)
		r.Begun = n1.uptime()
		c.add(n1, r)
		held := []string{"cni/c1/eth0", hostOwner}
		c.del(n1, old)
		if got := owners(n1); !slices.Equal(got, held) {
			t.Errorf("a delete of before it was added left %v", got)
		}
		earlier := r
		earlier.Begun = old.Begun + 500*time.Millisecond
		if _, err := n1.service().CNIAttach(t.Context(), earlier); err != nil {
			t.Errorf("the same, asked for twice: %v", err)
		}
		earlier.Netns = request(n1, "another").Netns
		_, err := n1.service().CNIAttach(t.Context(), earlier)
		refused(t, err, cni.CodeTryLater, "eth0 of container c1 was added again after this was asked for", "ask again")
		c.add(n1, r) // the same plugin asks again
		// The plugin that has added it takes it away, as its runtime does not read, and what it had asked before comes last.
		undo := release(r)
		undo.Begun = r.Begun
		if err := cni.NewBacklog(n1.dir + ".run").Put(undo); err != nil {
			t.Fatal(err)
		}
		_, err = n1.service().CNIAttach(t.Context(), r)
		refused(t, err, cni.CodeTryLater, "eth0 of container c1 was deleted after this was asked for", "ask again")
		if got := owners(n1); !slices.Equal(got, []string{hostOwner}) {
			t.Errorf("left are %v", got)
		}
		other := r
		other.Network = "net2" // which has deleted nothing
		c.add(n1, other)
		undo.Network = other.Network
		c.del(n1, undo)
		time.Sleep(2 * time.Minute)
		_, err = n1.service().CNIAttach(t.Context(), r)
		refused(t, err, cni.CodeTryLater, "it was asked for 2m0s ago, and nobody waits for it any more", "ask again")
		r.Begun = n1.uptime()
		c.add(n1, r)
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		c.del(n1, old) // also the next daemon knows
		if got := owners(n1); !slices.Equal(got, held) {
			t.Errorf("after a restart a delete of before it was added left %v", got)
		}
	})
}

// A GC leaves what was added after it was begun, however late it comes; also if that was by an earlier daemon.
func TestCNIGCThatComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		old, during, later := request(n1, "old"), request(n1, "during"), request(n1, "later")
		old.Begun = n1.uptime()
		c.add(n1, old)
		during.Begun = n1.uptime()
		time.Sleep(time.Second)
		gc := cni.Release{Network: old.Network, Begun: n1.uptime()}
		time.Sleep(time.Second)
		c.add(n1, during)
		later.Begun = n1.uptime()
		c.add(n1, later)
		c.del(n1, gc)
		if got, want := owners(n1), []string{"cni/during/eth0", "cni/later/eth0", hostOwner}; !slices.Equal(got, want) {
			t.Errorf("left are %v, want %v", got, want)
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		c.del(n1, gc)
		if got, want := owners(n1), []string{"cni/later/eth0", hostOwner}; !slices.Equal(got, want) {
			t.Errorf("after a restart left are %v, want %v", got, want)
		}
		gc.Begun = n1.uptime()
		c.del(n1, gc)
		if got := owners(n1); !slices.Equal(got, []string{hostOwner}) {
			t.Errorf("in the end left are %v", got)
		}
	})
}

// What could not be forgotten after a reboot, and is added again, is of this boot.
func TestCNIAddedAgainAfterAReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		r := request(n1, "c1")
		c.add(n1, r)
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		n1.mu.Lock()
		n1.boot = "another"
		n1.mu.Unlock()
		n1.host.mu.Lock()
		n1.host.stuck = map[string]error{"cni/c1/eth0": errors.New("no space left")}
		n1.host.mu.Unlock()
		c.start(n1, nil)
		c.ready(n1)
		c.add(n1, r)
		n1.host.mu.Lock()
		n1.host.stuck = nil
		n1.host.mu.Unlock()
		time.Sleep(2 * repairInterval)
		if got := owners(n1); !slices.Equal(got, []string{"cni/c1/eth0", hostOwner}) || n1.host.up["cni/c1/eth0"].ID == "" {
			t.Errorf("a container that runs was taken away: there are %v", got)
		}
		stored, err := loadWorkloads(n1.service().(*Node).store)
		if w := stored["cni/c1/eth0"]; err != nil || w.Boot != "another" {
			t.Errorf("stored is %+v, %v", w, err)
		}
	})
}

// A record that does not say which network it is of ends nothing but itself.
func TestCNIDamagedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		r := request(n1, "c1")
		c.add(n1, r)
		ws := n1.service().(*Node).engines().workloads
		w, _ := ws.get("cni/c1/eth0")
		w.CNI = nil
		ws.put(w)
		_, err := n1.service().CNIAttach(t.Context(), r)
		refused(t, err, cni.CodeFailed, "eth0 of container c1 is attached already, by whom is not known", "delete that first")
		err = n1.service().CNICheck(t.Context(), cni.CheckRequest{Key: r.Key, Network: r.Network, Netns: r.Netns})
		refused(t, err, cni.CodeUnknown, "container c1 has no eth0 of network net1", "add it")
		c.del(n1, release(r))
		c.add(n1, r)
	})
}

// What of the backlog has failed is not tried again by each request of others.
func TestCNIBacklogRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		a := request(n1, "a")
		c.add(n1, a)
		var tries atomic.Int32
		n1.host.mu.Lock()
		n1.host.stuck = map[string]error{"cni/a/eth0": errors.New("device or resource busy")}
		n1.host.visited = func(w hostnet.Workload) {
			if w.ID == "cni/a/eth0" {
				tries.Add(1)
			}
		}
		n1.host.mu.Unlock()
		if err := cni.NewBacklog(n1.dir + ".run").Put(release(a)); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			b := request(n1, "b")
			c.add(n1, b)
			c.del(n1, release(b))
		}
		if n := tries.Load(); n != 1 {
			t.Errorf("it was tried %d times", n)
		}
		if _, err := n1.service().CNIAttach(t.Context(), a); err == nil || tries.Load() != 2 {
			t.Errorf("its own request: %v, after %d tries", err, tries.Load())
		}
		time.Sleep(2 * repairInterval)
		if n := tries.Load(); n < 3 {
			t.Errorf("then it was tried %d times", n)
		}
	})
}

// Where the backlog should be there is something else: the error says what to look at.
func TestCNIBacklogThatIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, n1 := one(t)
		run := n1.dir + ".run"
		path := filepath.Join(run, "cni")
		if err := errors.Join(os.MkdirAll(run, 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.Remove(path) }()
		_, err := n1.service().CNIAttach(t.Context(), request(n1, "c1"))
		var ce *cni.Error
		if want := "see whether " + path + " is a directory that the daemon can read"; !errors.As(err, &ce) || ce.Details != want {
			t.Errorf("got %v, want the advice %q", err, want)
		}
	})
}
