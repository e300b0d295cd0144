// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Congest makes the router mark packets that it forwards as congested (CE), by chance, with probability p in [0,1] each, as active queue
// management does when its queue grows (RFC 3168): those alone whose transport says that it understands. Packets are what the machine
// moves, see [Link.Segmented]. Zero ends it.
func (r *Router) Congest(p float64) {
	r.lab.tb.Helper()
	err := r.nft(func(c *nftables.Conn) {
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "congestion"}
		c.AddTable(table) // so that there is one to delete
		c.DelTable(table)
		if p == 0 {
			return
		}
		c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityMangle,
		})
		for _, family := range []struct {
			proto    byte
			ecn      uint16 // where the ECN field is in the first two bytes of the header
			checksum expr.PayloadCsumType
		}{
			{unix.NFPROTO_IPV4, 0x0003, expr.CsumTypeInet},
			{unix.NFPROTO_IPV6, 0x0030, expr.CsumTypeNone},
		} {
			field := binary.BigEndian.AppendUint16(nil, family.ecn)
			load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 2}
			exprs := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family.proto}},
				load,
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: field, Xor: []byte{0, 0}},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
			}
			exprs = append(exprs, chance(p)...)
			exprs = append(exprs, load,
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: binary.BigEndian.AppendUint16(nil, ^family.ecn), Xor: field},
				&expr.Payload{
					OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 2,
					CsumType: family.checksum, CsumOffset: 10,
				})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	})
	if err != nil {
		r.lab.tb.Fatalf("lab: congestion on %s: %v", r.name, err)
	}
}
