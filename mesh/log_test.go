// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestGate(t *testing.T) {
	var g gate
	g.init(time.Minute)
	now := time.Unix(1000, 0)
	pass := func(key string, want bool, muted uint64) {
		t.Helper()
		if ok, n := g.pass(key, now); ok != want || n != muted {
			t.Errorf("%s at %v: %v, %d muted", key, now, ok, n)
		}
	}
	pass("a", true, 0)
	pass("a", false, 0)
	pass("b", true, 0)
	now = now.Add(59 * time.Second)
	pass("a", false, 0)
	now = now.Add(time.Second)
	pass("a", true, 2)
	// However many keys, no more than the bucket holds, and bounded memory.
	passed := 0
	for i := range 10_000 {
		if ok, _ := g.pass(fmt.Sprint(i), now); ok {
			passed++
		}
	}
	if passed > g.burst || len(g.keys) != g.limit || g.order.Len() != g.limit {
		t.Errorf("%d passed, %d keys, %d in order", passed, len(g.keys), g.order.Len())
	}
	now = now.Add(time.Hour)
	passed = 0
	for i := range 100 {
		if ok, _ := g.pass(fmt.Sprint("x", i), now); ok {
			passed++
		}
	}
	if passed != g.burst {
		t.Errorf("%d passed after a rest", passed)
	}
	var once gate
	once.init(0)
	for i := range 3 {
		if ok, _ := once.pass("k", now.Add(time.Duration(i)*1000*time.Hour)); ok != (i == 0) {
			t.Errorf("once: %d", i)
		}
	}
}

func TestSourceKey(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := sourceKey(netip.MustParseAddr(in)); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestLogBridge(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	l := memberlistLogger(zap.New(core), testGate())
	for range 1000 {
		l.Printf("[ERR] memberlist: Failed to decode ping request: EOF from=[fd77:6566:7400::%x]:1", 17)
		l.Printf("[ERR] memberlist: Failed to decode ping request: EOF from=10.1.1.2:%d", 1001)
		l.Printf("[DEBUG] memberlist: Stream connection from=10.1.1.1:4")
		l.Printf("[INFO] memberlist: Suspect %x has failed, no acks received", 77)
		l.Printf("[WARN] memberlist: Refuting a suspect message (from: x)")
		l.Printf("[WARN] memberlist: handler queue full, dropping message (%d) from=10.1.1.1:4", 4)
		l.Printf("[ERR] memberlist: something new %d", 5)
		l.Printf("[ERR] memberlist: something new %d", 6)
		l.Printf("no level at all")
	}
	var got []string
	for _, e := range logs.All() {
		got = append(got, fmt.Sprintf("%v %s %v", e.Level, e.Message, e.ContextMap()["from"]))
	}
	want := []string{
		"warn Failed to decode ping request: EOF from=[fd77:6566:7400::11]:1 0000000000000011",
		"warn Failed to decode ping request: EOF from=10.1.1.2:1001 10.1.1.2",
		"info handler queue full, dropping message (4) from=10.1.1.1:4 10.1.1.1",
		"warn something new 5 <nil>",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// Whatever members send, the log gets a few lines, which name who sent it, and memory stays.
func TestPacketJunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 50)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		junk := make([]byte, 1200)
		for i := range 20_000 {
			if _, err := rand.Read(junk[:i%1200]); err != nil {
				t.Fatal(err)
			}
			junk[0] = []byte{0, 0, 0, 1, 2, 9}[i%6]
			junk[1] = []byte{0, 1, 2, 4, 7, 12, 244}[i%7] // also memberlist's own messages, and its label
			from := Addr{Node: NodeID(1000 + i)}
			if i < 5000 {
				from.Node = 99
			}
			a.Deliver(junk[:i%1200], from, time.Now())
			if i%500 == 0 {
				synctest.Wait()
			}
			if i == 4999 {
				synctest.Wait()
				lines := c.log.FilterLevelExact(zapcore.WarnLevel).All()
				for _, l := range lines {
					if l.ContextMap()["from"] != NodeID(99).String() {
						t.Errorf("%s %v does not name the sender", l.Message, l.ContextMap())
					}
				}
				if n := len(lines); n == 0 || n > 25 {
					t.Errorf("%d lines for one source", n)
				}
			}
		}
		synctest.Wait()
		if n := c.log.FilterLevelExact(zapcore.WarnLevel).Len(); n > 25 {
			t.Errorf("%d lines", n)
		}
		time.Sleep(10 * time.Second)
		if !whole(a, b)() {
			t.Error("the nodes lost each other")
		}
	})
}

// Nobody on the way reads who is in the mesh, or what it shares.
func TestNothingInClear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 51)
		seen := map[string]int{}
		var found []string
		c.net.Tap(func(proto string, _, _ netip.AddrPort, b []byte) {
			seen[proto] += len(b)
			if proto == "udp" {
				return // the router seals it
			}
			for _, secret := range []string{"weatherproof", "10.32.0.0", "sesame", "\x01\x01\x02\x03\x00\x00", memberName(1, 1)[:16]} {
				if strings.Contains(string(b), secret) {
					found = append(found, proto+": "+secret)
				}
			}
		})
		a := c.node()
		a.cfg.Name = "weatherproof"
		a.start()
		b := c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		a.add("sesame", strings.Repeat("sesame", 1000))
		if err := b.Send(a.id, "sesame", []byte("sesame")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		c.net.Tap(nil)
		if seen["udp"] < 1000 || seen["tcp"] < 10_000 || len(found) != 0 {
			t.Errorf("%v bytes seen, in clear: %v", seen, found)
		}
	})
}

func testGate() *gate {
	g := new(gate)
	g.init(5 * time.Minute)
	return g
}
