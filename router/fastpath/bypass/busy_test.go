// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"maps"
	"testing"
)

func TestPackets(t *testing.T) {
	const text = "Inter-|   Receive                                                |  Transmit\n" +
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
		"    lo:  100       7    0    0    0     0          0         0     100       3    0    0    0     0       0          0\n" +
		"weft-x1:9      11    0    0    0     0          0         0     100       0    0    0    0     0       0          0\n"
	if got, want := packets(text), map[string]uint64{"lo": 10, "weft-x1": 11}; !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// A device is worth it when it has carried enough between two looks, and not for what it has carried before.
func TestWorth(t *testing.T) {
	b := &Bypass{config: Config{Busy: 25}, waiting: map[string]uint64{}, busy: map[string]bool{}}
	if b.worth("a") {
		t.Error("at first sight")
	}
	for i, x := range []struct {
		n    uint64
		busy bool
	}{{1000, false}, {1024, false}, {1048, false}, {1073, true}} {
		if busy := b.compare(map[string]uint64{"a": x.n}); busy != x.busy || b.busy["a"] != x.busy {
			t.Errorf("look %d: %v", i, busy)
		}
	}
	if !b.worth("a") || len(b.waiting)+len(b.busy) > 0 {
		t.Error("not worth it when it is busy")
	}
	b.worth("b")
	if b.compare(map[string]uint64{}); len(b.waiting) > 0 {
		t.Error("what is gone is waited for")
	}
}
