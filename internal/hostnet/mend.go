// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mender compares what the host has with what it should have, one kind of object after the other. It lists each kind once, so
// that its work on a host that is right is a few messages, however many workloads there are.
type mender struct {
	c      conn
	state  *applied
	device int // index of the TUN device

	present []attached // filled by workloads
	missing []string
	removed []string
	mended  int
}

// attached is a workload whose interface on the host exists.
type attached struct {
	Workload
	index int
}

// workloads removes veths that should not be, and finds and brings up those that should.
func (m *mender) workloads(ns namespace, links []netlink.Link, want []Workload) error {
	byName := map[string]netlink.Link{}
	for _, l := range links {
		byName[l.Attrs().Name] = l
	}
	var errs []error
	keep := map[string]bool{}
	for _, w := range want {
		if w.AddressesOnly {
			continue
		}
		l := byName[HostIf(w.ID)]
		if !vethOf(l, w.ID) {
			m.missing = append(m.missing, w.ID)
			continue
		}
		if l.Attrs().Alias == "" {
			m.missing = append(m.missing, w.ID) // what is in the namespace is not all there
		}
		keep[l.Attrs().Name] = true
		m.present = append(m.present, attached{w, l.Attrs().Index})
		errs = append(errs, m.up(l, w))
	}
	for _, l := range links {
		if _, ours := veth(l); !ours || keep[l.Attrs().Name] {
			continue
		}
		m.removed = append(m.removed, l.Attrs().Name)
		errs = append(errs, m.c.remove(l))
	}
	for _, w := range m.present {
		errs = append(errs, vethSettings(ns, HostIf(w.ID), m.state))
	}
	return errors.Join(errs...)
}

// up corrects the link itself.
func (m *mender) up(l netlink.Link, w Workload) error {
	a := l.Attrs()
	name := func(err error) error { return fmt.Errorf("repairing interface %s: %w", a.Name, err) }
	if a.Alias == "" && m.state.v6 && min(a.MTU, cmp.Or(w.MTU, m.state.mtu)) >= minMTU6 {
		// The gateway is the address of the device: this end needs none, nor has it to announce one.
		if err := m.c.LinkSetIP6AddrGenMode(l, nl6GenNone); err != nil {
			return name(err)
		}
	}
	if a.Group != groupWorkloads {
		m.mended++
		if err := m.c.LinkSetGroup(l, groupWorkloads); err != nil {
			return name(err)
		}
	}
	if mac := hostMAC(w.ID); a.HardwareAddr.String() != mac.String() {
		m.mended++
		if err := m.c.LinkSetHardwareAddr(l, mac); err != nil {
			return name(err)
		}
	}
	if mtu := cmp.Or(w.MTU, m.state.mtu); a.MTU != mtu {
		m.mended++
		if err := m.c.LinkSetMTU(l, mtu); err != nil {
			return name(err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		m.mended++
		if err := m.c.LinkSetUp(l); err != nil {
			return name(err)
		}
	}
	return nil
}

// A routeKey tells routes of the main table apart.
type routeKey struct {
	dst    netip.Prefix
	metric int
}

// keyOf returns the key of a route, false for one without a destination address.
func keyOf(r netlink.Route) (routeKey, bool) {
	if r.Dst == nil {
		return routeKey{}, false
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return routeKey{}, false
	}
	if r.Family == netlink.FAMILY_V4 {
		a = a.Unmap()
	}
	bits, _ := r.Dst.Mask.Size()
	return routeKey{netip.PrefixFrom(a, bits), r.Priority}, true
}

// same says whether two routes of the same key lead to the same place.
func same(a, b netlink.Route) bool {
	unreachable := a.Type == unix.RTN_UNREACHABLE
	return a.Type == b.Type && (unreachable || a.LinkIndex == b.LinkIndex && a.Src.Equal(b.Src)) &&
		a.Gw == nil && b.Gw == nil && len(a.MultiPath) == 0 && len(b.MultiPath) == 0
}

// route returns a route of Weft on the host.
func (s *applied) route(dst netip.Prefix, link int) netlink.Route {
	r := netlink.Route{
		Dst: ipNet(dst), LinkIndex: link, Protocol: RouteProtocol, Type: unix.RTN_UNICAST,
		Table: unix.RT_TABLE_MAIN, Family: family(dst.Addr()), Scope: netlink.SCOPE_LINK,
	}
	if dst.Addr().Is6() {
		r.Priority, r.Scope = metric6, netlink.SCOPE_UNIVERSE
	}
	if a, ok := s.gateways[dst.Addr().Is6()]; ok {
		r.Src = a.AsSlice()
	}
	return r
}

// usable returns those addresses of a workload whose family the host, the universe and the workload's MTU allow.
func (s *applied) usable(w Workload) []netip.Addr {
	v6 := s.v6 && cmp.Or(w.MTU, s.mtu) >= minMTU6
	return slices.DeleteFunc(slices.Clone(w.Addrs), func(a netip.Addr) bool {
		return a.Is6() && !v6 || within(a, s.universe) != nil
	})
}

// routes corrects the routes: the universe to the device, or to nowhere if that is gone, and each workload's addresses to its veth.
func (m *mender) routes(universe []netip.Prefix) error {
	var want []netlink.Route
	for _, p := range universe {
		if p.Addr().Is6() && !m.state.v6 {
			continue
		}
		none := m.state.route(p, 0)
		none.Type, none.Priority, none.Src, none.Scope = unix.RTN_UNREACHABLE, lastResort, nil, netlink.SCOPE_UNIVERSE
		want = append(want, none, m.state.route(p, m.device))
	}
	for _, w := range m.present {
		for _, a := range m.state.usable(w.Workload) {
			want = append(want, m.state.route(netip.PrefixFrom(a, a.BitLen()), w.index))
		}
	}

	have := map[routeKey]netlink.Route{}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := m.c.routes(f)
		if err != nil {
			return err
		}
		for _, r := range list {
			if k, ok := keyOf(r); ok && r.Protocol == RouteProtocol {
				have[k] = r
			}
		}
	}
	var errs []error
	for _, r := range want {
		k, _ := keyOf(r)
		old, exists := have[k]
		delete(have, k)
		switch {
		case exists && same(r, old):
		case exists:
			m.mended++
			errs = append(errs, explainRoute(k, m.c.RouteReplace(&r)))
		default:
			m.mended++
			errs = append(errs, explainRoute(k, m.c.RouteAdd(&r)))
		}
	}
	for k, r := range have {
		m.mended++
		if err := m.c.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("removing the route to %v: %w", k.dst, err))
		}
	}
	return errors.Join(errs...)
}

func explainRoute(k routeKey, err error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("there is a route to %v already that is not Weft's; delete it", k.dst)
	case err != nil:
		return fmt.Errorf("setting the route to %v: %w", k.dst, err)
	}
	return nil
}

// neighbours corrects the permanent entries for the workloads.
func (m *mender) neighbours() error {
	type key struct {
		index int
		addr  netip.Addr
	}
	have := map[key]string{}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := m.c.neighbours(f)
		if err != nil {
			return err
		}
		for _, n := range list {
			if a, ok := netip.AddrFromSlice(n.IP); ok && n.State == netlink.NUD_PERMANENT {
				have[key{n.LinkIndex, a.Unmap()}] = n.HardwareAddr.String()
			}
		}
	}
	var errs []error
	for _, w := range m.present {
		mac := w.mac()
		for _, a := range m.state.usable(w.Workload) {
			if have[key{w.index, a}] == mac.String() {
				continue
			}
			m.mended++
			if err := m.c.NeighSet(neighbour(w.index, a, mac)); err != nil {
				errs = append(errs, fmt.Errorf("setting the neighbour %v: %w", a, err))
			}
		}
	}
	return errors.Join(errs...)
}

func neighbour(link int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link, Family: family(a), State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST, IP: a.AsSlice(), HardwareAddr: mac}
}
