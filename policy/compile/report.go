// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"

	"github.com/weftnet/weft/policy"
)

// export returns a table as it is seen outside.
func (t *table) export(def *policy.Verdict) *Table {
	n := 0
	for _, cells := range t.cells {
		n += len(cells)
	}
	x := &Table{ID: t.id, Default: verdict(def), Cells: make(map[Cell]Verdict, n)}
	for id, cells := range t.cells {
		for _, cell := range cells {
			x.Cells[cell.of(id)] = verdict(cell.by)
		}
	}
	x.index()
	return x
}

// def is the verdict where a table has no cell.
func (c *Compiler) def(t *table) *policy.Verdict {
	if t.denied != 0 {
		return c.verdicts.beyond
	}
	return t.def
}

// of returns where it is.
func (c cell) of(id Identity) Cell { return Cell{id, c.protocol, c.first, c.last} }

func verdict(v *policy.Verdict) Verdict { return Verdict{v.Allowed, v} }

// report puts what has changed in the tables into the delta.
func (c *Compiler) report() {
	for _, t := range c.tables {
		switch {
		case t.oldDef == nil:
			c.delta.AddTables = append(c.delta.AddTables, t.export(c.def(t)))
		default:
			p := t.patch(c.def(t))
			if p.Default != nil || len(p.Set)+len(p.Drop) > 0 {
				put(&c.delta.Patches, t.id, p)
			}
		}
		t.oldDef, t.before, t.whole = c.def(t), nil, false
	}
}

// patch returns what has changed.
func (t *table) patch(def *policy.Verdict) Patch {
	var p Patch
	if now := verdict(def); !now.Equal(verdict(t.oldDef)) {
		p.Default = &now
	}
	for id, old := range t.before {
		p.compare(id, old, t.cells[id])
	}
	if t.whole {
		for id, now := range t.cells {
			if _, compared := t.before[id]; !compared {
				p.compare(id, nil, now)
			}
		}
	}
	return p
}

// compare adds what has changed in the cells of an identity. Both are by protocol and port.
func (p *Patch) compare(id Identity, old, now []cell) {
	for len(old)+len(now) > 0 {
		var order int
		switch {
		case len(old) == 0:
			order = 1
		case len(now) == 0:
			order = -1
		default:
			a, b := old[0], now[0]
			order = cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.first, b.first), cmp.Compare(a.last, b.last))
		}
		if order < 0 {
			p.Drop = append(p.Drop, old[0].of(id))
			old = old[1:]
			continue
		}
		if order > 0 || !verdict(old[0].by).Equal(verdict(now[0].by)) {
			put(&p.Set, now[0].of(id), verdict(now[0].by))
		}
		if order == 0 {
			old = old[1:]
		}
		now = now[1:]
	}
}
