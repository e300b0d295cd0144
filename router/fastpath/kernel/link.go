// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	vxlanKind = "vxlan"
	// dfSet has outer packets say that they must not be fragmented (VXLAN_DF_SET, Linux 5.2): what is too large is told to the sender.
	dfSet = 1
	// genNone makes no link-local address (IN6_ADDR_GEN_MODE_NONE).
	genNone = 1
)

// A link is an interface, as the kernel describes it.
type link struct {
	index int
	name  string
	up    bool
	mtu   int
	mac   string // its bytes
	alias string
	kind  string
	gen   int // address generation mode of IPv6; -1: not known
	group uint32

	// Of VXLAN.
	vni      uint32
	port     uint16
	learning bool
	df       int // -1: not known
	grouped  bool
}

// link returns the interface of that name, false if there is none.
func (c *conn) link(name string) (link, bool, error) {
	msgs, err := c.do(unix.RTM_GETLINK, 0, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return oneLink("interface "+name, msgs, err)
}

func (c *conn) linkAt(index int) (link, bool, error) {
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = int32(index)
	msgs, err := c.do(unix.RTM_GETLINK, 0, unix.RTM_NEWLINK, head)
	return oneLink(fmt.Sprintf("interface %d", index), msgs, err)
}

func oneLink(what string, msgs [][]byte, err error) (link, bool, error) {
	if errors.Is(err, unix.ENODEV) {
		return link{}, false, nil
	}
	if err != nil {
		return link{}, false, fmt.Errorf("looking for %s: %w", what, err)
	}
	for _, m := range msgs {
		if l, ok := parseLink(m); ok {
			return l, true, nil
		}
	}
	return link{}, false, nil
}

// parseLink reads an ifinfomsg with its attributes.
func parseLink(b []byte) (link, bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, false
	}
	head := nl.DeserializeIfInfomsg(b)
	l := link{index: int(head.Index), up: head.Flags&unix.IFF_UP != 0, gen: -1, df: -1}
	ok := attributes(b, unix.SizeofIfInfomsg, func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(v)
		case unix.IFLA_MTU:
			l.mtu = int(read32(v))
		case unix.IFLA_ADDRESS:
			l.mac = string(v)
		case unix.IFLA_GROUP:
			l.group = read32(v)
		case unix.IFLA_IFALIAS:
			l.alias = unix.ByteSliceToString(v)
		case unix.IFLA_LINKINFO:
			l.parseInfo(v)
		case unix.IFLA_AF_SPEC:
			attributes(v, 0, func(family uint16, v []byte) {
				if family != unix.AF_INET6 {
					return
				}
				attributes(v, 0, func(kind uint16, v []byte) {
					if kind == unix.IFLA_INET6_ADDR_GEN_MODE {
						l.gen = int(read8(v))
					}
				})
			})
		}
	})
	return l, ok
}

func (l *link) parseInfo(v []byte) {
	var data []byte
	attributes(v, 0, func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.kind = unix.ByteSliceToString(v)
		case unix.IFLA_INFO_DATA:
			data = v
		}
	})
	if l.kind != vxlanKind {
		return
	}
	attributes(data, 0, func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_VXLAN_ID:
			l.vni = read32(v)
		case unix.IFLA_VXLAN_PORT:
			l.port = read16be(v)
		case unix.IFLA_VXLAN_LEARNING:
			l.learning = read8(v) != 0
		case unix.IFLA_VXLAN_DF:
			l.df = int(read8(v))
		case unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6, unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6, unix.IFLA_VXLAN_LINK:
			l.grouped = l.grouped || kind != unix.IFLA_VXLAN_LINK || read32(v) != 0
		}
	})
}

// ours says whether this node made the VXLAN device.
func (c Config) ours(l link) bool {
	m := macOf(c.ID)
	return l.kind == vxlanKind && (l.alias == deviceAlias || l.mac == string(m[:]))
}

// right says whether a VXLAN device is what addDevice makes, as far as it cannot be changed later.
func (c Config) right(l link) bool {
	return l.vni == c.VNI && l.port == c.Port && !l.learning && !l.grouped && (l.df == dfSet || l.df < 0)
}

// addDevice makes a VXLAN device over a family of the underlay; it is down and has no alias.
func (c *conn) addDevice(name string, underlay6 bool, cfg Config, mtu int) error {
	m := macOf(cfg.ID)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(vxlanKind))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(unix.IFLA_VXLAN_ID, nl.Uint32Attr(cfg.VNI))
	data.AddRtAttr(unix.IFLA_VXLAN_PORT, nl.BEUint16Attr(cfg.Port))
	data.AddRtAttr(unix.IFLA_VXLAN_LEARNING, nl.Uint8Attr(0))
	data.AddRtAttr(unix.IFLA_VXLAN_DF, nl.Uint8Attr(dfSet))
	if underlay6 { // this makes it one of IPv6; without it is one of IPv4
		data.AddRtAttr(unix.IFLA_VXLAN_LOCAL6, netip.IPv6Unspecified().AsSlice())
	}
	return c.change(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)), attr32(unix.IFLA_MTU, uint32(mtu)), nl.NewRtAttr(unix.IFLA_ADDRESS, m[:]), info)
}

func (c *conn) setLink(index int, attrs ...*nl.RtAttr) error {
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = int32(index)
	return c.change(unix.RTM_NEWLINK, 0, head, attrs...)
}

func (c *conn) setUp(index int) error {
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index, head.Flags, head.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	return c.change(unix.RTM_NEWLINK, 0, head)
}

// removeLink deletes an interface that may be gone already.
func (c *conn) removeLink(index int) error {
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = int32(index)
	if err := c.change(unix.RTM_DELLINK, 0, head); !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// addressMode is the attribute for an address generation mode of IPv6.
func addressMode(mode uint8) *nl.RtAttr {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(mode))
	return spec
}

func aliasAttr() *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(deviceAlias)) }

func macAttr(m mac) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_ADDRESS, m[:]) }
