// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"
)

func TestNamesFollowFromTheID(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.String().Draw(t, "id")
		name, host, inner := HostIf(id), hostMAC(id), workloadMAC(id)
		if len(name) != 14 || !isHostIf(name) || name != HostIf(id) {
			t.Fatalf("name %q", name)
		}
		for _, m := range [][]byte{host, inner} {
			if len(m) != 6 || m[0]&3 != 2 {
				t.Fatalf("%x is no locally administered unicast address", m)
			}
		}
		if bytes.Equal(host, inner) {
			t.Fatal("both ends have the same address")
		}
		other := rapid.String().Draw(t, "other")
		if (HostIf(other) == name) != (other == id) {
			t.Fatalf("%q and %q have the same name", id, other)
		}
	})
}

// These are on disks and in kernels: a change would orphan the interfaces of running workloads.
func TestNamesDoNotChange(t *testing.T) {
	id := "net:[4026532000]/eth0"
	if got := HostIf(id) + " " + hostMAC(id).String() + " " + workloadMAC(id).String(); got != "wefteebfc496b7 06:ee:bf:c4:96:b7 0a:ee:bf:c4:96:b7" {
		t.Error(got)
	}
}

func TestOwnership(t *testing.T) {
	id := "a"
	link := func(kind, name, alias string, mac []byte) netlink.Link {
		a := netlink.LinkAttrs{Name: name, Alias: alias, HardwareAddr: mac}
		switch kind {
		case "tun":
			return &netlink.Tuntap{LinkAttrs: a, Mode: netlink.TUNTAP_MODE_TUN}
		case "tap":
			return &netlink.Tuntap{LinkAttrs: a, Mode: netlink.TUNTAP_MODE_TAP}
		case "veth":
			return &netlink.Veth{LinkAttrs: a}
		}
		return &netlink.Dummy{LinkAttrs: a}
	}
	for _, c := range []struct {
		what string
		link netlink.Link
		ours bool
	}{
		{"workload", link("veth", HostIf(id), "weft: a", nil), true},
		{"workload with another MAC", link("veth", HostIf(id), "weft: a", []byte{2, 0, 0, 0, 0, 0}), true},
		{"no alias yet", link("veth", HostIf(id), "", hostMAC(id)), true},
		{"no alias, other MAC", link("veth", HostIf(id), "", workloadMAC(id)), false},
		{"others' alias", link("veth", HostIf(id), "web server", hostMAC(id)), false},
		{"others' name", link("veth", "weft-a", "weft: a", hostMAC(id)), false},
		{"upper case", link("veth", strings.ToUpper(HostIf(id)), "weft: a", nil), false},
		{"too long", link("veth", HostIf(id)+"0", "weft: a", nil), false},
		{"no veth", link("dummy", HostIf(id), "weft: a", hostMAC(id)), false},
		{"device", link("tun", "weft0", "weft: tunnel", nil), true},
		{"device of another name", link("tun", "overlay", "weft: tunnel", nil), true},
		{"device, no alias yet", link("tun", "weft0", "", nil), true},
		{"others' TUN", link("tun", "tun0", "", nil), false},
		{"others' weft0", link("tun", "weft0", "mine", nil), false},
		{"TAP", link("tap", "weft0", "weft: tunnel", nil), false},
	} {
		if got := ours(c.link); got != c.ours {
			t.Errorf("%s: %v, want %v", c.what, got, c.ours)
		}
	}
	if !vethOf(link("veth", HostIf(id), "weft: a", nil), id) || vethOf(link("veth", HostIf(id), "weft: b", nil), id) || vethOf(nil, id) {
		t.Error("vethOf is wrong")
	}
}
