// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table of family inet that holds all of Weft's rules.
const tableName = "weft"

// filters is what the table is to do.
//
//	prerouting   before connection tracking: a workload sends from its own addresses only, and what comes from
//	             the universe comes by Weft's devices only
//	leak         a packet to the universe leaves by Weft's devices or not at all, whatever became of its routes; and nobody
//	             beyond the device is told of a shorter way, which the kernel suspects where it forwards a packet back into
//	             the device, as it does for WireGuard clients
//	postrouting  masquerade
//
// The leak rule sees packets after routing, so it hurts who really has a part of the universe elsewhere: a network that
// was added to the host later, say, a container bridge. Such a network could be reached in part only even without the rule, as
// Weft's routes to single workloads win; [Overlap] finds it when the daemon starts.
type filters struct {
	device     string
	universe   []netip.Prefix
	masquerade bool
}

// features are the parts of nftables that not every kernel has.
type features struct {
	fib bool // Linux 4.10
	nat bool // NAT in family inet: Linux 5.2
}

// apply replaces the table in one transaction with the most that the kernel can do.
func (f filters) apply(ns namespace) (got features, warnings []string) {
	c, err := ns.nftables()
	if err == nil {
		_, err = c.ListTablesOfFamily(nftables.TableFamilyINet)
	}
	if err != nil {
		return features{}, append(f.lacking(features{}), fmt.Sprintf(
			"nftables does not work here: %v; use a kernel with nf_tables, or packets of workloads are not checked when they leave", err))
	}
	for _, got = range []features{{fib: true, nat: true}, {nat: true}, {fib: true}, {}} {
		if err = f.replace(ns, got); err == nil {
			break
		}
	}
	if err != nil {
		return features{}, append(f.lacking(features{}), fmt.Sprintf(
			"nftables refuses Weft's rules: %v; packets of workloads are not checked when they leave", err))
	}
	return got, append(f.lacking(got), blockers(c)...)
}

// lacking warns about what does not work.
func (f filters) lacking(got features) (warnings []string) {
	if !got.fib {
		w := "this kernel's nftables has no fib expression: senders are checked by rp_filter instead"
		if hasV6(f.universe) {
			w += ", IPv6 senders not at all"
		}
		warnings = append(warnings, w+"; use a kernel with CONFIG_NFT_FIB_INET")
	}
	if !got.nat {
		warnings = append(warnings, "this kernel's nftables cannot masquerade: workloads do not reach the outside; use Linux 5.2 or later with CONFIG_NFT_MASQ")
	}
	return warnings
}

// replace is all or nothing.
func (f filters) replace(ns namespace, use features) error {
	c, err := ns.nftables()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	c.AddTable(table) // there may be none to delete
	c.DelTable(table)
	c.AddTable(table)
	b := builder{c, table}

	pre := b.chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	if use.fib {
		if err := b.fromWorkloads(pre, f.device); err != nil {
			return err
		}
	}
	leak := b.chain("leak", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityFilter)
	b.rule(leak, "no shorter way", name(expr.MetaKeyOIFNAME, expr.CmpOpEq, f.device), redirect(), verdict(expr.VerdictDrop, ""))
	var nat *nftables.Chain
	if use.nat {
		nat = b.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	}
	masquerade := &expr.Masq{FullyRandom: true}
	for _, p := range f.universe {
		b.rule(pre, "forged: source is in the overlay", f.notByWeft(expr.MetaKeyIIFNAME), match(p, source, expr.CmpOpEq), verdict(expr.VerdictDrop, ""))
		b.rule(leak, "never in plaintext", f.notByWeft(expr.MetaKeyOIFNAME), match(p, destination, expr.CmpOpEq), verdict(expr.VerdictDrop, ""))
		if nat == nil {
			continue
		}
		b.rule(nat, "into the overlay: as this host", name(expr.MetaKeyOIFNAME, expr.CmpOpEq, f.device), match(p, source, expr.CmpOpNeq), masquerade)
		if f.masquerade {
			b.rule(nat, "to the outside", f.notByWeft(expr.MetaKeyOIFNAME), match(p, source, expr.CmpOpEq), match(p, destination, expr.CmpOpNeq), masquerade)
		}
	}
	return c.Flush()
}

// removeTable deletes the table, and says whether there was one.
func removeTable(ns namespace) (bool, error) {
	c, err := ns.nftables()
	if err != nil {
		return false, fmt.Errorf("opening nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, nil // no nftables, no table
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		return false, nil
	}
	c.DelTable(tables[i])
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("removing nftables table inet %s: %w", tableName, err)
	}
	return true, nil
}

// blockers warns about chains of others that drop what is forwarded and know nothing of Weft. That is what Docker makes of a
// host. Chains of the older iptables cannot be seen here.
func blockers(c *nftables.Conn) (warnings []string) {
	chains, err := c.ListChains()
	if err != nil {
		return nil
	}
	for _, ch := range chains {
		drops := ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		if !drops || !slices.Contains([]nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet}, ch.Table.Family) {
			continue
		}
		if knowsWeft(c, ch) || knowsWeft(c, &nftables.Chain{Name: "DOCKER-USER", Table: ch.Table}) {
			continue
		}
		warnings = append(warnings, fmt.Sprintf("the firewall's chain %s in table %s drops what it does not know, packets of workloads too; "+
			"let it accept devices %s*, as by: iptables -I FORWARD -i %s+ -j ACCEPT; iptables -I FORWARD -o %s+ -j ACCEPT (ip6tables for IPv6)",
			ch.Name, ch.Table.Name, ifPrefix, ifPrefix, ifPrefix))
	}
	return warnings
}

// knowsWeft says whether a rule of the chain compares something with the names of Weft's devices.
func knowsWeft(c *nftables.Conn, ch *nftables.Chain) bool {
	rules, err := c.GetRules(ch.Table, ch)
	return err == nil && slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			cmp, ok := e.(*expr.Cmp)
			return ok && bytes.HasPrefix(cmp.Data, []byte(ifPrefix))
		})
	})
}

// builder collects a transaction.
type builder struct {
	c     *nftables.Conn
	table *nftables.Table
}

func (b builder) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Table: b.table, Name: name, Type: kind, Hooknum: hook, Priority: prio})
}

// rule adds a rule; parts are expressions or lists of them, in order.
func (b builder) rule(c *nftables.Chain, comment string, parts ...any) {
	r := &nftables.Rule{Table: b.table, Chain: c}
	if comment != "" {
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	for i, p := range parts {
		if i == len(parts)-1 {
			r.Exprs = append(r.Exprs, &expr.Counter{})
		}
		switch p := p.(type) {
		case []expr.Any:
			r.Exprs = append(r.Exprs, p...)
		case expr.Any:
			r.Exprs = append(r.Exprs, p)
		}
	}
	b.c.AddRule(r)
}

// fromWorkloads adds the check of what workloads send.
func (b builder) fromWorkloads(pre *nftables.Chain, device string) error {
	workload, link := b.chain("workload", "", nil, nil), b.chain("link", "", nil, nil)
	b.rule(pre, "", prefixed(expr.MetaKeyIIFNAME, expr.CmpOpEq), name(expr.MetaKeyIIFNAME, expr.CmpOpNeq, device), verdict(expr.VerdictJump, workload.Name))
	for _, p := range []string{"fe80::/10", "::/128"} {
		b.rule(workload, "", match(netip.MustParsePrefix(p), source, expr.CmpOpEq), verdict(expr.VerdictJump, link.Name))
	}
	b.rule(workload, "source is not this workload's", noWayBack(), verdict(expr.VerdictDrop, ""))

	types := &nftables.Set{Table: b.table, Anonymous: true, Constant: true, KeyType: nftables.TypeICMP6Type}
	var elements []nftables.SetElement
	for _, t := range linkTypes() {
		elements = append(elements, nftables.SetElement{Key: []byte{t}})
	}
	if err := b.c.AddSet(types, elements); err != nil {
		return err
	}
	b.rule(link, "neighbour discovery",
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_ICMPV6}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Lookup{SourceRegister: register, SetID: types.ID, SetName: types.Name},
		verdict(expr.VerdictAccept, ""))
	b.rule(link, "not for workloads", verdict(expr.VerdictDrop, ""))
	return nil
}

// linkTypes are the ICMPv6 messages that a host sends from its link-local address, or without any, to find neighbours and to
// join their groups (RFC 4861 and 3810). Router advertisements and redirects are not among them: a workload is no router.
func linkTypes() []byte {
	return []byte{
		131, // multicast listener report
		132, // multicast listener done
		133, // router solicitation
		135, // neighbour solicitation
		136, // neighbour advertisement
		143, // multicast listener report, version 2
	}
}

// register is the nftables register that all matches use.
const register = 1

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

// name compares the name of a packet's device with one name.
func name(key expr.MetaKey, op expr.CmpOp, device string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: register},
		&expr.Cmp{Op: op, Register: register, Data: append([]byte(device), make([]byte, unix.IFNAMSIZ-len(device))...)},
	}
}

// prefixed compares the beginning of that name.
func prefixed(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: register}, &expr.Cmp{Op: op, Register: register, Data: []byte(ifPrefix)}}
}

// notByWeft matches packets whose device is neither one of Weft's nor the loopback.
func (f filters) notByWeft(key expr.MetaKey) []expr.Any {
	return slices.Concat(prefixed(key, expr.CmpOpNeq), name(key, expr.CmpOpNeq, f.device), name(key, expr.CmpOpNeq, "lo"))
}

// noWayBack matches packets whose source is not routed to the device that they came by.
func noWayBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: register, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: make([]byte, 4)},
	}
}

// redirect matches ICMP redirects (RFC 792, type 5). Those of ICMPv6 need a link-local address, which the device does not have.
func redirect() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_ICMP}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{5}},
	}
}

// field is where an address lies in the headers of the two families.
type field struct{ v4, v6 uint32 }

var (
	source      = field{12, 8}
	destination = field{16, 24}
)

// match compares an address of a packet of the family of p with p.
func match(p netip.Prefix, f field, op expr.CmpOp) []expr.Any {
	proto, offset, size := byte(unix.NFPROTO_IPV4), f.v4, uint32(4)
	if p.Addr().Is6() {
		proto, offset, size = unix.NFPROTO_IPV6, f.v6, 16
	}
	mask := net.CIDRMask(p.Bits(), int(8*size))
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{proto}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: register, Data: p.Addr().AsSlice()},
	}
}
