// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// A model is what the kernel is to look up, in the numbers that it knows. It is a compile.State in a tenth of the memory.
type model struct {
	tables   map[compile.TableID]*table
	byNumber map[uint32]*table
	sides    map[compile.Side]uint32 // numbers of tables
	hosts    map[netip.Addr]uint32   // numbers of identities
	blocks   map[netip.Prefix]uint32 // numbers of identities
	spans    []span                  // of blocks
	selves   map[netip.Addr]uint32   // numbers of identities, of those that do not always reach themselves
	leaves   map[string]led          // by name
	ranged   int                     // services with lists
	relisted map[relisted][]portRange
	numbers
}

// A led table is one with sides in a direction: so many.
type led struct {
	number uint32
	uses   int
}

// A table is one of verdicts. Those are numbers of verdicts.
type table struct {
	number uint32
	cells  map[port]uint32
	ranges map[service][]portRange // sorted
	lists  map[service]uint32      // where these are: what setLists says
	wide   map[uint32]uint32       // by identity
	last   uint32                  // the default
}

// A service is an identity and a protocol.
type service struct {
	identity uint32
	protocol policy.Protocol
}

// A port is one of an identity and a protocol.
type port struct {
	service
	port uint16
}

type portRange struct {
	first, last uint16
	verdict     uint32
}

// A span is addresses of a family that have one identity, inclusive.
type span struct {
	first, last netip.Addr
	identity    uint32
}

func newModel(n numbers) *model {
	return &model{
		tables: map[compile.TableID]*table{}, byNumber: map[uint32]*table{}, sides: map[compile.Side]uint32{}, hosts: map[netip.Addr]uint32{},
		blocks: map[netip.Prefix]uint32{}, selves: map[netip.Addr]uint32{}, leaves: map[string]led{}, numbers: n,
	}
}

// build returns the model of a state, with the numbers that n knows.
func build(s *compile.State, n numbers) (*model, error) {
	m := newModel(n)
	d := compile.Delta{SetSides: s.Sides, SetIdentities: s.Identities, SetBlocks: s.Blocks, SetSelves: s.Selves}
	for _, t := range s.Tables {
		d.AddTables = append(d.AddTables, t)
	}
	if err := m.check(d); err != nil {
		return nil, err
	}
	m.apply(d, nil)
	if err := m.fits(); err != nil {
		return nil, err
	}
	m.settle(m.tables)
	return m, nil
}

// fits says whether all that the model has has got a number.
func (m *model) fits() error {
	if m.full == "" {
		return nil
	}
	return fmt.Errorf("network policy: the kernel's table can hold no more than %s, and stays as it was; use fewer policies, or fewer endpoints on this node", m.full)
}

// empty says whether there is nobody to judge for.
func (m *model) empty() bool { return len(m.sides) == 0 }

// layout is what rules the model needs.
func (m *model) layout(group uint16, quiet bool) layout {
	return layout{ranges: m.ranged > 0, blocks: len(m.spans) > 0, selves: len(m.selves) > 0, group: group, quiet: quiet}
}

// allows judges as the kernel does. Own says which addresses are the host's: what it sends is not judged, and it has its identities to those who send to it.
func (m *model) allows(c policy.Connection, own func(netip.Addr) bool) bool {
	if own(c.Src) {
		return true
	}
	toHost := own(c.Dst)
	if t, ok := m.sides[compile.Side{Addr: c.Src, Direction: policy.Egress}]; ok && !m.through(t, c.Dst, c.Src, toHost, c) {
		return false
	}
	t, ok := m.sides[compile.Side{Addr: c.Dst, Direction: policy.Ingress}]
	return !ok || toHost || m.through(t, c.Src, c.Dst, false, c)
}

// through says whether a table lets a connection with another end through.
func (m *model) through(number uint32, other, self netip.Addr, toHost bool, c policy.Connection) bool {
	var identity uint32
	if other == self {
		i, ok := m.selves[self]
		if !ok {
			return true
		}
		identity = i
	} else {
		identity = m.identity(other, toHost)
	}
	if toHost && identity&ownBit == 0 {
		identity = ownNumber
	}
	t := m.byNumber[number]
	return t != nil && t.verdict(identity, c.Protocol, c.Port)&allowed != 0
}

// identity returns that of an address. The host's own are for what reaches the host.
func (m *model) identity(a netip.Addr, toHost bool) uint32 {
	if i, ok := m.hosts[a]; ok && (toHost || i&ownBit == 0) {
		return i
	}
	at, ok := slices.BinarySearchFunc(m.spans, a, func(s span, a netip.Addr) int { return s.last.Compare(a) })
	if (ok || at < len(m.spans)) && m.spans[at].first.Compare(a) <= 0 {
		return m.spans[at].identity
	}
	return worldNumber
}

// verdict returns the number of the narrowest cell's.
func (t *table) verdict(identity uint32, p policy.Protocol, number uint16) uint32 {
	for _, i := range []uint32{identity, worldNumber} {
		s := service{i, p}
		v, ok := t.cells[port{s, number}]
		if !ok {
			v, ok = inRange(t.ranges[s], number)
		}
		if !ok {
			v, ok = t.wide[i]
		}
		if ok {
			return v
		}
	}
	return t.last
}

func inRange(list []portRange, p uint16) (uint32, bool) {
	at, _ := slices.BinarySearchFunc(list, p, func(r portRange, p uint16) int { return int(r.last) - int(p) })
	if at < len(list) && list[at].first <= p {
		return list[at].verdict, true
	}
	return 0, false
}

// flatten sorts networks into spans that do not overlap: the longest prefix counts.
func flatten(blocks map[netip.Prefix]uint32) []span {
	sorted := make([]netip.Prefix, 0, len(blocks))
	for p := range blocks {
		sorted = append(sorted, p)
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []span
	var open []netip.Prefix // each in the one before
	var next netip.Addr     // what is before it is done, of the outermost open one
	finish := func(p netip.Prefix) {
		last := lastOf(p)
		if next.IsValid() && next.Compare(last) <= 0 {
			out = append(out, span{next, last, blocks[p]})
			next = last.Next()
		}
	}
	for _, p := range sorted {
		for len(open) > 0 && !open[len(open)-1].Contains(p.Addr()) {
			finish(open[len(open)-1])
			open = open[:len(open)-1]
		}
		if len(open) > 0 && next.Compare(p.Addr()) < 0 {
			out = append(out, span{next, p.Addr().Prev(), blocks[open[len(open)-1]]})
		}
		open, next = append(open, p), p.Addr()
	}
	for i := len(open) - 1; i >= 0; i-- {
		finish(open[i])
	}
	return out
}

// lastOf is the last address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
