// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"math"
	"slices"

	"github.com/weftnet/weft/policy"
)

// A table is the verdicts for one direction of the local endpoints that the same policies select.
type table struct {
	id        TableID
	hash      uint64
	next      *table // another one of the same hash
	direction policy.Direction
	pols      []*pol         // in the order in which they are asked
	ports     []localPort    // for ingress: what names in the rules mean
	refs      int            // endpoints
	from      map[*table]int // where its endpoints were before, while it is new
	taken     bool           // another one goes on in its place
	weight    int            // rules of its policies
	blocks    bool           // some of its policies are about blocks
	held      bool           // its policies' rules are made for it, too

	// Made of these, if built.
	built    bool
	rules    []*rule   // in the order in which they are asked: a rule's rank is its index
	tiers    [3]int32  // the ranks at which tiers end
	byPeer   []uint64  // peer << 32 | rank, sorted, of the rules that are not for any peer
	byName   []uint64  // name << 32 | rank, sorted, of the rules for any peer that ask for other endpoints' ports by name
	everyone []painted // what holds for everyone, by protocol
	rest     ranks     // what holds for everyone in all other protocols
	isolated *policy.Verdict
	def      *policy.Verdict

	cells   map[Identity][]cell // none empty
	selves  map[*class]struct{}
	count   int  // cells that it has, or would have if it were not denied for these
	denied  lack // everything is, see Limits; 0: it is not
	huge    bool // count is the least: it was denied before all were counted
	room    int  // cells that there was room for then
	classes int  // that there were then

	// What was before this commit, where it is another one now; if whole, everything: of the table that this one takes the place of.
	before map[Identity][]cell
	whole  bool
	oldDef *policy.Verdict // nil: there was no table
	todo   bool            // the cells of all classes are to be worked out
	mark   uint64          // the last class that it was found for
}

// A localPort is what a name means at the endpoints of an ingress table.
type localPort struct {
	name     string
	protocol policy.Protocol
	port     uint16
}

// A cell is a Cell of some identity with its verdict.
type cell struct {
	span
	by *policy.Verdict
}

// ranks are those of the first rule of each tier that fits; none is absent.
type ranks [3]int32

const none = math.MaxInt32

// painted is what holds for the ports of a protocol: pieces that cover all of them.
type painted struct {
	protocol policy.Protocol
	pieces   []piece
}

// A piece is a range of ports in which the same rules fit first.
type piece struct {
	first, last uint16
	ranks       ranks
	by          *policy.Verdict // what everyone has
}

// A stroke is ports that a rule fits.
type stroke struct {
	span
	rank int32
}

// with returns the first of both.
func (r ranks) with(o ranks) ranks { return ranks{min(r[0], o[0]), min(r[1], o[1]), min(r[2], o[2])} }

// tier returns that of a rank.
func (t *table) tier(rank int32) int {
	switch {
	case rank < t.tiers[0]:
		return 0
	case rank < t.tiers[1]:
		return 1
	default:
		return 2
	}
}

// asksClusters says whether there is a table and policies in it that are not of the Network tier.
func (t *table) asksClusters() bool {
	return t != nil && (t.pols[0].Tier != policy.Network || t.pols[len(t.pols)-1].Tier != policy.Network)
}

// decide asks the tiers. With exempt the Network tier denies nothing.
func (c *Compiler) decide(t *table, r ranks, exempt *policy.Verdict) *policy.Verdict {
	if r[policy.Admin] != none && !t.rules[r[policy.Admin]].pass {
		return t.rules[r[policy.Admin]].by
	}
	if t.isolated != nil {
		switch {
		case exempt != nil:
			return exempt
		case r[policy.Network] != none:
			return t.rules[r[policy.Network]].by
		default:
			return t.isolated
		}
	}
	if r[policy.Baseline] != none && !t.rules[r[policy.Baseline]].pass {
		return t.rules[r[policy.Baseline]].by
	}
	return c.verdicts.open
}

// build makes all but the cells of identities.
func (c *Compiler) build(t *table) {
	var isolating []policy.PolicyKey
	for _, p := range t.pols {
		if p.Tier == policy.Network {
			isolating = append(isolating, p.PolicyKey)
		}
		for i := range p.rules[t.direction] {
			t.rules = append(t.rules, &p.rules[t.direction][i])
		}
		for tier := p.Tier; tier <= policy.Baseline; tier++ {
			t.tiers[tier] = int32(len(t.rules))
		}
	}
	if len(isolating) > 0 {
		t.isolated = &policy.Verdict{Reason: policy.Isolated, Isolating: isolating}
	}
	c.rules += len(t.rules)
	t.built, t.count, t.huge = true, 0, false
	t.rest = ranks{none, none, none}
	var strokes []stroke
	for i, r := range t.rules {
		rank := int32(i)
		for _, id := range r.peers {
			t.byPeer = append(t.byPeer, uint64(id)<<32|uint64(i))
		}
		if !r.anyPeer {
			continue
		}
		if r.anyPort {
			t.rest[t.tier(rank)] = min(t.rest[t.tier(rank)], rank)
			continue
		}
		for _, s := range r.spans {
			strokes = append(strokes, stroke{s, rank})
		}
		for _, n := range r.names {
			if t.direction == policy.Egress {
				t.byName = append(t.byName, uint64(c.names[n.name].id)<<32|uint64(i))
				continue
			}
			strokes = t.resolve(strokes, n, rank)
		}
	}
	slices.Sort(t.byPeer)
	slices.Sort(t.byName)
	t.byName = slices.Compact(t.byName)
	each(t.byPeer, func(id uint32) { c.peers.byID[id].tables = append(c.peers.byID[id].tables, t) })
	for _, n := range t.pols {
		for _, name := range n.names[t.direction] {
			if x := c.names[name]; t.direction == policy.Egress && len(t.byName) > 0 && !slices.Contains(x.tables, t) && has(t.byName, x.id) {
				x.tables = append(x.tables, t)
			}
		}
	}
	t.def = c.decide(t, t.rest, nil)
	t.paintEveryone(c, strokes)
}

// paintEveryone works out what holds for everyone, and the cells of World.
func (t *table) paintEveryone(c *Compiler, strokes []stroke) {
	slices.SortStableFunc(strokes, func(a, b stroke) int { return cmp.Compare(a.protocol, b.protocol) })
	for len(strokes) > 0 {
		p := strokes[0].protocol
		n := len(strokes)
		if i := slices.IndexFunc(strokes, func(s stroke) bool { return s.protocol != p }); i >= 0 {
			n = i
		}
		pieces := slices.Clone(c.paint(t, strokes[:n], t.rest, true))
		for i := range pieces {
			pieces[i].by = c.decide(t, pieces[i].ranks, nil)
		}
		t.everyone = append(t.everyone, painted{p, pieces})
		strokes = strokes[n:]
	}
	c.set(t, World, t.worldCells())
}

// worldCells are those of World.
func (t *table) worldCells() (cells []cell) {
	for _, e := range t.everyone {
		for _, p := range e.pieces {
			if p.by != t.def {
				cells = appendCell(cells, span{e.protocol, p.first, p.last}, p.by)
			}
		}
	}
	return cells
}

// appendCell adds a cell, or makes the last one longer.
func appendCell(cells []cell, s span, by *policy.Verdict) []cell {
	if n := len(cells); n > 0 && cells[n-1].by == by && cells[n-1].protocol == s.protocol && s.protocol != 0 && cells[n-1].last+1 == s.first {
		cells[n-1].last = s.last
		return cells
	}
	return append(cells, cell{s, by})
}

// each calls f for every distinct upper half.
func each(sorted []uint64, f func(uint32)) {
	for i, x := range sorted {
		if i == 0 || sorted[i-1]>>32 != x>>32 {
			f(uint32(x >> 32))
		}
	}
}

// has says whether there is one with that upper half.
func has(sorted []uint64, id uint32) bool {
	i, _ := slices.BinarySearch(sorted, uint64(id)<<32)
	return i < len(sorted) && uint32(sorted[i]>>32) == id
}

// find appends the lower halves of those with that upper half.
func find(to []int32, sorted []uint64, id uint32) []int32 {
	i, _ := slices.BinarySearch(sorted, uint64(id)<<32)
	for ; i < len(sorted) && uint32(sorted[i]>>32) == id; i++ {
		to = append(to, int32(sorted[i]&math.MaxUint32))
	}
	return to
}

// resolve appends what a name means at the endpoints of an ingress table.
func (t *table) resolve(to []stroke, n named, rank int32) []stroke {
	for _, p := range t.ports {
		if p.name == n.name && (n.protocol == 0 || n.protocol == p.protocol) {
			to = append(to, stroke{span{p.protocol, p.port, p.port}, rank})
		}
	}
	return to
}

// paint cuts ports into pieces by the strokes, which are of one protocol and in the order of their ranks: in each piece the first rule of each
// tier counts. If whole, the pieces cover all ports and under counts, too. The result is valid until the next call.
func (c *Compiler) paint(t *table, strokes []stroke, under ranks, whole bool) []piece {
	out := c.scratch.pieces[:0]
	if len(strokes) == 1 && !whole {
		r := ranks{none, none, none}
		r[t.tier(strokes[0].rank)] = strokes[0].rank
		c.scratch.pieces = append(out, piece{first: strokes[0].first, last: strokes[0].last, ranks: r})
		return c.scratch.pieces
	}
	at := c.scratch.at[:0]
	if whole {
		at = append(at, 0, 65536)
	}
	for _, s := range strokes {
		at = append(at, int32(s.first), int32(s.last)+1)
	}
	slices.Sort(at)
	at = slices.Compact(at)
	c.scratch.at = at
	if !whole {
		under = ranks{none, none, none}
	}
	for i := range len(at) - 1 {
		out = append(out, piece{first: uint16(at[i]), last: uint16(at[i+1] - 1), ranks: under})
	}
	// bare leads from a piece to the next one that no stroke of the tier has painted
	bare := slices.Grow(c.scratch.bare[:0], len(out)+1)[:len(out)+1]
	c.scratch.bare = bare
	next := func(i int32) int32 {
		for bare[i] != i {
			bare[i] = bare[bare[i]]
			i = bare[i]
		}
		return i
	}
	tier := -1
	for _, s := range strokes {
		if k := t.tier(s.rank); k != tier {
			tier = k
			for i := range bare {
				bare[i] = int32(i)
			}
		}
		first, _ := slices.BinarySearch(at, int32(s.first))
		end, _ := slices.BinarySearch(at, int32(s.last)+1)
		for i := next(int32(first)); int(i) < end; i = next(i) {
			out[i].ranks[tier] = min(out[i].ranks[tier], s.rank)
			bare[i] = i + 1
		}
	}
	c.scratch.pieces = out
	return out
}

// cellsOf works out where the verdicts for a class are other ones than for everyone.
func (c *Compiler) cellsOf(t *table, x *class) []cell {
	if x.is(beyond) && len(t.byPeer)+len(t.byName) > 0 {
		return []cell{{by: c.verdicts.beyond}}
	}
	found := c.scratch.ranks[:0]
	for i := range x.peers() {
		found = find(found, t.byPeer, x.peer(i))
	}
	for i := range x.values() {
		found = find(found, t.byName, x.value(i).name)
	}
	slices.Sort(found)
	found = slices.Compact(found)
	c.scratch.ranks = found
	var exempt *policy.Verdict
	switch {
	case x.is(own):
		exempt = c.verdicts.ownNode
	case x.is(self):
		exempt = c.verdicts.itself
	}
	if len(found) == 0 && exempt == nil {
		return nil
	}
	every := ranks{none, none, none} // what holds for all ports
	strokes := c.scratch.strokes[:0]
	for _, rank := range found {
		r := t.rules[rank]
		if r.anyPort {
			k := t.tier(rank)
			every[k] = min(every[k], rank)
			continue
		}
		for _, s := range r.spans {
			strokes = append(strokes, stroke{s, rank})
		}
		for _, n := range r.names {
			strokes = c.resolve(strokes, t, x, n, rank)
		}
	}
	c.scratch.strokes = strokes
	if len(strokes) > 1 {
		slices.SortStableFunc(strokes, func(a, b stroke) int { return cmp.Compare(a.protocol, b.protocol) })
	}
	return c.differences(t, strokes, every, exempt)
}

// resolve appends what a name means where connections of a table with a class go to.
func (c *Compiler) resolve(to []stroke, t *table, x *class, n named, rank int32) []stroke {
	if t.direction == policy.Ingress {
		return t.resolve(to, n, rank)
	}
	id := c.names[n.name].id
	for i := range x.values() {
		if v := x.value(i); v.name == id && (n.protocol == 0 || n.protocol == v.protocol) {
			to = append(to, stroke{span{v.protocol, v.port, v.port}, rank})
		}
	}
	return to
}

// differences lays strokes, by protocol and rank, and what holds for all ports, over what holds for everyone.
func (c *Compiler) differences(t *table, strokes []stroke, every ranks, exempt *policy.Verdict) []cell {
	whole := exempt != nil || every != ranks{none, none, none}
	rest := c.decide(t, t.rest.with(every), exempt)
	var cells []cell
	if rest != t.def {
		cells = append(cells, cell{by: rest})
	}
	everyone := t.everyone
	for len(strokes) > 0 || whole && len(everyone) > 0 {
		// the next protocol of either
		var p policy.Protocol
		switch {
		case len(strokes) == 0:
			p = everyone[0].protocol
		case whole && len(everyone) > 0:
			p = min(strokes[0].protocol, everyone[0].protocol)
		default:
			p = strokes[0].protocol
		}
		n := 0
		for n < len(strokes) && strokes[n].protocol == p {
			n++
		}
		for len(everyone) > 0 && everyone[0].protocol < p {
			everyone = everyone[1:]
		}
		var under []piece
		if len(everyone) > 0 && everyone[0].protocol == p {
			under, everyone = everyone[0].pieces, everyone[1:]
		}
		for _, over := range c.paint(t, strokes[:n], every, whole) {
			i, _ := slices.BinarySearchFunc(under, over.first, func(u piece, port uint16) int { return cmp.Compare(u.last, port) })
			for first := int(over.first); first <= int(over.last); i++ {
				u := piece{last: over.last, ranks: t.rest, by: t.def}
				if i < len(under) {
					u = under[i]
				}
				last := min(u.last, over.last)
				by := c.decide(t, u.ranks.with(over.ranks), exempt)
				but := u.by
				if rest != t.def {
					but = rest
				}
				if by != but {
					cells = appendCell(cells, span{p, uint16(first), last}, by)
				}
				first = int(last) + 1
			}
		}
		strokes = strokes[n:]
	}
	return cells
}

// set replaces the cells of an identity.
func (c *Compiler) set(t *table, id Identity, cells []cell) {
	old := t.cells[id]
	if len(old) == 0 && len(cells) == 0 {
		return
	}
	if _, noted := t.before[id]; !noted && !t.whole {
		if t.before == nil {
			t.before = map[Identity][]cell{}
		}
		t.before[id] = old
	}
	c.cells += len(cells) - len(old)
	t.count += len(cells) - len(old)
	if len(cells) == 0 {
		delete(t.cells, id)
		return
	}
	if t.cells == nil {
		t.cells = map[Identity][]cell{}
	}
	t.cells[id] = cells
}
