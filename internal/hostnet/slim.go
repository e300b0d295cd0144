// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// slim takes away what the kernel gives each interface that comes up, and the host's end of a workload has no use for: a route to IPv6 multicast by it. All of
// those are one list, which the kernel goes through for each that is added, and all routes of IPv6, of which they would be half, whenever an interface comes up or goes.
// The host's end has no IPv6 address to send from, and who has joined a group there has nobody to hear. One that stays, or comes later, costs time only, until the next Apply: so
// errors are none.
func (l *line) slim(index int) { _, _ = l.do(delMulticast(index)) }

// slim is that of line.
func (c conn) slim(index int) {
	_ = c.RouteDel(&netlink.Route{Dst: ipNet(multicast6()), Table: unix.RT_TABLE_LOCAL, LinkIndex: index, Family: netlink.FAMILY_V6})
}

// slim takes away those that have come since, as when somebody took an interface down and brought it up, or that were there before Weft knew to take them away.
func (m *mender) slim() error {
	list, err := dump(func() ([]netlink.Route, error) {
		of := netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(multicast6())}
		return m.c.RouteListFiltered(netlink.FAMILY_V6, &of, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	})
	if err != nil {
		return fmt.Errorf("listing routes to multicast groups: %w", err)
	}
	own := make(map[int]bool, len(m.present))
	for _, w := range m.present {
		own[w.index] = true
	}
	for _, r := range list {
		if own[r.LinkIndex] {
			m.c.slim(r.LinkIndex)
		}
	}
	return nil
}

func multicast6() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xff}), 8) }

// delMulticast asks to remove that route.
func delMulticast(index int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_DELROUTE, unix.NLM_F_ACK)
	msg := nl.NewRtDelMsg()
	msg.Family, msg.Table, msg.Dst_len = unix.AF_INET6, unix.RT_TABLE_LOCAL, uint8(multicast6().Bits())
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.RTA_DST, multicast6().Addr().AsSlice()))
	r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return r
}
