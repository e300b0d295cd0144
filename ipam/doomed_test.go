// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// A vote that a node is gone, which its proposer did not live to finish, may have been decided: that node does not get another
// one forgotten before, and says so; others finish both.
func TestForgetByOneWhoIsVotedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := []string{"a", "b", "c", "d", "e"}
		seed, err := SeedNames(names)
		if err != nil {
			t.Fatal(err)
		}
		c := newCluster(t, "10.32.0.0/24", seed)
		for i, name := range names {
			if err := c.join(ring.Owner(i + 1)).Adopt(NameOwner(name)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		votes := 0
		c.lose(func(_, _ ring.Owner, k kind) bool {
			if k == kindVoted {
				votes++
			}
			return k == kindVoted && votes > 4
		})
		n1, n2, n4 := c.nodes[1], c.nodes[2], c.nodes[4]
		c.within(2*time.Second, func(ctx context.Context) {
			if err := n4.Forget(ctx, ForgetRequest{Dead: []ring.Owner{1}, Sure: true}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
		c.crash(n4)
		c.lose(nil)
		if v := n1.ledger.ring.Votes(); v.Accepted == (ring.Ballot{}) || v.Value.Dead != 1 {
			t.Fatalf("nothing is accepted, or n1 has not heard of it: %+v", v)
		}
		c.within(20*time.Second, func(ctx context.Context) {
			want := "a vote of n4's that this node is gone was never finished, and comes before any other; forget on another node, which finishes it too (this node is out then), or here with --force, if no other can"
			if err := n1.Forget(ctx, ForgetRequest{Dead: []ring.Owner{4}}); err == nil || err.Error() != want {
				t.Errorf("error %v, want %s", err, want)
			}
		})
		if len(n1.Retirements()) > 0 {
			t.Errorf("%+v", n1.Retirements())
		}
		c.sure(n2, 30*time.Second, ForgetRequest{Dead: []ring.Owner{4}})
		time.Sleep(5 * time.Second)
		if log := n2.Retirements(); len(log) != 2 || log[0].Dead != 1 || log[0].By != 4 || log[1].Dead != 4 {
			t.Errorf("%+v", log)
		}
		if _, retired := n1.Retired(); !retired {
			t.Error("n1 has not heard that it is out")
		}
	})
}
