// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/mesh/memnet"
)

func TestTargetStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 30)
		c.net.Host(hostAddr(60)) // nothing listens there
		a := c.node("n9", "192.168.0.60", "192.168.0.61:7000", "[2001:db8::1]:6783", "n1", "n2").start()
		want := []string{
			"waiting: no such host n9",
			"waiting: 192.168.0.60:6783 refused the connection: is weft running there?",
			"waiting: 192.168.0.61:7000 does not answer: is the host up, and the port open for TCP and UDP?",
			"waiting: [2001:db8::1]:6783 has no route from here: is the network up?",
			"this node",
			"waiting: no such host n2",
		}
		states := func() string {
			var got []string
			for _, x := range a.Targets() {
				if x.Joined || (x.Err == nil) || x.NextTry.IsZero() || x.Host == "" {
					return fmt.Sprintf("%+v", x)
				}
				got = append(got, x.State)
			}
			return strings.Join(got, "\n")
		}
		c.eventually(8*time.Second, "the states", func() bool { return states() == strings.Join(want, "\n") })
		// No news, no log.
		time.Sleep(time.Minute)
		c.log.TakeAll()
		time.Sleep(5 * time.Minute)
		if states() != strings.Join(want, "\n") || c.log.FilterMessage("join").Len() != 0 {
			t.Errorf("states %s, log %v", states(), c.log.All())
		}
		// The tries go on, no more than 10 s (and a fifth) apart, and the name is looked up anew.
		b := c.node()
		b.start()
		c.net.Name("n9", netip.MustParseAddr("2001:db8::7"), hostAddr(60), hostAddr(2))
		c.eventually(16*time.Second, "n9 is found", func() bool { return a.Targets()[0].Joined && a.Targets()[5].Joined })
		if !whole(a, b)() {
			t.Error("joined, but not alive")
		}
		// When the node behind a name is gone, the name is tried again.
		b.kill()
		c.eventually(30*time.Second, "n2 is missed", func() bool {
			return strings.HasPrefix(a.Targets()[5].State, "waiting: 192.168.0.2:6783 refused")
		})
		if a.Targets()[5].Node != b.cfg.Identity.ID() {
			t.Error("who was there is forgotten")
		}
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 31)
		lookups := make(chan time.Time, 1000)
		n := c.node("n9")
		n.cfg.Network = countingNetwork{n.host, lookups}
		n.start()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		close(lookups)
		var last time.Time
		i := 0
		for at := range lookups {
			if !last.IsZero() {
				want := min(500*time.Millisecond<<(i-1), 10*time.Second)
				if got := at.Sub(last); got < want*4/5 || got > want*6/5+time.Millisecond {
					t.Errorf("try %d came %v after the one before, expected %v", i, got, want)
				}
			}
			last = at
			i++
		}
		if i < 12 {
			t.Errorf("%d tries in 2 min", i)
		}
	})
}

func TestSplitTarget(t *testing.T) {
	for in, want := range map[string]string{
		"n1": "n1 6783", "n1:7000": "n1 7000", "10.0.0.1": "10.0.0.1 6783", "10.0.0.1:1": "10.0.0.1 1",
		"2001:db8::1": "2001:db8::1 6783", "[2001:db8::1]": "2001:db8::1 6783", "[2001:db8::1]:9": "2001:db8::1 9",
		"a.b.example.": "a.b.example. 6783", "": "", ":5": "", "n1:": "", "n1:0": "", "n1:x": "", "n1:70000": "", "a/b": "", "a b": "",
		"[n1]:5:6": "", "http://n1": "", strings.Repeat("x", 300): "",
	} {
		host, port, err := splitTarget(in, 6783)
		got := fmt.Sprintf("%s %d", host, port)
		if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("%q: got %q, want %q (%v)", in, got, want, err)
		}
	}
}

func TestWrongToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 32)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		x := c.node("n1", "n2")
		x.cfg.Keys = testKeys(99)
		x.start()
		time.Sleep(10 * time.Minute)
		for _, s := range x.Targets() {
			if !errors.Is(s.Err, ErrWrongToken) || !strings.Contains(s.State, "weft token") {
				t.Errorf("%+v", s)
			}
		}
		if n := c.logged("a host with another token"); n != 2 { // by n1 and by n2
			t.Errorf("%d lines about it", n)
		}
		if len(x.Nodes()) != 1 || len(a.Nodes()) != 2 || len(b.Nodes()) != 2 {
			t.Error("it got in")
		}
	})
}

// A mesh of the same token and another universe stays another mesh, even if it comes up at an
// address that the first one's gossip still goes to.
func TestOtherUniverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 33)
		a, b, d := c.node().start(), c.node("n1").start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b, d))
		d.kill()
		d.cfg.Universe = testUniverse(2)
		d.cfg.Identity = testIdentity(77)
		d.start()
		e := c.node("n3")
		e.cfg.Universe = testUniverse(2)
		e.start()
		time.Sleep(2 * time.Minute)
		var mismatch *UniverseMismatchError
		if ts := d.Targets(); !errors.As(ts[0].Err, &mismatch) || mismatch.Host != "n1" || mismatch.Theirs.ID != c.uni.ID {
			t.Errorf("%+v", ts[0])
		}
		if !whole(a, b)() || !whole(d, e)() || len(a.Nodes()) != 3 || len(d.Nodes()) != 2 || a.status(e) != 255 {
			t.Errorf("n1 sees %v, n3 sees %v", a.Nodes(), d.Nodes())
		}
		if n := c.logged("turned away a node of another mesh"); n == 0 || n > 4 {
			t.Errorf("%d lines about it", n)
		}
	})
}

func TestLearnUniverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 34)
		a, b := c.node("n2", "n3"), c.node("n1")
		a.cfg.Universe, b.cfg.Universe = UniverseInfo{}, UniverseInfo{}
		a.start()
		b.start()
		time.Sleep(time.Minute)
		if s := a.Targets()[0]; !errors.Is(s.Err, ErrNoUniverse) || len(a.Nodes()) != 1 || a.Universe().Known() {
			t.Errorf("two that wait: %+v", s)
		}
		select {
		case <-a.Joined():
			t.Error("joined nothing")
		default:
		}
		d := c.node().start()
		c.eventually(30*time.Second, "all know the universe and each other", func() bool {
			return whole(a, b, d)() && agreed(a, b, d)()
		})
		for _, n := range c.nodes {
			if u := n.Universe(); u.ID != c.uni.ID || u.Ranges != c.uni.Ranges || string(u.Seed) != string(c.uni.Seed) {
				t.Errorf("%s learnt %v", n.cfg.Name, u)
			}
			for _, k := range n.Nodes() {
				if k.Universe != c.uni.ID {
					t.Errorf("%s sees %s in %x", n.cfg.Name, k.Name, k.Universe)
				}
			}
		}
		b.add("x")
		c.eventually(2*time.Second, "states spread", func() bool { return a.bag.has("x") && d.bag.has("x") })
	})
}

func TestClone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 35)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		twin := c.node("n1")
		twin.cfg.Identity = b.cfg.Identity
		twin.start()
		time.Sleep(time.Minute)
		if s := twin.Targets()[0]; !errors.Is(s.Err, ErrClone) || !strings.Contains(s.State, "weft reset") {
			t.Errorf("%+v", s)
		}
		if k := a.Nodes()[1]; !whole(a, b)() || k.Boot != b.Boot() || k.Name != "n2" {
			t.Error("the first one suffers")
		}
		if n := c.logged("turned away a node whose id another living node has"); n != 1 {
			t.Errorf("%d lines about it", n)
		}
		// Once the first is gone, it is no copy any more.
		b.kill()
		c.eventually(14*time.Second, "the second comes in", func() bool {
			k := a.Nodes()[1]
			return k.Boot == twin.Boot() && k.Status == Alive
		})
		// Two that came up on either side of a partition: the mesh settles for one.
		c.net.Partition([]*memnet.Host{twin.host})
		time.Sleep(30 * time.Second)
		b.start()
		c.eventually(5*time.Second, "the first is back", func() bool { return a.Nodes()[1].Boot == b.Boot() })
		c.net.Heal()
		time.Sleep(2 * time.Minute)
		settled := a.Nodes()[1]
		time.Sleep(10 * time.Minute)
		if k := a.Nodes()[1]; k.Boot != settled.Boot || k.Seq != settled.Seq || k.Status != Alive {
			t.Errorf("%+v became %+v", settled, k)
		}
	})
}

// A copy that is in already (here: let in by force) does not make records multiply without end, and is named.
func TestCloneInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 36)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		twin := c.node()
		twin.cfg.Identity = b.cfg.Identity
		twin.start()
		synctest.Wait()
		// memberlist's own join, without asking first, while the first one does not answer
		c.net.Filter(func(_ string, from, to *memnet.Host) bool { return from != a.host || to != b.host })
		a.ways.answered(twin.cfg.Identity.ID(), twin.Boot(), twin.addr)
		err := a.join(t.Context(), twin.addr, introduction{id: twin.cfg.Identity.ID(), boot: twin.Boot()})
		if err != nil {
			t.Fatal(err)
		}
		c.net.Filter(nil)
		time.Sleep(15 * time.Minute) // a few exchanges between the two copies, which find each other by chance
		if c.logged("another process writes this node's record")+c.logged("turned away a node whose id another living node has") == 0 {
			t.Error("nobody says so")
		}
		before := a.Nodes()[1]
		time.Sleep(15 * time.Minute)
		if k := a.Nodes()[1]; k.Boot != before.Boot || k.Seq != before.Seq {
			t.Errorf("the records do not come to rest: %+v became %+v", before, k)
		}
	})
}
