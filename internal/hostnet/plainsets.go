// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// setKind is a set of the table, without what it holds.
type setKind struct {
	name     string
	key      nftables.SetDatatype
	parts    bool       // the key is a concatenation
	ranges   bool       // its elements are ranges
	counted  bool       // each of them counts packets
	register []expr.Any // puts into register what is looked up
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

// plainSets are the sets of kernel paths: Linux 5.6 has them, and 5.7 counts by element.
func plainSets() (all []setKind) {
	for _, v6 := range []bool{false, true} {
		all = append(all, outSet(v6), inSet(v6), segmentSet(v6), peerSet(v6), tunnelSet(v6, false), tunnelSet(v6, true))
	}
	return all
}

// outSet holds what may leave, by the device and the destination.
func outSet(v6 bool) setKind {
	s := concatenation("out"+digit(v6), v6, nftables.TypeIFName, addrType(v6))
	s.counted = true
	s.register = append(s.register, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: word(0)}, destination.load(v6, word(16)))
	return s
}

// inSet holds what may come by a device that belongs to the peers alone, by the device and the source.
func inSet(v6 bool) setKind {
	s := concatenation("in"+digit(v6), v6, nftables.TypeIFName, addrType(v6))
	s.register = append(s.register, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: word(0)}, source.load(v6, word(16)))
	return s
}

// segmentSet holds what may come from a neighbour on a network of the host: by the device, the neighbour's hardware address and the source.
func segmentSet(v6 bool) setKind {
	s := concatenation("seg"+digit(v6), v6, nftables.TypeIFName, nftables.TypeEtherAddr, addrType(v6))
	s.register = append(s.register,
		&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER)},
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: word(0)},
		&expr.Payload{DestRegister: word(16), Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		source.load(v6, word(24)))
	return s
}

// tunnelSet holds what may come inside of VXLAN, by the outer and the inner source, which may each be IPv6 or not.
func tunnelSet(outer, inner bool) setKind {
	return concatenation("vx"+digit(outer)+digit(inner), outer, addrType(outer), addrType(inner))
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
	set    setKind
	head   string // what the key has before the prefix
	prefix netip.Prefix
}

// elements returns what the sets hold. The kernel refuses ranges that overlap, so of two prefixes of one place the larger one is
// taken.
func (p Plaintext) elements() contents {
	c := contents{}
	var list []entry
	for _, o := range p.Out {
		list = append(list, entry{outSet(o.Prefix.Addr().Is6()), string(deviceName(o.Device)), o.Prefix})
	}
	for _, i := range p.In {
		e := entry{inSet(i.Prefix.Addr().Is6()), string(deviceName(i.Device)), i.Prefix}
		if len(i.MAC) > 0 {
			e.set = segmentSet(i.Prefix.Addr().Is6())
			e.head += string(padded(i.MAC))
		}
		list = append(list, e)
	}
	for _, t := range p.Tunnels {
		v6 := t.Remote.Is6()
		list = append(list, entry{tunnelSet(v6, t.Prefix.Addr().Is6()), string(t.Remote.AsSlice()), t.Prefix})
		port := binary.BigEndian.AppendUint16(nil, cmp.Or(t.Port, p.VXLANPort))
		c.add(peerSet(v6).name, element{key: string(t.Remote.AsSlice()) + string(padded(port))})
	}
	slices.SortFunc(list, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.set.name, b.set.name), cmp.Compare(a.head, b.head), a.prefix.Addr().Compare(b.prefix.Addr()),
			cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	var last entry
	for _, e := range list {
		if e.set.name == last.set.name && e.head == last.head && last.prefix.Overlaps(e.prefix) {
			continue
		}
		last = e
		c.add(e.set.name, element{key: e.head + string(e.prefix.Addr().AsSlice()), end: e.head + string(lastOf(e.prefix).AsSlice())})
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

// prefixOfRange returns the prefix at the end of an element of one of the out sets.
func prefixOfRange(e element) (netip.Prefix, error) {
	if len(e.key) <= unix.IFNAMSIZ || len(e.key) != len(e.end) {
		return netip.Prefix{}, fmt.Errorf("a set has an element of %d bytes", len(e.key))
	}
	first, last := e.key[unix.IFNAMSIZ:], e.end[unix.IFNAMSIZ:]
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
