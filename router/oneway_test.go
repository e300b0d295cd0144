// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/router"
)

// Under traffic one direction of the direct path is lost, at any moment of all that happens regularly: packets flow again in both directions
// within 3 s, also while other control datagrams than pings come from the host that hears nothing.
func TestOneDirectionIsLost(t *testing.T) {
	inEachMesh(t, 3, func(t *testing.T, m *mesh) {
		time.Sleep(3 * time.Second)
		f := &flow{m: m, i: 1, j: 2}
		f.run(5 * time.Second)
		var worst time.Duration
		var gossip sync.WaitGroup
		defer gossip.Wait()
		over := make(chan struct{})
		defer close(over)
		for i := 1; i <= 2; i++ {
			gossip.Go(func() {
				tick := time.NewTicker(930 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-over:
						return
					case <-m.hosts[i].gossip:
					case <-tick.C:
						if err := m.hosts[i].SendControl([]byte("gossip"), router.Addr{Node: uint64(3 - i)}); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		for i := range 24 {
			deaf, heard := 1+i%2, 2-i%2
			f.run(time.Duration(i) * 43 * time.Millisecond)
			if w := m.way(1, 2); w.Path != router.PathUDP {
				t.Fatalf("%+v", w)
			}
			m.cut(heard, deaf, true)
			silence, _ := f.run(6 * time.Second)
			worst = max(worst, silence)
			if silence > 2900*time.Millisecond {
				t.Errorf("%d: silence of %v", i, silence)
			}
			m.cut(heard, deaf, false)
			for range 100 {
				f.run(time.Second)
				if m.way(1, 2).Path == router.PathUDP && m.way(2, 1).Path == router.PathUDP {
					break
				}
			}
		}
		t.Logf("silence of %v at most", worst)
	})
}
