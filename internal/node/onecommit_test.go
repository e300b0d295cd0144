// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/ipam"
)

// onDisk tells whether the addresses of a workload are on disk, and whether its record is.
func onDisk(t *testing.T, n *Node, id string) (addresses, record bool) {
	t.Helper()
	if err := n.store.View(func(tx *store.Tx) error {
		addresses, record = tx.Get(store.Allocations, id) != nil, tx.Get(store.Workloads, id) != nil
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return addresses, record
}

// Addresses and record of a workload come to the disk together, before the interface is made, and leave it together, after the interface is gone;
// nothing is written besides.
func TestOneCommitEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		n := n1.service().(*Node)
		id := keyID(cni.Key{ContainerID: "c1", IfName: "eth0"})
		var commits int
		n1.host.visited = func(w hostnet.Workload) {
			if addresses, record := onDisk(t, n, w.ID); !addresses || !record {
				t.Errorf("at the host %s has addresses on disk: %v, a record: %v", w.ID, addresses, record)
			}
			commits = n.store.Commits()
		}
		r := request(n1, "c1")
		before := n.store.Commits()
		c.add(n1, r)
		if after := n.store.Commits(); commits != before+1 || after != commits {
			t.Errorf("%d commits before the interface is made, %d after", commits-before, after-commits)
		}
		c.add(n1, r)
		if again := n.store.Commits(); again != commits {
			t.Errorf("%d commits for the same again", again-commits)
		}
		before = n.store.Commits()
		c.del(n1, release(r))
		if after := n.store.Commits(); commits != before || after != commits+1 {
			t.Errorf("%d commits before the interface is gone, %d after", commits-before, after-commits)
		}
		if addresses, record := onDisk(t, n, id); addresses || record {
			t.Errorf("detached, it has addresses on disk: %v, a record: %v", addresses, record)
		}
		n1.host.fail = errors.New("no interface")
		if _, err := n1.service().CNIAttach(t.Context(), r); err == nil {
			t.Error("no error")
		}
		if addresses, record := onDisk(t, n, id); addresses || record {
			t.Errorf("not attached, it has addresses on disk: %v, a record: %v", addresses, record)
		}
	})
}

// A workload that has addresses already gets its record, and one that has none any more loses it.
func TestRecordWithoutAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		n := n1.service().(*Node)
		r := request(n1, "c1")
		id := keyID(r.Key)
		if _, err := n.engines().alloc.Allocate(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		c.add(n1, r)
		if addresses, record := onDisk(t, n, id); !addresses || !record {
			t.Errorf("attached, it has addresses on disk: %v, a record: %v", addresses, record)
		}
		if err := n.engines().alloc.Release(id); err != nil {
			t.Fatal(err)
		}
		if err := saveWorkload(n.store, workload{ID: id}); err != nil {
			t.Fatal(err)
		}
		c.del(n1, release(r))
		if addresses, record := onDisk(t, n, id); addresses || record {
			t.Errorf("detached, it has addresses on disk: %v, a record: %v", addresses, record)
		}
	})
}

// What a failed commit may have left of either is put right with the next one.
func TestCommitInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		n := n1.service().(*Node)
		r := request(n1, "c1")
		id := keyID(r.Key)
		c.add(n1, r)
		st := ipamStore{n.store, func() *workloads { return n.engines().workloads }}
		if err := st.SaveIPAM(ipam.Change{Delete: []string{id}}); err != nil { // as the commit that "failed"
			t.Fatal(err)
		}
		lease, _ := n.engines().alloc.Lookup(id)
		if err := st.SaveIPAM(ipam.Change{Put: []ipam.Allocation{{Owner: id, Slot: lease.Slot}, {Owner: hostOwner, Slot: 1}}}); err != nil {
			t.Fatal(err)
		}
		all, err := loadWorkloads(n.store)
		if w, _ := n.engines().workloads.get(id); err != nil || len(all) != 1 || all[id].NetnsID != w.NetnsID || !slices.Equal(all[id].IPs, w.IPs) {
			t.Errorf("on disk are %+v, %v", all, err)
		}
	})
}
