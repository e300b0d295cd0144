// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"testing"

	"github.com/vishvananda/netlink"
)

func TestAsTUN(t *testing.T) {
	for _, c := range []struct {
		link netlink.Link
		want bool
	}{
		{&netlink.Tuntap{Mode: netlink.TUNTAP_MODE_TUN}, true},
		{&netlink.Tuntap{}, true}, // an old kernel
		{&netlink.Tuntap{Mode: netlink.TUNTAP_MODE_TAP}, false},
		{&netlink.Veth{}, false},
	} {
		if _, ok := asTUN(c.link); ok != c.want {
			t.Errorf("%+v: %v", c.link, ok)
		}
	}
}
