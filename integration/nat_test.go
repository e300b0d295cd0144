// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestNATs builds a mesh of a public host and four behind NATs, two of which keep ports and two of which choose them: every pair of kinds
// is in it. Where both outer addresses can be known there is a direct path in the end, otherwise one through the public host.
func TestNATs(t *testing.T) {
	t.Parallel()
	for _, underlay := range []struct {
		name string
		host lab.HostOption
	}{{"v4", lab.OnlyV4}, {"v6", lab.OnlyV6}} {
		t.Run(underlay.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			wan := l.Switch("wan")
			kinds := []lab.NATKind{lab.KeepPorts, lab.KeepPorts, lab.RandomPorts, lab.RandomPorts}
			var homes []*lab.Segment
			var nats []*lab.Router
			for i, kind := range kinds {
				homes = append(homes, l.Switch(fmt.Sprint("home", i+1)))
				nats = append(nats, l.Router(fmt.Sprint("nat", i+1), homes[i], wan))
				nats[i].NAT(wan, kind)
			}
			hosts := []*lab.Host{l.Host("public", wan, underlay.host)}
			for i, name := range []string{"keep1", "keep2", "random1", "random2"} {
				hosts = append(hosts, l.Host(name, homes[i], underlay.host))
			}
			public, keep1, keep2, random1, random2 := hosts[0], hosts[1], hosts[2], hosts[3], hosts[4]
			workloads := launched(t, hosts, first(hosts))
			allReach(t, patience, workloads...)
			all := talk(t, l, pairs(workloads...)...)

			start := time.Now()
			direct(t, keep1, keep2)
			t.Logf("two hosts behind NATs that keep ports have a direct path after %v", time.Since(start).Round(time.Millisecond))
			for _, h := range hosts[1:] {
				direct(t, public, h)
			}
			for _, p := range [][2]*lab.Host{{random1, keep1}, {random1, keep2}, {random2, keep1}, {random2, keep2}, {random1, random2}} {
				relayed(t, p[0], p[1], public)
				explained(t, p[0], p[1])
			}
			moves(t, l, workloads[1], workloads[2], 4<<20)
			moves(t, l, workloads[3], workloads[1], 4<<20)
			moves(t, l, workloads[3], workloads[4], 4<<20)

			if underlay.name == "v4" {
				// Behind one that looks at addresses alone.
				home := l.Switch("home")
				nat := l.Router("nat", home, wan)
				cone := l.Host("cone", home, underlay.host)
				nat.Cone(wan, cone)
				cone.Join(public.Token(), hosts[:1], "--range", lab.DefaultRange)
				if err := cone.WaitReady(patience); err != nil {
					t.Fatal(err)
				}
				w := attach(t, 1, cone)[0]
				more := talk(t, l, [2]*lab.Workload{workloads[1], w}, [2]*lab.Workload{workloads[3], w})
				direct(t, keep1, cone)
				moves(t, l, w, workloads[1], 4<<20)
				moves(t, l, w, workloads[3], 4<<20)
				if p, err := peer(cone, random1); err != nil || p.Path != "udp" && p.Path != "relay" {
					t.Errorf("between a NAT that looks at addresses and one that chooses ports: %+v, %v", p, err)
				} else {
					t.Logf("between a NAT that looks at addresses and one that chooses ports: %s", p.Path)
				}
				more.stop(t)
			}

			// All paths stay as they are, while everything is used.
			quiet := time.Now()
			time.Sleep(aftermath)
			all.within(t, "paths through NATs that nobody touches", quiet, time.Second, hosts...)

			// A NAT that was switched off and on gives the second host another address, and knows nobody.
			for _, i := range []int{0, 2} {
				fault := time.Now()
				nats[i].Forget()
				all.within(t, "flows forgotten by the NAT of "+hosts[i+1].Name(), fault, rerouted, hosts...)
			}
			direct(t, keep1, keep2)
			direct(t, random1, public)
			all.stop(t)
			if err := seenAlive(hosts...); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHomeRouters has two hosts behind routers as they are at home: v4 cannot get through to each other, v6 can if both sides ask.
func TestHomeRouters(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	wan := l.Switch("wan")
	var homes []*lab.Segment
	var routers []*lab.Router
	for i := range 2 {
		homes = append(homes, l.Switch(fmt.Sprint("home", i+1)))
		routers = append(routers, l.Router(fmt.Sprint("router", i+1), homes[i], wan))
		routers[i].Home(wan, lab.RandomPorts)
	}
	hosts := []*lab.Host{l.Host("public", wan), l.Host("left", homes[0]), l.Host("right", homes[1])}
	for i, r := range routers {
		hosts[0].Link().RouteV6(homes[i], r)
		routers[1-i].Link(wan).RouteV6(homes[i], r)
	}
	workloads := launched(t, hosts, first(hosts))
	all := talk(t, l, pairs(workloads...)...)
	direct(t, hosts[1], hosts[2])
	for _, x := range [][2]*lab.Host{{hosts[1], hosts[2]}, {hosts[2], hosts[1]}} {
		if p, err := peer(x[0], x[1]); err != nil || !p.Endpoint.Addr().Is6() {
			t.Errorf("from %s to %s: %+v, %v; want a v6 address", x[0].Name(), x[1].Name(), p, err)
		}
	}
	moves(t, l, workloads[1], workloads[2], 4<<20)
	fault := time.Now()
	routers[0].Forget()
	all.within(t, "flows forgotten by a router", fault, rerouted, hosts...)
	all.stop(t)
}
