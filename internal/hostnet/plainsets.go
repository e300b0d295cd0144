// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// setKind is a set of the table, without what it holds.
type setKind struct {
	name     string
	key      nftables.SetDatatype
	parts    bool          // the key is a concatenation
	ranges   bool          // its elements are ranges
	counted  bool          // each of them counts packets
	lasting  time.Duration // rules add its elements, each for so long; 0: none do
	register []expr.Any    // puts into register what is looked up
}

// element of a set: its key, and the last one of a range of keys.
type element struct{ key, end string }

// contents are the elements of sets, by the names of the sets.
type contents map[string]map[element]bool

func (c contents) add(set string, e element) {
	if c[set] == nil {
		c[set] = map[element]bool{}
	}
	c[set][e] = true
}

// lookup matches what is in the set.
func (s setKind) lookup() []expr.Any {
	return append(slices.Clone(s.register), &expr.Lookup{SourceRegister: register, SetName: s.name})
}

// add adds what is in register to the set, or ends the rule if that is full.
func (s setKind) add() expr.Any {
	return &expr.Dynset{SrcRegKey: register, SetName: s.name, Operation: unix.NFT_DYNSET_OP_ADD, Timeout: s.lasting}
}

// plainSets are the sets of kernel paths: Linux 5.6 has them, and 5.7 counts by element.
func plainSets() (all []setKind) {
	for _, v6 := range []bool{false, true} {
		all = append(all, outSet(v6), segmentSet(v6), peerSet(v6), tunnelSet(v6, false), tunnelSet(v6, true), seenSet(v6, false), seenSet(v6, true))
	}
	return append(all, portSet())
}

// The address is the first part of all keys with ranges: where a part is alike in many elements, as the name of a device is, and comes
// first, the kernel takes ten times as long to delete one.

// outSet holds what may leave, by the destination and the device.
func outSet(v6 bool) setKind {
	s := concatenation("out"+digit(v6), v6, addrType(v6), nftables.TypeIFName)
	s.counted = true
	s.register = append(s.register, destination.load(v6, word(0)), &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: word(addrSize(v6))})
	return s
}

// segmentSet holds what may come from a neighbour on a network of the host: by the source, the neighbour's hardware address and the device.
func segmentSet(v6 bool) setKind {
	s := concatenation("seg"+digit(v6), v6, addrType(v6), nftables.TypeEtherAddr, nftables.TypeIFName)
	s.register = append(s.register,
		&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER)},
		source.load(v6, word(0)),
		&expr.Payload{DestRegister: word(addrSize(v6)), Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: word(addrSize(v6) + 8)})
	return s
}

// tunnelSet holds what may come inside of VXLAN, by the inner and the outer source; the first of the two in its name is the outer one.
func tunnelSet(outer6, inner6 bool) setKind {
	// The transport header is followed by that of UDP and of VXLAN, 8 bytes each, the inner ethernet header with its ethertype at 28,
	// and the inner packet at 30 (RFC 7348, 5).
	const ethertype, inner = 28, 30
	s := concatenation("vx"+digit(outer6)+digit(inner6), outer6, addrType(inner6), addrType(outer6))
	kind, at := []byte{0x08, 0x00}, source.v4
	if inner6 {
		kind, at = []byte{0x86, 0xdd}, source.v6
	}
	s.register = append(s.register,
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: ethertype, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: kind},
		&expr.Payload{DestRegister: word(0), Base: expr.PayloadBaseTransportHeader, Offset: inner + at, Len: addrSize(inner6)},
		source.load(outer6, word(addrSize(inner6))))
	return s
}

const (
	// seenFor is how long what was found in a tunnelSet is in the seenSet. It is as many ticks of whatever clock a kernel has: the kernel tells the same.
	seenFor = 200 * time.Millisecond
	// seenMost is how many elements a seenSet has at most, those included whose time is over: the kernel looks for these each second.
	seenMost = 16384
)

// seenSet holds those sources, as tunnelSet has them, that were found there a moment ago, and the devices by which they came. The kernel looks for single keys several times as fast as for ranges, for which it
// needs the registers of floating point. What is no longer in the tunnelSet passes until its time is over.
func seenSet(outer6, inner6 bool) setKind {
	s := concatenation("came"+digit(outer6)+digit(inner6), outer6, addrType(inner6), addrType(outer6), nftables.TypeIFIndex)
	s.ranges, s.lasting = false, seenFor
	s.register = append(tunnelSet(outer6, inner6).register, cameBy(outer6, inner6))
	return s
}

// cameBy puts the device where the key of a seenSet has it, behind that of the tunnelSet.
func cameBy(outer6, inner6 bool) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyIIF, Register: word(addrSize(inner6) + addrSize(outer6))}
}

// peerSet holds the underlay addresses and UDP ports where tunnels end.
func peerSet(v6 bool) setKind {
	s := concatenation("peers"+digit(v6), v6, addrType(v6), nftables.TypeInetService)
	s.ranges = false
	s.register = append(protocols(v6, unix.IPPROTO_UDP),
		destination.load(v6, word(0)),
		&expr.Payload{DestRegister: word(addrSize(v6)), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	return s
}

// portSet holds the UDP ports where tunnels end, on whatever host: a node takes them at any of its addresses, also at some that this one
// knows nothing of.
func portSet() setKind {
	return setKind{name: "ports", key: nftables.TypeInetService, register: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}}
}

func portElement(port uint16) element {
	return element{key: string(binary.BigEndian.AppendUint16(nil, port))}
}

// concatenation begins a set for packets of a family whose key has several parts.
func concatenation(name string, v6 bool, types ...nftables.SetDatatype) setKind {
	s := setKind{name: name, parts: true, ranges: true, register: familyOf(v6)}
	s.key, _ = nftables.ConcatSetType(types...) // fails for more than five
	return s
}

func digit(v6 bool) string {
	if v6 {
		return "6"
	}
	return "4"
}

func addrType(v6 bool) nftables.SetDatatype {
	if v6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// entry is an element before prefixes are made ranges.
type entry struct {
	set    string
	tail   string // what the key has behind the prefix
	prefix netip.Prefix
}

// elements returns what the sets hold. The kernel refuses ranges that overlap, so of two prefixes of one place the larger one is
// taken.
func (p Plaintext) elements() contents {
	c := contents{}
	if p.VXLANPort != 0 {
		c.add("ports", portElement(p.VXLANPort))
	}
	list := make([]entry, 0, len(p.Out)+len(p.In)+len(p.Tunnels))
	for _, o := range p.Out {
		list = append(list, entry{"out" + digit(o.Prefix.Addr().Is6()), string(deviceName(o.Device)), o.Prefix})
	}
	for _, i := range p.In {
		list = append(list, entry{"seg" + digit(i.Prefix.Addr().Is6()), string(padded(i.MAC)) + string(deviceName(i.Device)), i.Prefix})
	}
	for _, t := range p.Tunnels {
		v6 := t.Remote.Is6()
		list = append(list, entry{"vx" + digit(v6) + digit(t.Prefix.Addr().Is6()), string(t.Remote.AsSlice()), t.Prefix})
		port := portElement(cmp.Or(t.Port, p.VXLANPort))
		c.add("ports", port)
		c.add("peers"+digit(v6), element{key: string(t.Remote.AsSlice()) + string(padded([]byte(port.key)))})
	}
	slices.SortFunc(list, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.set, b.set), cmp.Compare(a.tail, b.tail), a.prefix.Addr().Compare(b.prefix.Addr()),
			cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	var last entry
	for _, e := range list {
		if e.set == last.set && e.tail == last.tail && last.prefix.Overlaps(e.prefix) {
			continue
		}
		last = e
		c.add(e.set, element{key: string(e.prefix.Addr().AsSlice()) + e.tail, end: string(lastOf(e.prefix).AsSlice()) + e.tail})
	}
	return c
}

// padded fills up the registers of four bytes that b takes.
func padded(b []byte) []byte { return append(slices.Clone(b), make([]byte, -len(b)&3)...) }

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// prefixOfRange returns the prefix at the beginning of an element of one of the out sets.
func prefixOfRange(e element) (netip.Prefix, error) {
	if len(e.key) <= unix.IFNAMSIZ || len(e.key) != len(e.end) {
		return netip.Prefix{}, fmt.Errorf("a set has an element of %d bytes", len(e.key))
	}
	first, last := e.key[:len(e.key)-unix.IFNAMSIZ], e.end[:len(e.end)-unix.IFNAMSIZ]
	a, ok := netip.AddrFromSlice([]byte(first))
	if !ok {
		return netip.Prefix{}, fmt.Errorf("a set has an address of %d bytes", len(first))
	}
	for bits := range a.BitLen() + 1 {
		if p := netip.PrefixFrom(a, bits); p == p.Masked() && string(lastOf(p).AsSlice()) == last {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("a set has a range from %v that is no prefix", a)
}
