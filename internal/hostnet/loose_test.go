// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// Where the filter would be strict it becomes loose as long as a kernel path needs that, and nowhere else.
func TestLoose(t *testing.T) {
	for _, c := range []struct{ all, link, during string }{
		{"0", "0", "0"}, {"0", "1", "2"}, {"1", "0", "2"}, {"1", "1", "2"}, {"2", "1", "1"}, {"0", "2", "2"}, {"1", "2", "2"},
	} {
		h := newHost(t)
		const key = "net/ipv4/conf/eth0/rp_filter"
		setSysctl(t, h.ns, "net/ipv4/conf/all/rp_filter", c.all)
		setSysctl(t, h.ns, key, c.link)
		d := desired()
		expect := func(when, want string) {
			t.Helper()
			if got := sysctl(t, h.ns, key); got != want {
				t.Errorf("all %s, link %s: %s it is %s, want %s", c.all, c.link, when, got, want)
			}
		}
		h.apply(t, d)
		expect("without kernel paths", c.link)
		d.Loose = []string{"eth0", "absent"}
		planned, err := h.Plan(d, h.changes)
		must(t, err)
		if planned.has(key) != (c.link != c.during) {
			t.Errorf("all %s, link %s: planned %+v", c.all, c.link, planned)
		}
		expect("planned", c.link)
		for range 2 {
			h.apply(t, d)
			expect("with kernel paths", c.during)
		}
		// A daemon that starts, and does not know yet.
		d.Loose, d.Plain.Keep = nil, true
		h.Host = newAt(h.log, h.ns)
		h.apply(t, d)
		expect("after a start", c.during)
		d.Plain.Keep = false
		planned, err = h.Plan(d, h.changes)
		must(t, err)
		if planned.has(key) != (c.link != c.during) {
			t.Errorf("all %s, link %s: what is not given back yet must be kept: %+v", c.all, c.link, planned)
		}
		h.apply(t, d)
		expect("without kernel paths again", c.link)
		if h.changes.has(key) {
			t.Errorf("all %s, link %s: still recorded", c.all, c.link)
		}
		d.Loose = []string{"eth0"}
		h.apply(t, d)
		_, err = h.Remove(h.changes)
		must(t, err)
		expect("removed", c.link)
	}
}

// A link without an IPv4 address has no loose filter: it must have none.
func TestLooseWithoutAddress(t *testing.T) {
	h := newHost(t)
	const key = "net/ipv4/conf/eth0/rp_filter"
	setSysctl(t, h.ns, "net/ipv4/conf/all/rp_filter", "0")
	setSysctl(t, h.ns, key, "2")
	must(t, h.conn.AddrDel(up(t, h.conn, "eth0"), &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1).To4(), Mask: net.CIDRMask(24, 32)}}))
	d := desired()
	d.Loose = []string{"eth0"}
	h.apply(t, d)
	if got := sysctl(t, h.ns, key); got != "0" {
		t.Errorf("it is %s, want 0", got)
	}
	d.Loose = nil
	h.apply(t, d)
	if got := sysctl(t, h.ns, key); got != "2" {
		t.Errorf("it is %s, want 2 again", got)
	}
	setSysctl(t, h.ns, "net/ipv4/conf/all/rp_filter", "1")
	d.Loose = []string{"eth0"}
	res, err := h.Apply(d, h.changes)
	must(t, err)
	want := []string{"net.ipv4.conf.all.rp_filter is 1 and eth0 has no IPv4 address: IPv4 packets that come by it are dropped while the path to a peer changes; set it to 0"}
	if !slices.Equal(res.Warnings, want) {
		t.Errorf("warnings %q", res.Warnings)
	}
}
