// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Present tells whether there is a table that judges, of an earlier run perhaps, or of another version: with all rules that its maker gave it, met by packets, and
// with the endpoints that its tables are for. One that was made half, or that somebody has changed, is none.
func (f *Filter) Present() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	have, err := f.conn.look(Table, judging)
	if err != nil {
		return false, fmt.Errorf("network policy: %w", err)
	}
	return have != nil && have.judges(), nil
}

// Left tells whether there is anything that [Filter.Remove] removes, whole or not.
func (f *Filter) Left() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range []string{Table, standby, CutTable} {
		there, err := f.exists(name)
		if err != nil {
			return false, fmt.Errorf("network policy: reading nftables: %w", err)
		}
		if there {
			return true, nil
		}
	}
	return false, nil
}

// Support says what the kernel lacks to enforce anything, and what to do about it; nil if there is all of it. It changes nothing that stays. That
// it cannot tell of denied packets is no reason: it drops them all the same. That it cannot cut connections is told by [Filter.Health].
func (f *Filter) Support() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tryCutting()
	probe := func(l layout) error {
		const table = Table + "-probe"
		var b buffer
		b.composeSkeleton(table, l, 0)
		for _, d := range ends() {
			b.composeLeaf(table, element{key: []byte(leafName(d.name, 1)), data: 1})
		}
		b.composeHooks(table, l)
		spoofed := &chain{name: "spoofed", hook: unix.NF_INET_PRE_ROUTING, priority: -300}
		spoofed.add(wayBack(), compare(unix.NFT_CMP_EQ, number(0)), drop())
		b.composeChain(table, spoofed)
		b.composeRulesOf(table, spoofed)
		at := b.begin(nft(unix.NFT_MSG_DELTABLE), 0, unix.NFPROTO_INET, 0)
		b.text(unix.NFTA_TABLE_NAME, table)
		b.end(at)
		return f.conn.commit(b)
	}
	l := layout{ranges: true, blocks: true, selves: true, group: f.config.Group}
	err := probe(l)
	if err != nil {
		l.quiet = true
		if err = probe(l); err == nil {
			f.quiet = true
			f.log.Warn("network policy: this kernel's nftables cannot tell of denied packets, which are dropped all the same; use one with CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG")
		}
	} else {
		f.quiet = false
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("network policy cannot be enforced: %w; CAP_NET_ADMIN is needed", err)
	}
	if missing := f.missing(); len(missing) > 0 {
		return fmt.Errorf("network policy cannot be enforced: this kernel's nftables lack %s: %w; use Linux 5.10 or later with these", strings.Join(missing, ", "), err)
	}
	return fmt.Errorf("network policy cannot be enforced: nftables refuse the rules: %w; use Linux 5.10 or later", err)
}

// missing names what of nftables does not work on its own.
func (f *Filter) missing() (names []string) {
	const table = Table + "-probe"
	try := func(what string, rule ...expression) {
		var b buffer
		at := b.begin(nft(unix.NFT_MSG_NEWTABLE), unix.NLM_F_CREATE, unix.NFPROTO_INET, 0)
		b.text(unix.NFTA_TABLE_NAME, table)
		b.end(at)
		for _, k := range sets() {
			if k.name == setRanges {
				k.compose(&b, table, 1)
			}
		}
		at = b.begin(nft(unix.NFT_MSG_NEWCHAIN), unix.NLM_F_CREATE, unix.NFPROTO_INET, 0)
		b.text(unix.NFTA_CHAIN_TABLE, table)
		b.text(unix.NFTA_CHAIN_NAME, "probe")
		b.end(at)
		at = b.begin(nft(unix.NFT_MSG_NEWRULE), unix.NLM_F_CREATE|unix.NLM_F_APPEND, unix.NFPROTO_INET, 0)
		b.text(unix.NFTA_RULE_TABLE, table)
		b.text(unix.NFTA_RULE_CHAIN, "probe")
		list := b.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range rule {
			b.expression(unix.NFTA_LIST_ELEM, e)
		}
		b.close(list)
		b.end(at)
		at = b.begin(nft(unix.NFT_MSG_DELTABLE), 0, unix.NFPROTO_INET, 0)
		b.text(unix.NFTA_TABLE_NAME, table)
		b.end(at)
		if err := f.conn.commit(b); err != nil {
			names = append(names, what)
		}
	}
	try("table inet (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)", counter())
	if len(names) > 0 {
		return names
	}
	try("ct (CONFIG_NFT_CT, CONFIG_NF_CONNTRACK)", ctState(0))
	try("reject (CONFIG_NFT_REJECT_INET)", reset())
	try("fib (CONFIG_NFT_FIB_INET, CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6), without which workloads could send with addresses of others", sourceType())
	try("maps (CONFIG_NF_TABLES)", variable(), swapped(), mapped(setRanges), assign())
	return names
}
