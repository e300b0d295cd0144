// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Segment is one switch: a bridge in a namespace of its own, with a v4 and a v6 subnet. Member k has the addresses
// 192.168.N.k and 2001:db8:N::k; member 1 is the gateway. As long as no router is on the segment, the gateway is the switch
// itself, which swallows what it gets: so hosts always have a default route, as hosts have.
type Segment struct {
	lab     *Lab
	ns      *Namespace
	name    string
	index   int
	members int
	ports   int  // that the switch ever had
	gateway bool // a router has the gateway's addresses
	links   []*Link
	faults  faults
}

// bridgeName is the name of the bridge in its namespace.
const bridgeName = "switch"

// Switch makes a segment.
func (l *Lab) Switch(name string) *Segment {
	l.tb.Helper()
	s, err := l.newSegment(name)
	if err != nil {
		l.tb.Fatalf("lab: switch %s: %v", name, err)
	}
	return s
}

func (l *Lab) newSegment(name string) (*Segment, error) {
	ns, err := l.newNamespace(name)
	if err != nil {
		return nil, err
	}
	l.segments++
	s := &Segment{lab: l, ns: ns, name: name, index: l.segments, members: 10}
	// Without a querier, snooping would flood or lose the multicast of neighbour discovery.
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snooping}
	bridge.Name = bridgeName
	if err := ns.nl.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	// Switches do not look into IP.
	for _, f := range []string{"iptables", "ip6tables", "arptables"} {
		if err := ns.Sysctl("net/bridge/bridge-nf-call-"+f, "0"); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
	}
	if err := ns.nl.LinkSetUp(bridge); err != nil {
		return nil, err
	}
	for _, a := range []netip.Prefix{s.prefix4(1), s.prefix6(1)} {
		if err := ns.nl.AddrAdd(bridge, address(a)); err != nil {
			return nil, fmt.Errorf("%v: %w", a, err)
		}
	}
	return s, nil
}

// Namespace returns the namespace of the switch itself.
func (s *Segment) Namespace() *Namespace { return s.ns }

// Bridge returns the name of the device on which [Lab.Capture] sees what goes to the segment's own gateway.
func (s *Segment) Bridge() string { return bridgeName }

// V4 returns the segment's v4 subnet.
func (s *Segment) V4() netip.Prefix { return s.prefix4(0).Masked() }

// V6 returns the segment's v6 subnet.
func (s *Segment) V6() netip.Prefix { return s.prefix6(0).Masked() }

func (s *Segment) prefix4(member int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(s.index), byte(member)}), 24)
}

func (s *Segment) prefix6(member int) netip.Prefix {
	a := [16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 5: byte(s.index), 15: byte(member)}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// A Link is the cable between a namespace and a segment.
type Link struct {
	ns      *Namespace
	segment *Segment
	device  string // in ns
	port    string // in the namespace of the switch
	v4, v6  netip.Addr
	wire    *wire // between the cable and the port, nil if they are one: see [Link.Delay]
}

// plug connects ns with the segment by a device of the given name, and gives it the addresses of the member.
func (s *Segment) plug(ns *Namespace, device string, member int, v4, v6 bool, mtu int) (*Link, error) {
	l := &Link{ns: ns, segment: s, device: device, port: s.newPort()}
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: device, PeerNamespace: netlink.NsFd(ns.fd())}
	veth.Name, veth.MTU = l.port, mtu
	if err := s.ns.nl.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("veth pair: %w", err)
	}
	bridge, err := s.ns.nl.LinkByName(bridgeName)
	if err != nil {
		return nil, err
	}
	if err := s.ns.nl.LinkSetMaster(veth, bridge); err != nil {
		return nil, err
	}
	if err := s.ns.nl.LinkSetUp(veth); err != nil {
		return nil, err
	}
	inner, err := ns.nl.LinkByName(device)
	if err != nil {
		return nil, err
	}
	if err := ns.nl.LinkSetUp(inner); err != nil {
		return nil, err
	}
	if v4 {
		l.v4 = s.prefix4(member).Addr()
		if err := ns.nl.AddrAdd(inner, address(s.prefix4(member))); err != nil {
			return nil, err
		}
	}
	if v6 {
		l.v6 = s.prefix6(member).Addr()
		if err := ns.nl.AddrAdd(inner, address(s.prefix6(member))); err != nil {
			return nil, err
		}
	}
	s.links = append(s.links, l)
	return l, l.settle()
}

// newPort names a port that the switch never had before.
func (s *Segment) newPort() string {
	s.ports++
	return fmt.Sprintf("port%d", s.ports)
}

// settle waits until the kernel has noticed the carrier, given the device its link-local address and made its addresses
// usable, which it does in the background.
func (l *Link) settle() error {
	for range 500 {
		ok, err := l.settled()
		if ok || err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("%s of %s does not come up", l.device, l.ns.name)
}

func (l *Link) settled() (bool, error) {
	dev, err := l.ns.nl.LinkByName(l.device)
	if err != nil || dev.Attrs().OperState != netlink.OperUp {
		return false, err
	}
	addrs, err := l.ns.nl.AddrList(dev, netlink.FAMILY_V6)
	if err != nil || !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() }) {
		return false, err
	}
	// An address is usable from the moment on when it has a route in the table "local".
	for _, a := range addrs {
		dst := &net.IPNet{IP: a.IP, Mask: net.CIDRMask(128, 128)}
		routes, err := l.ns.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: dst},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if err != nil || len(routes) == 0 {
			return false, err
		}
	}
	return true, nil
}

// addDefaultRoutes points the default routes of the link's namespace at the segment's gateway.
func (l *Link) addDefaultRoutes() error {
	dev, err := l.ns.nl.LinkByName(l.device)
	if err != nil {
		return err
	}
	for _, r := range []struct{ own, all, via netip.Addr }{
		{l.v4, netip.IPv4Unspecified(), l.segment.prefix4(1).Addr()},
		{l.v6, netip.IPv6Unspecified(), l.segment.prefix6(1).Addr()},
	} {
		if !r.own.IsValid() {
			continue
		}
		route := &netlink.Route{
			LinkIndex: dev.Attrs().Index, Dst: ipNet(netip.PrefixFrom(r.all, 0)), Gw: r.via.AsSlice(),
		}
		if err := l.ns.nl.RouteReplace(route); err != nil {
			return fmt.Errorf("default route by %v: %w", r.via, err)
		}
	}
	return nil
}

// AddRoute gives the link's namespace one more route by the segment's gateway.
func (l *Link) AddRoute(to netip.Prefix) {
	l.ns.lab.tb.Helper()
	via := l.segment.prefix4(1).Addr()
	if to.Addr().Is6() {
		via = l.segment.prefix6(1).Addr()
	}
	if err := l.ns.nl.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		l.ns.lab.tb.Fatalf("lab: route of %s to %v: %v", l.ns.name, to, err)
	}
}

// Device returns the name of the device in the host's or router's namespace.
func (l *Link) Device() string { return l.device }

// Segment returns the switch that the link is plugged into.
func (l *Link) Segment() *Segment { return l.segment }

// MAC returns the hardware address of the device in the host's or router's namespace.
func (l *Link) MAC() net.HardwareAddr {
	l.ns.lab.tb.Helper()
	dev, err := l.ns.nl.LinkByName(l.device)
	if err != nil {
		l.ns.lab.tb.Fatalf("lab: %s of %s: %v", l.device, l.ns.name, err)
	}
	return dev.Attrs().HardwareAddr
}

// V4 returns the v4 address on the link; invalid if it has none.
func (l *Link) V4() netip.Addr { return l.v4 }

// V6 returns the v6 address on the link; invalid if it has none.
func (l *Link) V6() netip.Addr { return l.v6 }

// Down pulls the plug on the side of the switch: the host loses the carrier and keeps its addresses.
func (l *Link) Down() {
	l.ns.lab.tb.Helper()
	l.withPort(func(port netlink.Link) error { return l.segment.ns.nl.LinkSetDown(port) })
}

// Up puts the plug back.
func (l *Link) Up() {
	l.ns.lab.tb.Helper()
	l.withPort(func(port netlink.Link) error { return l.segment.ns.nl.LinkSetUp(port) })
}

// SetMTU sets the MTU on both ends of the link, in bytes without the Ethernet header. The switch silently drops packets
// that are too long for the link by which they must leave, as switches do (it leaves room for a VLAN tag, 4 bytes).
func (l *Link) SetMTU(mtu int) {
	l.ns.lab.tb.Helper()
	l.withPort(func(port netlink.Link) error {
		if err := l.segment.ns.nl.LinkSetMTU(port, mtu); err != nil {
			return err
		}
		dev, err := l.ns.nl.LinkByName(l.device)
		if err != nil {
			return err
		}
		return l.ns.nl.LinkSetMTU(dev, mtu)
	})
}

// Segmented makes the host cut its packets to the MTU before they enter the link (they travel through this machine as
// offloaded packets of up to 64 KiB otherwise), as for a network card that cannot, so that loss and captures see what a wire
// would.
func (l *Link) Segmented() {
	l.ns.lab.tb.Helper()
	l.setSegmentation(false)
}

// Whole ends what [Link.Segmented] began.
func (l *Link) Whole() {
	l.ns.lab.tb.Helper()
	l.setSegmentation(true)
}

func (l *Link) setSegmentation(on bool) {
	l.ns.lab.tb.Helper()
	if err := l.ns.setSegmentation(l.device, on); err != nil {
		l.ns.lab.tb.Fatalf("lab: segmentation on %s of %s: %v", l.device, l.ns.name, err)
	}
}

func (l *Link) withPort(f func(netlink.Link) error) {
	l.ns.lab.tb.Helper()
	port, err := l.segment.ns.nl.LinkByName(l.port)
	if err == nil {
		err = f(port)
	}
	if err != nil {
		l.ns.lab.tb.Fatalf("lab: link of %s to %s: %v", l.ns.name, l.segment.name, err)
	}
}

func address(p netip.Prefix) *netlink.Addr { return &netlink.Addr{IPNet: ipNet(p)} }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
