// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"testing"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// What makes no sense is said once in a while of each node, and seldom of all, however they take turns.
func TestOddities(t *testing.T) {
	var o oddities
	now := time.Unix(1e9, 0)
	if !o.pass(1, now) {
		t.Error("the first one is not said")
	}
	if o.pass(1, now.Add(oddAgain-1)) || !o.pass(1, now.Add(oddAgain)) {
		t.Error("one node")
	}
	now = now.Add(time.Hour)
	said := 0
	for i := range 100_000 {
		if o.pass(ring.Owner(2+i), now.Add(time.Duration(i)*time.Millisecond)) {
			said++
		}
	}
	if said != oddBurst+9 || len(o.said) > oddNodes {
		t.Errorf("%d lines in 100 s, %d nodes in mind", said, len(o.said))
	}
	for i := range 2 * oddNodes {
		o.pass(ring.Owner(1e6+i), now.Add(time.Hour+time.Duration(i)*oddGap))
	}
	if len(o.said) > oddNodes {
		t.Errorf("%d nodes in mind", len(o.said))
	}
}
