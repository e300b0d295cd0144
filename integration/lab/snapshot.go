// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Snapshot describes the network configuration of the namespace as sorted lines: devices, addresses, routes of all tables,
// policy rules, permanent neighbours, nftables tables with their chains, sets and rules, and forwarding, but not which links
// have a carrier, nor the routes to IPv6 multicast that come with it. Two snapshots are equal if nothing was left behind in between.
func (n *Namespace) Snapshot() ([]string, error) {
	s := &snapshot{n: n, names: map[int]string{}}
	for _, part := range []func() error{s.links, s.routes, s.rules, s.neighbours, s.nftables, s.sysctls} {
		if err := part(); err != nil {
			return nil, fmt.Errorf("snapshot of %s: %w", n.name, err)
		}
	}
	slices.Sort(s.lines)
	return s.lines, nil
}

type snapshot struct {
	n     *Namespace
	names map[int]string // interface index -> name
	lines []string
}

func (s *snapshot) add(format string, args ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

func (s *snapshot) links() error {
	links, err := s.n.nl.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		s.names[a.Index] = a.Name
		s.add("link %s %s mtu %d %v", a.Name, l.Type(), a.MTU, a.Flags&^net.FlagRunning)
		addrs, err := s.n.nl.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, addr := range addrs {
			s.add("address %s on %s", addr.IPNet, a.Name)
		}
	}
	return nil
}

func (s *snapshot) routes() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := s.n.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Flags&unix.RTM_F_CLONED == 0 && (family == netlink.FAMILY_V4 || r.Type != unix.RTN_MULTICAST) {
				s.add("route %v via %v dev %s table %d type %d protocol %d metric %d", r.Dst, r.Gw, s.names[r.LinkIndex], r.Table, r.Type, r.Protocol, r.Priority)
			}
		}
	}
	return nil
}

func (s *snapshot) rules() error {
	rules, err := s.n.nl.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		s.add("rule family %d %v", r.Family, r)
	}
	return nil
}

func (s *snapshot) neighbours() error {
	for index, name := range s.names {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := s.n.nl.NeighList(index, family)
			if err != nil {
				return err
			}
			for _, e := range list {
				if e.State&netlink.NUD_PERMANENT != 0 {
					s.add("neighbour %v at %v on %s", e.IP, e.HardwareAddr, name)
				}
			}
		}
	}
	return nil
}

func (s *snapshot) nftables() error {
	c, err := nftables.New(nftables.WithNetNSFd(s.n.fd()))
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		s.add("nft table %d %s", t.Family, t.Name)
		sets, err := c.GetSets(t)
		if err != nil {
			return err
		}
		for _, set := range sets {
			s.add("nft set %d %s %s", t.Family, t.Name, set.Name)
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		return err
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return err
		}
		s.add("nft chain %d %s %s with %d rules", ch.Table.Family, ch.Table.Name, ch.Name, len(rules))
	}
	return nil
}

func (s *snapshot) sysctls() error {
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		v, err := s.n.ReadSysctl(name)
		if err != nil {
			return err
		}
		s.add("sysctl %s = %s", name, v)
	}
	return nil
}
