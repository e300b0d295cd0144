// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
)

func TestPsNamesContainers(t *testing.T) {
	id := strings.Repeat("0123456789ab", 5)
	at := time.Now().Add(-time.Minute)
	row := func(c *api.CNIOrigin) api.Workload {
		return api.Workload{
			ID: "cni/" + id + "/net1", Netns: "/run/netns/x", IfName: "net1", HostIf: "weft0123456789", State: "up", Attached: at, CNI: c,
			Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.7")},
		}
	}
	list := []api.Workload{
		row(nil), row(&api.CNIOrigin{Network: "net", ContainerID: id}), row(&api.CNIOrigin{Network: "net", ContainerID: "short"}),
		row(&api.CNIOrigin{Network: "net", ContainerID: id, PodName: "till"}),
		row(&api.CNIOrigin{Network: "net", ContainerID: id, PodName: "till", PodNamespace: "shop"}),
	}
	list[4].HostIf, list[4].AddressesOnly = "", true
	var out strings.Builder
	if err := showWorkloads(&out, list); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n")[1:] {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	const rest = " 10.32.0.7 /run/netns/x weft0123456789 up 1m00s"
	for i, want := range []string{
		list[0].ID + rest, "container 0123456789ab net1" + rest, "container short net1" + rest, "pod till net1" + rest,
		"pod shop/till net1" + strings.Replace(rest, "weft0123456789", "- (addresses only)", 1),
	} {
		if i >= len(got) || got[i] != want {
			t.Errorf("got  %q\nwant %q", got, want)
			break
		}
	}
}
