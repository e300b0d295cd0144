// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestForgetOnTwoSides has two nodes that do not reach each other forget a third one at the same moment. One side at most can
// do it; the other, or both, wait and say for whom, and agree when they meet again.
func TestForgetOnTwoSides(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		hosts    int // the last one is gone
		here     int // on the side of the first one
		majority bool
	}{
		{"majority and minority", 5, 3, true},
		{"no majority anywhere", 3, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := founders(t, tt.hosts)
			all := m.Hosts()
			dead, left := all[tt.hosts-1], all[:tt.hosts-1]
			here, there := left[:tt.here], left[tt.here:]
			old := attach(t, 3, dead)
			var links []*lab.Link
			for _, h := range here {
				links = append(links, h.Link())
			}
			dead.Kill()
			m.Segment.Partition(links)
			noticed(t, len(here), here...)
			noticed(t, len(there), there...)
			heirs := watchHeirs(left)

			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			start := time.Now()
			ends := map[*lab.Host]chan lab.Result{}
			for _, h := range []*lab.Host{here[0], there[0]} {
				end := make(chan lab.Result, 1)
				ends[h] = end
				go func() {
					r, err := h.TryWeft(ctx, "forget", dead.Name())
					if err != nil {
						r.Code, r.Stderr = -1, err.Error()
					}
					end <- r
				}()
			}
			result := func(h *lab.Host) lab.Result {
				t.Helper()
				select {
				case r := <-ends[h]:
					t.Logf("weft forget on %s, ended after %v:\n%s%s", h.Name(), time.Since(start).Round(time.Millisecond), r.Stderr, r.Stdout)
					return r
				case <-ctx.Done():
					t.Fatalf("weft forget on %s does not end", h.Name())
					return lab.Result{}
				}
			}
			var first lab.Result
			if tt.majority {
				if first = result(here[0]); first.Code != 0 || !strings.Contains(first.Stdout, " addresses of "+dead.Name()+"\n") {
					t.Fatalf("%+v", first)
				}
			}
			// The minority goes on waiting, and says for whom.
			time.Sleep(3 * time.Second)
			waiting := []*lab.Host{there[0]}
			if !tt.majority {
				waiting = append(waiting, here[0])
			}
			for _, h := range waiting {
				share := 0
				for _, o := range ask[space](t, h, "ipam").Holdings {
					if o.Node == h.Name() { // it stands alone
						share = int(o.Slots * 100 >> 20)
					}
				}
				if err := says(done(t, h.Weft("ipam")), fmt.Sprintf("takeover of %s: %d%% of the range has voted, 51%% needed, waiting for host", dead.Name(), share)); err != nil {
					t.Errorf("weft ipam on %s: %v", h.Name(), err)
				}
				if s := ask[space](t, h, "ipam"); len(s.Retirements) != 0 {
					t.Errorf("%s says that %+v", h.Name(), s.Retirements)
				}
				select {
				case r := <-ends[h]:
					t.Errorf("weft forget on %s has ended: %+v", h.Name(), r)
					ends[h] <- r
				default:
				}
			}
			w := there[0].Workload("during")
			w.Attach()

			m.Segment.Heal()
			start = time.Now()
			for _, h := range waiting {
				r := result(h)
				if r.Code != 0 || !strings.Contains(r.Stderr, fmt.Sprintf("takeover of %s: ", dead.Name())) || !strings.Contains(r.Stderr, "waiting for ") {
					t.Errorf("weft forget on %s: %+v", h.Name(), r)
				}
				if first.Stdout == "" {
					first = r
				}
				if whom, _, _ := strings.Cut(r.Stdout, " took over "); !strings.HasPrefix(first.Stdout, whom+" ") {
					t.Errorf("%s says %q, and was told before %q", h.Name(), r.Stdout, first.Stdout)
				}
			}
			eventually(t, patience, func() error {
				_, err := nothingLost(left...)
				return err
			})
			t.Logf("all agree %v after the partition", time.Since(start).Round(time.Millisecond))
			if seen := heirs(); len(seen) != 1 {
				t.Errorf("heirs were %v", seen)
			} else {
				t.Logf("heirs that any node has ever told: %v", seen)
			}
			// What the dead node's workloads had others can have now.
			workloads := []*lab.Workload{w}
			for i, o := range old {
				w := left[i%len(left)].Workload("heir")
				w.Attach("--ip", o.V4.String())
				if w.V4 != o.V4 {
					t.Errorf("attached with %v, not %v", w.V4, o.V4)
				}
				workloads = append(workloads, w)
			}
			distinct(t, addrs(workloads...))
			allReach(t, patience, workloads...)
		})
	}
}

// watchHeirs asks the hosts over and over who was declared gone and who is the heir, until the function that it returns is
// called; that one returns every answer that there was, and how often.
func watchHeirs(hosts []*lab.Host) (end func() map[string]int) {
	stop := make(chan struct{})
	seen := map[string]int{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			for _, h := range hosts {
				var s space
				if h.Query(&s, "ipam") != nil {
					continue
				}
				for i, r := range s.Retirements {
					seen[fmt.Sprintf("%d: %s to %s", i+1, r.NodeID, r.HeirID)]++
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	return func() map[string]int {
		close(stop)
		wg.Wait()
		return seen
	}
}
