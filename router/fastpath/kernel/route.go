// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// setRoute sets a route of Weft; replace says that there is one, of which no packet is lost then. Without it, one that somebody
// else has made stays as it is.
func (c *conn) setRoute(key routeKey, r route, index int, replace bool) error {
	head, attrs := routeMessage(key, r, index)
	flags := unix.NLM_F_CREATE | unix.NLM_F_EXCL
	if replace {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	switch err := c.change(unix.RTM_NEWROUTE, flags, head, attrs...); {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("there is a %v already that is not Weft's; delete it as by: ip route delete %v table %d", key, key.dst, key.table)
	case err != nil:
		return fmt.Errorf("setting the %v: %w", key, err)
	}
	return nil
}

// removeRoute removes a route of Weft, which may be gone already.
func (c *conn) removeRoute(key routeKey) error {
	head := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: familyOf(key.dst.Addr()), Dst_len: uint8(key.dst.Bits()), Tos: key.tos, Protocol: RouteProtocol, Scope: unix.RT_SCOPE_NOWHERE,
	}}
	attrs := []*nl.RtAttr{attrAddr(unix.RTA_DST, key.dst.Addr()), attr32(unix.RTA_TABLE, key.table), attr32(unix.RTA_PRIORITY, key.metric)}
	return goneRoute(key, c.change(unix.RTM_DELROUTE, 0, head, attrs...))
}

func goneRoute(key routeKey, err error) error {
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("removing the %v: %w", key, err)
	}
	return nil
}

func routeMessage(key routeKey, r route, index int) (*nl.RtMsg, []*nl.RtAttr) {
	head := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: familyOf(key.dst.Addr()), Dst_len: uint8(key.dst.Bits()), Table: unix.RT_TABLE_UNSPEC, Protocol: RouteProtocol,
		Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
	}}
	attrs := []*nl.RtAttr{attrAddr(unix.RTA_DST, key.dst.Addr()), attr32(unix.RTA_TABLE, key.table)}
	if key.metric != 0 {
		attrs = append(attrs, attr32(unix.RTA_PRIORITY, key.metric))
	}
	if r.unreachable {
		head.Type = unix.RTN_UNREACHABLE
		return head, attrs
	}
	head.Flags = unix.RTNH_F_ONLINK
	attrs = append(attrs, attr32(unix.RTA_OIF, uint32(index)))
	if r.via.Is4() == key.dst.Addr().Is4() {
		attrs = append(attrs, attrAddr(unix.RTA_GATEWAY, r.via))
	} else {
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_VIA, append(nl.Uint16Attr(uint16(familyOf(r.via))), r.via.AsSlice()...)))
	}
	if r.src.IsValid() {
		attrs = append(attrs, attrAddr(unix.RTA_PREFSRC, r.src))
	}
	return head, attrs
}

// parseRoute reads an rtmsg with its attributes; false if it is not a route with Weft's mark. name tells the names of
// interfaces.
func parseRoute(b []byte, name func(index int) string) (key routeKey, r route, ours bool) {
	if len(b) < unix.SizeofRtMsg {
		return key, r, false
	}
	head := nl.DeserializeRtMsg(b)
	if head.Protocol != RouteProtocol || head.Flags&unix.RTM_F_CLONED != 0 {
		return key, r, false
	}
	dst := netip.IPv4Unspecified()
	if head.Family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	key.table, key.tos = uint32(head.Table), head.Tos
	r.unreachable = head.Type == unix.RTN_UNREACHABLE
	r.odd = head.Type != unix.RTN_UNICAST && !r.unreachable || head.Src_len != 0 ||
		!r.unreachable && head.Flags&unix.RTNH_F_ONLINK == 0
	ok := attributes(b, unix.SizeofRtMsg, func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_DST:
			dst = readAddr(v)
		case unix.RTA_TABLE:
			key.table = read32(v)
		case unix.RTA_PRIORITY:
			key.metric = read32(v)
		case unix.RTA_OIF:
			if !r.unreachable { // of IPv6 these have the loopback interface
				r.device = name(int(read32(v)))
			}
		case unix.RTA_GATEWAY:
			r.via = readAddr(v)
		case unix.RTA_VIA:
			if len(v) > 2 {
				r.via = readAddr(v[2:])
			}
		case unix.RTA_PREFSRC:
			r.src = readAddr(v)
		case unix.RTA_CACHEINFO, unix.RTA_PREF:
		case unix.RTA_METRICS:
			r.odd = r.odd || len(v) > 0
		default: // several next hops, an encapsulation, a mark...
			r.odd = true
		}
	})
	key.dst = netip.PrefixFrom(dst, int(head.Dst_len))
	return key, r, ok && key.dst.IsValid()
}

// setEntry sets a forwarding entry of a VXLAN device, instead of one that there may be.
func (c *conn) setEntry(key entryKey, to netip.AddrPort, index int) error {
	head, attrs := entryMessage(key, to, index)
	if err := c.change(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, head, attrs...); err != nil {
		return fmt.Errorf("setting the %v to %v: %w", key, to, err)
	}
	return nil
}

func (c *conn) removeEntry(key entryKey, to netip.AddrPort, index int) error {
	head, attrs := entryMessage(key, to, index)
	return goneNeighbour(key, c.change(unix.RTM_DELNEIGH, 0, head, attrs...))
}

func goneNeighbour(what fmt.Stringer, err error) error {
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing the %v: %w", what, err)
	}
	return nil
}

func entryMessage(key entryKey, to netip.AddrPort, index int) (*netlink.Ndmsg, []*nl.RtAttr) {
	head := &netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(index), State: unix.NUD_PERMANENT | unix.NUD_NOARP, Flags: unix.NTF_SELF}
	return head, []*nl.RtAttr{
		nl.NewRtAttr(unix.NDA_LLADDR, key.mac[:]), attrAddr(unix.NDA_DST, to.Addr()), nl.NewRtAttr(unix.NDA_PORT, nl.BEUint16Attr(to.Port())),
	}
}

// An entry is a neighbour or a forwarding entry, as the kernel describes it.
type entry struct {
	family uint8
	index  int
	state  uint16
	mac    mac
	hard   bool // it has a hardware address, of 6 bytes
	addr   netip.Addr
	port   uint16 // 0: that of the device
	odd    bool   // it says more about where packets go
}

// parseEntry reads an ndmsg with its attributes.
func parseEntry(b []byte) (e entry, ok bool) {
	if len(b) < unix.SizeofNdMsg {
		return e, false
	}
	e.family, e.index, e.state = b[0], int(int32(nl.NativeEndian().Uint32(b[4:]))), nl.NativeEndian().Uint16(b[8:])
	ok = attributes(b, unix.SizeofNdMsg, func(kind uint16, v []byte) {
		switch kind {
		case unix.NDA_LLADDR:
			e.hard = len(v) == len(e.mac)
			copy(e.mac[:], v)
		case unix.NDA_DST:
			e.addr = readAddr(v)
		case unix.NDA_PORT:
			e.port = read16be(v)
		case unix.NDA_VNI, unix.NDA_IFINDEX, unix.NDA_SRC_VNI, netlink.NDA_NH_ID:
			e.odd = true
		}
	})
	return e, ok
}

// setNeighbour sets a permanent neighbour, instead of one that there may be.
func (c *conn) setNeighbour(key neighbourKey, m mac, index int) error {
	head := &netlink.Ndmsg{Family: familyOf(key.addr), Index: uint32(index), State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST}
	err := c.change(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, head, attrAddr(unix.NDA_DST, key.addr), nl.NewRtAttr(unix.NDA_LLADDR, m[:]))
	if err != nil {
		return fmt.Errorf("setting the %v: %w", key, err)
	}
	return nil
}

func (c *conn) removeNeighbour(key neighbourKey, index int) error {
	head := &netlink.Ndmsg{Family: familyOf(key.addr), Index: uint32(index)}
	return goneNeighbour(key, c.change(unix.RTM_DELNEIGH, 0, head, attrAddr(unix.NDA_DST, key.addr)))
}

// setRule adds a rule.
func (c *conn) setRule(r rule) error {
	head, attrs := ruleMessage(r)
	if err := c.change(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, head, attrs...); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("setting the %v: %w", r, err)
	}
	return nil
}

func (c *conn) removeRule(r rule) error {
	head, attrs := ruleMessage(r)
	return goneRule(r, c.change(unix.RTM_DELRULE, 0, head, attrs...))
}

func goneRule(r rule, err error) error {
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the %v: %w", r, err)
	}
	return nil
}

func ruleMessage(r rule) (*nl.RtMsg, []*nl.RtAttr) {
	// A fib_rule_hdr is laid out as an rtmsg; its action is where the type is there.
	head := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Type: unix.FR_ACT_TO_TBL}}
	if r.v6 {
		head.Family = unix.AF_INET6
	}
	return head, []*nl.RtAttr{
		attr32(unix.FRA_PRIORITY, r.priority), attr32(unix.FRA_FWMARK, r.mark), attr32(unix.FRA_FWMASK, 0xffffffff), attr32(unix.FRA_TABLE, r.table),
		nl.NewRtAttr(unix.FRA_PROTOCOL, nl.Uint8Attr(RouteProtocol)),
	}
}

// parseRule reads a fib_rule_hdr with its attributes; false if it is not a rule with Weft's mark.
func parseRule(b []byte) (r rule, ours bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	head := nl.DeserializeRtMsg(b)
	r.v6, r.table = head.Family == unix.AF_INET6, uint32(head.Table)
	r.odd = head.Type != unix.FR_ACT_TO_TBL || head.Dst_len != 0 || head.Src_len != 0 || head.Tos != 0 || head.Flags != 0
	var protocol uint8
	ok := attributes(b, unix.SizeofRtMsg, func(kind uint16, v []byte) {
		switch kind {
		case unix.FRA_PRIORITY:
			r.priority = read32(v)
		case unix.FRA_TABLE:
			r.table = read32(v)
		case unix.FRA_FWMARK:
			r.mark = read32(v)
		case unix.FRA_FWMASK:
			r.odd = r.odd || read32(v) != 0xffffffff
		case unix.FRA_PROTOCOL:
			protocol = read8(v)
		case unix.FRA_SUPPRESS_PREFIXLEN:
			r.odd = r.odd || read32(v) != 0xffffffff
		default: // it selects less
			r.odd = true
		}
	})
	return r, ok && protocol == RouteProtocol
}
