// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/hostnet"
)

// While one container waits for the kernel to bring it up, others come and go, and the host is reconciled. One that does not come up is
// no success, and nothing of it is left.
func TestCNIAddWaitsUntilPacketsFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		ws := n1.service().(*Node).engines().workloads
		before := owners(n1)
		ended := make(chan error)
		set := func(f func(hostnet.Workload) error) {
			n1.host.mu.Lock()
			defer n1.host.mu.Unlock()
			n1.host.settle = f
		}
		add := func() (out chan error) {
			set(func(hostnet.Workload) error { return <-ended })
			out = make(chan error, 1)
			go func() {
				_, err := n1.service().CNIAttach(t.Context(), request(n1, "c1"))
				out <- err
			}()
			synctest.Wait()
			set(nil)
			return out
		}
		meanwhile := func() {
			t.Helper()
			begun := time.Now()
			other := request(n1, "other")
			c.add(n1, other)
			if undone, err := ws.reconcile(); undone != nil || err != nil {
				t.Fatal(undone, err)
			}
			if err := n1.service().CNIDetach(t.Context(), cni.Release{Network: "net1", Valid: []cni.Key{other.Key}}); err != nil {
				t.Fatal(err)
			}
			c.del(n1, release(other))
			if d := time.Since(begun); d > time.Millisecond {
				t.Errorf("others wait %v", d)
			}
		}
		slow := &hostnet.SlowError{IfName: "eth0", Netns: "/run/netns/c1", Waited: 5 * time.Second}

		added := add()
		meanwhile()
		ended <- slow
		err := <-added
		var ce *cni.Error
		if want := "interface eth0 in /run/netns/c1 is not up after 5s"; !errors.As(err, &ce) || ce.Code != cni.CodeTryLater || ce.Msg != want || ce.Details != "try again" {
			t.Errorf("got %+v, want %s", err, want)
		}
		if got := owners(n1); !slices.Equal(got, before) || len(n1.host.up) > 0 || len(n1.service().Workloads()) > 0 {
			t.Errorf("left are %v, %v, %+v", got, n1.host.up, n1.service().Workloads())
		}

		added = add()
		meanwhile()
		ended <- nil
		if err := <-added; err != nil {
			t.Fatal(err)
		}
		// What was there before stays.
		added = add()
		ended <- slow
		if err := <-added; !errors.As(err, &ce) {
			t.Errorf("got %v", err)
		}
		if l := n1.service().Workloads(); len(l) != 1 || l[0].State != slow.Error() || len(n1.host.up) != 1 {
			t.Errorf("left are %+v, %v", l, n1.host.up)
		}
		c.add(n1, request(n1, "c1"))
		if l := n1.service().Workloads(); len(l) != 1 || l[0].State != "up" {
			t.Errorf("there is %+v", l)
		}
	})
}
