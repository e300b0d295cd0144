// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/mesh/memnet"
)

// partial starts n nodes of which only those reach each other, by UDP and TCP, that linked says.
// Each joins the first node before it that it reaches.
func partial(c *cluster, n int, linked func(i, j int) bool) {
	index := map[*memnet.Host]int{}
	for i := range n {
		var targets []string
		for j := range i {
			if linked(i, j) && targets == nil {
				targets = []string{fmt.Sprintf("n%d", j+1)}
			}
		}
		index[c.node(targets...).host] = i
	}
	c.net.Filter(func(_ string, from, to *memnet.Host) bool {
		i, j := index[from], index[to]
		return linked(max(i, j), min(i, j))
	})
	for _, x := range c.nodes {
		x.start()
		time.Sleep(500 * time.Millisecond)
	}
}

// TestPartialMesh: where the router finds a path, everybody is a member like any other: alive everywhere,
// and so without a break, with equal states, and within reach of messages.
func TestPartialMesh(t *testing.T) {
	for name, linked := range map[string]func(i, j int) bool{
		"chain": func(i, j int) bool { return i-j == 1 },
		"hub":   func(_, j int) bool { return j == 0 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 70)
				c.net.Delay(time.Millisecond, 5*time.Millisecond)
				partial(c, 5, linked)
				c.eventually(15*time.Second, "all see each other", whole(c.nodes...))
				c.eventually(15*time.Second, "all agree", agreed(c.nodes...))
				c.log.TakeAll()
				big := strings.Repeat("x", 40<<10)
				for i := range 300 {
					if i%30 == 0 {
						c.nodes[i%5].add(fmt.Sprint("item ", i))
					}
					if i == 100 {
						c.nodes[4].add(big)
					}
					if i%50 == 0 {
						for _, o := range c.nodes[:4] {
							if err := c.nodes[4].Send(o.id, "ch", []byte(fmt.Sprint(i))); err != nil {
								t.Error(err)
							}
						}
					}
					time.Sleep(time.Second)
					if !whole(c.nodes...)() {
						t.Fatalf("after %d s somebody is not alive to all", i)
					}
				}
				c.eventually(15*time.Second, "all agree still", agreed(c.nodes...))
				for _, n := range c.nodes[:4] {
					if got := len(n.inbox()); got != 6 {
						t.Errorf("%s got %d messages of 6", n.cfg.Name, got)
					}
					if !n.bag.has(big) {
						t.Errorf("%s lacks the large change", n.cfg.Name)
					}
				}
				if n := c.logged("node does not answer"); n != 0 {
					t.Errorf("a node was lost %d times", n)
				}
				for _, n := range c.nodes {
					for _, k := range n.Nodes() {
						if k.Blocked != "" {
							t.Errorf("%s says of %s: %s", n.cfg.Name, k.Name, k.Blocked)
						}
					}
				}
			})
		})
	}
}

// Without TCP between any two, everything goes over UDP, and the operator is told.
func TestTCPBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 71)
		c.net.Delay(time.Millisecond, 5*time.Millisecond)
		c.net.Filter(func(proto string, _, _ *memnet.Host) bool { return proto == "udp" })
		c.node().start()
		for range 3 {
			c.node("n1").start()
		}
		c.eventually(10*time.Second, "all see each other", whole(c.nodes...))
		big := strings.Repeat("x", 300<<10)
		c.nodes[2].add(big)
		if err := c.nodes[3].Send(c.nodes[0].id, "ch", []byte("hello")); err != nil {
			t.Error(err)
		}
		c.eventually(20*time.Second, "all agree", agreed(c.nodes...))
		c.eventually(5*time.Second, "the message is there", func() bool { return len(c.nodes[0].inbox()) == 1 })
		const want = "TCP does not get through to 192.168.0.1:6783, UDP does: let TCP port 6783 pass"
		c.eventually(30*time.Second, "it is told", func() bool {
			return c.nodes[1].Targets()[0].State == "joined; "+want && blockedAt(c.nodes[1], c.nodes[0]) == want
		})
		for range 120 {
			time.Sleep(time.Second)
			if !whole(c.nodes...)() {
				t.Fatal("somebody is not alive to all")
			}
		}
		// TCP is taken again when it works again.
		c.net.Filter(nil)
		c.eventually(15*time.Minute, "nothing is blocked", func() bool {
			time.Sleep(5 * time.Second)
			c.nodes[1].add(strings.Repeat(time.Now().String(), 50))
			return c.nodes[1].Targets()[0].State == "joined" && blockedAt(c.nodes[1], c.nodes[0]) == ""
		})
	})
}

func blockedAt(n, of *testNode) string {
	i := slices.IndexFunc(n.Nodes(), func(k Node) bool { return k.ID == of.id })
	if i < 0 {
		return "unknown"
	}
	return n.Nodes()[i].Blocked
}

// Nobody says that a firewall is to blame for TCP where a node was dead for a while.
func TestDeadIsNotBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 73)
		c.net.Delay(time.Millisecond, 5*time.Millisecond)
		a := c.node().start()
		for range 3 {
			c.node("n1").start()
		}
		c.eventually(10*time.Second, "all see each other", whole(c.nodes...))
		watch := func(d time.Duration) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				for _, n := range c.nodes[1:] {
					if b := blockedAt(n, a); b != "" || strings.Contains(n.Targets()[0].State, "let ") {
						t.Fatalf("%s, %v before the end, has %q and %q", n.cfg.Name, time.Until(end), b, n.Targets()[0].State)
					}
				}
			}
		}
		for _, dead := range []time.Duration{2 * time.Second, 30 * time.Second} {
			a.kill()
			watch(dead)
			a.start()
			watch(time.Minute)
			c.eventually(time.Second, "all see each other", whole(c.nodes...))
		}
	})
}

// Where UDP is filtered and TCP is not, the mesh holds together and says what is to be done.
func TestUDPBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 72)
		c.net.Filter(func(proto string, _, _ *memnet.Host) bool { return proto == "tcp" })
		a, b := c.node().start(), c.node("n1").start()
		const want = "UDP does not get through to 192.168.0.1:6783, TCP does: let UDP port 6783 pass"
		c.eventually(20*time.Second, "it is told", func() bool {
			return b.Targets()[0].State == "joined; "+want && blockedAt(b, a) == want && blockedAt(a, b) != ""
		})
		if n := c.log.FilterMessage("blocked").Len(); n != 2 {
			t.Errorf("%d lines about it", n)
		}
		time.Sleep(5 * time.Minute)
		if n := c.log.FilterMessage("blocked").Len(); n > 6 {
			t.Errorf("%d lines about it", n)
		}
		c.net.Filter(nil)
		c.eventually(10*time.Second, "all is well", func() bool {
			return whole(a, b)() && b.Targets()[0].State == "joined" && blockedAt(b, a) == "" && blockedAt(a, b) == ""
		})
	})
}

// A copy is found out, too, where the first one is reached by UDP or through others only.
func TestCloneBehindRelays(t *testing.T) {
	for name, filter := range map[string]func(proto string, i, j byte) bool{
		"UDP":    func(proto string, i, j byte) bool { return proto == "udp" || i != 2 && j != 2 },
		"relays": func(_ string, i, j byte) bool { return i != 2 && j != 2 || i == 3 || j == 3 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 73)
				last := func(h *memnet.Host) byte { return h.Addr().As4()[3] }
				c.net.Filter(func(proto string, from, to *memnet.Host) bool { return filter(proto, last(from), last(to)) })
				a, b, d := c.node(), c.node("n3"), c.node("n1")
				a.start()
				d.start()
				b.start()
				c.eventually(15*time.Second, "whole", whole(a, b, d))
				twin := c.node("n1")
				twin.cfg.Identity = b.cfg.Identity
				twin.start()
				time.Sleep(30 * time.Second)
				if s := twin.Targets()[0]; s.Joined || !strings.Contains(s.State, "weft reset") {
					t.Errorf("%+v", s)
				}
				if c.logged("turned away a node whose id another living node has") == 0 {
					t.Error("nobody says so")
				}
				c.eventually(15*time.Second, "the first one stays", whole(a, b, d))
			})
		})
	}
}

// A node that moves while it runs is heard at its new address, and nobody takes it for another.
func TestMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 74)
		a, b, d := c.node().start(), c.node("n1").start(), c.node("n1").start()
		c.eventually(3*time.Second, "whole", whole(a, b, d))
		moved := netip.MustParseAddr("192.168.7.7")
		c.log.TakeAll()
		d.host.Renumber(moved)
		if err := d.SetRecord(func(r *Record) { r.Endpoints = []netip.AddrPort{netip.AddrPortFrom(moved, testPort)} }); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			time.Sleep(time.Second)
			if !whole(a, b, d)() {
				t.Fatal("it was lost")
			}
		}
		if err := a.Send(d.id, "ch", []byte("hello")); err != nil {
			t.Error(err)
		}
		c.eventually(5*time.Second, "streams reach it", func() bool { return len(d.inbox()) == 1 })
		if n := c.logged("node does not answer"); n != 0 {
			t.Errorf("it was lost %d times", n)
		}
	})
}
