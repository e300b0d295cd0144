// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"testing"
	"unsafe"
)

// A node with two addresses that was asked takes less than 512 bytes, its entry in the map included.
func TestSizeOfNodes(t *testing.T) {
	n := unsafe.Sizeof(node{}) + unsafe.Sizeof(state{}) + 2*unsafe.Sizeof(cand{}) + 2*unsafe.Sizeof(uint64(0))
	t.Logf("%d bytes: node %d, state %d, candidate %d", n, unsafe.Sizeof(node{}), unsafe.Sizeof(state{}), unsafe.Sizeof(cand{}))
	if n >= 512 {
		t.Errorf("%d bytes", n)
	}
}
