// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/policy"
)

// TestDenials tells what was denied, and by whom.
func TestDenials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
			c.SetEndpoint(pod("b", "u-b", "n2", "cache", "10.33.0.1"))
		})
		if err := s.within(time.Second, attached("ka", "a", "u-a", "10.32.0.5")); err != nil {
			t.Fatal(err)
		}
		c := policy.Connection{Src: netip.MustParseAddr("10.33.0.1"), Dst: netip.MustParseAddr("10.32.0.5"), Protocol: policy.TCP, Port: 80}
		s.kernel.denials <- Denial{Connection: c, Time: time.Now(), Direction: policy.Ingress, Suppressed: 3}
		synctest.Wait()
		list, last := s.Denials(-1)
		if len(list) != 1 || last != 1 {
			t.Fatalf("%+v", list)
		}
		d := list[0]
		if d.Src != named("b") || d.Dst != named("a") || d.Suppressed != 3 || d.Verdict.Reason != policy.Isolated || d.Verdict.Isolating[0].Name != named("db") || d.Decision.Allowed() {
			t.Errorf("%+v", d)
		}
		if w := s.Why(c); w.Ingress.Reason != policy.Isolated || !w.Egress.Allowed {
			t.Errorf("%+v", w)
		}
		c.Src, c.Dst = c.Dst, c.Src
		s.kernel.denials <- Denial{Connection: c, Direction: policy.Egress}
		synctest.Wait()
		if list, _ := s.Denials(1); len(list) != 1 || list[0].Seq != 2 || list[0].Verdict.Reason != policy.Isolated || list[0].Verdict.Allowed {
			t.Errorf("%+v", list)
		}
		if list, last := s.Denials(0); len(list) != 0 || last != 2 {
			t.Errorf("%+v", list)
		}
	})
}

// TestFollow tells what comes, and how much of it was missed.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(Changes) {})
		ctx, cancel := context.WithCancel(context.Background())
		var told []uint64
		var skipped uint64
		block := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Follow(ctx, 0, func(d Denied, missed uint64) {
				<-block
				told = append(told, d.Seq)
				skipped += missed
			})
		}()
		for range 3 * mostSeen {
			s.seen.add(Denied{})
		}
		synctest.Wait()
		close(block)
		synctest.Wait()
		for range 3 {
			s.seen.add(Denied{})
		}
		synctest.Wait()
		cancel()
		<-done
		if last := told[len(told)-1]; last != 3*mostSeen+3 || uint64(len(told))+skipped != last || len(told) > mostSeen+100 || len(told) < mostSeen {
			t.Errorf("%d told, %d skipped, the last is %d", len(told), skipped, last)
		}
	})
}

// TestCounters leaves out what there is no more.
func TestCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := isolating("db", "app", "db")
		s := ready(t, func(c Changes) { c.SetPolicy(p) })
		s.kernel.counters = map[policy.PolicyKey]Count{p.PolicyKey: {Allowed: 1, Denied: 2}, {Kind: policy.Admin}: {Allowed: 3}}
		counts, err := s.Counters()
		if err != nil || len(counts) != 1 || counts[p.PolicyKey] != (Count{Allowed: 1, Denied: 2}) {
			t.Errorf("%v %v", counts, err)
		}
	})
}
