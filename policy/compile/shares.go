// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/weftnet/weft/policy"
)

// Limits are of the whole node, and shared fairly: as long as all fits, everybody has what they need. Beyond that the namespace whose policies take the
// most loses the dearest of its tables, whoever came last; policies for the whole cluster are the last to be touched. Which tables that are follows from
// the objects alone, but where one is so dear that nobody finds out what it would cost.
//
// Rules are counted before any are made. Blocks in use, and how often they are in each other, are counted before addresses are told apart by them, so
// that the addresses of endpoints are not beyond Limits because of them. Cells have to be worked out: tables that are denied for these go on counting theirs.

// A lack is what there is too little of for a table, which denies everything then.
type lack byte

const (
	ofRules lack = 1 + iota
	ofBlocks
	ofCells
)

func (l lack) String() string {
	switch l {
	case ofRules:
		return "rules"
	case ofBlocks:
		return "blocks of addresses"
	default:
		return "combinations of peer and port"
	}
}

// A claim is what a namespace takes of something for one table, or policy.
type claim[T any] struct {
	of        T
	namespace string
	cost      int
}

// shortage says who took most of what there was too little of.
type shortage struct {
	need, room int
	namespace  string
	most       int
	least      bool // need and most may be more
	overlap    bool // they are not too many, but in each other too often
}

// excess returns whose claims are to be denied, so that they cost at least so much less, and who takes the most; order settles between equal ones.
func excess[T any](claims []claim[T], less int, order func(a, b T) int) (denied []T, s shortage) {
	type tenant struct {
		name   string
		sum    int
		claims []claim[T] // the dearest last
	}
	slices.SortFunc(claims, func(a, b claim[T]) int { return cmp.Or(cmp.Compare(a.cost, b.cost), order(a.of, b.of)) })
	byName := map[string]*tenant{}
	for _, c := range claims {
		if byName[c.namespace] == nil {
			byName[c.namespace] = &tenant{name: c.namespace}
		}
		t := byName[c.namespace]
		t.sum += c.cost
		t.claims = append(t.claims, c)
		s.need += c.cost
	}
	greedier := func(a, b *tenant) int {
		if a.name == "" || b.name == "" { // the cluster
			return cmp.Compare(a.name, b.name)
		}
		return cmp.Or(cmp.Compare(a.sum, b.sum), cmp.Compare(b.name, a.name))
	}
	left := slices.Collect(maps.Values(byName))
	for less > 0 && len(left) > 0 {
		t := slices.MaxFunc(left, greedier)
		if s.most == 0 {
			s.namespace, s.most = t.name, t.sum
		}
		last := t.claims[len(t.claims)-1]
		t.claims = t.claims[:len(t.claims)-1]
		if t.sum -= last.cost; len(t.claims) == 0 {
			left = slices.DeleteFunc(left, func(x *tenant) bool { return x == t })
		}
		less -= last.cost
		denied = append(denied, last.of)
	}
	return denied, s
}

// tenant is the namespace to which a table's costs are put down: that of its policies, if some have one.
func (t *table) tenant() string {
	for _, p := range t.pols {
		if p.Namespace != "" {
			return p.Namespace
		}
	}
	return ""
}

// compareTables orders tables by what they are made of.
func compareTables(a, b *table) int {
	return cmp.Or(
		cmp.Compare(a.direction, b.direction), slices.CompareFunc(a.pols, b.pols, comparePols),
		slices.CompareFunc(a.ports, b.ports, func(a, b localPort) int {
			return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
		}))
}

// admit decides which tables there is room for, as far as their policies alone say that, and builds those that were not built.
func (c *Compiler) admit(dying []*table) {
	lacking := c.admitRules()
	c.admitBlocks(lacking)
	for _, t := range c.tables {
		if lacking[t] == 0 {
			c.hold(t)
		}
	}
	for _, t := range slices.Concat(dying, slices.Collect(maps.Keys(lacking))) {
		c.let(t)
	}
	for _, t := range c.tables {
		switch why := lacking[t]; {
		case why != 0:
			c.deny(t, why)
		case !t.built:
			t.denied, t.todo = 0, true
			c.build(t)
		}
	}
}

// admitRules returns the tables for whose rules there is no room.
func (c *Compiler) admitRules() map[*table]lack {
	lacking := map[*table]lack{}
	c.short[ofRules] = shortage{}
	if c.weight <= c.limits.Rules {
		return lacking
	}
	var claims []claim[*table]
	for _, t := range c.tables {
		claims = append(claims, claim[*table]{t, t.tenant(), t.weight})
	}
	denied, s := excess(claims, c.weight-c.limits.Rules, compareTables)
	for _, t := range denied {
		lacking[t] = ofRules
	}
	s.room = c.limits.Rules
	c.short[ofRules] = s
	return lacking
}

// hold makes the rules of a table's policies, and let lets go of them.
func (c *Compiler) hold(t *table) {
	if t.held {
		return
	}
	t.held = true
	for _, p := range t.pols {
		c.use(p, t.direction)
	}
}

func (c *Compiler) let(t *table) {
	if !t.held {
		return
	}
	if t.held = false; t.built {
		c.unbuild(t)
	}
	for _, p := range t.pols {
		c.unuse(p, t.direction)
	}
}

// deny makes a table one that denies everything. What there are too many of its cells for it goes on to count.
func (c *Compiler) deny(t *table, why lack) {
	count := t.count
	for id := range t.cells {
		c.set(t, id, nil)
	}
	t.denied, t.todo, t.count = why, false, count
	if why != ofCells {
		c.let(t)
		t.selves, t.count, t.huge = nil, 0, false
	}
}

// counts says whether a table has cells of a class, or would have them.
func (t *table) counts(x *class) bool {
	switch {
	case x.is(self):
		_, ok := t.selves[x]
		return ok
	case x.is(own):
		return t.direction == policy.Egress
	}
	return true
}

// admitCells denies the tables for whose cells there is no room, and gives those theirs that there is room for again.
func (c *Compiler) admitCells() {
	c.short[ofCells] = shortage{}
	some, need, huge := false, 0, (*table)(nil)
	for _, t := range c.tables {
		switch {
		case t.huge:
			if huge == nil || t.count > huge.count || t.count == huge.count && compareTables(t, huge) < 0 {
				huge = t
			}
		case t.built:
			need += t.count
		}
		some = some || t.denied == ofCells
	}
	if need <= c.limits.Cells && !some {
		return
	}
	var claims []claim[*table]
	for _, t := range c.tables {
		if t.built && !t.huge {
			claims = append(claims, claim[*table]{t, t.tenant(), t.count})
		}
	}
	dearest, s := excess(claims, need-c.limits.Cells, compareTables)
	denied := map[*table]bool{}
	for _, t := range dearest {
		denied[t] = true
	}
	if huge != nil {
		s = shortage{need: need + huge.count, namespace: huge.tenant(), most: huge.count, least: true}
	}
	s.room = c.limits.Cells
	c.short[ofCells] = s
	for _, t := range c.tables {
		if denied[t] && t.denied == 0 {
			c.deny(t, ofCells)
		}
	}
	for _, t := range c.tables {
		if !denied[t] && !t.huge && t.denied == ofCells {
			c.lift(t)
		}
	}
}

// lift gives a table that was denied its cells.
func (c *Compiler) lift(t *table) {
	t.denied, t.count = 0, 0
	c.set(t, World, t.worldCells())
	for _, x := range c.classes.byKey {
		if t.counts(x) {
			c.set(t, x.id, c.cellsOf(t, x))
		}
	}
}

// spare denies the tables that cost the most while cells are worked out, so that there are never more than twice as many as there may be.
func (c *Compiler) spare(t *table) {
	if t.count > c.limits.Cells {
		c.giveUp(t)
	}
	if c.cells <= 2*c.limits.Cells {
		return
	}
	var claims []claim[*table]
	for _, t := range c.tables {
		if t.denied == 0 {
			claims = append(claims, claim[*table]{t, t.tenant(), t.count})
		}
	}
	dearest, _ := excess(claims, c.cells-c.limits.Cells, compareTables)
	for _, t := range dearest {
		c.giveUp(t)
	}
}

// giveUp denies a table whose cells are not counted any further.
func (c *Compiler) giveUp(t *table) {
	c.deny(t, ofCells)
	t.huge, t.classes, t.room = true, len(c.classes.byKey), c.limits.Cells-c.cells
}

// retry has the tables that were given up built anew if they may fit by now.
func (c *Compiler) retry() {
	for _, t := range c.tables {
		if t.huge && (len(c.classes.byKey) <= t.classes/4*3 || t.count <= c.limits.Cells && c.limits.Cells-c.cells > t.room) {
			t.huge, t.denied, t.todo, t.count = false, 0, true, 0
			t.selves = nil
			c.set(t, World, t.worldCells())
		}
	}
}

// shortages says who takes most of what there is too little of, a line each.
func (c *Compiler) shortages() (lines []string) {
	for what := ofRules; what <= ofCells; what++ {
		s := c.short[what]
		if s.most == 0 || !slices.ContainsFunc(c.tables, func(t *table) bool { return t.denied == what }) {
			continue
		}
		whose := "those for the whole cluster"
		if s.namespace != "" {
			whose = "those of the namespace " + s.namespace
		}
		if s.overlap {
			lines = append(lines, fmt.Sprintf("the %d %s in the network policies of this node's endpoints are in each other more often than it can enforce: %s are the most, %d",
				s.need, what, whose, s.most))
			continue
		}
		least := ""
		if s.least {
			least = "at least "
		}
		lines = append(lines, fmt.Sprintf("the network policies of this node's endpoints need %s%d %s, and it can enforce %d: %s need the most, %s%d",
			least, s.need, what, s.room, whose, least, s.most))
	}
	return lines
}
