// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

// TestKernelPathsLacking starts a node where something that kernel paths need is not to be had. What is lacking is named, the other paths work, and
// nothing is open that should not be.
func TestKernelPathsLacking(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, h *lab.Host)
		paths   string
		want    string
		says    string
	}{
		{"no nftables", func(t *testing.T, h *lab.Host) { launchWithout(t, h, withoutNFTables) }, "direct,vxlan,udp", "udp", "nftables"},
		{"somebody else's device of that name", func(t *testing.T, h *lab.Host) {
			foreign := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "end"}
			foreign.Name = "weft-vx4"
			if err := h.Netlink().LinkAdd(foreign); err != nil {
				t.Fatal(err)
			}
		}, "vxlan,udp", "udp", "weft-vx4"},
		{"somebody else's VXLAN of that number and port", func(t *testing.T, h *lab.Host) {
			h.VXLANByHand("theirs", 6783, vxlanPort, h.Link().V4().Next(), netip.MustParsePrefix("172.31.9.1/24"), 1450)
		}, "vxlan,udp", "udp", "vxlan"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			lan := l.Switch("lan")
			hosts := []*lab.Host{l.Host("whole", lan, lab.OnlyV4), l.Host("lacking", lan, lab.OnlyV4)}
			tt.prepare(t, hosts[1])
			links := func() (all []string) {
				for _, line := range snapshot(t, hosts[1].Namespace) {
					if strings.HasPrefix(line, "link weft-vx4 veth") || strings.HasPrefix(line, "link theirs") {
						all = append(all, line)
					}
				}
				return all
			}
			before := links()
			ends := launchedEach(t, hosts, func(int) []string { return []string{"--trusted-subnets", underlays, "--paths", tt.paths} })
			allReach(t, patience, ends...)
			for _, p := range eachOther(hosts) {
				staysOn(t, tt.want, p[0], p[1], 2*silence)
			}
			said := done(t, hosts[1].Weft("status"))
			if !strings.Contains(said, tt.says) {
				t.Errorf("the status does not name %s:\n%s", tt.says, said)
			}
			if after := links(); !slices.Equal(before, after) {
				t.Errorf("what is somebody else's was changed: %v", diff(before, after))
			}
			moves(t, l, ends[0], ends[1], 1<<20)
		})
	}
}
