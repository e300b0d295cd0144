// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"testing"
	"time"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// What others change is put right even if a change by the Filter follows at once.
func TestRepairsUnderChurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	must(t, f.Replace(isolated(0, 80)))
	run(t, f)
	time.Sleep(100 * time.Millisecond)
	cell := compile.Cell{Identity: compile.World, Protocol: policy.TCP, First: 1000, Last: 1000}
	for range 5 {
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				p := compile.Patch{Set: map[compile.Cell]compile.Verdict{cell: by(true, "open")}}
				if i%2 == 1 {
					p = compile.Patch{Drop: []compile.Cell{cell}}
				}
				if err := f.Update(compile.Delta{Patches: map[compile.TableID]compile.Patch{1: p}}); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		time.Sleep(50 * time.Millisecond)
		w.node.nft(t, "flush chain inet weft-policy forward")
		time.Sleep(100 * time.Millisecond)
		close(stop)
		<-done
		eventually(t, "repair", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			have, err := f.conn.look(Table, skeleton)
			return err == nil && len(f.damage(have, skeleton)) == 0
		})
	}
}
