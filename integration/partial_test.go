// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// calm is for how long a mesh is watched that should have no news.
func calm() time.Duration {
	if *soak {
		return 5 * time.Minute
	}
	return time.Minute
}

// TestChain has five hosts of which only neighbours reach each other: on one switch that drops everything between others, and with
// a switch between each two, where each has two addresses, of which a host two steps away can use none.
func TestChain(t *testing.T) {
	t.Parallel()
	const length = 5
	for _, tt := range []struct {
		name  string
		build func(*lab.Lab) []*lab.Host
	}{
		{"cuts", func(l *lab.Lab) []*lab.Host {
			var hosts []*lab.Host
			lan := l.Switch("lan")
			for i := range length {
				hosts = append(hosts, l.Host(fmt.Sprint("node", i+1), lan))
				for _, h := range hosts[:max(i-1, 0)] {
					lan.Cut(h.Link(), hosts[i].Link())
				}
			}
			return hosts
		}},
		{"segments", func(l *lab.Lab) []*lab.Host {
			var hosts []*lab.Host
			for i := range length {
				hosts = append(hosts, l.Host(fmt.Sprint("node", i+1), l.Switch(fmt.Sprint("lan", i+1)), lab.OnlyV6))
				if i > 0 {
					hosts[i].Plug(hosts[i-1].Link().Segment()) // it is on the switch of the previous one, too
				}
			}
			return hosts
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			hosts := tt.build(l)
			start := time.Now()
			workloads := launched(t, hosts, func(i int) []*lab.Host { return hosts[i-1 : i] })
			allReach(t, patience, workloads...)
			t.Logf("a chain of %d is up %v after the first launch", length, time.Since(start).Round(time.Millisecond))
			calmFrom := steady(t, hosts...)

			ends := talk(t, l, [2]*lab.Workload{workloads[0], workloads[length-1]}, [2]*lab.Workload{workloads[3], workloads[1]})
			for i, a := range hosts {
				for j, b := range hosts[:i] {
					if i-j == 1 {
						direct(t, a, b)
						continue
					}
					if via := relayed(t, a, b, hosts[j+1:i]...); len(via) != i-j-1 {
						t.Errorf("from %s to %s by %v", a.Name(), b.Name(), via)
					}
				}
			}
			explained(t, hosts[0], hosts[2])
			explained(t, hosts[4], hosts[0])
			moves(t, l, workloads[0], workloads[length-1], 8<<20)
			moves(t, l, workloads[length-1], workloads[0], 8<<20)

			quiet := time.Now()
			time.Sleep(calm())
			ends.within(t, "along a chain that nobody touches", quiet, time.Second, hosts...)
			ends.stop(t)
			calmFrom.still(t, hosts)
			allReach(t, patience, workloads...)
		})
	}
}

// TestHub has four hosts that reach one in the middle and not each other.
func TestHub(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	hosts := []*lab.Host{l.Host("hub", lan)}
	for i := range 4 {
		spoke := l.Host(fmt.Sprint("spoke", i+1), lan)
		for _, h := range hosts[1:] {
			lan.Cut(h.Link(), spoke.Link())
		}
		hosts = append(hosts, spoke)
	}
	workloads := launched(t, hosts, first(hosts))
	allReach(t, patience, workloads...)
	calmFrom := steady(t, hosts...)
	all := talk(t, l, pairs(workloads[1:]...)...)
	for i, a := range hosts[1:] {
		direct(t, hosts[0], a)
		for _, b := range hosts[1 : i+1] {
			relayed(t, a, b, hosts[0])
		}
	}
	explained(t, hosts[1], hosts[4])
	moves(t, l, workloads[1], workloads[4], 8<<20)
	quiet := time.Now()
	time.Sleep(calm() / 3)
	all.within(t, "over a hub that nobody touches", quiet, time.Second, hosts...)

	// While the hub is away nobody can do anything; nothing has to be done when it is back.
	hosts[0].Kill()
	time.Sleep(time.Second)
	hosts[0].Relaunch()
	if err := hosts[0].WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	allReach(t, patience, workloads...)
	all.stop(t)
	calmFrom.still(t, hosts, excused(hosts[0], hosts)...)
}

// excused are the pairs of a host with all others, in both directions.
func excused(h *lab.Host, hosts []*lab.Host) (out [][2]*lab.Host) {
	for _, o := range hosts {
		out = append(out, [2]*lab.Host{h, o}, [2]*lab.Host{o, h})
	}
	return out
}

// TestOneWay has a host whose packets reach another one, and that hears nothing of it: from the beginning, and later, under traffic.
func TestOneWay(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	hosts := []*lab.Host{l.Host("both", lan), l.Host("heard", lan), l.Host("deaf", lan)}
	both, heard, deaf := hosts[0], hosts[1], hosts[2]
	toDeaf := func() { lan.Block(heard.Link(), deaf.Link(), lab.Traffic{}) }
	toDeaf()
	workloads := launched(t, hosts, first(hosts))
	allReach(t, patience, workloads...)
	calmFrom := steady(t, hosts...)
	all := talk(t, l, [2]*lab.Workload{workloads[1], workloads[2]}, [2]*lab.Workload{workloads[2], workloads[1]}, [2]*lab.Workload{workloads[0], workloads[2]})
	relayed(t, heard, deaf, both)
	explained(t, heard, deaf)
	explained(t, deaf, heard)
	direct(t, both, heard)
	direct(t, both, deaf)
	moves(t, l, workloads[1], workloads[2], 8<<20)
	moves(t, l, workloads[2], workloads[1], 8<<20)
	quiet := time.Now()
	time.Sleep(calm() / 3)
	all.within(t, "in one direction from the beginning", quiet, time.Second, hosts...)

	lan.Heal()
	direct(t, heard, deaf)
	fault := time.Now()
	toDeaf()
	// The one that hears nothing asks after a second, by which the other one learns of it; a second later both go another way.
	all.within(t, "in one direction all at once", fault, 3*time.Second, hosts...)
	relayed(t, heard, deaf, both)
	all.stop(t)
	calmFrom.still(t, hosts)
}
