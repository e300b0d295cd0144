// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/netns"
)

// vanish takes the path of a workload away, its interface, or both.
func (m *machine) vanish(w api.Workload, path, iface bool) {
	if path {
		m.mu.Lock()
		delete(m.spaces, w.Netns)
		m.mu.Unlock()
	}
	if iface {
		m.host.mu.Lock()
		delete(m.host.up, w.ID)
		m.host.mu.Unlock()
	}
}

func TestGarbageIsWhatNobodyCanUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		addClient(t, n1, "phone", 1)
		up, unnamed, bare, gone, replaced := c.attach(n1, "up"), c.attach(n1, "unnamed"), c.attach(n1, "bare"), c.attach(n1, "gone"), c.attach(n1, "replaced")
		alloc := n1.service().(*Node).engines().alloc
		stray, err := alloc.Allocate(t.Context(), "net:[9]/eth0")
		if err != nil {
			t.Fatal(err)
		}
		n1.vanish(unnamed, true, false) // ip netns del, and a process lives on in it
		n1.vanish(bare, false, true)    // somebody deleted its interface
		n1.vanish(gone, true, true)
		n1.vanish(replaced, false, true)
		n1.mu.Lock()
		n1.spaces[replaced.Netns] = "net:[another]"
		n1.mu.Unlock()

		want := []api.Garbage{
			{Owner: "net:[9]/eth0", Addresses: addresses(stray), Reason: "no workload is attached under this name"},
			{Owner: gone.ID, Addresses: gone.Addresses, Netns: gone.Netns, Reason: "its namespace is gone"},
			{Owner: replaced.ID, Addresses: replaced.Addresses, Netns: replaced.Netns, Reason: "its namespace is gone"},
		}
		before := owners(n1)
		for _, dry := range []bool{true, true, false} {
			got, err := n1.service().GC(api.GCRequest{DryRun: dry})
			if err != nil || !reflect.DeepEqual(got.Garbage, want) {
				t.Errorf("dry run %t:\ngot  %+v, %v\nwant %+v", dry, got.Garbage, err, want)
			}
			if now := owners(n1); dry && !slices.Equal(now, before) {
				t.Errorf("a dry run changed %v to %v", before, now)
			}
		}
		left := []string{hostOwner, clientOwner + "phone", up.ID, unnamed.ID, bare.ID}
		slices.Sort(left)
		if now := owners(n1); !slices.Equal(now, left) {
			t.Errorf("left are %v, want %v", now, left)
		}
		if n := len(n1.service().Workloads()); n != 3 {
			t.Errorf("%d workloads are left", n)
		}
		if got, err := n1.service().GC(api.GCRequest{}); err != nil || got.Garbage == nil || len(got.Garbage) != 0 {
			t.Errorf("nothing is left to do: %+v, %v", got, err)
		}
	})
}

// The boot ID tells that no workload has outlived the reboot, even where the new namespaces look like the old ones. What the
// host and its WireGuard clients have stays.
func TestRebootReleasesAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 200
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		addClient(t, n1, "phone", 1)
		host := n1.service().Status().Addresses
		had := map[netip.Addr]bool{}
		for i := range many {
			for _, a := range c.attach(n1, fmt.Sprint("w", i)).Addresses {
				had[a] = true
			}
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		clear(n1.host.up)
		n1.boot = "boot-2"
		c.start(n1, nil)
		c.ready(n1)
		if got, want := owners(n1), []string{hostOwner, clientOwner + "phone"}; !slices.Equal(got, want) {
			t.Errorf("after the reboot these have addresses: %v, want %v", got, want)
		}
		if got := n1.service().Status().Addresses; !slices.Equal(got, host) {
			t.Errorf("the host had %v and has %v", host, got)
		}
		if l := n1.service().Workloads(); len(l) != 0 || len(n1.host.up) != 0 {
			t.Errorf("after the reboot there are %d workloads, %d interfaces", len(l), len(n1.host.up))
		}
		if i := n1.service().IPAM(); i.Quarantined != many {
			t.Errorf("%d addresses rest, want %d", i.Quarantined, many)
		}
		// A namespace of the same path and number is another one, and what was released rests.
		w := c.attach(n1, "w0")
		if slices.ContainsFunc(w.Addresses, func(a netip.Addr) bool { return had[a] }) {
			t.Errorf("it got %v, which was in use a moment ago", w.Addresses)
		}
		// It belongs to this boot.
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		if l := n1.service().Workloads(); len(l) != 1 || l[0].ID != w.ID {
			t.Errorf("after a restart without a reboot there are %+v", l)
		}
	})
}

// An address that nobody has a record of is released at the next start.
func TestRebootHalfForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		w := c.attach(n1, "w")
		if err := deleteWorkloads(n1.service().(*Node).store, []string{w.ID}); err != nil {
			t.Fatal(err)
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		n1.boot = "boot-2"
		c.start(n1, nil)
		c.ready(n1)
		if got := owners(n1); !slices.Equal(got, []string{hostOwner}) {
			t.Errorf("left are %v", got)
		}
	})
}

// Whoever is attaching while gc runs keeps what it is about to get.
func TestGarbageLeavesWhatIsComing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		e := n1.service().(*Node).engines()
		id := workloadID(netns.ID("net:[7]"), "eth0")
		came := e.workloads.expect(&arrival{record: workload{ID: id}, giveUp: func() {}})
		if _, err := e.alloc.Allocate(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got, err := n1.service().GC(api.GCRequest{}); err != nil || len(got.Garbage) != 0 {
			t.Errorf("while it comes: %+v, %v", got, err)
		}
		came() // and was not attached
		if got, err := n1.service().GC(api.GCRequest{}); err != nil || len(got.Garbage) != 1 {
			t.Errorf("afterwards: %+v, %v", got, err)
		}
		time.Sleep(time.Second)
	})
}

// One workload that cannot be taken off keeps itself, and neither the others of the last boot, nor the start.
func TestRebootWithAWorkloadThatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		var all []api.Workload
		for i := range 5 {
			all = append(all, c.attach(n1, fmt.Sprint("w", i)))
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		stuck := all[2]
		clear(n1.host.up)
		n1.host.stuck = map[string]error{stuck.ID: errors.New("device or resource busy")}
		n1.boot = "boot-2"
		c.start(n1, nil)
		c.ready(n1)
		left := []string{hostOwner, stuck.ID}
		for range 2 {
			if got := owners(n1); !slices.Equal(got, left) {
				t.Errorf("these have addresses: %v, want %v", got, left)
			}
			if want := "forgetting workloads of before the reboot: " + stuck.ID + ": device or resource busy; trying again twice a minute"; !warned(n1, want) {
				t.Errorf("warnings: %q\nwant %s", n1.service().Status().Warnings, want)
			}
			if len(n1.host.up) != 0 { // its namespace has the path and number of one of this boot
				t.Errorf("attached again: %v", n1.host.up)
			}
			time.Sleep(2 * repairInterval)
		}
		n1.host.mu.Lock()
		n1.host.stuck = nil
		n1.host.mu.Unlock()
		time.Sleep(2 * repairInterval)
		if got := owners(n1); !slices.Equal(got, left[:1]) || len(n1.service().Status().Warnings) != 0 {
			t.Errorf("afterwards these have addresses: %v; %q", got, n1.service().Status().Warnings)
		}
	})
}

// What cannot be looked at may be there: only a path that leads to no namespace, or to another one, says that one is gone.
func TestGarbageIsNotWhatCannotBeLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		w, gone := c.attach(n1, "w"), c.attach(n1, "gone")
		n1.vanish(w, false, true)
		n1.vanish(gone, true, true)
		for _, why := range []error{syscall.EMFILE, syscall.EACCES} {
			n1.mu.Lock()
			n1.closed = map[string]error{w.Netns: fmt.Errorf("%s cannot be opened: %w", w.Netns, why)}
			n1.mu.Unlock()
			want := "whether the namespace of " + w.ID + " is gone cannot be told, so it keeps its addresses: " + w.Netns + " cannot be opened: " + why.Error()
			if _, err := n1.service().GC(api.GCRequest{}); err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			time.Sleep(2 * repairInterval)
			if got, want := owners(n1), []string{hostOwner, w.ID}; !slices.Equal(got, want) {
				t.Errorf("%v: these have addresses: %v, want %v", why, got, want)
			}
			if l := n1.service().Workloads(); len(l) != 1 || l[0].State != want || !warned(n1, want) {
				t.Errorf("%+v, warnings %q", l, n1.service().Status().Warnings)
			}
		}
		n1.mu.Lock()
		n1.closed = nil
		n1.mu.Unlock()
		time.Sleep(2 * repairInterval)
		if l := n1.service().Workloads(); len(l) != 1 || l[0].State != "up" || warned(n1, "cannot be told") {
			t.Errorf("afterwards: %+v, warnings %q", l, n1.service().Status().Warnings)
		}
	})
}

// What is released at once shares the commits.
func TestGarbageInFewCommits(t *testing.T) {
	a, s := storedAllocator(t, t.TempDir())
	ws := &workloads{alloc: a, log: zap.NewNop(), kept: func(string) bool { return false }, host: &fakeHost{t: t}, now: time.Now}
	for i := range 100 {
		if _, err := a.Allocate(t.Context(), fmt.Sprint("w", i)); err != nil {
			t.Fatal(err)
		}
	}
	before := s.n.Load()
	garbage, err := ws.collect(false)
	if n := s.n.Load() - before; err != nil || len(garbage) != 100 || n > 50 {
		t.Errorf("%d released in %d commits, %v", len(garbage), n, err)
	} else {
		t.Logf("%d commits for %d releases", n, len(garbage))
	}
	if l := a.List(); len(l) != 0 {
		t.Errorf("left: %v", l)
	}
}
