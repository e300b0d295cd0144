// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// counted are the blocks that policies of tables are or were about, so that who takes how many of them is known before there are peers for any, and for those
// that are denied there never are. One is there as long as a policy that is about it; all take about as much memory as in the policies.
type counted struct {
	seed   maphash.Seed
	byHash map[uint64]uint32 // two that have the same count as one
	all    []countedBlock    // by ID
	free   []uint32
	key    []byte
}

// A countedBlock is one that policies are about, but for what they leave out of it.
type countedBlock struct {
	*policy.Block // normal
	hash          uint64
	refs          int // policies and directions
}

// count finds out which blocks the rules of a policy are about. Where they are more than there is room for it keeps only how many.
func (c *Compiler) count(p *pol, d policy.Direction) {
	if p.counted[d] {
		return
	}
	p.counted[d] = true
	s := &c.counted
	var all []countedBlock
	for _, r := range p.Rules[d] {
		if !p.inForce(r) || r.AnyPeer {
			continue
		}
		for _, x := range r.Peers {
			b, ok := x.Block, x.Block != nil
			if ok && (len(b.Except) > 0 || !b.Prefix.IsValid() || b.Prefix != b.Prefix.Masked()) {
				var n policy.Block
				n, ok = normal(*b)
				b = &n
			}
			if !ok {
				continue
			}
			s.key = appendPrefix(s.key[:0], b.Prefix)
			for _, e := range b.Except {
				s.key = appendPrefix(s.key, e)
			}
			all = append(all, countedBlock{Block: b, hash: maphash.Bytes(s.seed, s.key)})
		}
	}
	slices.SortFunc(all, func(a, b countedBlock) int { return cmp.Compare(a.hash, b.hash) })
	all = slices.CompactFunc(all, func(a, b countedBlock) bool { return a.hash == b.hash })
	for _, b := range all {
		p.blocks[d] += parts(b.Block)
	}
	if p.blocks[d] <= c.blocksRoom() {
		p.about[d] = make([]uint32, len(all))
		for i, b := range all {
			p.about[d][i] = s.acquire(b)
		}
	}
}

// acquire returns the ID of a block, with a reference to it.
func (s *counted) acquire(b countedBlock) uint32 {
	id, ok := s.byHash[b.hash]
	if !ok {
		if n := len(s.free); n > 0 {
			id, s.free = s.free[n-1], s.free[:n-1]
			s.all[id] = b
		} else {
			id = uint32(len(s.all))
			s.all = append(s.all, b)
		}
		s.byHash[b.hash] = id
	}
	s.all[id].refs++
	return id
}

// release forgets what a policy that is gone was about.
func (s *counted) release(p *pol) {
	for d := range p.about {
		for _, id := range p.about[d] {
			b := &s.all[id]
			if b.refs--; b.refs == 0 {
				delete(s.byHash, b.hash)
				*b = countedBlock{}
				s.free = append(s.free, id)
			}
		}
		p.about[d] = nil
	}
}

// admitBlocks adds the tables to lacking of policies about more blocks than may be told apart. Its verdict stands until a table of policies about blocks comes or
// goes, or has rules again or none: endpoints that come and go do not wait for it because of somebody's policies.
func (c *Compiler) admitBlocks(lacking map[*table]lack) {
	for _, t := range c.tables {
		c.recount = c.recount || t.blocks && (lacking[t] == ofRules) != (t.denied == ofRules)
	}
	if !c.recount {
		for _, t := range c.tables {
			if t.denied == ofBlocks {
				lacking[t] = ofBlocks
			}
		}
		return
	}
	c.recount, c.short[ofBlocks] = false, shortage{}
	n := c.tally(lacking)
	defer n.done()
	n.denyHuge()
	for round := 0; ; round++ {
		less, known := n.beyond()
		if less == 0 {
			return
		}
		claims, most := n.claims()
		if !known {
			less = (most + 1) / 2
		}
		dearest, s := excess(claims, less<<min(round, 20), comparePols) // more each time, as many may share one block
		if s.room, s.overlap = c.blocksRoom(), !known; c.short[ofBlocks].most == 0 {
			c.short[ofBlocks] = s
		}
		for _, p := range dearest {
			p.out = true
		}
		n.deny(func(p *pol, d policy.Direction) bool { return p.out && p.blocks[d] > 0 })
	}
}

// blocksRoom is how many blocks policies may be about: the other half is left to addresses of endpoints, which come first.
func (c *Compiler) blocksRoom() int { return c.limits.Identities - c.limits.Identities/2 }

// A tally is a count of the blocks that tables take, while some of them are denied.
type tally struct {
	c       *Compiler
	lacking map[*table]lack
	tables  []*table // those with blocks that are not denied
	pols    []*pol   // about blocks, of all tables that were there at first
	uses    []int    // by IDs of counted blocks: how many policies and directions are about them
	used    int      // how many have uses
	parts   int      // of these
	edges   []edge   // of what had uses when this was made, sorted by prefix
}

// An edge is where a counted block begins or ends.
type edge struct {
	prefix netip.Prefix
	id     uint32
	ends   bool
}

// tally counts what the tables take that are not lacking.
func (c *Compiler) tally(lacking map[*table]lack) *tally {
	n := &tally{c: c, lacking: lacking, uses: make([]int, len(c.counted.all))}
	for _, t := range c.tables {
		if !t.blocks || lacking[t] != 0 {
			continue
		}
		n.tables = append(n.tables, t)
		for _, p := range t.pols {
			if p.blocks[t.direction] == 0 {
				continue
			}
			if p.live == [2]int{} {
				n.pols = append(n.pols, p)
			}
			if p.live[t.direction]++; p.live[t.direction] > 1 {
				continue
			}
			for _, id := range p.about[t.direction] {
				if n.uses[id]++; n.uses[id] == 1 {
					n.used++
					n.parts += parts(c.counted.all[id].Block)
				}
			}
		}
	}
	return n
}

// done leaves the policies as they were.
func (n *tally) done() {
	for _, p := range n.pols {
		p.live, p.out = [2]int{}, false
	}
}

// claims are those of policies in tables that are not denied; most is what one namespace claims.
func (n *tally) claims() (all []claim[*pol], most int) {
	sums := map[string]int{}
	for _, p := range n.pols {
		if cost := p.blocks[0]*min(p.live[0], 1) + p.blocks[1]*min(p.live[1], 1); cost > 0 {
			all = append(all, claim[*pol]{p, p.Namespace, cost})
			sums[p.Namespace] += cost
			most = max(most, sums[p.Namespace])
		}
	}
	return all, most
}

// deny denies the tables with policies for which f says so.
func (n *tally) deny(f func(p *pol, d policy.Direction) bool) {
	n.tables = slices.DeleteFunc(n.tables, func(t *table) bool {
		if !slices.ContainsFunc(t.pols, func(p *pol) bool { return f(p, t.direction) }) {
			return false
		}
		n.lacking[t] = ofBlocks
		for _, p := range t.pols {
			if p.blocks[t.direction] == 0 {
				continue
			}
			if p.live[t.direction]--; p.live[t.direction] > 0 {
				continue
			}
			for _, id := range p.about[t.direction] {
				if n.uses[id]--; n.uses[id] == 0 {
					n.used--
					n.parts -= parts(n.c.counted.all[id].Block)
				}
			}
		}
		return true
	})
}

// denyHuge denies the tables with policies that are about more than there is room for by themselves.
func (n *tally) denyHuge() {
	room := n.c.blocksRoom()
	huge := func(p *pol, d policy.Direction) bool { return p.blocks[d] > room }
	if slices.ContainsFunc(n.pols, func(p *pol) bool { return p.live[0] > 0 && huge(p, 0) || p.live[1] > 0 && huge(p, 1) }) {
		claims, _ := n.claims()
		_, s := excess(claims, 1, comparePols)
		s.room = room
		n.c.short[ofBlocks] = s
		n.deny(huge)
	}
}

// beyond says by how much the blocks in use are too many, and whether it is known by how much; 0: they are not.
func (n *tally) beyond() (less int, known bool) {
	if over := n.parts - n.c.blocksRoom(); over > 0 {
		return over, true
	}
	if n.overlaps(n.c.limits.Memberships - n.c.limits.Memberships/2) {
		return 1, false
	}
	return 0, true
}

// overlaps says whether the blocks in use, or the endpoints in them, are in more of them than so many, all taken together.
func (n *tally) overlaps(most int) bool {
	sets := len(n.c.sets.byMap)
	if n.used*max(n.parts, sets) <= most {
		return false
	}
	cut, deepest, fits := n.cut(most)
	if !fits {
		return true
	}
	if deepest*sets <= most {
		return false
	}
	// Endpoints of one kind that are in one block have an identity.
	type kind struct {
		set *labelSet
		in  *block
	}
	at, seen, sum := newBlocks(cut), map[kind]bool{}, 0
	for e := range n.c.world.EachEndpoint() {
		for _, a := range e.Addrs {
			if k := (kind{n.c.sets.of(e), at.at(a)}); k.in != nil && !seen[k] {
				seen[k] = true
				if sum += k.in.deep; sum > most {
					return true
				}
			}
		}
	}
	return false
}

// cut returns what [cut] does of the blocks in use, but only how many of them each is in, and the most of that. It is false where that would be beyond its bound.
func (n *tally) cut(memberships int) (all []*block, deepest int, fits bool) {
	if n.edges == nil {
		n.edges = make([]edge, 0, n.parts)
		for id, uses := range n.uses {
			if uses == 0 {
				continue
			}
			b := n.c.counted.all[id]
			n.edges = append(n.edges, edge{prefix: b.Prefix, id: uint32(id)})
			for _, e := range b.Except {
				n.edges = append(n.edges, edge{prefix: e, id: uint32(id), ends: true})
			}
		}
		slices.SortFunc(n.edges, func(a, b edge) int { return comparePrefixes(a.prefix, b.prefix) })
	}
	var around []*block
	sum := 0
	for rest := n.edges; len(rest) > 0; {
		p, begin, end := rest[0].prefix, 0, 0
		for ; len(rest) > 0 && rest[0].prefix == p; rest = rest[1:] {
			switch {
			case n.uses[rest[0].id] == 0:
			case rest[0].ends:
				end++
			default:
				begin++
			}
		}
		if begin+end == 0 {
			continue
		}
		for len(around) > 0 && !around[len(around)-1].prefix.Contains(p.Addr()) {
			around = around[:len(around)-1]
		}
		outer := 0
		if len(around) > 0 {
			outer = around[len(around)-1].deep
		}
		if sum += outer + begin; sum > memberships {
			return nil, 0, false
		}
		b := &block{prefix: p, deep: outer + begin - end} // what ends here is around it
		deepest = max(deepest, b.deep)
		all = append(all, b)
		around = append(around, b)
	}
	return all, deepest, true
}
