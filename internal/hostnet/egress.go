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

// ErrNoNetwork is the error of [Egress] while the host has no network, as early after its boot.
var ErrNoNetwork = errors.New("no interface of this host is up and has an address that others could reach; connect it to a network")

// Link is the way out of the host.
type Link struct {
	Name  string       // interface
	MTU   int          // bytes
	Addr  netip.Addr   // best address for others to reach this host
	Addrs []netip.Addr // all global unicast addresses of interfaces that are up and not Weft's, best first
}

// Egress finds the way out of the host: the interface with the address advertise, if that is valid, or else that of the default
// route, or else the one with the smallest MTU among those that are up and have a global address. An advertised address that no
// interface has is taken as the one that a NAT in front of the host gives it. If IPv4 and IPv6 leave by different interfaces, MTU is
// the smaller of the two.
func Egress(advertise netip.Addr) (Link, error) { return here.egress(advertise.Unmap()) }

func (n namespace) egress(advertise netip.Addr) (Link, error) {
	c, err := n.open()
	if err != nil {
		return Link{}, err
	}
	defer c.Close()
	found, err := exits(candidates{c: c, known: map[int]netlink.Link{}})
	if err != nil {
		return Link{}, err
	}
	var all []netip.Addr
	for _, e := range found {
		all = append(all, e.addr)
	}
	best := slices.IndexFunc(found, func(e exit) bool { return e.addr == advertise })
	if best < 0 {
		best = 0
	} else if i := slices.Index(all, advertise); i > 0 {
		all = slices.Insert(slices.Delete(all, i, i+1), 0, advertise)
	}
	if len(found) == 0 {
		return Link{}, ErrNoNetwork
	}
	e := found[best]
	l := Link{Name: e.name, MTU: e.mtu, Addr: e.addr, Addrs: all}
	if e.addr != advertise {
		for _, other := range found {
			if e.rank == rankDefault && other.rank == rankDefault {
				l.MTU = min(l.MTU, other.mtu)
			}
		}
		if advertise.IsValid() {
			l.Addr = advertise
		}
	}
	return l, nil
}

// exit is one address by which others may reach the host.
type exit struct {
	name   string
	index  int
	mtu    int
	addr   netip.Addr
	rank   int
	source bool // the default route prefers it
}

// Ranks of interfaces. Bridges come last: often they are a container engine's, with the same address on every host.
const (
	rankDefault = iota
	rankOther
	rankBridge
)

// exits returns the addresses of the host, best first.
func exits(links candidates) ([]exit, error) {
	var list []exit
	anyDefault := false
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		route, err := defaultRoute(f, links)
		if err != nil {
			return nil, err
		}
		anyDefault = anyDefault || route != nil
		addrs, err := links.c.addrs(nil, f)
		if err != nil {
			return nil, err
		}
		for _, x := range addrs {
			addr, ok := netip.AddrFromSlice(x.IP)
			addr = addr.Unmap()
			if !ok || !addr.IsGlobalUnicast() || x.Flags&unusable != 0 {
				continue
			}
			l, err := links.at(x.LinkIndex)
			if err != nil {
				return nil, err
			}
			if l == nil {
				continue
			}
			e := exit{name: l.Attrs().Name, index: x.LinkIndex, mtu: l.Attrs().MTU, addr: addr, rank: rankOther}
			switch {
			case route != nil && route.LinkIndex == x.LinkIndex:
				e.rank = rankDefault
				e.source = route.Src.Equal(x.IP)
				if route.MTU > 0 {
					e.mtu = min(e.mtu, route.MTU)
				}
			case l.Type() == "bridge":
				e.rank = rankBridge
			}
			list = append(list, e)
		}
	}
	slices.SortStableFunc(list, func(a, b exit) int {
		byMTU := 0
		if !anyDefault {
			byMTU = cmp.Compare(a.mtu, b.mtu)
		}
		return cmp.Or(cmp.Compare(a.rank, b.rank), byMTU, order(b.source, a.source), order(b.addr.Is4(), a.addr.Is4()), cmp.Compare(a.index, b.index))
	})
	return list, nil
}

// order puts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// unusable are flags of addresses that others cannot use, or not for long.
const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED

// candidates are the links by which others may reach the host. Only those are looked at that have an address or a default route: of the others, which
// workloads have, there may be a thousand, and for each the kernel goes through all namespaces that it knows to tell in which its other end is.
type candidates struct {
	c     conn
	known map[int]netlink.Link // by index; nil: none of them
}

// at returns the link of that index; nil if it is none of them.
func (k candidates) at(index int) (netlink.Link, error) {
	if l, ok := k.known[index]; ok {
		return l, nil
	}
	l, err := k.c.LinkByIndex(index)
	var absent netlink.LinkNotFoundError
	switch {
	case errors.As(err, &absent), errors.Is(err, unix.ENODEV): // it has gone since
		l = nil
	case err != nil:
		return nil, fmt.Errorf("looking for interface %d: %w", index, err)
	default:
		a := l.Attrs()
		down := a.Flags&net.FlagUp == 0 || a.OperState == netlink.OperDown || a.OperState == netlink.OperLowerLayerDown
		if down || a.Flags&net.FlagLoopback != 0 || ours(l) || kernelPath(l) {
			l = nil
		}
	}
	k.known[index] = l
	return l, nil
}

// defaultRoute returns the default route with the best metric, with one link, which must be among links; nil if there is none.
func defaultRoute(family int, links candidates) (*netlink.Route, error) {
	list, err := links.c.routes(family)
	if err != nil {
		return nil, err
	}
	var best *netlink.Route
	for _, r := range list {
		if len(r.MultiPath) > 0 {
			r.LinkIndex = r.MultiPath[0].LinkIndex
		}
		k, ok := keyOf(r)
		if !ok || k.dst.Bits() != 0 || r.Type != unix.RTN_UNICAST {
			continue
		}
		if l, err := links.at(r.LinkIndex); err != nil {
			return nil, err
		} else if l == nil {
			continue
		}
		if best == nil || r.Priority < best.Priority {
			best = &r
		}
	}
	return best, nil
}

// Overlap returns an error that names what it is if the host uses a part of the universe for something else: the network of one of
// its addresses, or a route of the main table. Default routes do not count, nor do halves and other large parts of everything, by
// which VPNs override them (up to /1 of IPv4, /3 of IPv6), nor what Weft itself made.
func Overlap(universe []netip.Prefix) error { return here.overlap(universe) }

func (n namespace) overlap(universe []netip.Prefix) error {
	c, err := n.open()
	if err != nil {
		return err
	}
	defer c.Close()
	links, err := c.links()
	if err != nil {
		return err
	}
	names, skip := map[int]string{}, map[int]bool{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		skip[l.Attrs().Index] = ours(l) || kernelPath(l)
	}
	addrs, err := c.addrs(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if u := overlapped(universe, p); ok && !skip[a.LinkIndex] && u.IsValid() {
			return fmt.Errorf("range %v overlaps the host's address %v on %s; choose another with --range", u, p, names[a.LinkIndex])
		}
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := c.routes(f)
		if err != nil {
			return err
		}
		for _, r := range list {
			if len(r.MultiPath) > 0 {
				r.LinkIndex = r.MultiPath[0].LinkIndex
			}
			k, ok := keyOf(r)
			u := overlapped(universe, k.dst)
			if !ok || !u.IsValid() || r.Protocol == RouteProtocol || r.Protocol == kernelPathProtocol || skip[r.LinkIndex] || large(k.dst) {
				continue
			}
			if r.Type != unix.RTN_UNICAST && k.dst.Bits() <= u.Bits() {
				continue // leads nowhere, and Weft's own routes are more specific
			}
			dev := ""
			if name := names[r.LinkIndex]; name != "" {
				dev = " dev " + name
			}
			return fmt.Errorf("range %v overlaps the host's route %v%s; choose another with --range", u, k.dst, dev)
		}
	}
	return nil
}

func large(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() <= 1
	}
	return p.Bits() <= 3
}

// overlapped returns the range of the universe that p overlaps.
func overlapped(universe []netip.Prefix, p netip.Prefix) netip.Prefix {
	for _, u := range universe {
		if u.Overlaps(p) {
			return u
		}
	}
	return netip.Prefix{}
}

// prefixOf keeps the host bits.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits), ok
}
