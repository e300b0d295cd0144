// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/weftnet/weft/cni"
)

// A daemon that was killed in an attach has kept record and addresses of a container that is not connected. If it can be connected no more than then, the
// runtime's next attempt leaves nothing; one that is connected keeps what it has, whatever an attempt ends in.
func TestCNIAbortive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		begun, whole := request(n1, "begun"), request(n1, "whole")
		c.add(n1, begun)
		c.add(n1, whole)
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		n1.host.mu.Lock()
		delete(n1.host.up, "cni/begun/eth0")
		n1.host.fail = errors.New("there is an eth0 already; remove it")
		n1.host.mu.Unlock()
		c.start(n1, nil)
		c.ready(n1)
		for _, r := range []cni.Request{begun, whole} {
			_, err := n1.service().CNIAttach(t.Context(), r)
			refused(t, err, cni.CodeFailed, "there is an eth0 already", "remove it")
		}
		if now, want := owners(n1), []string{"cni/whole/eth0", hostOwner}; !slices.Equal(now, want) {
			t.Errorf("there are %v", now)
		}
		if l := n1.service().Workloads(); len(l) != 1 || l[0].State != "up" {
			t.Errorf("workloads: %+v", l)
		}
	})
}
