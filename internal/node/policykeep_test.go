// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/policy/replica"
)

// TestUnwritten has far more heard of manifests and endpoints than the disk takes in that time: what waits for it is bounded, and all of it is on disk in the end.
func TestUnwritten(t *testing.T) {
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	h := &policyHosts{
		n: &Node{}, store: st, manifests: replica.New(1, 1, manifestLimits()), endpoints: replica.New(1, 1, endpointLimits()),
		onDisk: setLog{key: keyManifests}, others: setLog{key: keyEndpoints}, wake: newSignal(), keeps: newSignal(),
	}
	other, theirs := replica.New(2, 1, manifestLimits()), replica.New(2, 1, endpointLimits())
	turn := func(i int) {
		t.Helper()
		big := bytes.Repeat([]byte{byte(i)}, 600_000)
		delta, _, err := other.Write([]replica.Change{{Key: "networkpolicy/ns/a", Value: big}})
		if err == nil {
			_, err = (manifestState{h}).Merge(delta)
		}
		if err != nil {
			t.Fatal(err)
		}
		delta, _, err = theirs.Own(map[string][]byte{replica.EndpointKey("a"): big[:10_000], replica.EndpointKey(fmt.Sprint(i % 2)): big[:10_000]})
		if err != nil {
			t.Fatal(err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if _, _, err = h.endpoints.Merge(delta, nil); err != nil {
			t.Fatal(err)
		}
		h.unsaved.add(delta)
	}
	stored := func() {
		t.Helper()
		if err := h.keep(nil); err != nil {
			t.Fatal(err)
		}
		h.save()
		manifests, endpoints := replica.New(1, 1, manifestLimits()), replica.New(1, 1, endpointLimits())
		err := st.View(func(tx *store.Tx) error {
			if err := (&setLog{key: keyManifests}).read(tx, manifests); err != nil {
				return err
			}
			return (&setLog{key: keyEndpoints}).read(tx, endpoints)
		})
		if err != nil || manifests.Digest() != h.manifests.Digest() || endpoints.Digest() != h.endpoints.Digest() {
			t.Errorf("on disk is not what there is: %v", err)
		}
	}
	turn(0)
	stored()
	for i := range 400 {
		turn(i + 1)
		for _, u := range []unwritten{h.unkept, h.unsaved} {
			kept := 0
			for _, b := range u.changes {
				kept += len(b)
			}
			if kept > unwrittenBytes || len(u.changes) > logChanges || u.empty() {
				t.Fatalf("%d bytes in %d changes are kept, beyond: %v", kept, len(u.changes), u.beyond)
			}
		}
	}
	if !h.unkept.beyond || !h.unsaved.beyond {
		t.Error("it was too little to tell anything")
	}
	stored()
	turn(1000)
	stored()
}
