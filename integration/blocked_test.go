// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestNoTCP runs a mesh over a network that lets UDP alone pass, from the beginning, and one that lets TCP pass no longer.
func TestNoTCP(t *testing.T) {
	t.Parallel()
	for _, later := range []bool{false, true} {
		t.Run(fmt.Sprintf("later=%v", later), func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			lan := l.Switch("lan")
			var hosts []*lab.Host
			for i := range 4 {
				hosts = append(hosts, l.Host(fmt.Sprint("node", i+1), lan))
			}
			if !later {
				lan.BlockAll(lab.TCP(weftPort))
			}
			workloads := launched(t, hosts[:3], first(hosts))
			lan.BlockAll(lab.TCP(weftPort))
			allReach(t, patience, workloads...)
			calmFrom := steady(t, hosts[:3]...)

			// Someone joins, and what it does becomes known everywhere.
			hosts[3].Join(hosts[0].Token(), hosts[1:2], "--range", lab.DefaultRange)
			if err := hosts[3].WaitReady(patience); err != nil {
				t.Fatal(err)
			}
			workloads = append(workloads, attach(t, 2, hosts[3])...)
			allReach(t, patience, workloads...)
			for _, h := range hosts {
				for _, o := range hosts {
					if h != o {
						direct(t, h, o)
					}
				}
			}
			all := talk(t, l, pairs(workloads[:4]...)...)
			moves(t, l, workloads[3], workloads[0], 8<<20)
			quiet := time.Now()
			time.Sleep(calm() / 3)
			all.within(t, "over UDP alone", quiet, time.Second, hosts...)
			all.stop(t)
			eventually(t, patience, func() error { _, err := sameRing(hosts...); return err })
			calmFrom.still(t, hosts[:3])

			// A node comes back, and one leaves.
			hosts[2].Kill()
			hosts[2].Relaunch()
			if err := hosts[2].WaitReady(patience); err != nil {
				t.Fatal(err)
			}
			allReach(t, patience, workloads...)
			for _, w := range workloads[3:] {
				w.Detach()
			}
			done(t, hosts[3].Weft("leave"))
			eventually(t, patience, func() error { return seenAlive(hosts[:3]...) })
		})
	}
}

// TestNoUDP blocks UDP and leaves TCP open: between two hosts, who go by a third one, and to a host altogether, which is told why nothing
// works, as are those that cannot reach it; in a mesh that lives, and to one that wants to join.
func TestNoUDP(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	var hosts []*lab.Host
	for i := range 4 {
		hosts = append(hosts, l.Host(fmt.Sprint("node", i+1), lan))
	}
	one, two, three, shut := hosts[0], hosts[1], hosts[2], hosts[3]
	blockPair := func(a, b *lab.Host) {
		lan.Block(a.Link(), b.Link(), lab.UDP(weftPort))
		lan.Block(b.Link(), a.Link(), lab.UDP(weftPort))
	}
	blockPair(one, three)
	workloads := launched(t, hosts[:3], func(int) []*lab.Host { return []*lab.Host{two, one} })
	allReach(t, patience, workloads...)
	calmFrom := steady(t, hosts[:3]...)
	all := talk(t, l, pairs(workloads...)...)
	relayed(t, one, three, two)
	explained(t, one, three)
	all.stop(t)
	calmFrom.still(t, hosts[:3])

	// One that wants to join.
	blockAll := func() {
		for _, h := range hosts[:3] {
			blockPair(h, shut)
		}
	}
	blockAll()
	shut.Join(one.Token(), hosts[:1], "--range", lab.DefaultRange)
	address := one.Link().V4().String()
	eventually(t, patience, func() error {
		var s status
		if err := shut.Query(&s, "status"); err != nil {
			return err
		}
		said := append(slices.Clone(s.Reach.Blocked), s.WaitsFor)
		for _, target := range s.Targets {
			said = append(said, target.State)
		}
		for _, line := range said {
			if strings.Contains(line, "UDP does not get through") && strings.Contains(line, "TCP does") && strings.Contains(line, "UDP port 6783") &&
				(strings.Contains(line, address) || strings.Contains(line, one.Name())) {
				t.Logf("told: %s", line)
				return nil
			}
		}
		return fmt.Errorf("%s does not say that UDP does not get through to %s and TCP does: %q", shut.Name(), address, said)
	})

	// And one that was in the mesh.
	lan.Heal()
	if err := shut.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	workloads = append(workloads, attach(t, 1, shut)...)
	allReach(t, patience, workloads...)
	blockAll()
	named := func(h, to *lab.Host) {
		t.Helper()
		eventually(t, found, func() error {
			_, _ = workloads[0].Ping(lab.Ping{To: workloads[3].V4, Timeout: silence})
			p, err := peer(h, to)
			if err != nil {
				return err
			}
			if p.Path != "none" || !strings.Contains(p.Reason, "UDP") || !strings.Contains(p.Reason, "TCP") {
				return fmt.Errorf("%s says of %s: %+v", h.Name(), to.Name(), p)
			}
			return nil
		})
	}
	named(one, shut)
	eventually(t, found, func() error {
		said := strings.Join(ask[status](t, shut, "status").Reach.Blocked, "\n")
		if !strings.Contains(said, "UDP does not get through to") || !strings.Contains(said, "let UDP port 6783 pass") {
			return fmt.Errorf("%s is not told that UDP does not get through: %q", shut.Name(), said)
		}
		return nil
	})
	lan.Heal()
	allReach(t, found, workloads...)
}
