// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"testing"
	"time"
)

// Two workloads that are connected by hand, over a route and over VXLAN, reach each other, at full size and no larger.
func TestByHand(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		mtu   int
		apart func(t *testing.T, hosts []*Host, subnets []netip.Prefix)
	}{
		{"route", 1500, func(_ *testing.T, hosts []*Host, subnets []netip.Prefix) {
			for i, h := range hosts {
				h.RouteByHand(subnets[1-i], hosts[1-i].Link().V4())
			}
		}},
		{"vxlan", 1450, func(_ *testing.T, hosts []*Host, subnets []netip.Prefix) {
			ends := []netip.Prefix{netip.MustParsePrefix("172.31.9.1/24"), netip.MustParsePrefix("172.31.9.2/24")}
			for i, h := range hosts {
				h.VXLANByHand("vx", 77, 4789, hosts[1-i].Link().V4(), ends[i], 1450)
				h.RouteByHand(subnets[1-i], ends[1-i].Addr())
			}
		}},
		{"vxlan over v6", 1430, func(_ *testing.T, hosts []*Host, subnets []netip.Prefix) {
			ends := []netip.Prefix{netip.MustParsePrefix("172.31.9.1/24"), netip.MustParsePrefix("172.31.9.2/24")}
			for i, h := range hosts {
				h.VXLANByHand("vx", 77, 4789, hosts[1-i].Link().V6(), ends[i], 1430)
				h.RouteByHand(subnets[1-i], ends[1-i].Addr())
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := New(t)
			lan := l.Switch("lan")
			hosts := []*Host{l.Host("a", lan), l.Host("b", lan)}
			subnets := []netip.Prefix{netip.MustParsePrefix("172.31.10.0/24"), netip.MustParsePrefix("172.31.11.0/24")}
			var ends []*Workload
			for i, h := range hosts {
				w := h.Workload("w")
				w.AttachByHand(subnets[i], 1500)
				ends = append(ends, w)
			}
			tt.apart(t, hosts, subnets)
			if _, err := ends[0].Reach(ends[1].V4, 5*time.Second); err != nil {
				t.Fatal(err)
			}
			if _, err := ends[0].Ping(Ping{To: ends[1].V4, Size: tt.mtu, DontFragment: true}); err != nil {
				t.Error(err)
			}
			if _, err := ends[0].Ping(Ping{To: ends[1].V4, Size: tt.mtu + 1, DontFragment: true, Timeout: never}); err == nil {
				t.Errorf("%d bytes pass, too", tt.mtu+1)
			}
		})
	}
}
