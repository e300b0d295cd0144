// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/store"
)

// TestCNILeft counts the attachments of a node that is not running: those of runtimes, but for the ones that they have deleted meanwhile.
func TestCNILeft(t *testing.T) {
	data, run := filepath.Join(t.TempDir(), "data"), t.TempDir()
	if n, err := CNILeft(data, run); n != 0 || err != nil {
		t.Errorf("without a state: %d, %v", n, err)
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("it has made the data directory")
	}
	st, err := store.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	keys := []cni.Key{{ContainerID: "a", IfName: "eth0"}, {ContainerID: "b", IfName: "eth0"}, {ContainerID: "b", IfName: "eth1"}}
	records := []workload{{ID: "4:4026532000/eth0"}}
	for _, k := range keys {
		records = append(records, workload{ID: keyID(k), CNI: &cniOrigin{Network: "weft", ContainerID: k.ContainerID}})
	}
	for _, w := range records {
		if err := saveWorkload(st, w); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := CNILeft(data, run); n != 0 || !errors.Is(err, store.ErrInUse) {
		t.Errorf("while a daemon has it: %d, %v", n, err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	b := cni.NewBacklog(run)
	if err := b.Put(cni.Release{Key: keys[0], Network: "another"}); err != nil { // which it does not mean
		t.Fatal(err)
	}
	for i, want := range []int{3, 2, 1, 0} {
		for range 2 { // it changes nothing
			if n, err := CNILeft(data, run); n != want || err != nil {
				t.Errorf("%d deleted: %d, %v, want %d", i, n, err, want)
			}
		}
		if i < len(keys) {
			if err := b.Put(cni.Release{Key: keys[i], Network: "weft"}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
