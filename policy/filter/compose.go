// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// composeSkeleton adds the table with its sets, inner chains, rules and constant elements to a transaction: no packet meets it yet. Elements is how many there will be in the
// bulk.
func (b *buffer) composeSkeleton(table string, l layout, elements int) {
	at := b.begin(nft(unix.NFT_MSG_NEWTABLE), unix.NLM_F_CREATE, unix.NFPROTO_INET, 0)
	b.text(unix.NFTA_TABLE_NAME, table)
	b.word(unix.NFTA_TABLE_FLAGS, 0)
	b.end(at)
	for i, k := range sets() {
		if (k.name == setCells || k.name == setWide) && elements > readable {
			k.size = uint32(2 * elements)
		}
		k.compose(b, table, uint32(i+1))
	}
	b.composeChains(table, l, inner)
	b.composeRules(table, l, inner)
}

// composeLeaf adds the chain of a table.
func (b *buffer) composeLeaf(table string, x element) {
	for _, d := range ends() {
		if c := leaf(d, x.data); c.name == string(x.key) {
			b.composeChain(table, c)
			b.composeRulesOf(table, c)
		}
	}
}

// Chains are those that packets meet first, and those to which the others lead.
func outer(c *chain) bool { return c.hook != noHook }
func inner(c *chain) bool { return c.hook == noHook }

// composeChains adds chains of a kind without their rules.
func (b *buffer) composeChains(table string, l layout, kind func(*chain) bool) {
	for _, c := range l.chains() {
		if kind(c) {
			b.composeChain(table, c)
		}
	}
}

func (b *buffer) composeChain(table string, c *chain) {
	at := b.begin(nft(unix.NFT_MSG_NEWCHAIN), unix.NLM_F_CREATE, unix.NFPROTO_INET, 0)
	b.text(unix.NFTA_CHAIN_TABLE, table)
	b.text(unix.NFTA_CHAIN_NAME, c.name)
	if c.hook != noHook {
		hook := b.nest(unix.NFTA_CHAIN_HOOK)
		b.word(unix.NFTA_HOOK_HOOKNUM, uint32(c.hook))
		b.word(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		b.close(hook)
		b.word(unix.NFTA_CHAIN_POLICY, 1) // accept: what is to be dropped is dropped by a rule
		b.text(unix.NFTA_CHAIN_TYPE, "filter")
	}
	b.end(at)
}

// composeRules adds the rules of chains of a kind.
func (b *buffer) composeRules(table string, l layout, kind func(*chain) bool) {
	for _, c := range l.chains() {
		if kind(c) {
			b.composeRulesOf(table, c)
		}
	}
}

func (b *buffer) composeRulesOf(table string, c *chain) {
	for _, r := range c.rules {
		at := b.begin(nft(unix.NFT_MSG_NEWRULE), unix.NLM_F_CREATE|unix.NLM_F_APPEND, unix.NFPROTO_INET, 0)
		b.text(unix.NFTA_RULE_TABLE, table)
		b.text(unix.NFTA_RULE_CHAIN, c.name)
		list := b.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range r {
			b.expression(unix.NFTA_LIST_ELEM, e)
		}
		b.close(list)
		b.end(at)
	}
}

// describe is how the kernel describes the table that composeSkeleton makes.
func (l layout) describe() (lines []string) {
	lines = append(lines, "table 0")
	for _, k := range sets() {
		lines = append(lines, k.line())
	}
	for _, c := range l.chains() {
		lines = append(lines, c.lines()...)
	}
	slices.Sort(lines)
	return lines
}

// lines is how the kernel describes a chain.
func (c *chain) lines() []string {
	lines := []string{chainLine(c.name, c.hook, c.priority, 1)}
	for i, r := range c.rules {
		var b buffer
		for _, e := range r {
			b.expression(unix.NFTA_LIST_ELEM, e)
		}
		lines = append(lines, fmt.Sprintf("rule %s %d%s", c.name, i, ruleLine(b)))
	}
	return lines
}

// composeRemoval removes a table that is there. What it judges by goes first, as no packet may see a part of it.
func (b *buffer) composeRemoval(table string, have *contents) {
	for name := range have.sets {
		if strings.HasPrefix(name, setCurrent) {
			b.composeFlush(table, name)
		}
	}
	at := b.begin(nft(unix.NFT_MSG_DELTABLE), 0, unix.NFPROTO_INET, 0)
	b.text(unix.NFTA_TABLE_NAME, table)
	b.end(at)
}

// composeFlush removes all elements of a set.
func (b *buffer) composeFlush(table, set string) {
	at := b.begin(nft(unix.NFT_MSG_DELSETELEM), 0, unix.NFPROTO_INET, 0)
	b.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	b.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	b.end(at)
}

// composeHooks makes packets meet the table.
func (b *buffer) composeHooks(table string, l layout) {
	b.composeChains(table, l, outer)
	b.composeRules(table, l, outer)
}

// contents calls do with messages that add all elements of the model, of which those of a part are no more than stage, and of one set. Do keeps nothing of them.
func (m *model) contents(table string, do func(b buffer) error) error {
	var leaves buffer
	for name, l := range m.leaves {
		leaves.composeLeaf(table, element{key: []byte(name), data: l.number})
	}
	if len(leaves) > 0 {
		if err := do(leaves); err != nil {
			return err
		}
	}
	parts := map[string]*part{}
	for _, k := range sets() {
		p := &part{}
		p.lister = p.messages.adding(table, k)
		parts[k.name] = p
	}
	var err error
	m.each(func(set string, x element) {
		if p := parts[set]; p != nil && err == nil {
			p.add(x)
			if p.elements++; p.elements == stage {
				err = p.flush(do)
			}
		}
	})
	for _, k := range sets() {
		if p := parts[k.name]; p.elements > 0 && err == nil {
			err = p.flush(do)
		}
	}
	return err
}

// A part is elements of one set, in the making.
type part struct {
	messages buffer
	*lister
	elements int
}

func (p *part) flush(do func(b buffer) error) error {
	p.close()
	err := do(p.messages)
	p.messages, p.elements = p.messages[:0], 0
	return err
}

// stage is how many elements go into one transaction where several are as good as one: as long as it lasts, the kernel keeps a page for each to
// tell those of it who watch.
const stage = 20_000

// composePhase makes a copy the one that judges, instead of another one.
func (b *buffer) composePhase(table, was, now string, d digest) {
	change := func(l *lister, d digest) {
		for i, f := range families() {
			x := element{key: []byte{f.proto}}
			x.comment = d.judged()
			if i == 0 {
				x.comment = d.String()
			}
			l.add(x)
		}
		l.close()
	}
	if was != "" {
		change(b.deleting(table, setOf(setCurrent+was)), d) // without the comments
	}
	change(b.adding(table, setOf(setCurrent+now)), d)
}

// composeNewRules puts the rules in the place of those that are there.
func (b *buffer) composeNewRules(table string, have *contents, l layout) {
	for _, c := range have.chains {
		at := b.begin(nft(unix.NFT_MSG_DELRULE), 0, unix.NFPROTO_INET, 0)
		b.text(unix.NFTA_RULE_TABLE, table)
		b.text(unix.NFTA_RULE_CHAIN, c)
		b.end(at)
	}
	b.composeRules(table, l, inner)
	b.composeRules(table, l, outer)
}

// other is the copy that is not the given one.
func other(c string) string {
	all := copies()
	if c == all[0] {
		return all[1]
	}
	return all[0]
}

// difference is what is to be changed of the elements, of the bulk only if all is to be compared; it takes them away from have.
func (m *model) difference(have *contents, all bool) *edit {
	e := newEdit()
	m.each(func(set string, x element) {
		if !all && bulk(set) {
			return
		}
		from := have.values[set]
		if x.end != nil {
			from = have.intervals[set]
		}
		old, ok := from[string(x.key)]
		delete(from, string(x.key))
		switch {
		case !ok:
			e.replace(set, nil, &x)
		case old.data != x.data || !bytes.Equal(old.end, x.end) || set == setCounts && old.comment != x.comment:
			e.replace(set, &old, &x)
		}
	})
	rest := func(set string) {
		for _, from := range []map[string]element{have.values[set], have.intervals[set]} {
			for _, x := range from {
				e.replace(set, &x, nil)
			}
		}
	}
	rest(setLeaves)
	for _, k := range sets() {
		if !strings.HasPrefix(k.name, setCurrent) && (all || !bulk(k.name)) {
			rest(k.name)
		}
	}
	return e
}

// sameBut says whether two descriptions differ in rules alone.
func sameBut(have, want []string) bool {
	rest := func(lines []string) (out []string) {
		for _, l := range lines {
			if !strings.HasPrefix(l, "rule ") {
				out = append(out, l)
			}
		}
		return out
	}
	return slices.Equal(rest(have), rest(want))
}
