// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/policy/replica"
)

// TestPoliciesAreToldWhole has a node that joins wait until another one's manifests, be they none, were merged as a whole.
func TestPoliciesAreToldWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		joiner := func(id mesh.NodeID) *policyHosts {
			n := &Node{}
			n.state.identity.ID = id
			n.log = zaptest.NewLogger(t)
			st, err := store.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = st.Close() })
			return &policyHosts{
				n: n, store: st, sink: newShareSink(), manifests: replica.New(uint64(id), 1, manifestLimits()), untold: true, whole: make(chan struct{}),
				onDisk: setLog{key: keyManifests}, wake: newSignal(), keeps: newSignal(),
			}
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
		time.Sleep(time.Hour)
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

// TestOlderMesh has a node that joins go on where nobody knows of policies, and not where somebody does that it does not understand.
func TestOlderMesh(t *testing.T) {
	for _, odd := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			joined, told := make(chan struct{}), newShareSink()
			h := &policyHosts{
				n: &Node{log: zaptest.NewLogger(t)}, sink: told, manifests: replica.New(1, 1, manifestLimits()), untold: true, whole: make(chan struct{}),
				joined: joined,
			}
			var goesOn atomic.Bool
			go func() {
				h.await(t.Context())
				goesOn.Store(true)
			}()
			time.Sleep(time.Hour)
			if odd {
				if _, err := (manifestState{h}).Merge([]byte("odd")); err == nil {
					t.Error("anything is merged")
				}
				if told.awaits != "another node to say which network policies there are, after one whose could not be taken in: it is malformed" {
					t.Error(told.awaits)
				}
			}
			if synctest.Wait(); goesOn.Load() {
				t.Error("it goes on, and knows nobody")
			}
			close(joined)
			time.Sleep(olderPatience - time.Second)
			if synctest.Wait(); goesOn.Load() {
				t.Error("it goes on at once")
			}
			time.Sleep(10 * olderPatience)
			if synctest.Wait(); goesOn.Load() == odd {
				t.Errorf("odd %v: it goes on: %v", odd, goesOn.Load())
			}
			close(h.whole)
		})
	}
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
