// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"testing"

	"github.com/weftnet/weft/router/session"
)

// BenchmarkStreamOverKernel is one TCP stream through two routers, over TUN devices and a veth pair, with everything
// on the processors of this machine.
func BenchmarkStreamOverKernel(b *testing.B) {
	for _, s := range []setup{
		{offload: all, shards: 1, suite: session.Weft},
		{offload: all, shards: 1, suite: session.WireGuard},
		{offload: none, shards: 1, suite: session.Weft},
	} {
		b.Run(s.String(), func(b *testing.B) {
			from, to := nodes(b, s)
			const size = 256 << 20
			b.SetBytes(size)
			for b.Loop() {
				transfer(b, from, to, 0, size)
			}
		})
	}
}
