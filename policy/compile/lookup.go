// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// Equal says whether two verdicts are the same, and put down to the same.
func (v Verdict) Equal(o Verdict) bool {
	return v == o || v.Allow == o.Allow && v.By.Allowed == o.By.Allowed && v.By.Reason == o.By.Reason && v.By.Policy == o.By.Policy &&
		v.By.Rule == o.By.Rule && v.By.Endpoint == o.By.Endpoint && slices.Equal(v.By.Isolating, o.By.Isolating)
}

// NewState returns one in which everything is open.
func NewState() *State {
	return &State{
		Tables:     map[TableID]*Table{},
		Sides:      map[Side]TableID{},
		Identities: map[netip.Addr]Identity{},
		Blocks:     map[netip.Prefix]Identity{},
		Selves:     map[netip.Addr]Identity{},
	}
}

// Verdict says what the two ends decide, as the kernel looks it up. An end without a side is open.
func (s *State) Verdict(c policy.Connection) (egress, ingress Verdict) {
	return s.end(Side{c.Src, policy.Egress}, c.Dst, c, s.Identity), s.end(Side{c.Dst, policy.Ingress}, c.Src, c, s.Identity)
}

// Forwarded is [State.Verdict] for what the node forwards. It comes from somebody else and goes there, even by an address that is one of this node, as
// where such a one has just moved to another host.
func (s *State) Forwarded(c policy.Connection) (egress, ingress Verdict) {
	return s.end(Side{c.Src, policy.Egress}, c.Dst, c, s.foreign), s.end(Side{c.Dst, policy.Ingress}, c.Src, c, s.foreign)
}

// end looks up the verdict of one end. Identify returns the identity of the other one.
func (s *State) end(side Side, other netip.Addr, c policy.Connection, identify func(netip.Addr) Identity) Verdict {
	id, there := s.Sides[side]
	if !there {
		return Verdict{true, &policy.Verdict{Allowed: true, Reason: policy.Open}}
	}
	var identity Identity
	if side.Addr == other {
		if identity, there = s.Selves[other]; !there {
			return Verdict{true, &policy.Verdict{Allowed: true, Reason: policy.Itself}}
		}
	} else {
		identity = identify(other)
	}
	if identity.IsOwnNode() && side.Direction == policy.Ingress {
		return Verdict{true, &policy.Verdict{Allowed: true, Reason: policy.OwnNode}}
	}
	return s.Tables[id].Verdict(identity, c.Protocol, c.Port)
}

// Identity returns that of an address: its own, or else that of the longest prefix around it, or else World.
func (s *State) Identity(a netip.Addr) Identity {
	if i, ok := s.Identities[a]; ok {
		return i
	}
	return s.around(a)
}

// foreign returns the identity of an address that is none of this node.
func (s *State) foreign(a netip.Addr) Identity {
	if i, ok := s.Identities[a]; ok && !i.IsOwnNode() {
		return i
	}
	return s.around(a)
}

// around returns the identity of the longest prefix around an address.
func (s *State) around(a netip.Addr) Identity {
	if len(s.Blocks) == 0 {
		return World
	}
	a = a.WithZone("")
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, _ := a.Prefix(bits) // of a length that it has
		if i, ok := s.Blocks[p]; ok {
			return i
		}
	}
	return World
}

// Verdict returns that of the narrowest cell. In a table that was neither made by a Compiler nor by Apply it may read all cells.
func (t *Table) Verdict(i Identity, p policy.Protocol, port uint16) Verdict {
	if v, ok := t.narrowest(i, p, port); ok {
		return v
	}
	if v, ok := t.narrowest(World, p, port); ok {
		return v
	}
	return t.Default
}

// narrowest returns the verdict of the narrowest cell of one identity.
func (t *Table) narrowest(i Identity, p policy.Protocol, port uint16) (Verdict, bool) {
	if p != 0 {
		if v, ok := t.Cells[Cell{i, p, port, port}]; ok {
			return v, true
		}
		if v, ok := t.Cells[Cell{i, p, 0, 65535}]; ok {
			return v, true
		}
		if c, ok := t.around(i, p, port); ok {
			return t.Cells[c], true
		}
	}
	v, ok := t.Cells[Cell{Identity: i}]
	return v, ok
}

// around returns the cell of some ports that a port is in.
func (t *Table) around(i Identity, p policy.Protocol, port uint16) (Cell, bool) {
	if !t.indexed {
		for c := range t.Cells {
			if c.Identity == i && c.Protocol == p && c.First <= port && port <= c.Last {
				return c, true
			}
		}
		return Cell{}, false
	}
	cells := t.ranges[Cell{Identity: i, Protocol: p}]
	n, _ := slices.BinarySearchFunc(cells, port, func(c Cell, port uint16) int { return cmp.Compare(c.Last, port) })
	if n == len(cells) || cells[n].First > port {
		return Cell{}, false
	}
	return cells[n], true
}

// isRange says whether it is of some of a protocol's ports, but not of a single one.
func (c Cell) isRange() bool {
	return c.Protocol != 0 && c.First != c.Last && (c.First != 0 || c.Last != 65535)
}

// index makes ranges anew.
func (t *Table) index() {
	t.ranges, t.indexed = nil, true
	for c := range t.Cells {
		if c.isRange() {
			k := Cell{Identity: c.Identity, Protocol: c.Protocol}
			put(&t.ranges, k, append(t.ranges[k], c))
		}
	}
	for _, cells := range t.ranges {
		slices.SortFunc(cells, func(a, b Cell) int { return cmp.Compare(a.First, b.First) })
	}
}

// Apply makes the change. The state keeps nothing of d.
func (s *State) Apply(d Delta) {
	for _, t := range d.AddTables {
		n := &Table{ID: t.ID, Default: t.Default, Cells: maps.Clone(t.Cells)}
		n.index()
		s.Tables[t.ID] = n
	}
	for id, p := range d.Patches {
		t := s.Tables[id]
		if p.Default != nil {
			t.Default = *p.Default
		}
		for _, c := range p.Drop {
			delete(t.Cells, c)
		}
		maps.Copy(t.Cells, p.Set)
		if !t.indexed || slices.ContainsFunc(p.Drop, Cell.isRange) || anyRange(p.Set) {
			t.index()
		}
	}
	change(s.Sides, d.SetSides, d.DropSides)
	change(s.Identities, d.SetIdentities, d.DropIdentities)
	change(s.Blocks, d.SetBlocks, d.DropBlocks)
	change(s.Selves, d.SetSelves, d.DropSelves)
	for _, id := range d.DropTables {
		delete(s.Tables, id)
	}
}

// anyRange says whether one is.
func anyRange(cells map[Cell]Verdict) bool {
	for c := range cells {
		if c.isRange() {
			return true
		}
	}
	return false
}

// change removes and sets entries of a map.
func change[K comparable, V any](m, set map[K]V, drop []K) {
	for _, k := range drop {
		delete(m, k)
	}
	maps.Copy(m, set)
}

// Empty says whether nothing changes.
func (d Delta) Empty() bool {
	return len(d.AddTables)+len(d.Patches)+len(d.DropTables)+len(d.SetSides)+len(d.DropSides)+len(d.SetIdentities)+len(d.DropIdentities)+
		len(d.SetBlocks)+len(d.DropBlocks)+len(d.SetSelves)+len(d.DropSelves) == 0
}
