// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Router forwards between segments.
type Router struct {
	*Namespace
	links []*Link
}

// A NATKind is how a NAT chooses the outer port of a flow. Both kinds let in only answers, from the very address and port
// that something was sent to.
type NATKind int

// The kinds of NAT.
const (
	// KeepPorts keeps the inner port where it is free, so a host has the same outer port towards everybody: what most home
	// routers do, and what hole punching needs.
	KeepPorts NATKind = iota
	// RandomPorts chooses a new outer port for each destination ("symmetric" NAT).
	RandomPorts
)

// Router makes a router on the segments. On each it becomes the gateway unless there is one already; in that case it is a
// member like hosts are and has its default route by that gateway (at most one segment can be of this kind). Make routers
// before hosts; an inner router after the outer one.
func (l *Lab) Router(name string, segments ...*Segment) *Router {
	l.tb.Helper()
	r, err := l.newRouter(name, segments)
	if err != nil {
		l.tb.Fatalf("lab: router %s: %v", name, err)
	}
	return r
}

func (l *Lab) newRouter(name string, segments []*Segment) (*Router, error) {
	ns, err := l.newNamespace(name)
	if err != nil {
		return nil, err
	}
	r := &Router{Namespace: ns}
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := ns.Sysctl(s, "1"); err != nil {
			return nil, err
		}
	}
	for i, s := range segments {
		member := 1
		if s.gateway {
			s.members++
			member = s.members
		} else if err := s.dropOwnGateway(); err != nil {
			return nil, err
		}
		link, err := s.plug(ns, fmt.Sprintf("eth%d", i), member, true, true, 0)
		if err != nil {
			return nil, err
		}
		r.links = append(r.links, link)
		if member == 1 {
			s.gateway = true
		} else if err := link.addDefaultRoutes(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// dropOwnGateway takes the gateway's addresses from the switch.
func (s *Segment) dropOwnGateway() error {
	bridge, err := s.ns.nl.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	if err := s.ns.nl.AddrDel(bridge, address(s.prefix4(1))); err != nil {
		return err
	}
	return s.ns.nl.AddrDel(bridge, address(s.prefix6(1)))
}

// Link returns the router's link to the segment, nil if there is none.
func (r *Router) Link(s *Segment) *Link {
	for _, l := range r.links {
		if l.segment == s {
			return l
		}
	}
	return nil
}

// Route makes the router reach a segment by another router that both share the segment shared with.
func (r *Router) Route(to *Segment, by *Router, shared *Segment) {
	r.lab.tb.Helper()
	hop := by.Link(shared)
	if hop == nil || r.Link(shared) == nil {
		r.lab.tb.Fatalf("lab: %s and %s do not share %s", r.name, by.name, shared.name)
	}
	for _, route := range []*netlink.Route{
		{Dst: ipNet(to.V4()), Gw: hop.v4.AsSlice()},
		{Dst: ipNet(to.V6()), Gw: hop.v6.AsSlice()},
	} {
		if err := r.nl.RouteAdd(route); err != nil {
			r.lab.tb.Fatalf("lab: route of %s to %s: %v", r.name, to.name, err)
		}
	}
}

// NAT makes the router hide its other segments behind its address on the segment outside, for v4 and v6, and lets only
// answers in.
func (r *Router) NAT(outside *Segment, kind NATKind) {
	r.lab.tb.Helper()
	r.guard(outside, &expr.Masq{FullyRandom: kind == RandomPorts}, nil)
}

// Home makes the router what routers at home are: a NAT for v4, and for v6 a firewall, which leaves addresses and ports as they are.
// It lets only answers in. The outside needs a route to the v6 subnets behind it: see [Link.RouteV6].
func (r *Router) Home(outside *Segment, kind NATKind) {
	r.lab.tb.Helper()
	r.guard(outside, &expr.Masq{FullyRandom: kind == RandomPorts}, family(unix.NFPROTO_IPV4))
}

// Forget makes the router forget all flows that it knows, as one that was switched off and on: a NAT that chooses ports chooses new ones.
func (r *Router) Forget() {
	r.lab.tb.Helper()
	err := r.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err != nil {
		r.lab.tb.Fatalf("lab: flows of %s: %v", r.name, err)
	}
}

// guard hides what matches behind the router's address on the segment outside, and lets only answers in.
func (r *Router) guard(outside *Segment, hide *expr.Masq, match []expr.Any) {
	r.lab.tb.Helper()
	out := r.Link(outside)
	if out == nil {
		r.lab.tb.Fatalf("lab: %s is not on %s", r.name, outside.name)
	}
	err := r.nft(func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "nat"})
		chain := func(name string, t nftables.ChainType, hook *nftables.ChainHook, p *nftables.ChainPriority) *nftables.Chain {
			return c.AddChain(&nftables.Chain{Name: name, Table: table, Type: t, Hooknum: hook, Priority: p})
		}
		rule := func(chain *nftables.Chain, exprs ...[]expr.Any) {
			r := &nftables.Rule{Table: table, Chain: chain}
			for _, e := range exprs {
				r.Exprs = append(r.Exprs, e...)
			}
			c.AddRule(r)
		}
		post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
		rule(post, match, device(expr.MetaKeyOIFNAME, out.device), []expr.Any{hide})
		drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
		forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
		rule(forward, device(expr.MetaKeyIIFNAME, out.device), unsolicited(), unredirected(), drop)
		// What nobody asked for must not reach the router's own stack: the connection tracking entry that it would leave
		// there could take the outer port that a flow from inside needs.
		input := chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			rule(input, device(expr.MetaKeyIIFNAME, out.device), unsolicited(), protocol(proto), drop)
		}
	})
	if err != nil {
		r.lab.tb.Fatalf("lab: NAT on %s: %v", r.name, err)
	}
}

// unredirected matches packets that the router has not sent on to a host behind it.
func unredirected() []expr.Any {
	const redirected = 1 << 5 // IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: hostOrder(redirected), Xor: hostOrder(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: hostOrder(0)},
	}
}

// unsolicited matches packets that begin a connection or belong to none.
func unsolicited() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: hostOrder(expr.CtStateBitNEW | expr.CtStateBitINVALID), Xor: hostOrder(0),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: hostOrder(0)},
	}
}
