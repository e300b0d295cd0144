// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ServiceTable is the nftables table, of the family inet, in which [Host.Service] keeps all.
const ServiceTable = "services"

// Service makes what goes to an address and port, by TCP and UDP, from this host and through it go to another one instead, as a cluster's load balancer does on each
// node. What would go back to where it comes from it masquerades. It also has a chain at the forward hook that accepts all, as firewalls do
// that know of no policies. Called again, it adds one more.
func (h *Host) Service(virtual, to netip.AddrPort) {
	h.lab.tb.Helper()
	err := h.nft(func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: ServiceTable})
		chain := func(name string, t nftables.ChainType, hook *nftables.ChainHook, p *nftables.ChainPriority) *nftables.Chain {
			return c.AddChain(&nftables.Chain{Name: name, Table: table, Type: t, Hooknum: hook, Priority: p})
		}
		dnat := []*nftables.Chain{
			chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
			chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest),
		}
		post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
		forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
		c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}})
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			for _, ch := range dnat {
				c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: append(
					destined(virtual, proto),
					&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
					&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(nfproto(to.Addr())), RegAddrMin: 1, RegProtoMin: 2},
				)})
			}
		}
		itself := matchAddr(to.Addr(), false)
		c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: append(append(matchAddr(to.Addr(), true), itself[2:]...), &expr.Masq{})})
	})
	if err != nil {
		h.lab.tb.Fatalf("lab: service %v on %s: %v", virtual, h.name, err)
	}
}

func nfproto(a netip.Addr) byte {
	if a.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// matchAddr matches packets from an address, or to it. Its first expression matches the family.
func matchAddr(a netip.Addr, source bool) []expr.Any {
	offset, size := uint32(16), uint32(4)
	if a.Is6() {
		offset, size = 24, 16
	}
	if source {
		offset -= size
	}
	return matched(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, []byte{nfproto(a)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}, a.AsSlice())
}

// matched loads and compares, twice.
func matched(first expr.Any, is []byte, second expr.Any, then []byte) []expr.Any {
	return []expr.Any{first, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: is}, second, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: then}}
}

// destined matches what goes to a port of an address.
func destined(to netip.AddrPort, proto byte) []expr.Any {
	return append(matchAddr(to.Addr(), false), matched(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, []byte{proto},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, binary.BigEndian.AppendUint16(nil, to.Port()))...)
}
