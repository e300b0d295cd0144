// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/mesh/memnet"
)

func hostsOf(m *Mesh) string {
	var hosts []string
	for _, t := range m.Targets() {
		hosts = append(hosts, t.Host)
	}
	return strings.Join(hosts, " ")
}

func TestConnectAndDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 60)
		a, b, d := c.node("n1", "n1:6783").start(), c.node().start(), c.node().start()
		if err := a.Connect([]string{"n2", "192.168.0.3:6783"}); err != nil {
			t.Fatal(err)
		}
		if got := hostsOf(a.Mesh); got != "n1 n2 192.168.0.3:6783" {
			t.Error(got)
		}
		c.eventually(3*time.Second, "they join", whole(a, b, d))
		for want, hosts := range map[string][]string{
			"n2:6783 is a target already":     {"n7", "n2:6783"},
			"192.168.0.3 is a target already": {"192.168.0.3"},
			"n8 is a target already":          {"n8", "n8"},
			`"n8:x" is no host or host:port`:  {"n8:x"},
			`"" is no host or host:port`:      {""},
		} {
			if err := a.Connect(hosts); err == nil || err.Error() != want {
				t.Errorf("connect %q: %v", hosts, err)
			}
		}
		for want, hosts := range map[string][]string{
			"n7 is no target":               {"n2", "n7"},
			"n2:7 is no target":             {"n2:7"},
			"n2:6783 is no target":          {"n2", "n2:6783"},
			`"a b" is no host or host:port`: {"a b"},
		} {
			if err := a.Disconnect(hosts); err == nil || err.Error() != want {
				t.Errorf("disconnect %q: %v", hosts, err)
			}
		}
		if got := hostsOf(a.Mesh); got != "n1 n2 192.168.0.3:6783" {
			t.Errorf("what was refused changed something: %s", got)
		}
		var many []string
		for i := range maxTargets {
			many = append(many, fmt.Sprintf("many%d", i))
		}
		if err := a.Connect(many); !errors.Is(err, ErrTooManyTargets) || hostsOf(a.Mesh) != "n1 n2 192.168.0.3:6783" ||
			err.Error() != "too many targets: at most 256 are tried; any living node of the mesh will do as one" {
			t.Error(err, hostsOf(a.Mesh))
		}
		// Who is taken away stays a member, and is looked for no more.
		if err := a.Disconnect([]string{"n2:6783", "192.168.0.3", "n1"}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if !whole(a, b, d)() || hostsOf(a.Mesh) != "" {
			t.Error("a node went with its target")
		}
		c.log.TakeAll()
		if err := a.Connect([]string{"n9"}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if err := a.Disconnect([]string{"n9"}); err != nil {
			t.Error(err)
		}
		c.net.Name("n9", hostAddr(9))
		time.Sleep(time.Minute)
		if n := c.log.FilterMessage("join").Len(); n != 1 {
			t.Errorf("%d lines about n9", n)
		}
		a.kill()
		if err := a.Connect([]string{"n2"}); !errors.Is(err, ErrNotRunning) {
			t.Error(err)
		}
	})
}

// A host that is gone is tried every 5 minutes in the end, which is said once, and found when it is back, which is said once.
func TestTargetGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 61)
		a := c.node("n2").start()
		b := c.node()
		lines := func(text string) int { return c.log.FilterMessageSnippet(text).Len() }
		const slow = "this host has not been reached for 10m0s and is tried more and more rarely from now on, in the end every 5m0s; " +
			"if it is gone for good, run `weft disconnect n2`"
		time.Sleep(9 * time.Minute)
		if n := lines(slow); n != 0 {
			t.Errorf("said %d times after 9 min", n)
		}
		time.Sleep(2 * time.Minute)
		if n := lines(slow); n != 1 {
			t.Errorf("said %d times after 11 min", n)
		}
		c.log.TakeAll()
		tries := map[time.Time]bool{}
		for range 4 * 60 {
			time.Sleep(time.Minute)
			tries[a.Targets()[0].NextTry] = true
			if r := time.Now(); r.Minute()%20 == 0 { // the reason changes now and then
				c.net.Name("n2")
			} else {
				c.net.Name("n2", hostAddr(2))
			}
		}
		if n := len(tries); n < 4*60/6 || n > 4*60/4+4 {
			t.Errorf("%d tries in 4 h", n)
		}
		if n := c.log.FilterMessage("join").Len() + lines(slow); n != 0 {
			t.Errorf("%d lines meanwhile", n)
		}
		c.net.Name("n2", hostAddr(2))
		b.start()
		c.eventually(6*time.Minute+5*time.Second, "it is found", whole(a, b))
		time.Sleep(time.Minute)
		if n := c.log.FilterMessage("join").Len(); n != 1 || !a.Targets()[0].Joined {
			t.Errorf("%d lines about its return, %+v", n, a.Targets())
		}
		// Gone again, it is tried at the quick pace first, and at once when it has come back by itself.
		b.kill()
		time.Sleep(30 * time.Minute)
		b.cfg.Targets = []string{"n1"}
		b.start()
		c.eventually(6*time.Second, "it is back and so is the target", func() bool { return whole(a, b)() && a.Targets()[0].Joined })
	})
}

// A node that is gone for good costs the others a try every 10 minutes in the end, which is said once.
func TestNodeGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 62)
		c.tune = Tuning{ProbeInterval: 5 * time.Second, GossipInterval: time.Second} // quicker to simulate
		a, b, d, gone := c.node().start(), c.node("n1").start(), c.node("n1").start(), c.node("n1").start()
		c.eventually(10*time.Second, "whole", whole(a, b, d, gone))
		gone.kill()
		const said = "node has not answered for 10m0s and is tried more and more rarely from now on, in the end every 10m0s; " +
			"if it is gone for good, run `weft forget n4`"
		time.Sleep(30 * time.Minute)
		if n := c.log.FilterMessageSnippet(said).Len(); n != 3 {
			t.Errorf("said %d times by 3 nodes", n)
		}
		dials := 0
		c.net.Filter(func(proto string, from, to *memnet.Host) bool {
			if proto == "tcp" && to == gone.host {
				dials++
			}
			return true
		})
		time.Sleep(time.Hour)
		c.net.Filter(nil)
		if perNode := dials / 3; perNode < 4 || perNode > 12 {
			t.Errorf("%d tries per node in an hour", perNode)
		}
		gone.cfg.Targets = nil
		gone.start()
		c.eventually(10*time.Second, "it comes back by itself", whole(a, b, d, gone))
	})
}

// However old a partition is, it heals within seconds, in particular where one side is small.
func TestOldPartitionHeals(t *testing.T) {
	for _, split := range []int{1, 2} {
		t.Run(fmt.Sprint(split), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 63)
				c.tune = Tuning{ProbeInterval: 5 * time.Second, GossipInterval: time.Second} // quicker to simulate
				c.node().start()
				for range 3 {
					c.node("n1").start()
				}
				c.eventually(10*time.Second, "whole", whole(c.nodes...))
				var side []*memnet.Host
				for _, n := range c.nodes {
					if n.cfg.Targets = nil; len(side) < split {
						side = append(side, n.host)
					}
					if err := n.Disconnect([]string{"n1"}); err != nil && n != c.nodes[0] {
						t.Error(err)
					}
				}
				c.net.Partition(side)
				time.Sleep(40 * time.Minute) // all waits have grown to the longest
				c.net.Heal()
				t.Log("whole after", c.eventually(10*time.Second, "whole again", whole(c.nodes...)))
			})
		})
	}
}

// A target whose errors come by turns, as when the address resolution fails now and then, is told once a minute and not at each turn.
func TestTargetThatFlips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 92)
		a := c.node().start()
		x := &target{Target: Target{Host: "gone:6783"}}
		turns := []error{errNoRoute, ErrNotWeft}
		for i := range 60 {
			a.noteTarget(x, introduction{}, turns[i%2], time.Second)
			time.Sleep(5 * time.Second)
		}
		lines := 0
		for _, l := range c.log.FilterMessage("join").All() {
			if l.ContextMap()["peer"] == "gone:6783" {
				lines++
			}
		}
		if lines != 5 {
			t.Errorf("%d lines in 5 minutes", lines)
		}
	})
}
