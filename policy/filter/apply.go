// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// check says what about a change makes no sense for the model.
func (m *model) check(d compile.Delta) error {
	added := map[compile.TableID]bool{}
	for _, t := range d.AddTables {
		if m.tables[t.ID] != nil || added[t.ID] {
			return fmt.Errorf("network policy: table %d is added twice; replace the whole state", t.ID)
		}
		added[t.ID] = true
	}
	there := func(id compile.TableID) error {
		if m.tables[id] == nil && !added[id] {
			return fmt.Errorf("network policy: there is no table %d; replace the whole state", id)
		}
		return nil
	}
	for id := range d.Patches {
		if err := there(id); err != nil {
			return err
		}
	}
	for _, id := range d.DropTables {
		if err := there(id); err != nil {
			return err
		}
	}
	for _, id := range d.SetSides {
		if err := there(id); err != nil {
			return err
		}
	}
	return nil
}

// apply makes a change that check has found good, and notes in e which elements change.
func (m *model) apply(d compile.Delta, e *edit) {
	cache := map[compile.Verdict]uint32{}
	m.relisted = map[relisted][]portRange{}
	for id, p := range d.Patches {
		m.patch(m.tables[id], p, cache, e)
	}
	for _, t := range d.AddTables {
		m.add(t, cache, e)
	}
	m.applyIdentities(d, e)
	touched := m.applySides(d, e)
	for _, a := range d.DropSelves {
		if i, ok := m.selves[a]; ok {
			if _, ok := touched[a]; !ok {
				touched[a] = m.itself(a)
			}
			delete(m.selves, a)
			m.release(i)
		}
	}
	for a, i := range d.SetSelves {
		if _, ok := touched[a]; !ok {
			touched[a] = m.itself(a)
		}
		n := m.identityNumber(i)
		if old, ok := m.selves[a]; ok {
			m.release(old)
		}
		m.selves[a] = n
	}
	for a, old := range touched {
		if now := m.itself(a); old != now {
			e.replace(old.set, old.element(a), nil)
			e.replace(now.set, nil, now.element(a))
		}
	}
	for _, id := range d.DropTables {
		m.drop(id, e)
	}
	m.relist(e)
}

// An itself is how an address reaches itself: the set that says it, and its identity.
type itself struct {
	set      string // "" if it has no side
	identity uint32
}

func (m *model) itself(a netip.Addr) itself {
	for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
		if _, ok := m.sides[compile.Side{Addr: a, Direction: d}]; ok {
			if n, ok := m.selves[a]; ok {
				return itself{familyOf(a).set(setSelves), n}
			}
			return itself{set: familyOf(a).set(setSelf)}
		}
	}
	return itself{}
}

func (i itself) element(a netip.Addr) *element {
	if i.set == "" {
		return nil
	}
	return &element{key: twice(a), data: i.identity}
}

// A relisted service is one whose ranges in a table have changed.
type relisted struct {
	*table
	service
}

// relists notes what ranges there were before a change.
func (m *model) relists(t *table, s service) {
	k := relisted{t, s}
	if _, ok := m.relisted[k]; !ok {
		m.relisted[k] = slices.Clone(t.ranges[s])
	}
}

// relist gives the services whose ranges have changed the lists of these.
func (m *model) relist(e *edit) {
	for k, was := range m.relisted {
		old := k.lists[k.service]
		now := m.list(k.ranges[k.service], e)
		m.unlist(was, e)
		key := listKey(k.number, k.service)
		switch {
		case now == 0 && old != 0:
			delete(k.lists, k.service)
			m.ranged--
			e.value(setLists, key, &old, nil)
		case now != 0 && old == 0:
			k.lists[k.service] = now
			m.ranged++
			e.value(setLists, key, nil, &now)
		case now != 0:
			k.lists[k.service] = now
			e.value(setLists, key, &old, &now)
		}
	}
	m.relisted = nil
}

func (m *model) applyIdentities(d compile.Delta, e *edit) {
	for _, a := range d.DropIdentities {
		if old, ok := m.hosts[a]; ok {
			delete(m.hosts, a)
			m.release(old)
			e.value(hostSet(a, old), a.AsSlice(), &old, nil)
		}
	}
	for a, i := range d.SetIdentities {
		n := m.identityNumber(i)
		old, ok := m.hosts[a]
		m.hosts[a] = n
		switch {
		case !ok:
			e.value(hostSet(a, n), a.AsSlice(), nil, &n)
		case hostSet(a, old) == hostSet(a, n):
			e.value(hostSet(a, n), a.AsSlice(), &old, &n)
		default:
			e.value(hostSet(a, old), a.AsSlice(), &old, nil)
			e.value(hostSet(a, n), a.AsSlice(), nil, &n)
		}
		if ok {
			m.release(old)
		}
	}
	if len(d.DropBlocks)+len(d.SetBlocks) == 0 {
		return
	}
	for _, p := range d.DropBlocks {
		if old, ok := m.blocks[p]; ok {
			delete(m.blocks, p)
			m.release(old)
		}
	}
	for p, i := range d.SetBlocks {
		n := m.identityNumber(i)
		if old, ok := m.blocks[p]; ok {
			m.release(old)
		}
		m.blocks[p] = n
	}
	was := m.spans
	m.spans = flatten(m.blocks)
	e.spans(was, m.spans)
}

// applySides returns the addresses whose sides have changed, with how they reached themselves before.
func (m *model) applySides(d compile.Delta, e *edit) map[netip.Addr]itself {
	touched := map[netip.Addr]itself{}
	touch := func(a netip.Addr) {
		if _, ok := touched[a]; !ok {
			touched[a] = m.itself(a)
		}
	}
	for _, s := range d.DropSides {
		if old, ok := m.sides[s]; ok {
			touch(s.Addr)
			delete(m.sides, s)
			m.lead(s, old, -1, e)
			e.value(sideSet(s), s.Addr.AsSlice(), &old, nil)
		}
	}
	for s, id := range d.SetSides {
		touch(s.Addr)
		n := m.tables[id].number
		old, ok := m.sides[s]
		m.sides[s] = n
		m.lead(s, n, 1, e)
		if ok {
			m.lead(s, old, -1, e)
			e.value(sideSet(s), s.Addr.AsSlice(), &old, &n)
		} else {
			e.value(sideSet(s), s.Addr.AsSlice(), nil, &n)
		}
	}
	return touched
}

// lead notes that one more, or one less, side leads to a table.
func (m *model) lead(s compile.Side, number uint32, by int, e *edit) {
	x := leafOf(sideSet(s), number)
	was := m.leaves[string(x.key)].uses
	now := was + by
	switch {
	case now == 0:
		delete(m.leaves, string(x.key))
		e.replace(setLeaves, &x, nil)
	case was == 0:
		e.replace(setLeaves, nil, &x)
	}
	if now > 0 {
		m.leaves[string(x.key)] = led{number, now}
	}
}

// add adds a table. As it has no side yet, there is no order in its elements.
func (m *model) add(t *compile.Table, cache map[compile.Verdict]uint32, e *edit) {
	n := &table{number: m.tableNumber(t.ID), cells: map[port]uint32{}, ranges: map[service][]portRange{}, lists: map[service]uint32{}, wide: map[uint32]uint32{}}
	m.tables[t.ID], m.byNumber[n.number] = n, n
	n.last = m.verdictNumber(t.Default, cache, e)
	e.value(setWide, wideKey(n.number, worldNumber), nil, &n.last)
	for c, v := range t.Cells {
		m.setCell(n, c, m.verdictNumber(v, cache, e), e)
	}
}

func (m *model) patch(t *table, p compile.Patch, cache map[compile.Verdict]uint32, e *edit) {
	for _, c := range p.Drop {
		m.dropCell(t, c, e)
	}
	for c, v := range p.Set {
		m.setCell(t, c, m.verdictNumber(v, cache, e), e)
	}
	if p.Default != nil {
		was := t.last
		t.last = m.verdictNumber(*p.Default, cache, e)
		m.forget(was)
		if _, covered := t.wide[worldNumber]; !covered {
			e.value(setWide, wideKey(t.number, worldNumber), &was, &t.last)
		}
	}
}

// drop removes a table.
func (m *model) drop(id compile.TableID, e *edit) {
	t := m.tables[id]
	for k, v := range t.cells {
		e.value(setCells, cellKey(t.number, k.service, k.port), &v, nil)
		m.forget(v)
		m.release(k.identity)
	}
	for s, list := range t.ranges {
		m.relists(t, s)
		for _, r := range list {
			m.forget(r.verdict)
			m.release(s.identity)
		}
	}
	t.ranges = nil
	for i, v := range t.wide {
		e.value(setWide, wideKey(t.number, i), &v, nil)
		m.forget(v)
		m.release(i)
	}
	if _, covered := t.wide[worldNumber]; !covered {
		e.value(setWide, wideKey(t.number, worldNumber), &t.last, nil)
	}
	m.forget(t.last)
	delete(m.tables, id)
	delete(m.byNumber, t.number)
	delete(m.given, id)
	delete(m.numbered, t.number)
}

// setCell takes over the use of the verdict.
func (m *model) setCell(t *table, c compile.Cell, v uint32, e *edit) {
	i := m.identityNumber(c.Identity)
	s := service{i, c.Protocol}
	switch {
	case c.Protocol == 0:
		old, ok := t.wide[i]
		t.wide[i] = v
		switch {
		case ok:
			m.release(i)
			m.forget(old)
			e.value(setWide, wideKey(t.number, i), &old, &v)
		case i == worldNumber:
			e.value(setWide, wideKey(t.number, i), &t.last, &v)
		default:
			e.value(setWide, wideKey(t.number, i), nil, &v)
		}
	case c.First == c.Last:
		k := port{s, c.First}
		old, ok := t.cells[k]
		t.cells[k] = v
		if ok {
			m.release(i)
			m.forget(old)
			e.value(setCells, cellKey(t.number, s, c.First), &old, &v)
		} else {
			e.value(setCells, cellKey(t.number, s, c.First), nil, &v)
		}
	default:
		r := portRange{c.First, c.Last, v}
		m.relists(t, s)
		at, ok := t.findRange(s, r)
		if ok {
			old := t.ranges[s][at]
			m.release(i)
			m.forget(old.verdict)
			t.ranges[s][at] = r
			return
		}
		t.ranges[s] = slices.Insert(t.ranges[s], at, r)
	}
}

func (m *model) dropCell(t *table, c compile.Cell, e *edit) {
	i, ok := m.identityKnown(c.Identity)
	if !ok {
		return
	}
	s := service{i, c.Protocol}
	var old uint32
	switch {
	case c.Protocol == 0:
		if old, ok = t.wide[i]; !ok {
			return
		}
		delete(t.wide, i)
		if i == worldNumber {
			e.value(setWide, wideKey(t.number, i), &old, &t.last)
		} else {
			e.value(setWide, wideKey(t.number, i), &old, nil)
		}
	case c.First == c.Last:
		k := port{s, c.First}
		if old, ok = t.cells[k]; !ok {
			return
		}
		delete(t.cells, k)
		e.value(setCells, cellKey(t.number, s, c.First), &old, nil)
	default:
		at, found := t.findRange(s, portRange{first: c.First, last: c.Last})
		if !found {
			return
		}
		m.relists(t, s)
		r := t.ranges[s][at]
		if t.ranges[s] = slices.Delete(t.ranges[s], at, at+1); len(t.ranges[s]) == 0 {
			delete(t.ranges, s)
		}
		old = r.verdict
	}
	m.forget(old)
	m.release(i)
}

// findRange says where a range is, or would be.
func (t *table) findRange(s service, r portRange) (int, bool) {
	list := t.ranges[s]
	at, ok := slices.BinarySearchFunc(list, r, func(a, b portRange) int { return int(a.first) - int(b.first) })
	return at, ok && list[at].last == r.last
}

// each calls do for every element of the model; end is of intervals alone.
func (m *model) each(do func(set string, x element)) {
	for name, l := range m.leaves {
		do(setLeaves, element{key: []byte(name), data: l.number})
	}
	for s, n := range m.sides {
		do(sideSet(s), element{key: s.Addr.AsSlice(), data: n})
	}
	done := map[netip.Addr]bool{}
	for s := range m.sides {
		if !done[s.Addr] {
			done[s.Addr] = true
			i := m.itself(s.Addr)
			do(i.set, *i.element(s.Addr))
		}
	}
	for _, l := range m.lists {
		for _, r := range l.ranges {
			do(setRanges, rangeOf(l.number, r))
		}
	}
	for a, n := range m.hosts {
		do(hostSet(a, n), element{key: a.AsSlice(), data: n})
	}
	for _, s := range m.spans {
		do(familyOf(s.first).set(setBlocks), s.element())
	}
	for _, t := range m.byNumber {
		t.each(do)
	}
	for n, v := range m.verdicts {
		do(setCounts, element{key: number(n), comment: v.comment})
	}
}

func (t *table) each(do func(set string, x element)) {
	for k, v := range t.cells {
		do(setCells, element{key: cellKey(t.number, k.service, k.port), data: v})
	}
	for s, n := range t.lists {
		do(setLists, element{key: listKey(t.number, s), data: n})
	}
	for i, v := range t.wide {
		do(setWide, element{key: wideKey(t.number, i), data: v})
	}
	if _, covered := t.wide[worldNumber]; !covered {
		do(setWide, element{key: wideKey(t.number, worldNumber), data: t.last})
	}
}
