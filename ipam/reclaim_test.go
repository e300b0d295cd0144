// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// sure forgets a node within the given time.
func (c *cluster) sure(by *member, within time.Duration, r ForgetRequest) {
	c.t.Helper()
	c.within(within, func(ctx context.Context) {
		if err := by.Forget(ctx, r); err != nil {
			c.t.Fatalf("n%d: %v", by.id, err)
		}
	})
}

// agree verifies that all nodes know the same, and that nobody who is retired owns anything.
func (c *cluster) agree(nodes ...*member) {
	c.t.Helper()
	for _, m := range nodes {
		if string(m.Encode()) != string(nodes[0].Encode()) {
			c.t.Errorf("the rings of n%d and n%d differ", nodes[0].id, m.id)
		}
		if r := m.Reclaims(); len(r) > 0 {
			c.t.Errorf("n%d: %s", m.id, r[0].Text)
		}
	}
	for _, h := range nodes[0].Owned() {
		for _, r := range nodes[0].Retirements() {
			if h.Owner == r.Dead {
				c.t.Errorf("n%d is gone and owns %v", h.Owner, h.Prefixes)
			}
		}
	}
}

func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 3)
		n1, n2, n3 := nodes[0], nodes[1], nodes[2]
		kept := n3.allocate(t.Context(), "w", 3)
		alive := "node n3 answers, so it is not gone; stop it or have it leave, or repeat with --yes-it-is-gone if another node answers in its place"
		if err := n1.Forget(t.Context(), ForgetRequest{Dead: []ring.Owner{3}}); err == nil || err.Error() != alive {
			t.Errorf("error %v, want %s", err, alive)
		}
		if err := n1.Forget(t.Context(), ForgetRequest{Dead: []ring.Owner{1}, Sure: true}); err == nil || err.Error() != "a node cannot forget itself; have it leave (weft leave), or forget it on another node" {
			t.Errorf("error %v", err)
		}
		if err := n1.Forget(t.Context(), ForgetRequest{}); err == nil || err.Error() != "no node to forget is named; name one" {
			t.Errorf("error %v", err)
		}
		c.crash(n3)
		c.sure(n1, 3*time.Second, ForgetRequest{Dead: []ring.Owner{3}})
		c.sure(n2, 3*time.Second, ForgetRequest{Dead: []ring.Owner{3}}) // again, and from somebody else
		time.Sleep(time.Second)
		c.agree(n1, n2)
		log := n2.Retirements()
		if len(log) != 1 || log[0].Dead != 3 || log[0].By != 1 || log[0].Forced || log[0].At.IsZero() {
			t.Fatalf("%+v", log)
		}
		c.within(10*time.Second, func(ctx context.Context) {
			n1.allocate(ctx, "a", 127)
			n2.allocate(ctx, "b", 127)
		})
		c.unique()

		// It comes back, with its disk.
		n3 = c.join(3)
		why, retired := n3.Retired()
		if !retired || why.Heir != log[0].Heir {
			t.Fatalf("%v, %v", why, retired)
		}
		want := fmt.Sprintf("this node was declared gone by n1 on %s, and its addresses are others' now (heir named: n%d), so it stays out of the mesh; detach its workloads, stop it and run weft reset to start again as a new node",
			log[0].At.UTC().Format("2006-01-02 15:04:05 UTC"), log[0].Heir)
		for _, owner := range []string{"new", "w-0"} {
			if _, err := n3.Allocate(t.Context(), owner); err == nil || err.Error() != want {
				t.Errorf("error %v, want %s", err, want)
			}
		}
		if _, err := n3.Leave(t.Context()); err == nil || err.Error() != want {
			t.Errorf("leaving: %v", err)
		}
		if err := n3.Forget(t.Context(), ForgetRequest{Dead: []ring.Owner{1}, Sure: true}); err == nil || err.Error() != want {
			t.Errorf("forgetting: %v", err)
		}
		if u := n3.Usage(); u.Free != 0 || u.Effective != 0 || u.Conflicts != 0 {
			t.Errorf("%+v", u)
		}
		if len(n3.List()) != len(kept) {
			t.Errorf("its workloads cannot be told: %v", n3.List())
		}
		if err := n3.Release("w-0"); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		c.agree(n1, n2, n3)
		c.crash(n3)
		n3 = c.join(3) // it knows by itself now
		if _, retired := n3.Retired(); !retired {
			t.Error("it has forgotten that it is retired")
		}
	})
}

// Two sides of a partition forget the same node: one of them can, and the other waits and says for whom.
func TestForgetOnBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed, err := SeedNames([]string{"a", "b", "c", "d", "e", "f"})
		if err != nil {
			t.Fatal(err)
		}
		c := newCluster(t, "10.32.0.0/24", seed)
		var nodes []*member
		for i, name := range []string{"a", "b", "c", "d", "e", "f"} {
			m := c.join(ring.Owner(i + 1))
			if err := m.Adopt(NameOwner(name)); err != nil {
				t.Fatal(err)
			}
			nodes = append(nodes, m)
		}
		time.Sleep(time.Second)
		c.crash(nodes[5])
		c.partition(nodes[:4], nodes[4:5])
		var wg sync.WaitGroup
		wg.Go(func() { c.sure(nodes[0], 10*time.Second, ForgetRequest{Dead: []ring.Owner{6}}) })
		var minority error
		wg.Go(func() {
			c.within(10*time.Second, func(ctx context.Context) { minority = nodes[4].Forget(ctx, ForgetRequest{Dead: []ring.Owner{6}}) })
		})
		time.Sleep(9 * time.Second)
		r := nodes[4].Reclaims()
		if len(r) != 1 || !strings.HasPrefix(r[0].Text, "takeover of n6: ") || !strings.Contains(r[0].Text, "% of the range has voted, 51% needed, waiting for n") {
			t.Errorf("%+v", r)
		}
		wg.Wait()
		var e *ForgetError
		if !errors.As(minority, &e) || !errors.Is(minority, context.DeadlineExceeded) || !strings.HasPrefix(minority.Error(), "not complete: takeover of n6: ") ||
			!strings.HasSuffix(minority.Error(), " (context deadline exceeded); repeat this when the missing nodes answer, or with --force if they never will") {
			t.Errorf("error %v", minority)
		}
		c.heal()
		time.Sleep(10 * time.Second)
		c.agree(nodes[:5]...)
		if log := nodes[4].Retirements(); len(log) != 1 || log[0].By == 5 || log[0].Heir == 5 {
			t.Errorf("%+v", log)
		}
		c.sure(nodes[4], time.Second, ForgetRequest{Dead: []ring.Owner{6}})
	})
}

// Everybody forgets different nodes at the same time; what those had spreads evenly.
func TestForgetMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/20", 12)
		for _, m := range nodes[6:] {
			c.crash(m)
		}
		// The founder has halved what it had again and again: those that are left have a majority.
		var wg sync.WaitGroup
		for i, m := range nodes[:6] {
			wg.Go(func() { c.sure(m, time.Minute, ForgetRequest{Dead: []ring.Owner{ring.Owner(7 + i)}}) })
		}
		wg.Wait()
		time.Sleep(5 * time.Second)
		c.agree(nodes[:6]...)
		heirs := make(map[ring.Owner]int)
		for _, r := range nodes[0].Retirements() {
			heirs[r.Heir]++
		}
		if len(heirs) < 3 {
			t.Errorf("the heirs of six nodes are %v", heirs)
		}
		for i, m := range nodes[:6] {
			c.within(time.Minute, func(ctx context.Context) { m.allocate(ctx, fmt.Sprint("w", i), 600) })
		}
		c.unique()
	})
}

// Without a majority nothing is decided, but by force.
func TestForgetByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 3)
		c.crash(nodes[0])
		c.crash(nodes[1])
		n3 := nodes[2]
		c.within(5*time.Second, func(ctx context.Context) {
			if err := n3.Forget(ctx, ForgetRequest{Dead: []ring.Owner{1}}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
		c.sure(n3, 15*time.Second, ForgetRequest{Dead: []ring.Owner{1, 2}, Force: true})
		if log := n3.Retirements(); len(log) != 2 || !log[0].Forced || log[0].Heir != 3 {
			t.Errorf("%+v", log)
		}
		c.within(time.Second, func(ctx context.Context) { n3.allocate(ctx, "w", 254) })
		c.agree(n3)
	})
}

// Force helps, too, where a majority has promised and is lost before it has accepted.
func TestForgetByForceHalfway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := []string{"a", "b", "c", "d"}
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
		c.crash(c.nodes[4])
		votes := 0
		c.lose(func(_, _ ring.Owner, k kind) bool {
			if k == kindVoted {
				votes++
			}
			return k == kindVoted && votes > 2
		})
		n1 := c.nodes[1]
		c.within(2*time.Second, func(ctx context.Context) {
			if err := n1.Forget(ctx, ForgetRequest{Dead: []ring.Owner{4}}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
		if v := n1.ledger.ring.Votes(); v.Accepted == (ring.Ballot{}) {
			t.Fatalf("nothing is accepted: %+v", v)
		}
		c.crash(c.nodes[2])
		c.crash(c.nodes[3])
		c.sure(n1, 30*time.Second, ForgetRequest{Dead: []ring.Owner{4, 2, 3}, Force: true})
		c.agree(n1)
	})
}

// What a node still has that has left is taken over without being told; and what one has that is silent, if that is wanted.
func TestReclaimByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 4)
		n4 := nodes[3]
		n4.allocate(t.Context(), "w", 1) // it leaves with that
		c.within(5*time.Second, func(ctx context.Context) {
			if _, err := n4.Leave(ctx); err != nil {
				t.Error(err)
			}
		})
		c.crash(n4)
		c.gone(n4)
		time.Sleep(15 * time.Second)
		c.agree(nodes[:3]...)
		if log := nodes[0].Retirements(); len(log) != 1 || log[0].Dead != 4 {
			t.Errorf("%+v", log)
		}
		c.crash(nodes[2])
		time.Sleep(time.Hour)
		if log := nodes[0].Retirements(); len(log) != 1 {
			t.Errorf("a node was retired, though nobody asked for that: %+v", log)
		}
		c.crash(nodes[1])
		c.reclaimAfter = 10 * time.Minute
		n2 := c.join(2)
		time.Sleep(9 * time.Minute)
		if log := n2.Retirements(); len(log) != 1 {
			t.Errorf("retired early: %+v", log)
		}
		time.Sleep(2 * time.Minute)
		c.agree(nodes[0], n2)
		if log := n2.Retirements(); len(log) != 2 || log[1].Dead != 3 || log[1].By != 2 {
			t.Errorf("%+v", log)
		}
	})
}

// A seed name that no node came to adopt is forgotten like a node.
func TestForgetSeedName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed, err := SeedNames([]string{"a", "b", "c"})
		if err != nil {
			t.Fatal(err)
		}
		c := newCluster(t, "10.32.0.0/24", seed)
		n1, n2 := c.join(1), c.join(2)
		for m, name := range map[*member]string{n1: "a", n2: "b"} {
			if err := m.Adopt(NameOwner(name)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		c.sure(n1, 3*time.Second, ForgetRequest{Dead: []ring.Owner{NameOwner("c")}, Sure: true})
		time.Sleep(time.Second)
		c.agree(n1, n2)
		n3 := c.join(3)
		r := n1.Retirements()[0]
		want := fmt.Sprintf("the share of the range that was seeded under this node's name was declared nobody's by n1 on %s (heir named: n%d); join with --peer instead of --seed",
			r.At.UTC().Format("2006-01-02 15:04:05 UTC"), r.Heir)
		if err := n3.Adopt(NameOwner("c")); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	})
}

// Between the decision about a seeded share and its takeover it is too late to adopt it.
func TestAdoptWhatIsForgotten(t *testing.T) {
	l, err := ring.Seed(testSize, []ring.Owner{1, NameOwner("c")})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Retire(ring.Retirement{Dead: NameOwner("c"), Heir: 1, By: 1}); err != nil {
		t.Fatal(err)
	}
	late := &ledger{self: 3, ring: l}
	if err := late.adopt(NameOwner("c"), l.OwnedBy(NameOwner("c"))); err == nil || len(late.effective) > 0 {
		t.Errorf("%v is effective: %v", late.effective, err)
	}
}

// A node that has just started knows nobody yet: that is no reason to decide by force about one that lives.
func TestForceAfterStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 3)
		c.crash(nodes[0])
		c.place(1, 1)
		n1 := c.join(1)
		var healed sync.WaitGroup
		healed.Go(func() {
			time.Sleep(2 * time.Second)
			c.heal()
			c.mu.Lock()
			defer c.mu.Unlock()
			c.wake()
		})
		c.within(20*time.Second, func(ctx context.Context) {
			var alive *AliveError
			if err := n1.Forget(ctx, ForgetRequest{Dead: []ring.Owner{3}, Force: true}); !errors.As(err, &alive) {
				t.Errorf("error %v", err)
			}
		})
		healed.Wait()
		if log := n1.Retirements(); len(log) > 0 {
			t.Errorf("%+v", log)
		}
		// Nor is force used where there is a majority.
		c.crash(nodes[2])
		c.sure(n1, 20*time.Second, ForgetRequest{Dead: []ring.Owner{3}, Force: true})
		if log := n1.Retirements(); len(log) != 1 || log[0].Forced {
			t.Errorf("%+v", log)
		}
	})
}

// A retired node that is there and does not answer holds a takeover up for a while only.
func TestRetiredNodeThatIsMute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 4)
		c.silence(nodes[3])
		c.sure(nodes[0], time.Minute, ForgetRequest{Dead: []ring.Owner{4}, Sure: true})
		time.Sleep(5 * time.Second)
		c.agree(nodes[:3]...)
		c.crash(nodes[2])
		c.sure(nodes[0], 5*time.Second, ForgetRequest{Dead: []ring.Owner{3}})
	})
}

// What a dead node has granted to one that does not answer cannot be taken over before it does, or is forgotten, too; that
// is said.
func TestForgetDonorOfSilentNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 5)
		recipient := nodes[4]
		c.lose(func(_, _ ring.Owner, k kind) bool { return k == kindGrant })
		recipient.allocate(t.Context(), "w", int(recipient.Usage().Free))
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			_, _ = recipient.Allocate(ctx, "more") // it is granted some, and does not get them
		}()
		time.Sleep(200 * time.Millisecond)
		var from ring.Owner
		known, err := ring.Decode(nodes[0].Encode())
		if err != nil {
			t.Fatal(err)
		}
		for _, reg := range known.All() {
			if reg.From != 0 && reg.Owner == 5 {
				from = reg.From
			}
		}
		if from == 0 {
			t.Fatal("nothing is pending")
		}
		c.crash(c.nodes[from])
		c.crash(recipient)
		c.lose(nil)
		by := nodes[0]
		if from == 1 {
			by = nodes[1]
		}
		c.within(20*time.Second, func(ctx context.Context) {
			err := by.Forget(ctx, ForgetRequest{Dead: []ring.Owner{from}})
			if err == nil || !strings.Contains(err.Error(), "n5") {
				t.Errorf("error %v", err)
			}
		})
		c.sure(by, 20*time.Second, ForgetRequest{Dead: []ring.Owner{5}})
		time.Sleep(2 * time.Second)
		c.sure(by, time.Second, ForgetRequest{Dead: []ring.Owner{from}})
		c.agree(by)
	})
}

// After a restart nothing new is handed out before somebody was heard: the node may have been retired.
func TestStartHearsOthersFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 3)
		n3 := nodes[2]
		had := n3.allocate(t.Context(), "w", 1)[0]
		c.crash(n3)
		c.place(3, 1) // cut off
		n3 = c.join(3)
		if l, err := n3.Allocate(t.Context(), "w-0"); err != nil || l != had {
			t.Errorf("%+v, %v", l, err)
		}
		start := time.Now()
		c.within(10*time.Second, func(ctx context.Context) { n3.allocate(ctx, "new", 1) })
		if d := time.Since(start); d < 2*time.Second || d > 4*time.Second {
			t.Errorf("after %v", d)
		}
		c.crash(n3)
		c.place(3, 0)
		n3 = c.join(3)
		c.within(300*time.Millisecond, func(ctx context.Context) { n3.allocate(ctx, "newer", 1) })
	})
}

// Any node of three or more can be done without, and the founder of two can do without the other.
func TestNobodyHasHalf(t *testing.T) {
	for n := 2; n <= 6; n++ {
		for _, together := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "10.32.0.0/12", Seed{Owners: []ring.Owner{1}})
				var nodes []*member
				for i := range n {
					nodes = append(nodes, c.join(ring.Owner(i+1)))
					if !together {
						time.Sleep(time.Second)
					}
				}
				time.Sleep(5 * time.Second)
				for _, h := range nodes[0].Owned() {
					half := h.Slots >= 1<<19
					if half != (n == 2 && h.Owner == 1) {
						t.Errorf("of %d nodes, joined together %v, n%d has %d of %d", n, together, h.Owner, h.Slots, 1<<20)
					}
					if len(h.Prefixes) > 8 {
						t.Errorf("n%d has %v", h.Owner, h.Prefixes)
					}
				}
				dead := nodes[n-1]
				c.crash(dead)
				c.sure(nodes[0], 10*time.Second, ForgetRequest{Dead: []ring.Owner{dead.id}})
			})
		}
	}
}

func TestExplain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 3)
		n1, n2, n3 := nodes[0], nodes[1], nodes[2]
		l := n3.allocate(t.Context(), "w", 1)[0]
		c.crash(n3)
		explain := func(m *member, want ...string) {
			t.Helper()
			got, err := m.Explain(l.V4)
			if err != nil || strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%q, %v; want %q", got, err, want)
			}
		}
		explain(n1, "given to a node when the mesh was founded (version 0.1)", "n3 has it: it was granted it, or took back what it had granted (version 0.3)")
		c.sure(n1, 3*time.Second, ForgetRequest{Dead: []ring.Owner{3}})
		time.Sleep(time.Second)
		r := n1.Retirements()[0]
		when := r.At.UTC().Format(time.DateTime + " UTC")
		taken := fmt.Sprintf("taken over by n%d from a node that was gone (n3; decided by n1 on %s) (version 1.1)", r.Heir, when)
		heir := c.nodes[r.Heir]
		explain(heir, taken, "on this node it is free")
		if r.Heir != 2 {
			explain(n2, taken)
		}
		if _, err := heir.AllocateExact(t.Context(), "mine", l.V4); err != nil {
			t.Fatal(err)
		}
		explain(heir, taken, "on this node it is allocated to mine")
		if err := heir.Release("mine"); err != nil {
			t.Fatal(err)
		}
		explain(heir, taken, "on this node it rests after its release, until "+time.Now().Add(DefaultQuarantine).UTC().Format(time.DateTime+" UTC"))
		if _, err := n1.Explain(netip.MustParseAddr("192.0.2.1")); err == nil {
			t.Error("an address from outside was explained")
		}
	})
}
