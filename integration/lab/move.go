// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Plug gives the host one more link, to another segment, without a default route. The host does not become a router by that.
func (h *Host) Plug(s *Segment) *Link {
	h.lab.tb.Helper()
	s.members++
	h.plugged++
	l, err := s.plug(h.Namespace, fmt.Sprintf("eth%d", h.plugged), s.members, h.link.v4.IsValid(), h.link.v6.IsValid(), 0)
	if err != nil {
		h.lab.tb.Fatalf("lab: link of %s to %s: %v", h.name, s.name, err)
	}
	return l
}

// RouteV6 gives the link's namespace a route to the v6 subnet of a segment by a router that is on the link's own segment.
func (l *Link) RouteV6(to *Segment, by *Router) {
	l.ns.lab.tb.Helper()
	hop := by.Link(l.segment)
	if hop == nil {
		l.ns.lab.tb.Fatalf("lab: %s is not on %s", by.name, l.segment.name)
	}
	if err := l.ns.nl.RouteAdd(&netlink.Route{Dst: ipNet(to.V6()), Gw: hop.v6.AsSlice()}); err != nil {
		l.ns.lab.tb.Fatalf("lab: route of %s to %s: %v", l.ns.name, to.name, err)
	}
}

// Renumber takes the link's addresses away and gives it others of the same segment, of the same families. Its default routes
// go by the segment's gateway again, other routes by the link are gone.
func (l *Link) Renumber() {
	l.ns.lab.tb.Helper()
	if err := l.renumber(l.segment); err != nil {
		l.ns.lab.tb.Fatalf("lab: renumbering %s of %s: %v", l.device, l.ns.name, err)
	}
}

// Move unplugs the link and plugs it into another switch, with addresses of that segment. The device in the host stays.
func (l *Link) Move(to *Segment) {
	l.ns.lab.tb.Helper()
	if l.wire != nil {
		l.ns.lab.tb.Fatalf("lab: moving %s of %s: a link with a delay cannot be moved", l.device, l.ns.name)
	}
	err := l.replug(to)
	if err == nil {
		err = l.renumber(to)
	}
	if err != nil {
		l.ns.lab.tb.Fatalf("lab: moving %s of %s to %s: %v", l.device, l.ns.name, to.name, err)
	}
}

// replug moves the end of the cable from switch to switch.
func (l *Link) replug(to *Segment) error {
	from := l.segment
	port, err := from.ns.nl.LinkByName(l.port)
	if err != nil {
		return err
	}
	name := to.newPort()
	for _, step := range []func() error{
		func() error { return from.ns.nl.LinkSetDown(port) },
		func() error { return from.ns.nl.LinkSetNoMaster(port) },
		func() error { return from.ns.nl.LinkSetName(port, "moving") }, // the other switch may have a port of the old name
		func() error { return from.ns.nl.LinkSetNsFd(port, to.ns.fd()) },
		func() (err error) { port, err = to.ns.nl.LinkByName("moving"); return err },
		func() error { return to.ns.nl.LinkSetName(port, name) },
		func() error {
			bridge, err := to.ns.nl.LinkByName(bridgeName)
			if err != nil {
				return err
			}
			return to.ns.nl.LinkSetMaster(port, bridge)
		},
		func() error { return to.ns.nl.LinkSetUp(port) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	from.links = slices.DeleteFunc(from.links, func(o *Link) bool { return o == l })
	to.links = append(to.links, l)
	l.port = name
	return nil
}

// renumber replaces the addresses by new ones of the segment, and the default routes.
func (l *Link) renumber(s *Segment) error {
	dev, err := l.ns.nl.LinkByName(l.device)
	if err != nil {
		return err
	}
	s.members++
	for _, a := range []struct {
		own      *netip.Addr
		old, new netip.Prefix
		all, via netip.Prefix
	}{
		{&l.v4, l.segment.prefix4(0), s.prefix4(s.members), netip.PrefixFrom(netip.IPv4Unspecified(), 0), l.segment.prefix4(1)},
		{&l.v6, l.segment.prefix6(0), s.prefix6(s.members), netip.PrefixFrom(netip.IPv6Unspecified(), 0), l.segment.prefix6(1)},
	} {
		if !a.own.IsValid() {
			continue
		}
		// The kernel takes a v4 route away with the last address, a v6 route stays.
		gone := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(a.all), Gw: a.via.Addr().AsSlice()}
		if err := l.ns.nl.RouteDel(gone); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("default route: %w", err)
		}
		if err := l.ns.nl.AddrDel(dev, address(netip.PrefixFrom(*a.own, a.old.Bits()))); err != nil {
			return fmt.Errorf("%v: %w", *a.own, err)
		}
		if err := l.ns.nl.AddrAdd(dev, address(a.new)); err != nil {
			return fmt.Errorf("%v: %w", a.new, err)
		}
		*a.own = a.new.Addr()
	}
	l.segment = s
	if err := l.settle(); err != nil {
		return err
	}
	return l.addDefaultRoutes()
}
