// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"testing"
	"time"

	"github.com/weftnet/weft/router"
)

// What a relay may pass on is used by a single TCP connection, and not exceeded.
func TestRelayLimitOverKernel(t *testing.T) {
	const limit, size = 20e6, 6 << 20 // at least two and a half seconds
	for _, s := range []setup{setups[0], setups[2]} {
		t.Run(s.String(), func(t *testing.T) {
			m := s
			m.limit = limit
			x := newBend(t, s, m, 1500)
			x.relayed(true)
			transfer(t, x.a, x.b, 0, 1000)
			before, start := x.middle.Stats().Relayed.Bytes, time.Now()
			transfer(t, x.a, x.b, 0, size)
			took := time.Since(start).Seconds()
			after := x.middle.Stats()
			relayed := float64(after.Relayed.Bytes-before) * 8 / took
			t.Logf("%.1f Mbit/s of payload, %.1f relayed, %d dropped", size*8/took/1e6, relayed/1e6, after.Drops[router.DropRelayLimit])
			if relayed > 1.1*limit || relayed < 0.7*limit {
				t.Errorf("%.1f Mbit/s relayed of %.1f", relayed/1e6, limit/1e6)
			}
		})
	}
}
