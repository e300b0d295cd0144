// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// KeepQuiet makes the router drop the ICMP errors that would tell a sender that its packets are too large for the next hop: what is called a
// black hole.
func (r *Router) KeepQuiet() {
	r.lab.tb.Helper()
	r.filter("quiet", nftables.ChainHookOutput, nftables.ChainPriorityFilter,
		append(protocol(unix.IPPROTO_ICMP), transportByte(0, 3)...),   // destination unreachable
		append(protocol(unix.IPPROTO_ICMPV6), transportByte(0, 2)...), // packet too big
	)
}

// DropFragments makes the host lose all IP fragments that arrive, as many networks do on the way.
func (h *Host) DropFragments() {
	h.lab.tb.Helper()
	h.filter("fragments", nftables.ChainHookPrerouting, nftables.ChainPriorityRef(-500), // before the kernel joins them
		append(family(unix.NFPROTO_IPV4),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: []byte{0, 0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
		),
		append(family(unix.NFPROTO_IPV6),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_FRAGMENT}},
		),
	)
}

// filter drops what matches one of the rules at a hook of the namespace.
func (n *Namespace) filter(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...[]expr.Any) {
	n.lab.tb.Helper()
	err := n.nft(func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
		chain := c.AddChain(&nftables.Chain{Name: "drop", Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: priority})
		for _, exprs := range rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(exprs, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
	})
	if err != nil {
		n.lab.tb.Fatalf("lab: filter %s of %s: %v", name, n.name, err)
	}
}

// family matches IPv4 or IPv6.
func family(f byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}},
	}
}

// protocol matches the protocol above IP.
func protocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

// transportByte matches a byte of the header above IP.
func transportByte(at uint32, v byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: at, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{v}},
	}
}
