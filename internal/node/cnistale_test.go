// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
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
