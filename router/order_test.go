// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// The first packets of a flow keep their order, whichever shard gets the key while they are read.
func TestFirstPacketsKeepTheirOrder(t *testing.T) {
	const packets = session.MaxQueued / 2 // of each shard: none has to go
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			net := routertest.NewNet(seed)
			a, b := newHost(t, net, 1, shape{shards: 2}), newHost(t, net, 2, shape{shards: 1})
			a.setPeers(peer(2, shape{}))
			b.setPeers(peer(1, shape{}))
			a.start()
			b.start()
			defer a.stop()
			defer b.stop()
			var flows [2][][]byte
			var senders sync.WaitGroup
			for f := range flows {
				for i := range packets {
					flows[f] = append(flows[f], udp(addr4(1, 9+f), addr4(2, 9), fmt.Sprint(i)))
				}
				senders.Go(func() {
					for _, p := range flows[f] {
						a.queues[f].Inject(p)
					}
				})
			}
			senders.Wait()
			next := [2]int{}
			for _, p := range b.delivered() {
				f := 0
				if string(p[12:16]) != string(addr4(1, 9).AsSlice()) {
					f = 1
				}
				if i := next[f]; i >= packets || string(p) != string(flows[f][i]) {
					t.Fatalf("flow %d: packet %d is %x", f, i, p)
				}
				next[f]++
			}
			if next != [2]int{packets, packets} {
				t.Errorf("arrived %v; drops %v", next, a.drops()[router.DropQueue])
			}
		})
	}
}
