// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weftnet/weft/policy"
)

// settlePolicies takes over the policies that have changed, and returns their new versions in the order in which they are asked.
func (c *Compiler) settlePolicies() []*pol {
	var added []*pol
	gone := false
	for k := range c.dirty.policies {
		old, now := c.byKey[k], c.world.Policy(k)
		if old != nil && now != nil && reflect.DeepEqual(old.Policy, now) {
			old.Policy = now
			continue
		}
		if old != nil {
			old.gone, gone = true, true
			c.counted.release(old)
			delete(c.byKey, k)
		}
		if now != nil {
			c.seq++
			p := &pol{Policy: now, seq: c.seq, old: old}
			for d := range policy.Direction(2) {
				p.names[d] = p.portNames(d)
				p.speaks[d] = p.says(d)
				for _, r := range p.Rules[d] {
					if p.inForce(r) {
						p.inForces[d]++
					}
				}
			}
			c.byKey[k] = p
			added = append(added, p)
		}
	}
	slices.SortFunc(added, comparePols)
	if gone || len(added) > 0 {
		c.order = merge(nil, c.order, added)
	}
	c.dirty.less = gone
	return added
}

// comparePols orders policies as they are asked.
func comparePols(a, b *pol) int { return policy.ComparePolicies(a.Policy, b.Policy) }

// merge appends those of both that are not gone, in order.
func merge(to, a, b []*pol) []*pol {
	for len(a)+len(b) > 0 {
		switch {
		case len(a) > 0 && a[0].gone:
			a = a[1:]
		case len(a) == 0 || len(b) > 0 && comparePols(b[0], a[0]) < 0:
			to, b = append(to, b[0]), b[1:]
		default:
			to, a = append(to, a[0]), a[1:]
		}
	}
	return to
}

// settleLocals finds out which policies select the local endpoints, and returns the tables that have come by that. Where neither policies nor labels of
// namespaces have changed it looks at those alone that have changed, or of whose addresses one may have another holder.
func (c *Compiler) settleLocals(changed []*pol) []*table {
	for n := range c.dirty.locals {
		e, ok := c.world.Endpoint(n)
		c.settleLocal(n, e, ok && e.Node == c.node && len(e.Addrs) > 0)
	}
	s := selection{c: c, changed: changed}
	if len(changed) > 0 || c.dirty.less || c.dirty.spaces {
		for n, l := range c.locals {
			s.settle(n, l)
		}
		return s.fresh
	}
	for n := range c.dirty.locals {
		if l := c.locals[n]; l != nil {
			s.settle(n, l)
		}
	}
	for a := range c.dirty.addrs {
		for _, n := range c.claims[a] {
			if _, done := c.dirty.locals[n]; !done {
				s.settle(n, c.locals[n])
			}
		}
	}
	return s.fresh
}

// settleLocal takes in that an endpoint is local, or is not.
func (c *Compiler) settleLocal(n policy.Name, e policy.Endpoint, here bool) {
	l := c.locals[n]
	switch {
	case l == nil && !here:
		return
	case l == nil:
		l = &local{}
		c.locals[n] = l
	case !here:
		l.move(policy.Ingress, nil)
		l.move(policy.Egress, nil)
		delete(c.locals, n)
	}
	for _, a := range l.addrs {
		if c.claims[a] = slices.DeleteFunc(c.claims[a], func(x policy.Name) bool { return x == n }); len(c.claims[a]) == 0 {
			delete(c.claims, a)
		}
	}
	l.addrs = nil
	if here {
		l.addrs = e.Addrs
		for _, a := range e.Addrs {
			c.claims[a] = append(c.claims[a], n)
		}
	}
}

// A selection is one finding out which policies select local endpoints.
type selection struct {
	c       *Compiler
	changed []*pol
	within  map[string][]*pol    // of changed, those whose subject is in their own namespace, by that
	wide    []*pol               // the others
	mine    map[*labelSet][]*pol // of changed, those that select a kind of endpoints, as far as that was asked
	known   [2][]step
	fresh   []*table // that have come by it
}

// settle finds it out of one. It may be asked of the same one again.
func (s *selection) settle(n policy.Name, l *local) {
	c := s.c
	e, _ := c.world.Endpoint(n)
	set := c.sets.of(e)
	_, dirty := c.dirty.locals[n]
	was := l.idle
	l.idle = !slices.ContainsFunc(l.addrs, func(a netip.Addr) bool { return c.has(n, a) })
	if l.idle {
		l.move(policy.Ingress, nil)
		l.move(policy.Egress, nil)
		return
	}
	whole := dirty || was || set.space.stale
	if !whole && len(s.changed) == 0 && !c.dirty.less {
		return
	}
	var mine []*pol
	if !whole {
		mine = s.selecting(set)
	}
	for d := range policy.Direction(2) {
		if !whole {
			more := slices.DeleteFunc(slices.Clone(mine), func(p *pol) bool { return !p.speaks[d] })
			s.fresh = c.follow(n, l, d, more, &s.known[d], s.fresh)
			continue
		}
		list := c.scratch.pols[:0]
		for _, p := range c.order {
			if p.speaks[d] && set.fits(p.Namespace, p.Namespaces, p.Pods) {
				list = append(list, p)
			}
		}
		c.scratch.pols = list
		t, made := c.tableFor(d, list, c.localPorts(n, d, list))
		if made {
			s.fresh = append(s.fresh, t)
		}
		l.move(d, t)
	}
}

// selecting returns those of changed that select endpoints of a kind, in the order in which they are asked.
func (s *selection) selecting(set *labelSet) []*pol {
	if s.mine == nil {
		s.mine, s.within = map[*labelSet][]*pol{}, map[string][]*pol{}
		for _, p := range s.changed {
			if p.Namespaces == nil {
				s.within[p.Namespace] = append(s.within[p.Namespace], p)
			} else {
				s.wide = append(s.wide, p)
			}
		}
	}
	mine, known := s.mine[set]
	if !known {
		for _, p := range slices.Concat(s.within[set.space.name], s.wide) {
			if set.fits(p.Namespace, p.Namespaces, p.Pods) {
				mine = append(mine, p)
			}
		}
		slices.SortFunc(mine, comparePols)
		s.mine[set] = mine
	}
	return mine
}

// A step is how an endpoint has come from one table to another: by more policies, and without those that are gone.
type step struct {
	from, to *table
	more     []*pol
	ports    []localPort // what names in more mean
}

// follow moves a local endpoint, of which only policies have changed, like others before it that go the same way.
func (c *Compiler) follow(n policy.Name, l *local, d policy.Direction, more []*pol, known *[]step, fresh []*table) []*table {
	way := step{from: l.tables[d], more: more, ports: c.localPorts(n, d, more)}
	for _, k := range *known {
		if k.from == way.from && slices.Equal(k.more, way.more) && slices.Equal(k.ports, way.ports) {
			l.move(d, k.to)
			return fresh
		}
	}
	var had []*pol
	if way.from != nil {
		had = way.from.pols
	}
	list := merge(c.scratch.pols[:0], had, more)
	c.scratch.pols = list
	t, made := c.tableFor(d, list, c.localPorts(n, d, list))
	if made {
		fresh = append(fresh, t)
	}
	way.to = t
	*known = append(*known, way)
	l.move(d, t)
	return fresh
}

// move puts a local endpoint into a table, or into none.
func (l *local) move(d policy.Direction, t *table) {
	old := l.tables[d]
	if t == old {
		return
	}
	if t != nil {
		t.refs++
		if t.from != nil && old != nil {
			t.from[old]++
		}
	}
	if old != nil {
		old.refs--
	}
	l.tables[d] = t
}

// tableFor returns the table of these policies, nil for none, and whether it is a new one.
func (c *Compiler) tableFor(d policy.Direction, list []*pol, ports []localPort) (*table, bool) {
	if len(list) == 0 {
		return nil, false
	}
	hash := uint64(d)
	for _, p := range list {
		hash = (hash ^ p.seq) * 0x9e3779b97f4a7c15
		hash ^= hash >> 29
	}
	for _, p := range ports {
		hash = (hash ^ uint64(p.port)<<8 ^ uint64(p.protocol)) * 0x9e3779b97f4a7c15
	}
	for t := c.byHash[hash]; t != nil; t = t.next {
		if t.direction == d && slices.Equal(t.pols, list) && slices.Equal(t.ports, ports) {
			return t, false
		}
	}
	t := &table{hash: hash, next: c.byHash[hash], direction: d, pols: slices.Clone(list), ports: ports, from: map[*table]int{}}
	c.byHash[hash] = t
	return t, true
}

// localPorts returns what the names in the rules mean at a local endpoint.
func (c *Compiler) localPorts(n policy.Name, d policy.Direction, list []*pol) []localPort {
	e, _ := c.world.Endpoint(n)
	if d != policy.Ingress || len(e.Ports) == 0 {
		return nil
	}
	asked := map[string]struct{}{}
	for _, p := range list {
		for _, name := range p.names[d] {
			asked[name] = struct{}{}
		}
	}
	var ports []localPort
	for _, x := range e.Ports {
		if _, ok := asked[x.Name]; ok && x.Protocol != 0 {
			ports = append(ports, localPort{x.Name, x.Protocol, x.Port})
		}
	}
	slices.SortFunc(ports, func(a, b localPort) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
	})
	return slices.Compact(ports)
}

// settleTables drops the tables that nobody has any more, and builds those that have come.
func (c *Compiler) settleTables(fresh []*table) {
	var dying []*table
	c.tables = slices.DeleteFunc(c.tables, func(t *table) bool {
		if t.refs == 0 {
			dying = append(dying, t)
		}
		return t.refs == 0
	})
	for _, t := range dying {
		c.unfile(t)
		c.weight -= t.weight
		c.recount = c.recount || t.blocks
		for _, cells := range t.cells {
			c.cells -= len(cells)
		}
	}
	for _, t := range fresh {
		t.whole = true
		var best *table
		for old, n := range t.from {
			if old.refs == 0 && !old.taken && (best == nil || n > t.from[best] || n == t.from[best] && old.id < best.id) {
				best = old
			}
		}
		t.from = nil
		if best != nil {
			best.taken = true
			t.id, t.before, t.oldDef = best.id, best.cells, best.oldDef
		} else {
			c.lastTable++
			t.id = c.lastTable
		}
		c.tables = append(c.tables, t)
		for _, p := range t.pols {
			t.weight += p.inForces[t.direction]
			c.count(p, t.direction)
			t.blocks = t.blocks || p.blocks[t.direction] > 0
		}
		c.weight += t.weight
		c.recount = c.recount || t.blocks
	}
	for _, t := range dying {
		if !t.taken {
			c.delta.DropTables = append(c.delta.DropTables, t.id)
		}
	}
	if len(fresh)+len(dying) > 0 {
		c.admit(dying)
	}
	c.retry()
}

// unfile takes a table out of those that can be found.
func (c *Compiler) unfile(t *table) {
	if c.byHash[t.hash] == t {
		if t.next == nil {
			delete(c.byHash, t.hash)
		} else {
			c.byHash[t.hash] = t.next
		}
		return
	}
	for at := c.byHash[t.hash]; at != nil; at = at.next {
		if at.next == t {
			at.next = t.next
		}
	}
}

// unbuild forgets what build has made, but for the cells.
func (c *Compiler) unbuild(t *table) {
	each(t.byPeer, func(id uint32) {
		p := c.peers.byID[id]
		p.tables = slices.DeleteFunc(p.tables, func(x *table) bool { return x == t })
	})
	for _, n := range c.names {
		n.tables = slices.DeleteFunc(n.tables, func(x *table) bool { return x == t })
	}
	c.rules -= len(t.rules)
	t.built, t.tiers = false, [3]int32{}
	t.rules, t.byPeer, t.byName, t.everyone, t.isolated = nil, nil, nil, nil, nil
}

// settleCells works out the cells of the classes that have come, in all tables, and of all of them in tables that have come.
func (c *Compiler) settleCells(wanted map[*table]map[*class]struct{}) {
	added, removed := c.settleClasses()
	for _, x := range removed {
		for _, t := range c.tables {
			c.unfill(t, x)
		}
	}
	for _, x := range added {
		c.tablesOf(x, func(t *table) {
			if !t.todo {
				c.fill(t, x)
			}
		})
	}
	if slices.ContainsFunc(c.tables, func(t *table) bool { return t.todo }) {
		for _, x := range c.classes.byKey {
			c.tablesOf(x, func(t *table) {
				if t.todo {
					c.fill(t, x)
				}
			})
		}
	}
	for _, t := range c.tables {
		if t.built && !t.huge {
			for x := range t.selves {
				if _, ok := wanted[t][x]; !ok && !x.dead {
					c.unfill(t, x)
				}
			}
			for x := range wanted[t] {
				if _, ok := t.selves[x]; !ok || t.todo {
					c.fill(t, x)
				}
			}
		}
		t.selves, t.todo = wanted[t], false
	}
	c.admitCells()
}

// fill works out the cells of a class that has come in a table, or how many it would have.
func (c *Compiler) fill(t *table, x *class) {
	switch {
	case t.denied == 0:
		c.set(t, x.id, c.cellsOf(t, x))
		c.spare(t)
	case t.built && !t.huge:
		t.count += len(c.cellsOf(t, x))
	}
}

// unfill takes away the cells of a class that has gone from a table.
func (c *Compiler) unfill(t *table, x *class) {
	switch {
	case t.denied == 0:
		c.set(t, x.id, nil)
	case t.built && !t.huge && t.counts(x):
		t.count -= len(c.cellsOf(t, x))
	}
}

// tablesOf calls f for the tables with rules about what is of a class.
func (c *Compiler) tablesOf(x *class, f func(*table)) {
	switch {
	case x.is(self): // only its own tables need to know
	case x.is(own):
		for _, t := range c.tables {
			if t.direction == policy.Egress {
				f(t)
			}
		}
	case x.is(beyond):
		for _, t := range c.tables {
			f(t)
		}
	default:
		c.marks++
		once := func(tables []*table) {
			for i := 0; i < len(tables); i++ {
				if t := tables[i]; t.mark != c.marks {
					t.mark = c.marks
					c.scratch.tables = append(c.scratch.tables, t)
				}
			}
		}
		c.scratch.tables = c.scratch.tables[:0]
		for i := range x.peers() {
			once(c.peers.byID[x.peer(i)].tables)
		}
		for i := range x.values() {
			once(c.byName[x.value(i).name].tables)
		}
		for _, t := range c.scratch.tables {
			f(t)
		}
	}
}
