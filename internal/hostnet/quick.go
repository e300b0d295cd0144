// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/fault"
)

// quick connects a workload that has nothing yet in a few messages, and says whether it has. If there is anything that takes
// thought, or something fails, it leaves the rest to the thorough way, which finds out what is the matter; made tells whether the
// interface is of its making.
func (a *attacher) quick(host namespace) (done, made bool) {
	inner, err := a.netns.line()
	if err != nil {
		return false, false
	}
	defer func() {
		a.heard += inner.heard
		inner.close()
	}()
	outer, err := host.line()
	if err != nil {
		return false, false
	}
	a.exit = outer
	if !a.virgin(inner) {
		return false, false
	}
	answers, err := outer.do(a.newVeth(), getLink(HostIf(a.ID), 0))
	if err != nil || answers[0].err != nil {
		return false, err != nil && a.begun(host)
	}
	fault.Point("quick-made")
	index, peer, err := ends(answers[1])
	if err == nil {
		err = vethSettings(host, HostIf(a.ID), a.state)
	}
	if err != nil {
		return false, true
	}
	addrs := a.state.usable(a.Workload)
	fault.Point("quick-set")
	if inner.done(a.workloadSide(peer, addrs)) != nil {
		return false, true
	}
	fault.Point("quick-inside")
	if outer.done(a.hostSide(index, addrs)) != nil {
		return false, true
	}
	fault.Point("quick-outside")
	a.used = addrs
	for _, addr := range addrs {
		a.ways = append(a.ways, Route{Dst: everywhere(addr.Is6()), Gateway: a.state.gateways[addr.Is6()]})
	}
	a.unsettled = !outer.running(index, briefly) || !inner.running(peer, briefly) || !inner.settled(addrs, briefly)
	outer.slim(index)
	return true, true
}

// done makes the requests, and returns the first error.
func (l *line) done(requests []*nl.NetlinkRequest) error {
	answers, err := l.do(requests...)
	if err != nil {
		return err
	}
	return failed(answers)
}

// virgin says whether a namespace has neither the interface nor routes that would have to be looked at.
func (a *attacher) virgin(inner *line) bool {
	routes := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	routes.AddData(&nl.RtMsg{})
	answers, err := inner.do(getLink(a.IfName, 0), routes)
	if err != nil || !errors.Is(answers[0].err, unix.ENODEV) || answers[1].err != nil {
		return false
	}
	for _, m := range answers[1].messages {
		if len(m) < unix.SizeofRtMsg {
			return false
		}
		r := nl.DeserializeRtMsg(m)
		if r.Family != unix.AF_INET && r.Family != unix.AF_INET6 || r.Table != unix.RT_TABLE_MAIN {
			continue
		}
		if r.Protocol == RouteProtocol || r.Dst_len == 0 {
			return false
		}
	}
	return true
}

// newVeth asks for both ends at their places. One queue is what a veth has in use unless told otherwise; that it has no more
// spares the kernel two waits for all of its processors.
func (a *attacher) newVeth() *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	end := func(add func(kind int, data []byte), name string, mac net.HardwareAddr) {
		add(unix.IFLA_IFNAME, nl.ZeroTerminated(name))
		add(unix.IFLA_MTU, nl.Uint32Attr(uint32(a.MTU)))
		add(unix.IFLA_ADDRESS, mac)
		add(unix.IFLA_TXQLEN, nl.Uint32Attr(vethQueueLen))
		add(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1))
		add(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1))
	}
	end(func(kind int, data []byte) { r.AddData(nl.NewRtAttr(kind, data)) }, HostIf(a.ID), hostMAC(a.ID))
	r.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(groupWorkloads)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	end(func(kind int, data []byte) { peer.AddRtAttr(kind, data) }, a.IfName, a.mac())
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(a.netns)))
	r.AddData(info)
	return r
}

// vethQueueLen is what the kernel gives a veth unless told otherwise.
const vethQueueLen = 1000

// hostSide is what the host's end needs, when the workload has all that it needs. The mark comes first: of a change to a link that is up the kernel has
// IPv6 go through all routes of the host, one for each workload. The requests are carried out to the last whatever becomes of this process, and what of
// the host's end one of them has failed to do, as the mark does not tell, Apply does.
func (a *attacher) hostSide(index int, addrs []netip.Addr) []*nl.NetlinkRequest {
	var requests []*nl.NetlinkRequest
	if a.state.v6 && a.MTU >= minMTU6 { // see mender.up
		mode, spec := setLink(index, 0), nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(nl6GenNone))
		mode.AddData(spec)
		requests = append(requests, mode)
	}
	requests = append(requests, a.mark(index), setLink(index, unix.IFF_UP))
	for _, addr := range addrs {
		requests = append(requests, setNeighbour(index, addr, a.mac()), addRoute(a.state.route(netip.PrefixFrom(addr, addr.BitLen()), index)))
	}
	return requests
}

// workloadSide is what the workload needs.
func (a *attacher) workloadSide(index int, addrs []netip.Addr) []*nl.NetlinkRequest {
	var requests []*nl.NetlinkRequest
	for _, addr := range addrs {
		requests = append(requests, addAddress(index, addr))
	}
	requests = append(requests, setLink(loopback, unix.IFF_UP), setLink(index, unix.IFF_UP))
	for _, addr := range addrs {
		gateway := a.state.gateways[addr.Is6()]
		requests = append(requests, setNeighbour(index, gateway, hostMAC(a.ID)), addRoute(defaultBy(addr, gateway, index)))
	}
	return requests
}

// mark asks for the alias, which says that all inside is done.
func (a *attacher) mark(index int) *nl.NetlinkRequest {
	r := setLink(index, 0)
	r.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(aliasPrefix+a.ID)))
	return r
}

// ends are the indexes of the two ends of a veth.
func ends(a answer) (outer, peer int, err error) {
	if a.err != nil || len(a.messages) != 1 || len(a.messages[0]) < unix.SizeofIfInfomsg {
		return 0, 0, errors.Join(errors.New("no interface was made"), a.err)
	}
	l, err := netlink.LinkDeserialize(nil, a.messages[0])
	if err != nil {
		return 0, 0, err
	}
	return l.Attrs().Index, l.Attrs().ParentIndex, nil
}

// The requests that follow are those which the netlink package makes of the same values, to be sent together.

func getLink(name string, index int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStatistics)))
	if name != "" {
		r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	}
	return r
}

// skipStatistics leaves the counters out (RTEXT_FILTER_SKIP_STATS), which are summed up over all processors.
const skipStatistics = 1 << 3

// setLink asks to change a link; the flags are to be set.
func setLink(index int, flags uint32) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), flags, flags
	r.AddData(msg)
	return r
}

func addAddress(index int, a netip.Addr) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	msg := nl.NewIfAddrmsg(family(a))
	msg.Index, msg.Prefixlen, msg.Flags = uint32(index), uint8(a.BitLen()), uint8(address(a).Flags)
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	r.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	return r
}

func setNeighbour(index int, a netip.Addr, mac net.HardwareAddr) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	r.AddData(&netlink.Ndmsg{Family: uint8(family(a)), Index: uint32(index), State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST})
	r.AddData(nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()))
	r.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, mac))
	return r
}

// addRoute asks for a route that is not there yet.
func addRoute(want netlink.Route) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewRtMsg()
	msg.Family, msg.Table, msg.Type = uint8(want.Family), uint8(want.Table), uint8(want.Type)
	msg.Protocol, msg.Scope, msg.Flags = uint8(want.Protocol), uint8(want.Scope), uint32(want.Flags)
	r.AddData(msg)
	if want.Dst != nil {
		bits, _ := want.Dst.Mask.Size()
		msg.Dst_len = uint8(bits)
		r.AddData(nl.NewRtAttr(unix.RTA_DST, want.Dst.IP))
	}
	for kind, addr := range map[int]net.IP{unix.RTA_GATEWAY: want.Gw, unix.RTA_PREFSRC: want.Src} {
		if addr != nil {
			r.AddData(nl.NewRtAttr(kind, addr))
		}
	}
	if want.Priority > 0 {
		r.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(want.Priority))))
	}
	r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(want.LinkIndex))))
	return r
}

// running is that of conn.
func (l *line) running(index int, most time.Duration) bool {
	return eventually(most, func() bool {
		answers, err := l.do(getLink("", index))
		if err != nil || failed(answers) != nil {
			return false
		}
		link, err := netlink.LinkDeserialize(nil, answers[0].messages[0])
		return err == nil && carries(link)
	})
}

// settled is that of conn, for several addresses.
func (l *line) settled(addrs []netip.Addr, most time.Duration) bool {
	for _, a := range addrs {
		if a.Is4() {
			continue
		}
		if !eventually(most, func() bool {
			r := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
			r.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET6, Dst_len: 128}})
			r.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
			answers, err := l.do(r)
			return err == nil && failed(answers) == nil && len(answers[0].messages[0]) >= unix.SizeofRtMsg &&
				nl.DeserializeRtMsg(answers[0].messages[0]).Type == unix.RTN_LOCAL
		}) {
			return false
		}
	}
	return true
}
