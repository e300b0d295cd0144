// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// The protocols without ports.
const (
	icmp   policy.Protocol = 1
	icmpv6 policy.Protocol = 58
)

// Connection returns one between addresses of the universe, or to or from outside of it, that aims at a rule of one of its policies most of the time: at
// its ports and blocks and at what is next to them.
func (u Universe) Connection(s Source) policy.Connection {
	src, dst := u.addr(s), u.addr(s)
	for range 3 {
		if src.Is4() == dst.Is4() {
			break
		}
		dst = u.addr(s)
	}
	if src.Is4() != dst.Is4() {
		dst = src // through a Service to itself
	}
	c := policy.Connection{Src: src, Dst: dst, Protocol: pick(s, protocols()...), Port: near(s, pick(s, ports()...))}
	switch s.IntN(8) {
	case 0, 1, 2:
		if r, ok := u.rule(s); ok && len(r.Ports) > 0 {
			u.aim(s, &c, pick(s, r.Ports...))
		}
	case 3, 4:
		u.name(s, &c)
	case 5:
		c.Protocol, c.Port = icmp, 0
		if src.Is6() {
			c.Protocol = icmpv6
		}
	case 6:
		c.Port = pick[uint16](s, 0, 65535)
	}
	return c
}

// rule returns one of the universe.
func (u Universe) rule(s Source) (policy.Rule, bool) {
	if len(u.Policies) == 0 {
		return policy.Rule{}, false
	}
	rules := pick(s, u.Policies...).Rules[pick(s, directions()...)]
	if len(rules) == 0 {
		return policy.Rule{}, false
	}
	return pick(s, rules...), true
}

// aim makes c go to the ports, or beside them.
func (u Universe) aim(s Source, c *policy.Connection, p policy.Ports) {
	if p.Name != "" {
		u.name(s, c)
		return
	}
	c.Protocol = p.Protocol
	c.Port = near(s, pick(s, p.First, p.Last))
}

// name makes c go to a port that has a name at its destination.
func (u Universe) name(s Source, c *policy.Connection) {
	i := slices.IndexFunc(u.Endpoints, func(e policy.Endpoint) bool { return slices.Contains(e.Addrs, c.Dst) })
	if i >= 0 && len(u.Endpoints[i].Ports) > 0 {
		n := pick(s, u.Endpoints[i].Ports...)
		c.Protocol, c.Port = n.Protocol, n.Port
	}
}

// near returns p, or one more or less.
func near(s Source, p uint16) uint16 { return p + pick[uint16](s, 0, 0, 0, 1, 0xffff) }

// addr returns an address.
func (u Universe) addr(s Source) netip.Addr {
	switch i := s.IntN(12); {
	case i < 8:
		if len(u.Endpoints) > 0 {
			if e := pick(s, u.Endpoints...); len(e.Addrs) > 0 {
				return pick(s, e.Addrs...)
			}
		}
	case i < 9:
		if len(u.Nodes) > 0 {
			return pick(s, pick(s, u.Nodes...).Addrs...)
		}
	case i < 11:
		if r, ok := u.rule(s); ok && len(r.Peers) > 0 {
			if b := pick(s, r.Peers...).Block; b != nil {
				return edge(s, pick(s, slices.Concat(b.Except, []netip.Prefix{b.Prefix})...))
			}
		}
	}
	return anAddr(s)
}

// edge returns the first or the last address of p, or one that is next to it.
func edge(s Source, p netip.Prefix) netip.Addr {
	a := p.Masked().Addr()
	if chance(s, 2) {
		b := a.AsSlice()
		for i := p.Bits(); i < a.BitLen(); i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		a, _ = netip.AddrFromSlice(b)
		if n := a.Next(); chance(s, 3) && n.IsValid() {
			a = n
		}
	} else if n := a.Prev(); chance(s, 3) && n.IsValid() {
		a = n
	}
	return a
}
