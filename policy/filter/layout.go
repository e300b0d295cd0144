// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// A layout is what the rules depend on.
type layout struct {
	ranges bool   // there are verdicts on several ports
	blocks bool   // there are identities of networks
	selves bool   // there are endpoints that do not always reach themselves
	group  uint16 // of nflog
	quiet  bool   // nobody is told of denied packets
}

// A chain is one of the table, as it should be.
type chain struct {
	name     string
	hook     int32 // NF_INET_*; noHook for one that others lead to
	priority int32 // of one with a hook
	rules    [][]expression
}

// add adds a rule; parts are expressions or lists of them.
func (c *chain) add(parts ...any) {
	var r []expression
	for _, p := range parts {
		switch p := p.(type) {
		case expression:
			r = append(r, p)
		case []expression:
			r = append(r, p...)
		}
	}
	c.rules = append(c.rules, r)
}

const noHook = -1

// A family is one of addresses.
type family struct {
	digit  string
	size   uint32 // of an address in bytes
	proto  byte   // NFPROTO_*
	source uint32 // where it lies in the header; the destination follows
}

func families() []family {
	return []family{
		{"4", 4, unix.NFPROTO_IPV4, 12},
		{"6", 16, unix.NFPROTO_IPV6, 8},
	}
}

func (f family) set(name string) string { return name + f.digit }

// An end is a direction: whose table is asked, and whose identity.
type end struct {
	name   string // of the direction, and of the map of its sides
	source bool   // its side is the source
}

func egress() end  { return end{setEgress, true} }
func ingress() end { return end{setIngress, false} }
func ends() []end  { return []end{egress(), ingress()} }

// copies are the names of the two copies of the rules.
func copies() []string { return []string{"a", "b"} }

// The rules have one variable, the packet's priority: where a packet is judged it holds the number of a table and, below it, of an identity; then
// the number of a list and, below it, the port; then that of the verdict. Registers alone would do for the kernel, but nft(8) cannot print rules that
// look up by what they have looked up. The priority is 0 again when the packet leaves; that is of the first packet of a connection.
const (
	// identityBits are those of an identity's number. The table's are above.
	identityBits = 18
	identityMask = 1<<identityBits - 1
	// ownBit is set in the numbers of identities of the host's own addresses.
	ownBit = 1 << (identityBits - 1)
	// maxTable, maxIdentity and maxList are the greatest numbers of each; of an identity without ownBit.
	maxTable    = 1<<(32-identityBits) - 1
	maxIdentity = ownBit - 1
	maxList     = 1<<16 - 2

	// allowed is the bit of a verdict's number by which it allows.
	allowed = 1 << 31
	// The numbers of the identities that are always there.
	worldNumber    = 0
	unsortedNumber = 1
	ownNumber      = ownBit | 1

	// logRate and logBurst are how many denied packets a second are told of, logBytes how much of each: all of IPv6's usual headers.
	logRate  = 100
	logBurst = 200
	logBytes = 128
	// logPrefix begins what is told of them; the direction follows.
	logPrefix = "weft-policy "

	tcpFlags = 13 // where they lie in TCP's header

	// afterVirtual is the priority at the input hook: behind IPVS (NF_IP_PRI_NAT_SRC - 1), so that what it hands on is none of what reaches the host.
	afterVirtual = 100
)

// The names of chains that others lead to.
const (
	chainJudge  = "judge"  // (table, identity) -> verdict, 0 if it has a list in which the port is not
	chainWorld  = "world"  // the same for World
	chainRest   = "rest"   // the same, but for the cells and the list
	chainLast   = "last"   // the table's default
	chainRanged = "ranged" // list -> verdict
	chainPort   = "port"   // adds the port to the number of a list
	chainResets = "resets"
	chainOwn    = "own" // (table, identity) -> (table, identity of the host)
)

// chains returns the rules for a layout, but for those of tables.
func (l layout) chains() (all []*chain) {
	add := func(name string, hook int32) *chain {
		c := &chain{name: name, hook: hook}
		all = append(all, c)
		return c
	}
	tracked := append([]expression{ctState(0)}, masked(ctBits(ctEstablished|ctRelated)), compare(unix.NFT_CMP_NEQ, make([]byte, 4)), accept())
	for _, h := range []struct {
		name     string
		hook     int32
		priority int32
	}{{"forward", unix.NF_INET_FORWARD, 0}, {"input", unix.NF_INET_LOCAL_IN, afterVirtual}} {
		base := add(h.name, h.hook)
		base.priority = h.priority
		base.add(tracked)
		for _, f := range families() {
			base.add(f.is(), goTo(h.name+f.digit))
			c := add(h.name+f.digit, noHook)
			if h.hook == unix.NF_INET_LOCAL_IN {
				// Nearly all that reaches a host is not from an endpoint of it.
				c.rules = append(c.rules, f.discovery()...)
			}
			// Whatever the phase is when a packet comes, and becomes once while it is judged, one of three attempts is undisturbed.
			for _, x := range append(copies(), copies()[0]) {
				c.add(current(x), jump(h.name+f.digit+x))
			}
			c.add(drop())
		}
	}
	// What leaves the host with an address that is not its own was not made by it: it is handed on, as by IPVS, which takes packets to the addresses of Services
	// at the input, and sends them to the endpoints behind these from here.
	output := add("output", unix.NF_INET_LOCAL_OUT)
	output.add(tracked)
	output.add(ownSource(), accept())
	for _, f := range families() {
		output.add(f.is(), goTo("forward"+f.digit))
	}
	for _, d := range ends() {
		c := add("denied-"+d.name, noHook)
		c.add(variable(), lookup(setCounts))
		if !l.quiet {
			l.tell(c, d)
		}
		c.add(counter(), drop())
		l.identity(add("to-"+d.name, noHook), d)
	}
	add(chainResets, noHook).add(tcp(), counter(), reset())
	own := add(chainOwn, noHook)
	own.add(keep(^uint32(identityMask)))
	own.add(set(ownNumber))
	l.judge(add)
	for _, f := range families() {
		f.strays(add)
		l.gaps(add, f)
		for _, x := range copies() {
			l.copyOf(add, f, x)
		}
	}
	return all
}

// leaf is the chain of a table, to which its sides lead: with the number that the other end's identity has.
func leaf(d end, number uint32) *chain {
	c := &chain{name: leafName(d.name, number), hook: noHook}
	c.add(jump("to-" + d.name))
	c.add(set(number << identityBits))
	return c
}

func leafName(set string, number uint32) string { return fmt.Sprint(set, "-", number) }

// identity finds that of the other end. World is what is there if none is found. The host's identities are for what reaches the host: what is forwarded
// comes from somebody else, and goes there, whatever its addresses.
func (l layout) identity(c *chain, d end) {
	for _, f := range families() {
		if l.selves {
			c.add(f.is(), f.both(), mapped(f.set(setSelves)), assign(), leave())
		}
		if d.source {
			c.add(toHost(), f.is(), f.address(false), mapped(f.set(setOwn)), assign(), leave())
		}
		c.add(f.is(), f.address(!d.source), mapped(f.set(setHosts)), assign(), leave())
		if l.blocks {
			c.add(f.is(), f.address(!d.source), mapped(f.set(setBlocks)), assign(), leave())
		}
	}
}

// judge adds what finds the verdict. Cells are by protocol and port, lists by protocol, and the rest is wide; then the same of World.
func (l layout) judge(add func(string, int32) *chain) {
	cells := func(c *chain) {
		c.add(variable(), meta(unix.NFT_META_L4PROTO, 1), payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, 2), mapped(setCells), assign(), leave())
		if l.ranges {
			c.add(variable(), meta(unix.NFT_META_L4PROTO, 1), mapped(setLists), assign(), goTo(chainRanged))
		}
	}
	wide := func(c *chain) { c.add(variable(), mapped(setWide), assign(), leave()) }
	c := add(chainJudge, noHook)
	cells(c)
	wide(c)
	c.add(keep(^uint32(identityMask)))
	c.add(goTo(chainWorld))

	c = add(chainWorld, noHook)
	cells(c)
	wide(c)
	c.add(drop())

	c = add(chainRest, noHook)
	wide(c)
	c.add(keep(^uint32(identityMask)))
	c.add(goTo(chainWorld))

	c = add(chainLast, noHook)
	c.add(keep(^uint32(identityMask)))
	wide(c)
	c.add(drop())

	c = add(chainRanged, noHook)
	c.add(jump(chainPort))
	c.add(variable(), swapped(), mapped(setRanges), assign(), leave())
	c.add(constant(0), assign())

	// The port cannot be put below the number of a list at once.
	c = add(chainPort, noHook)
	for bit := uint16(1 << 15); bit > 0; bit >>= 1 {
		mask := binary.BigEndian.AppendUint16(nil, bit)
		c.add(payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, 0), masked(mask), compare(unix.NFT_CMP_EQ, mask), set(uint32(bit)))
	}
}

// gaps adds what goes on after a list in which the port is not: the numbers have to be found once more.
func (l layout) gaps(add func(string, int32) *chain, f family) {
	for _, d := range ends() {
		c := add("gap-"+d.name+f.digit, noHook)
		c.add(f.side(d))
		c.add(goTo(chainRest))
		c = add("last-"+d.name+f.digit, noHook)
		c.add(f.side(d))
		c.add(goTo(chainLast))
	}
	c := add("gap-"+chainOwn+f.digit, noHook)
	c.add(f.side(egress()))
	c.add(notOwn(), jump(chainOwn))
	c.add(goTo(chainRest))
}

// copyOf adds the chains of a copy for a family.
func (l layout) copyOf(add func(string, int32) *chain, f family, x string) {
	forward, input := add("forward"+f.digit+x, noHook), add("input"+f.digit+x, noHook)
	forward.add(invalid(), jump("invalid"+f.digit))
	forward.add(midway(), jump("midway"+f.digit))
	for _, d := range ends() {
		forward.add(constant(0), assign())
		forward.add(f.side(d))
		forward.add(sided(), jump(d.name+f.digit+x))
		l.decide(add(d.name+f.digit+x, noHook), f, d, "gap-"+d.name+f.digit, x)
	}
	forward.add(current(x), constant(0), assign(), accept())

	// The host's own connections to endpoints are none of a policy's business, so that only an egress side counts.
	input.add(constant(0), assign())
	input.add(f.side(egress()))
	input.add(unsided(), current(x), accept())
	input.add(unsided(), leave())
	input.add(invalid(), drop())
	input.add(midway(), goTo(chainResets))
	input.add(notOwn(), jump(chainOwn))
	own := chainOwn + f.digit + x
	input.add(jump(own))
	l.decide(add(own, noHook), f, egress(), "gap-"+chainOwn+f.digit, x)
	input.add(current(x), constant(0), assign(), accept())
}

// decide goes back if the packet is allowed at one end, or judged by a copy that is not current any more.
func (l layout) decide(c *chain, f family, d end, gap, x string) {
	c.add(jump(chainJudge))
	if l.ranges {
		c.add(unsided(), jump(gap))
		c.add(unsided(), jump("last-"+d.name+f.digit))
	}
	c.add(variable(), masked(number(allowed)), compare(unix.NFT_CMP_EQ, number(allowed)), variable(), lookup(setCounts), leave())
	c.add(f.is(), f.both(), lookup(f.set(setSelf)), leave())
	c.add(current(x), goTo("denied-"+d.name))
}

// strays adds what becomes of packets that belong to no connection and do not begin one, at endpoints that have a side of whatever direction. A
// connection that was cut does not go on by them, whichever end sends, and is told so.
func (f family) strays(add func(string, int32) *chain) {
	invalid, midway := add("invalid"+f.digit, noHook), add("midway"+f.digit, noHook)
	midway.add(f.is(), f.both(), lookup(f.set(setSelf)), leave())
	for _, c := range []*chain{invalid, midway} {
		c.add(constant(0), assign())
		for _, d := range ends() {
			for _, source := range []bool{true, false} {
				c.add(f.is(), f.address(source), judged(f.set(d.name)))
			}
		}
	}
	invalid.add(sided(), counter(), drop())
	midway.add(sided(), goTo(chainResets))
}

// invalid goes on if connection tracking can make nothing of the packet.
func invalid() []expression {
	return []expression{ctState(0), masked(ctBits(ctInvalid)), compare(unix.NFT_CMP_NEQ, make([]byte, 4))}
}

// midway goes on with TCP that is no plain SYN.
func midway() []expression {
	const syn, mask = 0x02, 0x17 // SYN among FIN, SYN, RST and ACK
	return append(tcp(), payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, tcpFlags, 1, 0), masked([]byte{mask}), compare(unix.NFT_CMP_NEQ, []byte{syn}))
}

func tcp() []expression {
	return []expression{meta(unix.NFT_META_L4PROTO, 0), compare(unix.NFT_CMP_EQ, []byte{unix.IPPROTO_TCP})}
}

// side puts the numbers of the table and of the other end's identity into the variable, if the packet has a side at that end.
func (f family) side(d end) []expression {
	return append(append(f.is(), f.address(d.source)), judged(f.set(d.name)))
}

// is goes on if the packet is of the family. Without it nft(8) cannot tell what the addresses are.
func (f family) is() []expression {
	return []expression{meta(unix.NFT_META_NFPROTO, 0), compare(unix.NFT_CMP_EQ, []byte{f.proto})}
}

func (f family) address(source bool) expression {
	offset := f.source
	if !source {
		offset += f.size
	}
	return payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, f.size, 0)
}

// both are source and destination, as a key.
func (f family) both() []expression {
	return []expression{f.address(true), payload(unix.NFT_PAYLOAD_NETWORK_HEADER, f.source+f.size, f.size, register(f.size/4))}
}

// discovery lets through by which neighbours find each other (RFC 4861 and 3810): it is never forwarded, and an endpoint needs it to
// reach anything. Connection tracking does not follow it.
func (f family) discovery() (rules [][]expression) {
	if f.size == 4 {
		return nil
	}
	kind := append(f.is(), meta(unix.NFT_META_L4PROTO, 0), compare(unix.NFT_CMP_EQ, []byte{unix.IPPROTO_ICMPV6}),
		payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, 0))
	return [][]expression{
		append(kind[:len(kind):len(kind)], compare(unix.NFT_CMP_GTE, []byte{130}), compare(unix.NFT_CMP_LTE, []byte{137}), accept()),
		append(kind[:len(kind):len(kind)], compare(unix.NFT_CMP_EQ, []byte{143}), accept()),
	}
}

// ownSource goes on if the packet's source is an address of the host.
func ownSource() []expression {
	return []expression{sourceType(), compare(unix.NFT_CMP_EQ, number(unix.RTN_LOCAL))}
}

// toHost goes on if the packet has arrived at the host: there is no device by which it leaves.
func toHost() []expression {
	return []expression{meta(unix.NFT_META_OIF, 0), compare(unix.NFT_CMP_EQ, number(0))}
}

// current goes on if the copy is the current one.
func current(x string) []expression {
	return []expression{meta(unix.NFT_META_NFPROTO, 0), lookup(setCurrent + x)}
}

// variable reads the variable, assign writes it.
func variable() expression { return meta(unix.NFT_META_PRIORITY, 0) }
func assign() expression   { return metaSet(unix.NFT_META_PRIORITY) }

// sided and unsided say whether there is something in the variable.
func sided() []expression {
	return []expression{variable(), compare(unix.NFT_CMP_NEQ, number(0))}
}

func unsided() []expression {
	return []expression{variable(), compare(unix.NFT_CMP_EQ, number(0))}
}

// notOwn goes on if the identity is none of the host.
func notOwn() []expression {
	return []expression{variable(), masked(number(ownBit)), compare(unix.NFT_CMP_EQ, number(0))}
}

// keep keeps some bits of the variable, set sets some.
func keep(bits uint32) []expression {
	return []expression{variable(), masked(number(bits)), assign()}
}

func set(bits uint32) []expression {
	return []expression{variable(), combined(number(^bits), number(bits)), assign()}
}

// States of connection tracking, as bits.
const (
	ctInvalid     = 1 << 0
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
)

func ctBits(bits uint32) []byte { return binary.NativeEndian.AppendUint32(nil, bits) }

// number is a number as the variable holds it.
func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
