// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// reform makes the table from what is there, without the loss of a packet that both would let through: first the sets get what they
// lack, then the rules are exchanged, all in one transaction, then the sets lose what is too much. It says false, and has done nothing, if
// that is not possible: sets or chains of the same name differ, or would lose much.
func (r rules) reform(ns func() (*nftables.Conn, error), have *found) (bool, error) {
	if have == nil {
		have = &found{}
	}
	add, surplus, ok := r.against(have)
	if !ok {
		return false, nil
	}
	del, missing := difference(have.elements, r.elements)
	if slow(del, r.elements) {
		return false, nil
	}
	// Those that are not there yet come with their sets.
	for _, s := range add {
		delete(missing, s.name)
	}
	for _, s := range surplus {
		delete(del, s.name)
	}
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	c, err := ns()
	if err != nil {
		return true, err
	}
	c.AddTable(t)
	if err := (rules{sets: add, elements: r.elements}).composeSets(c, t); err != nil {
		return true, err
	}
	if err := composeElements(t, missing, c.SetAddElements); err != nil {
		return true, err
	}
	if err := c.Flush(); err != nil {
		return true, err
	}

	if c, err = ns(); err != nil {
		return true, err
	}
	for _, ch := range have.rules.chains {
		c.FlushChain(&nftables.Chain{Table: t, Name: ch.name})
	}
	for _, ch := range have.rules.chains {
		if !slices.ContainsFunc(r.chains, func(x *chain) bool { return x.name == ch.name }) {
			c.DelChain(&nftables.Chain{Table: t, Name: ch.name})
		}
	}
	r.composeChains(c, t)
	for _, s := range surplus {
		c.DelSet(&nftables.Set{Table: t, Name: s.name})
	}
	if err := composeElements(t, del, c.SetDeleteElements); err != nil {
		return true, err
	}
	return true, c.Flush()
}

// against returns the sets that are to be added and those that are too many; false if there is anything that would have to become something else.
func (r rules) against(have *found) (add, surplus []setKind, ok bool) {
	for _, want := range r.sets {
		i := slices.IndexFunc(have.rules.sets, func(s setKind) bool { return s.name == want.name })
		if i < 0 {
			add = append(add, want)
		} else if have.rules.sets[i].line() != want.line() {
			return nil, nil, false
		}
	}
	for _, s := range have.rules.sets {
		if !slices.ContainsFunc(r.sets, func(want setKind) bool { return s.name == want.name }) {
			surplus = append(surplus, s)
		}
	}
	for _, want := range r.chains {
		i := slices.IndexFunc(have.rules.chains, func(c *chain) bool { return c.name == want.name })
		if i >= 0 && have.rules.chains[i].line() != want.line() {
			return nil, nil, false
		}
	}
	return add, surplus, !have.odd
}

// line describes a set, without elements.
func (s setKind) line() string {
	return fmt.Sprintf("set %s: %s of %d bytes, parts %v, ranges %v, lasting %v", s.name, s.key.Name, s.key.Bytes, s.parts, s.ranges, s.lasting)
}

// line describes a chain, without rules.
func (c *chain) line() string {
	if c.hook == nil || c.priority == nil {
		return fmt.Sprintf("chain %s: ", c.name)
	}
	return fmt.Sprintf("chain %s: %s %d %d", c.name, c.kind, *c.hook, *c.priority)
}
