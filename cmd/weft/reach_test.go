// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func TestReachInPlainWords(t *testing.T) {
	for _, c := range []struct {
		reach api.Reach
		relay api.Relaying
		want  string
	}{
		{
			api.Reach{NAT: api.NATUnknown},
			api.Relaying{Off: true, Limit: 1},
			"reached at: | NAT: not known yet: nobody has said where it sees this node | links: | relaying: nothing for others (--no-relay)",
		},
		{
			api.Reach{Addresses: []string{"192.0.2.1:6783"}, Observed: []string{"192.0.2.1:6783"}, NAT: api.NATNone, Links: strings.Split("abcdefghij", "")},
			api.Relaying{Packets: 2, Control: 1},
			"reached at: 192.0.2.1:6783 | NAT: none | links: a, b, c, d, e, f, g, h and 2 more | relaying: 2 packets, 0 B and 1 control datagram for others, no limit",
		},
		{
			api.Reach{Observed: []string{"203.0.113.9:1", "203.0.113.9:2"}, NAT: api.NATSymmetric, Links: []string{"n2"}, Relays: []api.Relay{{Node: "n2", Peers: 3}, {Node: "n3", Peers: 1}}},
			api.Relaying{Limit: 200e6},
			"reached at: | NAT: one that gives it another port for each host (symmetric), so nodes behind the like are reached by relay: others see it at 203.0.113.9:1, 203.0.113.9:2 | links: n2 | " +
				"relays used: n2 (for 3 nodes), n3 (for 1 node) | relaying: 0 packets, 0 B and 0 control datagrams for others, at most 200mbit",
		},
	} {
		var got []string
		for _, row := range reachRows(api.Status{Reach: &c.reach, Relaying: &c.relay}) {
			got = append(got, strings.TrimSpace(strings.Join(row, " ")))
		}
		if strings.Join(got, " | ") != c.want {
			t.Errorf("got  %s\nwant %s", strings.Join(got, " | "), c.want)
		}
	}
	if rows := reachRows(api.Status{}); rows != nil {
		t.Errorf("before anything is known: %v", rows)
	}
}

// A thousand nodes are a line each, and one that counts them.
func TestManyPeers(t *testing.T) {
	d := daemon()
	d.Nodes = nil
	for i := range 1000 {
		p := api.Peer{Name: fmt.Sprint("n", i), State: "alive", Path: "udp"}
		switch i % 100 {
		case 1:
			p.Path, p.Via = "relay", []string{"n0", "n3"}
		case 2:
			p.State, p.Path = "failed", "none"
		}
		d.Nodes = append(d.Nodes, p)
	}
	code, out, _ := run(t, apitest.Serve(t, d), "peers")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if code != exitDone || len(lines) != 1002 || lines[1001] != "1000 nodes: 990 alive, 10 failed; paths: 980 udp, 10 relay, 10 none" || !strings.Contains(lines[2], "relay via n0, n3") {
		t.Errorf("exit %d, %d lines, the last %q", code, len(lines), lines[len(lines)-1])
	}
}

func TestRoundTripTimes(t *testing.T) {
	for us, want := range map[int64]string{0: "", -1: "", 80: "0.1ms", 412: "0.4ms", 9999: "10.0ms", 12_600: "13ms", 1_200_000: "1200ms"} {
		if got := rtt(us); got != want {
			t.Errorf("rtt(%d) = %q, want %q", us, got, want)
		}
	}
}
