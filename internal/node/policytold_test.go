// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/policy/replica"
)

// TestPoliciesAreToldWhole has a node that joins wait until another one's manifests, be they none, were merged as a whole.
func TestPoliciesAreToldWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		joiner := func(id mesh.NodeID) *policyHosts {
			n := &Node{}
			n.state.identity.ID = id
			return &policyHosts{n: n, manifests: replica.New(uint64(id), 1, manifestLimits()), untold: true, whole: make(chan struct{})}
		}
		a, b := manifestState{joiner(7)}, manifestState{joiner(8)}
		none := replica.New(9, 1, manifestLimits())
		if len(none.Encode()) == 0 || a.Digest() == none.Digest() || a.Digest() == b.Digest() {
			t.Error("what others have is not exchanged")
		}
		knows := false
		go func() {
			a.h.await(t.Context())
			knows = true
		}()
		time.Sleep(time.Minute)
		if _, err := a.Merge([]byte("odd")); err == nil {
			t.Error("anything is merged")
		}
		if _, err := a.Merge(none.Encode()); err != nil {
			t.Error(err)
		}
		if synctest.Wait(); knows {
			t.Error("a change was taken for all there is")
		}
		a.Exchanged()
		a.Exchanged()
		if synctest.Wait(); !knows || a.Digest() != none.Digest() {
			t.Error("it goes on to wait")
		}
	})
}

// TestPodWithoutUID refuses a pod that could be taken for another one.
func TestPodWithoutUID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 1)
		k.fed = true
		m := k.machines[0]
		k.launch(m, nil)
		k.ready(m)
		r := request(m, "c1")
		r.Pod = cni.Pod{Namespace: "ns", Name: "web-0"}
		_, err := m.service().CNIAttach(context.Background(), r)
		refused(t, err, cni.CodeEnvironment, "the container runtime does not say which pod of the name ns/web-0 this is, so that its network policies cannot be known",
			"use a version of it that gives K8S_POD_UID in CNI_ARGS")
		if len(m.host.up) != 0 {
			t.Error("it is connected")
		}
	})
}
