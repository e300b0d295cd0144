// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

func TestNATOf(t *testing.T) {
	own := addrList("192.0.2.1", "2001:db8::1")
	for _, c := range []struct {
		seen reach
		want api.NAT
	}{
		{reach{}, api.NATUnknown},
		{reach{observed: apList("192.0.2.1:6783", "[2001:db8::1]:6783")}, api.NATNone},
		{reach{observed: apList("[::ffff:192.0.2.1]:6783")}, api.NATNone},
		{reach{observed: apList("203.0.113.1:6783")}, api.NATCone},
		{reach{observed: apList("192.0.2.1:40000")}, api.NATCone},
		{reach{observed: apList("192.0.2.1:6783", "203.0.113.1:6783")}, api.NATCone},
		{reach{observed: apList("203.0.113.1:1", "203.0.113.1:2"), symmetric: true}, api.NATSymmetric},
	} {
		if got := natOf(c.seen, own, 6783); got != c.want {
			t.Errorf("%+v: %s", c.seen, got)
		}
	}
}

func TestBlockedIsBounded(t *testing.T) {
	var nodes []mesh.Node
	for i := range 30 {
		m := mesh.Node{}
		if i%2 == 0 {
			m.Blocked = fmt.Sprintf("UDP does not get through to 192.0.2.%02d", i/4)
		}
		nodes = append(nodes, m)
	}
	got := blocked(nodes[:9])
	if strings.Join(got, "|") != "UDP does not get through to 192.0.2.00|UDP does not get through to 192.0.2.01|UDP does not get through to 192.0.2.02" {
		t.Errorf("%q", got)
	}
	for i := range nodes {
		nodes[i].Blocked = fmt.Sprintf("UDP does not get through to 192.0.2.%02d", i)
	}
	if got := blocked(nodes); len(got) != mostBlocked+1 || got[mostBlocked] != "so it is with 22 nodes more" {
		t.Errorf("%q", got)
	}
}

// What the router knows of paths is shown with the names of nodes.
func TestPathsAreShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, func(cfg *Config) { cfg.RelayLimit = 5e6 })
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.start(n3, nil, "n1")
		c.ready(n2)
		c.ready(n3)
		key := func(m *machine) session.PublicKey { return m.node(t).state.identity.key().Public() }
		since := time.Now().Add(-time.Minute)
		n1.carrier.mu.Lock()
		n1.carrier.stats = []router.PeerStats{
			{Key: key(n2), State: router.Established, Path: router.PathUDP, RTT: 412 * time.Microsecond, Why: "answers, measured 0.4 ms", Endpoint: netip.AddrPortFrom(n2.addr, 6783)},
			{Key: key(n3), State: router.Idle, Path: router.PathRelay, Via: []uint64{uint64(n2.id(t)), 99}, Why: "no answer from 192.0.2.3:6783 since 14:02:11", PathSince: since, LastError: "it refuses"},
		}
		n1.carrier.reached = reachOf(router.Reach{Observed: apList("203.0.113.9:6783"), Links: []uint64{uint64(n2.id(t))}})
		n1.carrier.mu.Unlock()
		n1.carrier.config.onReach()
		peers := n1.service().Peers()
		p, q := peers[0], peers[1]
		if p.Path != "udp" || p.Via != nil || p.RTT != 412 || p.PathSince != nil || p.Reason != "answers, measured 0.4 ms" || p.SessionError != "" {
			t.Errorf("%+v", p)
		}
		if q.Path != "relay" || !slices.Equal(q.Via, []string{"n2", "0000000000000063"}) || q.RTT != 0 || !q.PathSince.Equal(since) || q.Reason != "no answer from 192.0.2.3:6783 since 14:02:11" || q.SessionError != "it refuses" {
			t.Errorf("%+v", q)
		}
		time.Sleep(time.Second)
		st := n1.service().Status()
		if r := st.Reach; !slices.Equal(r.Addresses, []string{"192.0.2.1:6783", "203.0.113.9:6783"}) || !slices.Equal(r.Observed, []string{"203.0.113.9:6783"}) ||
			r.NAT != api.NATCone || !slices.Equal(r.Links, []string{"n2"}) || fmt.Sprint(r.Relays) != "[{0000000000000063 1} {n2 1}]" {
			t.Errorf("%+v", r)
		}
		if *st.Relaying != (api.Relaying{Limit: 5e6}) {
			t.Errorf("%+v", st.Relaying)
		}
		got := n1.node(t).relaying(router.Stats{
			Relayed: router.Traffic{Packets: 3, Bytes: 400}, ControlRelayed: 5, Drops: map[router.Reason]uint64{router.DropRelayLimit: 7, router.DropControlLimit: 1, router.DropAuth: 9},
		})
		if *got != (api.Relaying{Limit: 5e6, Packets: 3, Bytes: 400, Control: 5, Dropped: 8}) {
			t.Errorf("%+v", got)
		}
		at := time.Now().Add(-time.Hour)
		change := changeOf(router.PathEvent{At: at, Node: uint64(n3.id(t)), Path: router.PathRelay, Via: []uint64{uint64(n2.id(t))}, Why: "why"})
		n1.carrier.config.onPath(change)
		c.eventually(10*time.Second, "the path is told", func() bool { return count(n1.happened(), "path n3 is reached by relay via n2: why") == 1 })
		for _, e := range n1.node(t).history.log.Recent(-1) {
			if e.Kind == "path" && !e.Time.Equal(at.Round(0)) {
				t.Errorf("%+v", e)
			}
		}
	})
}

// Where a node is not reached at all, its row says what does not get through, if that is known, and shows no measurement of what was.
func TestNoPath(t *testing.T) {
	none := router.PeerStats{Path: router.PathNone, RTT: time.Millisecond, Why: "no answer from 192.0.2.3:6783 since 14:02:11"}
	const blocked = "UDP does not get through to 192.0.2.3:6783, TCP does: let UDP port 6783 pass"
	for _, tt := range []struct {
		stats   router.PeerStats
		blocked string
		want    string
	}{
		{none, blocked, blocked},
		{none, "", none.Why},
		{router.PeerStats{Path: router.PathUDP, Why: "answers, measured 0.4 ms"}, "TCP does not get through", "answers, measured 0.4 ms"},
	} {
		var p api.Peer
		describePath(&p, tt.stats, nil, tt.blocked)
		if p.Reason != tt.want || p.RTT != 0 {
			t.Errorf("%+v, blocked %q: %+v", tt.stats, tt.blocked, p)
		}
	}
}
