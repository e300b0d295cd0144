// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// maxElements is how many elements go into one message, whose list of them must stay below 64 KiB.
const maxElements = 256

// send replaces the table of that name, in one transaction. Its chains are in force some moments before what is in its sets is, so
// packets that need an element are lost.
func (r rules) send(c *nftables.Conn, as string) error {
	if err := r.compose(c, as); err != nil {
		return err
	}
	return c.Flush()
}

// try says whether the kernel takes the table, and leaves none.
func (r rules) try(c *nftables.Conn) error {
	const as = tableName + "-probe"
	if err := r.compose(c, as); err != nil {
		return err
	}
	c.DelTable(&nftables.Table{Name: as, Family: nftables.TableFamilyINet})
	return c.Flush()
}

func (r rules) compose(c *nftables.Conn, as string) error {
	t := &nftables.Table{Name: as, Family: nftables.TableFamilyINet}
	c.AddTable(t) // there may be none to delete
	c.DelTable(t)
	c.AddTable(t)
	if err := r.composeSets(c, t); err != nil {
		return err
	}
	r.composeChains(c, t)
	return nil
}

func (r rules) composeSets(c *nftables.Conn, t *nftables.Table) error {
	for _, k := range r.sets {
		s := &nftables.Set{Table: t, Name: k.name, KeyType: k.key, Interval: k.ranges, Concatenation: k.parts, Counter: k.counted}
		if k.lasting > 0 {
			s.Dynamic, s.HasTimeout, s.Timeout, s.Size = true, true, k.lasting, seenMost
		}
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", k.name, err)
		}
		if err := inParts(r.elements[k.name], func(e []nftables.SetElement) error { return c.SetAddElements(s, e) }); err != nil {
			return fmt.Errorf("set %s: %w", k.name, err)
		}
	}
	return nil
}

// composeChains adds the chains, some of which may be there without rules, and all rules.
func (r rules) composeChains(c *nftables.Conn, t *nftables.Table) {
	chains := map[string]*nftables.Chain{}
	for _, ch := range r.chains {
		chains[ch.name] = c.AddChain(&nftables.Chain{Table: t, Name: ch.name, Type: ch.kind, Hooknum: ch.hook, Priority: ch.priority})
	}
	for _, ch := range r.chains {
		for _, x := range ch.rules {
			made := &nftables.Rule{Table: t, Chain: chains[ch.name], Exprs: x.exprs}
			if x.comment != "" {
				made.UserData = userdata.AppendString(nil, userdata.TypeComment, x.comment)
			}
			c.AddRule(made)
		}
	}
}

// change deletes and adds elements, in one transaction.
func change(c *nftables.Conn, del, add contents) error {
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	if err := composeElements(t, del, c.SetDeleteElements); err != nil {
		return err
	}
	if err := composeElements(t, add, c.SetAddElements); err != nil {
		return err
	}
	return c.Flush()
}

// composeElements deletes or adds elements, as do does.
func composeElements(t *nftables.Table, what contents, do func(*nftables.Set, []nftables.SetElement) error) error {
	for _, name := range slices.Sorted(maps.Keys(what)) {
		set := &nftables.Set{Table: t, Name: name}
		if err := inParts(what[name], func(e []nftables.SetElement) error { return do(set, e) }); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// inParts calls do with as many elements as fit into a message, in order.
func inParts(all map[element]bool, do func([]nftables.SetElement) error) error {
	sorted := slices.SortedFunc(maps.Keys(all), func(a, b element) int { return strings.Compare(a.key, b.key) })
	for part := range slices.Chunk(sorted, maxElements) {
		var list []nftables.SetElement
		for _, e := range part {
			list = append(list, nftables.SetElement{Key: []byte(e.key), KeyEnd: []byte(e.end)})
		}
		if err := do(list); err != nil {
			return err
		}
	}
	return nil
}

// found is a table as the kernel has it.
type found struct {
	rules    rules // without elements
	lines    []string
	odd      bool                          // the table or a chain has a setting that Weft never gives
	elements map[string]map[element]uint64 // with the packets counted, by the names of the sets
}

// plain returns the elements of the sets of kernel paths that are what such sets hold.
func (f *found) plain() contents {
	c := contents{}
	if f == nil {
		return c
	}
	for _, set := range plainSets() {
		for e := range f.elements[set.name] {
			if len(e.key) == int(set.key.Bytes) && (len(e.end) == len(e.key)) == set.ranges {
				c.add(set.name, e)
			}
		}
	}
	return c
}

// readTable returns nil if there is no such table.
func readTable(ns namespace) (*found, error) {
	c, err := ns.nftables()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		return nil, nil
	}
	t := tables[i]
	have := rules{}
	f := &found{elements: map[string]map[element]uint64{}}
	sets, err := c.GetSets(t)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		have.sets = append(have.sets, setKind{name: s.Name, key: s.KeyType, parts: s.Concatenation, ranges: s.Interval, lasting: s.Timeout})
		if s.Dynamic { // what is in it comes and goes
			continue
		}
		if f.elements[s.Name], err = readSet(ns, s.Name); err != nil {
			return nil, err
		}
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	for _, ch := range chains {
		if ch.Table.Name != tableName {
			continue
		}
		read := have.chain(ch.Name, ch.Type, ch.Hooknum, ch.Priority)
		if ch.Policy != nil && *ch.Policy != nftables.ChainPolicyAccept {
			f.odd = true
		}
		list, err := c.GetRules(t, ch)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			read.rules = append(read.rules, rule{comment, r.Exprs})
		}
	}
	f.rules, f.lines = have, have.lines()
	f.odd = f.odd || t.Flags != 0 // dormant
	return f, nil
}

// lines describes the table, without elements and counts, in an order of its own.
func (r rules) lines() (out []string) {
	for _, s := range r.sets {
		out = append(out, s.line())
	}
	for _, c := range r.chains {
		out = append(out, c.line())
		for i, x := range c.rules {
			line := fmt.Sprintf("rule %s %d: %q", c.name, i, x.comment)
			for _, e := range x.exprs {
				switch e := e.(type) {
				case *expr.Counter:
					line += " counter"
				case *expr.Lookup:
					line += fmt.Sprintf(" lookup %s %d %v %v", e.SetName, e.SourceRegister, e.IsDestRegSet, e.Invert)
				case *expr.Dynset:
					line += fmt.Sprintf(" add to %s %d %d %v %v", e.SetName, e.SrcRegKey, e.Operation, e.Timeout, e.Invert)
				default:
					line += fmt.Sprintf(" %T%+v", e, e)
				}
			}
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}
