// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

func TestPathTeller(t *testing.T) {
	h := &history{told: map[mesh.NodeID]told{}, dirty: map[mesh.NodeID]bool{}}
	start := time.Now()
	names := map[mesh.NodeID]string{2: "n2", 3: "n3", 5: "n5"}
	a, b := netip.MustParseAddrPort("192.0.2.3:6783"), netip.MustParseAddrPort("[2001:db8::3]:6783")
	teller := func() *pathTeller {
		return &pathTeller{h: h, budget: map[mesh.NodeID]budget{}, held: map[mesh.NodeID]pathChange{}}
	}
	tell := func(pt *pathTeller, at time.Duration, changes ...pathChange) string {
		var got []string
		for _, e := range pt.tell(changes, names, start.Add(at)) {
			got = append(got, fmt.Sprintf("%s: %s (%s)", e.Node, e.Text, e.Cause))
		}
		return strings.Join(got, ", ")
	}
	direct := pathChange{node: 3, path: pathDirect, addr: a, why: "answers, measured 0.4 ms"}
	other := pathChange{node: 3, path: pathDirect, addr: b, why: "answers, measured 0.2 ms"}
	relay := pathChange{node: 3, path: pathRelay, via: []mesh.NodeID{2, 7}, why: "no answer from 192.0.2.3:6783 since 14:02:11"}
	none := pathChange{node: 3, path: pathNone, why: "nobody answers"}
	pt := teller()
	for i, step := range []struct {
		changes []pathChange
		want    string
	}{
		{[]pathChange{direct}, ""}, // as expected
		{[]pathChange{relay}, "n3: n3 is reached by relay via n2, 0000000000000007 (no answer from 192.0.2.3:6783 since 14:02:11)"},
		{[]pathChange{relay}, ""},
		{[]pathChange{{node: 9, path: pathRelay, via: []mesh.NodeID{2}}}, ""}, // gone since
		{[]pathChange{none}, "n3: n3 cannot be reached (nobody answers)"},
		{[]pathChange{other}, "n3: n3 is reached directly at [2001:db8::3]:6783 (answers, measured 0.2 ms)"},
		{[]pathChange{{node: 5, path: pathRelay, via: []mesh.NodeID{2}, why: "w"}}, "n5: n5 is reached by relay via n2 (w)"},
	} {
		if got := tell(pt, time.Minute*time.Duration(i), step.changes...); got != step.want {
			t.Errorf("step %d: got %s\nwant %s", i, got, step.want)
		}
	}
	// A restart repeats nothing.
	pt = teller()
	if got := tell(pt, time.Hour, other); got != "" {
		t.Errorf("repeated: %s", got)
	}
	// A path that flaps is told now and then, and where it comes to rest.
	events := 0
	for i := range 600 {
		c := direct
		if i%2 == 0 {
			c = relay
		}
		if tell(pt, time.Hour+time.Duration(i)*100*time.Millisecond, c) != "" {
			events++
		}
	}
	if events < pathBurst || events > pathBurst+7 {
		t.Errorf("%d events in a minute", events)
	}
	tell(pt, 2*time.Hour)
	if got := h.get(3).Path; got != direct.key() || len(pt.held) != 0 {
		t.Errorf("at rest it is said to be %s", got)
	}
	delete(names, 3)
	tell(pt, 3*time.Hour)
	if len(pt.budget) != 0 {
		t.Errorf("budgets of nodes that are gone: %v", pt.budget)
	}
}

// A relay's death changes the paths to many nodes, which is one event, and the router never waits.
func TestPathsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.start(n3, nil, "n1")
		c.ready(n2)
		c.ready(n3)
		note := n1.carrier.config.onPath
		for range 1000 {
			note(pathChange{node: n3.id(t), path: pathDirect, addr: netip.AddrPortFrom(n3.addr, 6783)})
			note(pathChange{node: n3.id(t), path: pathRelay, via: []mesh.NodeID{n2.id(t)}, why: "no answer from 192.0.2.3:6783 since 14:02:11"})
		}
		c.eventually(10*time.Second, "the path is told", func() bool {
			return count(n1.happened(), "path n3 is reached by relay via n2: no answer from 192.0.2.3:6783 since 14:02:11") == 1
		})
		note(pathChange{node: n3.id(t), path: pathDirect, addr: netip.AddrPortFrom(n3.addr, 6783), why: "answers, measured 0.4 ms"})
		c.eventually(10*time.Second, "the way back is told", func() bool {
			return count(n1.happened(), "path n3 is reached directly at 192.0.2.3:6783: answers, measured 0.4 ms") == 1
		})
		if n := count(n1.happened(), "path "); n != 2 {
			t.Errorf("%d events of paths", n)
		}
		// What changed while this node was down is told some time after its start, as the router tells of no change.
		note(pathChange{node: n3.id(t), path: pathNone, why: "no answer"})
		c.eventually(10*time.Second, "the end is told", func() bool { return count(n1.happened(), "path n3 cannot be reached: no answer") == 1 })
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		keys := map[mesh.NodeID]session.PublicKey{}
		for _, m := range n1.node(t).engines().mesh.Nodes() {
			keys[m.ID] = session.PublicKey(m.PublicKey)
		}
		n1.carrier.mu.Lock()
		n1.carrier.stats = []router.PeerStats{
			{Key: keys[n2.id(t)], Path: pathDirect, RTT: time.Millisecond, Endpoint: netip.AddrPortFrom(n2.addr, 6783)},
			{Key: keys[n3.id(t)], Path: pathDirect, RTT: time.Millisecond, Endpoint: netip.AddrPortFrom(n3.addr, 6783), Why: "answers, measured 1.0 ms"},
		}
		n1.carrier.mu.Unlock()
		c.eventually(20*time.Second, "the path is told", func() bool {
			return count(n1.happened(), "path n3 is reached directly at 192.0.2.3:6783: answers, measured 1.0 ms") == 1
		})
		time.Sleep(time.Minute)
		if n := count(n1.happened(), "path "); n != 4 {
			t.Errorf("%d events of paths", n)
		}
		n3.net.Dark(true)
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "n2 has stopped", func() bool { return count(n1.happened(), "stop n2") == 1 })
		note = n1.carrier.config.onPath
		note(pathChange{node: n2.id(t), path: pathNone, why: "no answer from n2"}) // as is to be expected
		note(pathChange{node: n3.id(t), path: pathNone, why: "no answer from n3"})
		c.eventually(10*time.Second, "the end of n3 is told", func() bool { return count(n1.happened(), "path n3 cannot be reached: no answer from n3") == 1 })
		if n := count(n1.happened(), "path "); n != 5 {
			t.Errorf("%d events of paths:\n%s", n, strings.Join(n1.happened(), "\n"))
		}
	})
}
