// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestRenumbered changes the addresses of hosts under traffic: to others of the same subnet, to another subnet and back, the founder included, whose
// address the others were told to join by, and in the end all but one at once. Of each two hosts one talks and the other one only answers, so a host
// that is reached no longer has nothing to say by itself.
func TestRenumbered(t *testing.T) {
	t.Parallel()
	for _, underlay := range []struct {
		name string
		host []lab.HostOption
	}{{"v4", []lab.HostOption{lab.OnlyV4}}, {"v6", []lab.HostOption{lab.OnlyV6}}, {"both", nil}} {
		t.Run(underlay.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			lan, other := l.Switch("lan"), l.Switch("other")
			l.Router("core", lan, other)
			var hosts []*lab.Host
			for i := range 3 {
				hosts = append(hosts, l.Host(fmt.Sprint("node", i+1), lan, underlay.host...))
			}
			workloads := launched(t, hosts, first(hosts))
			allReach(t, patience, workloads...)
			for i, a := range hosts {
				for _, b := range hosts[:i] {
					direct(t, a, b)
				}
			}
			calmFrom := steady(t, hosts...)
			all := talk(t, l, pairs(workloads...)...)
			for _, step := range []struct {
				name   string
				change func()
			}{
				{"another address", func() { hosts[1].Link().Renumber() }},
				{"another subnet", func() { hosts[1].Link().Move(other) }},
				{"the founder in another subnet", func() { hosts[0].Link().Move(other) }},
				{"back again", func() { hosts[1].Link().Move(lan) }},
			} {
				step.change()
				// The time counts from when the host can be reached again by anybody, which is not up to the mesh.
				since := time.Now()
				all.within(t, step.name, since, rerouted, hosts...)
			}
			all.stop(t)
			calmFrom.still(t, hosts)

			// All but one at once, which is where they find each other again.
			for _, h := range hosts[1:] {
				h.Link().Renumber()
			}
			allReach(t, patience, workloads...)
			for i, a := range hosts {
				for _, b := range hosts[:i] {
					direct(t, a, b)
				}
			}
		})
	}
}

// TestFasterFamily has two hosts reach each other by v4 and by v6, of which one takes longer, and then the other one.
func TestFasterFamily(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 2)
	a, b := m.Hosts()[0], m.Hosts()[1]
	const slow = 15 * time.Millisecond
	all := talk(t, m.Lab, [2]*lab.Workload{m.Workloads[0], m.Workloads[1]})
	for _, tt := range []struct {
		name  string
		delay lab.Delay
		want  func(netip.Addr) bool
	}{
		{"v6 is faster", lab.Delay{V4: slow}, netip.Addr.Is6},
		{"v4 is faster", lab.Delay{V6: slow}, netip.Addr.Is4},
	} {
		b.Link().Delay(tt.delay)
		since := time.Now()
		for _, x := range [][2]*lab.Host{{a, b}, {b, a}} {
			eventually(t, found, func() error {
				p, err := peer(x[0], x[1])
				if err == nil && (p.Path != "udp" || !tt.want(p.Endpoint.Addr()) || p.RTT <= 0 || p.RTT > float64(slow/time.Microsecond)) {
					err = fmt.Errorf("%s: from %s to %s: %+v", tt.name, x[0].Name(), x[1].Name(), p)
				}
				return err
			})
		}
		t.Logf("%s: used on both sides after %v", tt.name, time.Since(since).Round(time.Millisecond))
	}
	all.stop(t)
}
