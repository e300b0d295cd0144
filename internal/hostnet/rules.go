// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// filters is what the table is to do.
//
//	prerouting   before connection tracking: a workload sends from its own addresses only, and what comes from
//	             the universe comes by Weft's devices only, or by the kernel path of the peer that has the source, or from a
//	             workload whose interface is not Weft's; a tunnel brings only what its sender has, by the inner source, and is not
//	             tracked
//	postrouting  address translation
//	leaving      a packet to the universe leaves by Weft's devices, by a kernel path to the peer that has the destination,
//	             as a probe of one, or not at all, whatever became of its routes (the leak rule); and nobody is told of a shorter way, which
//	             the kernel suspects where it forwards a packet back into the device, as it does for WireGuard clients
//
// and if there are kernel paths:
//
//	input        no packet has become a tunnel by a translation after that
//	transit      what comes by a kernel path goes to this host, its workloads or the router
//	leaving      what was translated to an address of this host is no tunnel of its, to whatever host outside of the universe
//	output       tunnels are not tracked
//
// By kernel paths each packet, or each superpacket of TCP, meets the table three times on the way from workload to workload by VXLAN, so what
// such a packet meets comes first, is short, compares numbers rather than names, and looks into one set at a time. The groups of devices are for
// that: whoever is in none of them is recognised by the name, some rules later.
//
// The leak rule sees packets after routing, so it hurts who really has a part of the universe elsewhere: a network that
// was added to the host later, say, a container bridge. Such a network could be reached in part only even without the rule, as
// Weft's routes to single workloads win; [Overlap] finds it when the daemon starts.
type filters struct {
	device     string
	universe   []netip.Prefix
	masquerade bool
	addrs      map[bool]netip.Addr // the host's overlay address, by whether it is v6
	port       uint16              // UDP, of VXLAN; 0: no kernel paths
	devices    []string            // of VXLAN
	given      []netip.Addr        // whose interfaces are not Weft's
}

// rules is a table as it should be.
type rules struct {
	sets     []setKind
	chains   []*chain
	elements contents
}

// chain is a part of it.
type chain struct {
	name     string
	kind     nftables.ChainType // "" for one that others lead to
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []rule
}

type rule struct {
	comment string
	exprs   []expr.Any
}

func (r *rules) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *chain {
	c := &chain{name: name, kind: kind, hook: hook, priority: priority}
	r.chains = append(r.chains, c)
	return c
}

// add adds a rule; parts are expressions or lists of them, in order. What a rule with a comment has matched is counted before the last of
// them. What every packet meets has none: to count takes as long as to compare.
func (c *chain) add(comment string, parts ...any) {
	r := rule{comment: comment}
	for i, p := range parts {
		if i == len(parts)-1 && comment != "" {
			r.exprs = append(r.exprs, &expr.Counter{})
		}
		switch p := p.(type) {
		case []expr.Any:
			r.exprs = append(r.exprs, p...)
		case expr.Any:
			r.exprs = append(r.exprs, p)
		}
	}
	c.rules = append(c.rules, r)
}

// table returns the table that the kernel can do. The elements are those of kernel paths.
func (f filters) table(use features, elements contents) rules {
	r := rules{elements: contents{}}
	if use.plain {
		r.sets = plainSets()
		maps.Copy(r.elements, elements)
	}
	f.arriving(&r, use)
	f.leaving(&r, use)
	if use.nat {
		f.translation(&r, use)
	}
	if use.plain {
		f.host(&r)
		f.transit(&r)
	}
	return r
}

// arriving adds the checks of sources. What came by VXLAN has been looked at when it was still in its tunnel.
func (f filters) arriving(r *rules, use features) {
	pre := r.chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	fromWorkload := accept()
	if use.fib {
		f.fromWorkloads(r, use)
		fromWorkload = verdict(expr.VerdictGoto, "workload")
	}
	if use.plain {
		// What was let in a moment ago, by the same device, needs none of what follows.
		pre.add("", udpTo(f.port), verdict(expr.VerdictJump, came(r).name))
		pre.add("", group(expr.MetaKeyIIFGROUP, GroupPaths), accept())
	}
	pre.add("", group(expr.MetaKeyIIFGROUP, groupWorkloads), fromWorkload)
	own := r.chain("ours", "", nil, nil)
	pre.add("", prefixed(expr.MetaKeyIIFNAME, expr.CmpOpEq), verdict(expr.VerdictGoto, own.name))
	for _, dev := range append([]string{f.device}, f.devices...) {
		if dev == f.device || use.plain {
			own.add("", name(expr.MetaKeyIIFNAME, expr.CmpOpEq, dev), accept())
		}
	}
	own.add("", workloads(expr.MetaKeyIIFNAME), fromWorkload)
	if use.plain {
		pre.add("", udpTo(f.port), verdict(expr.VerdictJump, f.tunnels(r).name))
	}
	for _, p := range f.universe {
		strange := r.chain("strange"+digit(p.Addr().Is6()), "", nil, nil)
		for _, c := range []*chain{pre, own} {
			c.add("", match(p, source, expr.CmpOpEq), verdict(expr.VerdictGoto, strange.name))
		}
		if use.plain {
			strange.add("", segmentSet(p.Addr().Is6()).lookup(), accept())
		}
		for _, dev := range []string{f.device, "lo"} {
			strange.add("", name(expr.MetaKeyIIFNAME, expr.CmpOpEq, dev), accept())
		}
		if use.fib {
			strange.add("", given(p, source), verdict(expr.VerdictGoto, "workload"))
		}
		strange.add("forged: source is in the overlay", drop())
	}
}

// fromWorkloads adds the check of what workloads send.
func (f filters) fromWorkloads(r *rules, use features) {
	workload, workload6 := r.chain("workload", "", nil, nil), r.chain("workload6", "", nil, nil)
	f.addGiven(r)
	link := r.chain("link", "", nil, nil)
	workload.add("", familyOf(true), verdict(expr.VerdictGoto, workload6.name))
	for _, p := range []string{"fe80::/10", "::/128"} {
		workload6.add("", match(netip.MustParsePrefix(p), source, expr.CmpOpEq), verdict(expr.VerdictGoto, link.name))
	}
	for i, c := range []*chain{workload, workload6} {
		c.add("source is not this workload's", noWayBack(), drop())
		if use.plain {
			c.add("workloads have no tunnels", portSet().lookup(), f.below(i == 1), drop())
		}
	}

	types := setKind{name: "discovery", key: nftables.TypeICMP6Type}
	r.sets = append(r.sets, types)
	r.elements[types.name] = map[element]bool{}
	for _, t := range linkTypes() {
		r.elements[types.name][element{key: string([]byte{t})}] = true
	}
	link.add("neighbour discovery",
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_ICMPV6}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Lookup{SourceRegister: register, SetName: types.name},
		accept())
	link.add("not for workloads", drop())
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

// leaving adds the leak rule, and what is to be seen of packets after their translation.
func (f filters) leaving(r *rules, use features) {
	leaving := r.chain("leaving", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityConntrackHelper)
	if use.plain { // whose addresses are not in the universe; what is not tracked is not translated either
		for _, v6 := range []bool{false, true} {
			leaving.add("", untracked(), peerSet(v6).lookup(), accept())
		}
	}
	leaving.add("", group(expr.MetaKeyOIFGROUP, groupWorkloads), accept())
	for _, p := range f.universe {
		v6 := p.Addr().Is6()
		overlay := r.chain("overlay"+digit(v6), "", nil, nil)
		leaving.add("", match(p, destination, expr.CmpOpEq), verdict(expr.VerdictGoto, overlay.name))
		if use.plain {
			// Probes say by themselves which way they take. They are no traffic, so they do not count as such.
			for _, m := range []uint32{markDirect, markVXLAN} {
				overlay.add("", mark(m), accept())
			}
		}
		overlay.add("no shorter way", redirect(v6), drop())
		overlay.add("", group(expr.MetaKeyOIFGROUP, groupTunnel), accept())
		if use.plain {
			overlay.add("", outSet(v6).lookup(), accept())
		}
		f.ours(overlay, expr.MetaKeyOIFNAME)
		if use.fib {
			overlay.add("", given(p, destination), accept())
		}
		overlay.add("never in plaintext", drop())
	}
	if use.plain {
		disguised := r.chain("disguised", "", nil, nil)
		leaving.add("", portSet().lookup(), verdict(expr.VerdictGoto, disguised.name))
		disguised.add("", untracked(), accept()) // which nobody has translated
		disguised.add("tunnel of somebody else", translated(), drop())
		for _, c := range []*chain{leaving, disguised} {
			for _, dev := range f.devices {
				c.add("not for the overlay", name(expr.MetaKeyOIFNAME, expr.CmpOpEq, dev), drop())
			}
		}
	}
}

// ours accepts packets whose device is the TUN device, the loopback or a workload's.
func (f filters) ours(c *chain, key expr.MetaKey) {
	for _, dev := range []string{f.device, "lo"} {
		c.add("", name(key, expr.CmpOpEq, dev), accept())
	}
	c.add("", workloads(key), accept())
}

// translation adds what hides addresses of workloads from the outside, and those of others from the overlay. Into the overlay it is
// no masquerading where the host's address is known: the kernel drops a masqueraded connection when it leaves by another
// device, as it does whenever the path to a peer changes.
func (f filters) translation(r *rules, use features) {
	nat := r.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	nat.add("", name(expr.MetaKeyOIFNAME, expr.CmpOpEq, "lo"), accept())
	nat.add("", workloads(expr.MetaKeyOIFNAME), name(expr.MetaKeyOIFNAME, expr.CmpOpNeq, f.device), accept())
	for _, p := range f.universe {
		if use.fib {
			nat.add("", given(p, destination), accept())
		}
		var asHost any = &expr.Masq{FullyRandom: true}
		if a, ok := f.addrs[p.Addr().Is6()]; ok {
			asHost = sourceNAT(a)
		}
		nat.add("into the overlay: as this host", name(expr.MetaKeyOIFNAME, expr.CmpOpEq, f.device), match(p, source, expr.CmpOpNeq), asHost)
		if use.plain {
			nat.add("into the overlay: as this host", match(p, destination, expr.CmpOpEq), match(p, source, expr.CmpOpNeq), asHost)
		}
		if f.masquerade {
			nat.add("to the outside", name(expr.MetaKeyOIFNAME, expr.CmpOpNeq, f.device),
				match(p, source, expr.CmpOpEq), match(p, destination, expr.CmpOpNeq), &expr.Masq{FullyRandom: true})
		}
	}
}

func sourceNAT(a netip.Addr) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if a.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: register, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: register, RegAddrMax: register, FullyRandom: true},
	}
}

// notOfPeer is the comment of the rules that drop tunnels.
const notOfPeer = "forged: not a tunnel of this peer"

// tunnels adds the checks of VXLAN itself: what arrives, whatever its VNI, is from a peer and bears an inner source of that peer. Nothing else
// of a packet needs a look: the kernel takes an inner packet for what its ethertype says. What goes on to another host is none of this one's.
func (f filters) tunnels(r *rules) *chain {
	vxlan := r.chain("vxlan", "", nil, nil)
	for _, v6 := range kinds() {
		known := tunnelSet(v6[0], v6[1]).lookup()
		vxlan.add("", known, cameBy(v6[0], v6[1]), seenSet(v6[0], v6[1]).add()) // which ends the rule if there is no room
		vxlan.add("", known, &expr.Notrack{}, accept())
	}
	vxlan.add("", toAnother(), verdict(expr.VerdictReturn, ""))
	// Connection tracking puts fragments together before all else, of both families, as long as a rule like this one uses it: a
	// source could be hidden from the rules in a fragment otherwise.
	vxlan.add("whole datagrams only", &expr.Ct{Key: expr.CtKeySTATE, Register: register})
	vxlan.add(notOfPeer, drop())
	return vxlan
}

// kinds are the families of outer and inner packets, and whether each is IPv6.
func kinds() [][2]bool { return [][2]bool{{false, false}, {false, true}, {true, false}, {true, true}} }

// came adds the chain for tunnels that were let in a moment ago.
func came(r *rules) *chain {
	c := r.chain("came", "", nil, nil)
	for _, v6 := range kinds() {
		c.add("", seenSet(v6[0], v6[1]).lookup(), &expr.Notrack{}, accept())
	}
	return c
}

// host adds what is to be seen of tunnels where packets come to this host and leave it. What is not tracked cannot have been translated since the chain vxlan
// has seen it.
func (f filters) host(r *rules) {
	input := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	input.add("", untracked(), accept())
	input.add(notOfPeer, udpTo(f.port), drop())

	output := r.chain("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw)
	for _, v6 := range []bool{false, true} {
		output.add("tunnels are not tracked", peerSet(v6).lookup(), &expr.Notrack{}, accept())
	}
}

// below matches packets of a family to the networks below the overlay.
func (f filters) below(v6 bool) []expr.Any {
	for _, p := range f.universe {
		if p.Addr().Is6() == v6 {
			return match(p, destination, expr.CmpOpNeq)
		}
	}
	return familyOf(v6)
}

// translated matches packets of connections whose source is not what it was.
func translated() []expr.Any {
	const sourceNAT = 1 << 4 // IPS_SRC_NAT
	bits := binary.NativeEndian.AppendUint32(nil, sourceNAT)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: register},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
	}
}

// transit adds what keeps this host from being the peers' way to elsewhere. Replies to what somebody sent into the overlay by this
// host go back to them.
func (f filters) transit(r *rules) {
	transit := r.chain("transit", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFGROUP, expr.MetaKeyOIFGROUP} {
		transit.add("", group(key, groupWorkloads), accept())
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		f.ours(transit, key)
	}
	for _, p := range f.universe {
		transit.add("", given(p, source), accept())
		transit.add("", given(p, destination), accept())
	}
	transit.add("",
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{1}}, // IP_CT_DIR_REPLY
		accept())
	for _, dev := range f.devices {
		transit.add("not for the outside", name(expr.MetaKeyIIFNAME, expr.CmpOpEq, dev), drop())
	}
	for _, p := range f.universe {
		transit.add("not for the outside", match(p, source, expr.CmpOpEq), drop())
	}
}

// same says whether two lead to the same table, but for the elements.
func (f filters) same(o filters) bool {
	return f.device == o.device && f.masquerade == o.masquerade && f.port == o.port && slices.Equal(f.universe, o.universe) &&
		slices.Equal(f.devices, o.devices) && maps.Equal(f.addrs, o.addrs)
}
