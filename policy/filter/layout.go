// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A layout is what the rules depend on.
type layout struct {
	ranges bool   // there are verdicts on several ports
	blocks bool   // there are identities of networks
	group  uint16 // of nflog
	quiet  bool   // nobody is told of denied packets
}

// A chain is one of the table, as it should be.
type chain struct {
	name  string
	hook  int32 // NF_INET_*, with priority 0; -1 for one that others lead to
	rules [][]expression
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
	name   string
	table  string // the map of its side
	source bool   // its side is the source
}

func egress() end  { return end{"egress", setEgress, true} }
func ingress() end { return end{"ingress", setIngress, false} }
func ends() []end  { return []end{egress(), ingress()} }

// copies are the names of the two copies of the rules.
func copies() []string { return []string{"a", "b"} }

// phase is the key by which a copy is the current one.
func phase(c string) []byte { return []byte{0, 0, 0, c[0]} }

const (
	// allowed is the bit of a verdict's number by which it allows.
	allowed = 1 << 31
	// The numbers of the identities that are always there.
	worldNumber    = 0
	unsortedNumber = 1
	ownNumber      = ownBit | 1
	// ownBit is set in the numbers of identities of the host's own addresses.
	ownBit = 1 << 31
	// itselfNumber is instead of an identity where an endpoint always reaches itself.
	itselfNumber = 1<<32 - 1
	// noNumber is none that a map has.
	noNumber = 1 << 30

	// logRate and logBurst are how many denied packets a second are told of, logBytes how much of each: all of IPv6's usual headers.
	logRate  = 100
	logBurst = 200
	logBytes = 128
	// logPrefix begins what is told of them; the direction follows.
	logPrefix = "weft-policy "

	tcpFlags = 13 // where they lie in TCP's header

	keyBytes = 16 // of a cell
)

// chains returns the rules for a layout.
func (l layout) chains() (all []*chain) {
	add := func(name string, hook int32) *chain {
		c := &chain{name: name, hook: hook}
		all = append(all, c)
		return c
	}
	for _, h := range []struct {
		name string
		hook int32
	}{{"forward", unix.NF_INET_FORWARD}, {"input", unix.NF_INET_LOCAL_IN}} {
		base := add(h.name, h.hook)
		base.add(ctState(regOther), masked(regOther, ctBits(ctEstablished|ctRelated)), compare(unix.NFT_CMP_NEQ, regOther, make([]byte, 4)), accept())
		for _, f := range families() {
			base.add(meta(unix.NFT_META_NFPROTO, regOther), compare(unix.NFT_CMP_EQ, regOther, []byte{f.proto}), goTo(h.name+f.digit))
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
	for _, d := range ends() {
		c := add("denied-"+d.name, noHook)
		if !l.quiet {
			c.add(limit(logRate, logBurst), tell(l.group, logBytes, logPrefix+d.name))
		}
		c.add(counter(), drop())
	}
	add("resets", noHook).add(counter(), reset())
	for _, f := range families() {
		f.strays(add)
	}
	for _, x := range copies() {
		for _, f := range families() {
			l.copyOf(add, f, x)
		}
		for _, d := range ends() {
			add("deny-"+d.name+x, noHook).add(current(x), goTo("denied-"+d.name))
		}
	}
	return all
}

// copyOf adds the chains of a copy for a family. All but the first two begin where a packet has a side.
func (l layout) copyOf(add func(string, int32) *chain, f family, x string) {
	forward, input := add("forward"+f.digit+x, noHook), add("input"+f.digit+x, noHook)
	forward.add(invalid(), jump("invalid"+f.digit))
	forward.add(midway(), jump("midway"+f.digit))
	// The host's own connections to endpoints are none of a policy's business, so that only an egress side counts.
	input.add(invalid(), f.side(egress()), drop())
	input.add(midway(), f.side(egress()), goTo("resets"))
	for _, d := range ends() {
		forward.add(f.side(d), found(regTable), jump(d.name+f.digit+x))

		c := add(d.name+f.digit+x, noHook)
		self := add("self-"+d.name+f.digit+x, noHook)
		c.add(f.itself(), found(regIdentity), goTo(self.name))
		world := add("world-"+d.name+f.digit+x, noHook)
		l.cells(c, f, d, x, f.identity(setHosts, d))
		if l.blocks {
			c.add(f.identity(setHosts, d), found(regIdentity), goTo(world.name))
			l.cells(c, f, d, x, f.identity(setBlocks, d))
		}
		c.add(goTo(world.name))
		l.cells(world, f, d, x, []expression{constant(regIdentity, number(worldNumber))})
		world.add(drop())

		self.add(f.itself(), compare(unix.NFT_CMP_EQ, regIdentity, number(itselfNumber)), leave())
		l.cells(self, f, d, x, f.itself())
		self.add(goTo(world.name))
	}
	own := add("own"+f.digit+x, noHook)
	input.add(f.side(egress()), found(regTable), jump(own.name))
	world := goTo("world-" + egress().name + f.digit + x)
	known := append(f.identity(setHosts, egress()), copied(regIdentity, regOther, number(ownBit)),
		compare(unix.NFT_CMP_NEQ, regOther, make([]byte, 4)))
	l.cells(own, f, egress(), x, known)
	own.add(known, world)
	l.cells(own, f, egress(), x, []expression{constant(regIdentity, number(ownNumber))})
	own.add(world)
	for _, c := range []*chain{forward, input} {
		c.add(current(x), accept())
	}
}

// strays adds what becomes of packets that belong to no connection and do not begin one, at endpoints that have a side of whatever direction. A
// connection that was cut does not go on by them, whichever end sends, and is told so.
func (f family) strays(add func(string, int32) *chain) {
	invalid, midway := add("invalid"+f.digit, noHook), add("midway"+f.digit, noHook)
	midway.add(f.itself(), compare(unix.NFT_CMP_EQ, regIdentity, number(itselfNumber)), leave())
	for _, d := range ends() {
		for _, source := range []bool{true, false} {
			side := []expression{f.address(source, regOther), mapped(f.set(d.table), regOther, regTable), found(regTable)}
			invalid.add(side, counter(), drop())
			midway.add(side, goTo("resets"))
		}
	}
}

// invalid goes on if connection tracking can make nothing of the packet.
func invalid() []expression {
	return []expression{ctState(regOther), masked(regOther, ctBits(ctInvalid)), compare(unix.NFT_CMP_NEQ, regOther, make([]byte, 4))}
}

// midway goes on with TCP that is no plain SYN.
func midway() []expression {
	const syn, mask = 0x02, 0x17 // SYN among FIN, SYN, RST and ACK
	return []expression{
		meta(unix.NFT_META_L4PROTO, regOther), compare(unix.NFT_CMP_EQ, regOther, []byte{unix.IPPROTO_TCP}),
		payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, tcpFlags, 1, regOther), masked(regOther, []byte{mask}),
		compare(unix.NFT_CMP_NEQ, regOther, []byte{syn}),
	}
}

// cells adds what judges by the cells of the identity that is found as said, and by that of all ports.
func (l layout) cells(c *chain, f family, d end, x string, identity []expression) {
	known := []expression{constant(regBefore, make([]byte, keyBytes)), constant(keyTable, make([]byte, keyBytes))}
	known = append(known, f.side(d)...)
	known = append(known, identity...)
	known = append(known, copied(regBefore, keyBefore, bytes.Repeat([]byte{0xff}, keyBytes)))
	service := []expression{
		meta(unix.NFT_META_L4PROTO, regProtocol),
		payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, regPort),
	}
	judge := []expression{
		constant(regOther, make([]byte, 4)),
		copied(regBefore, regOther-1, bytes.Repeat([]byte{0xff}, 8)),
		lookup(setCounts, regOther),
		masked(regOther, number(allowed)),
		judged(setJudge+d.name+x, regOther),
	}
	c.add(known, service, mapped(setCells, keyTable, regVerdict), judge)
	if l.ranges {
		c.add(known, service, mapped(setRanges, keyTable, regVerdict), judge)
	}
	c.add(known, mapped(setWide, keyTable, regVerdict), judge)
}

// side goes on if the packet has a side at that end, with its table.
func (f family) side(d end) []expression {
	return []expression{f.address(d.source, regOther), mapped(f.set(d.table), regOther, regTable)}
}

// identity finds that of the other end.
func (f family) identity(set string, d end) []expression {
	e := []expression{f.address(!d.source, regOther)}
	if set == setBlocks {
		e = append(e, constant(regOther+register(f.size/4), make([]byte, padding)))
	}
	return append(e, mapped(f.set(set), regOther, regIdentity))
}

// itself finds the identity by which an endpoint sees itself, if source and destination are the same address of one.
func (f family) itself() []expression {
	return []expression{
		f.address(true, regOther), f.address(false, regOther+register(f.size/4)), mapped(f.set(setSelf), regOther, regIdentity),
	}
}

func (f family) address(source bool, to register) expression {
	offset := f.source
	if !source {
		offset += f.size
	}
	return payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, f.size, to)
}

// discovery lets through by which neighbours find each other (RFC 4861 and 3810): it is never forwarded, and an endpoint needs it to
// reach anything. Connection tracking does not follow it.
func (f family) discovery() (rules [][]expression) {
	if f.size == 4 {
		return nil
	}
	for _, r := range [][2]byte{{130, 137}, {143, 143}} {
		rules = append(rules, []expression{
			meta(unix.NFT_META_L4PROTO, regOther), compare(unix.NFT_CMP_EQ, regOther, []byte{unix.IPPROTO_ICMPV6}),
			payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, regOther),
			compare(unix.NFT_CMP_GTE, regOther, []byte{r[0]}), compare(unix.NFT_CMP_LTE, regOther, []byte{r[1]}), accept(),
		})
	}
	return rules
}

// found goes on if there is a number in the register, as there always is: nft(8) does not show look-ups on which nothing depends.
func found(r register) expression { return compare(unix.NFT_CMP_NEQ, r, number(noNumber)) }

// current goes on if the copy is the current one.
func current(x string) []expression {
	return []expression{constant(regOther, phase(x)), lookup(setCurrent, regOther)}
}

// States of connection tracking, as bits.
const (
	ctInvalid     = 1 << 0
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
)

func ctBits(bits uint32) []byte { return binary.NativeEndian.AppendUint32(nil, bits) }

// number is a number as it lies in registers and keys: so that intervals of such are those of their bytes.
func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
