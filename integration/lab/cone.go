// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// asked is how long a NAT lets in those that something was sent to.
const asked = time.Minute

// Cone makes the router a NAT for the v4 of one host that keeps its ports, and lets in UDP from whatever port of an address that the host
// has sent to within the last minute ("address-restricted cone"), unlike [Router.NAT], which looks at ports as well.
func (r *Router) Cone(outside *Segment, inside *Host) {
	r.lab.tb.Helper()
	r.guard(outside, &expr.Masq{}, nil)
	out := r.Link(outside)
	err := r.nft(func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "cone"})
		set := &nftables.Set{Table: table, Name: "asked", KeyType: nftables.TypeIPAddr, Dynamic: true, HasTimeout: true, Timeout: asked}
		if err := c.AddSet(set, nil); err != nil {
			return // said by the transaction, too
		}
		address := func(offset uint32) expr.Any {
			return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
		}
		const source, destination = 12, 16 // offsets in the header
		notes := c.AddChain(&nftables.Chain{
			Name: "notes", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityMangle,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: notes, Exprs: append(device(expr.MetaKeyOIFNAME, out.device),
			address(destination), &expr.Dynset{SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE})})
		in := c.AddChain(&nftables.Chain{
			Name: "in", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: append(append(device(expr.MetaKeyIIFNAME, out.device), protocol(unix.IPPROTO_UDP)...),
			address(source), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Immediate{Register: 1, Data: inside.link.v4.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})})
	})
	if err != nil {
		r.lab.tb.Fatalf("lab: cone on %s: %v", r.name, err)
	}
}
