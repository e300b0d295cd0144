// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"slices"
)

// A block is a prefix that some peer begins or leaves out, but for those in it.
type block struct {
	prefix netip.Prefix
	peers  []uint32 // sorted
	deep   int      // how many peers, where they are only counted
	beyond bool     // peers is not known
	class  *class
	listed bool // its class is not that of the prefix around it
}

// blocks are all of them.
type blocks struct {
	all  map[netip.Prefix]*block
	bits [2][]int // lengths that there are, the longest first; of IPv4, and of IPv6
}

// newBlocks returns these.
func newBlocks(all []*block) blocks {
	b := blocks{all: make(map[netip.Prefix]*block, len(all))}
	for _, x := range all {
		b.all[x.prefix] = x
		if bits := &b.bits[family(x.prefix.Addr())]; !slices.Contains(*bits, x.prefix.Bits()) {
			*bits = append(*bits, x.prefix.Bits())
		}
	}
	for i := range b.bits {
		slices.Sort(b.bits[i])
		slices.Reverse(b.bits[i])
	}
	return b
}

// family is an index into blocks.bits.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// at returns the block that counts for an address, nil if it is in none.
func (b *blocks) at(a netip.Addr) *block {
	for _, bits := range b.bits[family(a)] {
		p, _ := a.Prefix(bits) // of a length that its family has
		if x := b.all[p]; x != nil {
			return x
		}
	}
	return nil
}

// cut returns the blocks that these peers cut the addresses into, in the order of comparePrefixes, without classes. The sum of their
// peers is bounded.
func cut(of []*peer, memberships int) []*block {
	type edge struct{ begin, end []uint32 }
	edges := map[netip.Prefix]*edge{}
	at := func(p netip.Prefix) *edge {
		e := edges[p]
		if e == nil {
			e = &edge{}
			edges[p] = e
		}
		return e
	}
	for _, p := range of {
		e := at(p.block.Prefix)
		e.begin = append(e.begin, p.id)
		for _, x := range p.block.Except {
			e := at(x)
			e.end = append(e.end, p.id)
		}
	}
	prefixes := make([]netip.Prefix, 0, len(edges))
	for p := range edges {
		prefixes = append(prefixes, p)
	}
	slices.SortFunc(prefixes, comparePrefixes)
	all := make([]*block, 0, len(prefixes))
	var around []*block
	sum := 0
	for _, p := range prefixes {
		for len(around) > 0 && !around[len(around)-1].prefix.Contains(p.Addr()) {
			around = around[:len(around)-1]
		}
		b := &block{prefix: p}
		var outer block
		if len(around) > 0 {
			outer = *around[len(around)-1]
		}
		e := edges[p]
		if sum += len(outer.peers) + len(e.begin); outer.beyond || sum > memberships {
			b.beyond = true
		} else {
			b.peers = append(slices.Grow(b.peers, len(outer.peers)+len(e.begin)), outer.peers...)
			if len(e.end) > 0 {
				slices.Sort(e.end)
				b.peers = slices.DeleteFunc(b.peers, func(id uint32) bool {
					_, out := slices.BinarySearch(e.end, id)
					return out
				})
			}
			b.peers = append(b.peers, e.begin...)
			slices.Sort(b.peers)
		}
		all = append(all, b)
		around = append(around, b)
	}
	return all
}

// recut makes the blocks anew, as peers of them have come or gone, and notes the addresses whose identity may be another one now.
func (c *Compiler) recut() {
	all := cut(c.peers.inUse(), c.limits.Memberships)
	before := c.blocks.all
	c.blocks = newBlocks(all)
	var moved []netip.Prefix
	for _, b := range all {
		old := before[b.prefix]
		if old == nil || old.beyond != b.beyond || !slices.Equal(old.peers, b.peers) {
			moved = append(moved, b.prefix)
		}
	}
	for p := range before {
		if c.blocks.all[p] == nil {
			moved = append(moved, p)
		}
	}
	for _, b := range c.blocks.all {
		flags := kind(0)
		if b.beyond {
			flags = beyond
		}
		b.class = c.class(flags, b.peers, nil)
	}
	for p, b := range c.blocks.all {
		b.listed = b.class != c.around(p)
		old := before[p]
		switch {
		case b.listed && (old == nil || !old.listed || old.class.id != b.class.id):
			put(&c.delta.SetBlocks, p, b.class.id)
		case !b.listed && old != nil && old.listed:
			c.delta.DropBlocks = append(c.delta.DropBlocks, p)
		}
	}
	for p, b := range before {
		if b.listed && c.blocks.all[p] == nil {
			c.delta.DropBlocks = append(c.delta.DropBlocks, p)
		}
		c.drop(b.class)
	}
	c.moved(moved)
}

// around returns the class of what is around a prefix.
func (c *Compiler) around(p netip.Prefix) *class {
	for _, bits := range c.blocks.bits[family(p.Addr())] {
		if bits >= p.Bits() {
			continue
		}
		outer, _ := p.Addr().Prefix(bits) // shorter than p
		if b := c.blocks.all[outer]; b != nil {
			return b.class
		}
	}
	return c.everyone
}

// moved notes the known addresses in these prefixes.
func (c *Compiler) moved(prefixes []netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	// Where there are many, nearly everything is in one of them.
	in := func(a netip.Addr) bool {
		return len(prefixes) > 16 || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for e := range c.world.EachEndpoint() {
		if len(c.sets.of(e).peers) > 0 || len(e.Ports) > 0 && len(c.names) > 0 {
			for _, a := range e.Addrs {
				if in(a) {
					c.dirty.addrs[a] = struct{}{}
				}
			}
		}
	}
	for a := range c.nodesAt {
		if in(a) {
			c.dirty.addrs[a] = struct{}{}
		}
	}
	for a := range c.identities {
		if in(a) {
			c.dirty.addrs[a] = struct{}{}
		}
	}
}
