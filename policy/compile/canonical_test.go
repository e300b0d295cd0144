// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// canonical says what is in a state without the numbers of identities and tables: lines in an order that does not depend on them.
func canonical(s *State) []string {
	members := map[Identity][]string{World: {"world"}, OwnNode: {"own node"}}
	for a, i := range s.Identities {
		members[i] = append(members[i], a.String())
	}
	for p, i := range s.Blocks {
		members[i] = append(members[i], p.String())
	}
	for a, i := range s.Selves {
		members[i] = append(members[i], a.String()+" itself")
	}
	names := map[Identity]string{}
	var lines []string
	for i, m := range members {
		slices.Sort(m)
		names[i] = strings.Join(m, " ")
		lines = append(lines, fmt.Sprintf("identity %s, own %v", names[i], i.IsOwnNode()))
	}
	sides := map[TableID][]string{}
	for side, id := range s.Sides {
		sides[id] = append(sides[id], fmt.Sprint(side))
	}
	for id, t := range s.Tables {
		slices.Sort(sides[id])
		name := "table " + strings.Join(sides[id], " ")
		lines = append(lines, fmt.Sprintf("%s: default %v %+v", name, t.Default.Allow, *t.Default.By))
		for c, v := range t.Cells {
			lines = append(lines, fmt.Sprintf("%s: %s, %d %d-%d: %v %+v", name, names[c.Identity], c.Protocol, c.First, c.Last, v.Allow, *v.By))
		}
	}
	slices.Sort(lines)
	return lines
}

// differ says in what two states differ, numbers included.
func differ(a, b *State) string {
	switch {
	case !maps.Equal(a.Sides, b.Sides):
		return fmt.Sprintf("sides: %v, %v", a.Sides, b.Sides)
	case !maps.Equal(a.Identities, b.Identities):
		return fmt.Sprintf("identities: %v, %v", a.Identities, b.Identities)
	case !maps.Equal(a.Blocks, b.Blocks):
		return fmt.Sprintf("blocks: %v, %v", a.Blocks, b.Blocks)
	case !maps.Equal(a.Selves, b.Selves):
		return fmt.Sprintf("selves: %v, %v", a.Selves, b.Selves)
	}
	equal := func(x, y *Table) bool {
		return x.ID == y.ID && x.Default.Equal(y.Default) && maps.EqualFunc(x.Cells, y.Cells, Verdict.Equal)
	}
	if !maps.EqualFunc(a.Tables, b.Tables, equal) {
		return fmt.Sprintf("tables: %v, %v", a.Tables, b.Tables)
	}
	return ""
}

// tight fails if a delta says what is so already.
func tight(t failing, s *State, d Delta) {
	t.Helper()
	differs(t, s.Sides, d.SetSides, d.DropSides)
	differs(t, s.Identities, d.SetIdentities, d.DropIdentities)
	differs(t, s.Blocks, d.SetBlocks, d.DropBlocks)
	differs(t, s.Selves, d.SetSelves, d.DropSelves)
	for _, x := range d.AddTables {
		if s.Tables[x.ID] != nil {
			t.Fatalf("table %d is there already", x.ID)
		}
	}
	for _, id := range d.DropTables {
		if _, patched := d.Patches[id]; patched || s.Tables[id] == nil {
			t.Fatalf("table %d is dropped: it is not there, or patched", id)
		}
	}
	for id, p := range d.Patches {
		x := s.Tables[id]
		if x == nil || p.Default == nil && len(p.Set)+len(p.Drop) == 0 {
			t.Fatalf("patch of table %d: %+v", id, p)
		}
		if p.Default != nil && p.Default.Equal(x.Default) {
			t.Fatalf("table %d: the default is the same as before", id)
		}
		for c, v := range p.Set {
			if old, ok := x.Cells[c]; ok && old.Equal(v) || slices.Contains(p.Drop, c) {
				t.Fatalf("table %d: %+v is the same as before, or dropped too", id, c)
			}
		}
		for _, c := range p.Drop {
			if _, ok := x.Cells[c]; !ok {
				t.Fatalf("table %d: %+v is dropped and was not there", id, c)
			}
		}
	}
}

// differs fails if a change of a map says what is so already.
func differs[K, V comparable](t failing, m, set map[K]V, drop []K) {
	t.Helper()
	for k, v := range set {
		if old, ok := m[k]; ok && old == v || slices.Contains(drop, k) {
			t.Fatalf("%v is set to %v, as before, or dropped too", k, v)
		}
	}
	for _, k := range drop {
		if _, ok := m[k]; !ok {
			t.Fatalf("%v is dropped and was not there", k)
		}
	}
}
