// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
)

// Route tells how the kernel reaches an underlay address, with the MTU of the interface, or that of the route if it is smaller and
// somebody has set it. False: it does not, or the address is one of this host.
func (k *Kernel) Route(to netip.Addr) (fastpath.Hop, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.open()
	if err != nil || !to.IsValid() {
		return fastpath.Hop{}, false
	}
	head := &nl.RtMsg{RtMsg: unix.RtMsg{Family: familyOf(to), Dst_len: uint8(to.BitLen())}}
	msgs, err := c.do(unix.RTM_GETROUTE, 0, unix.RTM_NEWROUTE, head, attrAddr(unix.RTA_DST, to.WithZone("")))
	if err != nil || len(msgs) == 0 {
		return fastpath.Hop{}, false
	}
	hop, index, ok := parseHop(msgs[0])
	if !ok {
		return fastpath.Hop{}, false
	}
	l, ok, err := c.linkAt(index)
	if err != nil || !ok {
		return fastpath.Hop{}, false
	}
	hop.Device = l.name
	if hop.MTU == 0 || hop.MTU > l.mtu {
		hop.MTU = l.mtu
	}
	return hop, true
}

// parseHop reads the answer to a look-up: the hop without its device, whose index it returns. The MTU is 0 if the route has none.
func parseHop(b []byte) (hop fastpath.Hop, index int, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return hop, 0, false
	}
	head := nl.DeserializeRtMsg(b)
	hop.OnLink = true
	learned := false // by a message that something was too big: no property of the route
	ok = attributes(b, unix.SizeofRtMsg, func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_OIF:
			index = int(read32(v))
		case unix.RTA_PREFSRC:
			hop.Source = readAddr(v)
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			hop.OnLink = false
		case unix.RTA_CACHEINFO: // clntref, lastuse, expires...
			learned = len(v) >= 12 && read32(v[8:12]) != 0
		case unix.RTA_METRICS:
			attributes(v, 0, func(kind uint16, v []byte) {
				if kind == unix.RTAX_MTU {
					hop.MTU = int(read32(v))
				}
			})
		}
	})
	if learned {
		hop.MTU = 0
	}
	return hop, index, ok && head.Type == unix.RTN_UNICAST && index != 0 && hop.Source.IsValid()
}

// Neighbour returns the hardware address of a neighbour. False: it is not known; then the kernel begins to ask for it, and Watch
// tells when it is there if the hop is one of those of the last Apply.
func (k *Kernel) Neighbour(device string, hop netip.Addr) (net.HardwareAddr, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.open()
	if err != nil || !hop.IsValid() {
		return nil, false
	}
	l, ok := k.links[device]
	if !ok {
		if l, ok, err = c.link(device); err != nil || !ok {
			return nil, false
		}
	}
	addr := attrAddr(unix.NDA_DST, hop.WithZone(""))
	head := &netlink.Ndmsg{Family: familyOf(hop), Index: uint32(l.index)}
	msgs, err := c.do(unix.RTM_GETNEIGH, 0, unix.RTM_NEWNEIGH, head, addr)
	if err == nil && len(msgs) > 0 {
		if e, ok := parseEntry(msgs[0]); ok && e.resolved() {
			return e.mac[:], true
		}
	}
	head.Flags = unix.NTF_USE
	_ = c.change(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, head, addr) // if not, it is not known
	return nil, false
}

// resolved says whether a neighbour has a hardware address that counts.
func (e entry) resolved() bool {
	const states = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	return e.hard && e.state&states != 0
}
