// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// A peer is whom rules in use are about. Rules that say the same share one.
type peer struct {
	id   uint32
	key  string // what it says, or a hash of it if that is long
	refs int    // rules
	// home, namespaces and pods are set for endpoints, nodes for nodes, and block for addresses.
	home             string
	namespaces, pods *policy.Selector
	nodes            *policy.Selector
	block            *policy.Block // every part left out is a true part
	fresh            bool          // nothing has been tried against it
	tables           []*table      // with rules about it
}

// isEndpoints says whether it is about endpoints.
func (p *peer) isEndpoints() bool { return p.nodes == nil && p.block == nil }

// peers are those in use. An ID is not used again before the commit after the one in which it came free: until then it may be in what is to be
// worked out again.
type peers struct {
	byKey   map[string]*peer
	byID    []*peer
	free    []uint32
	freed   []uint32
	touched []*peer // since the last commit: they have come or may have gone
	index   index   // of those about endpoints
	key     []byte
}

// parts is how many blocks it takes to say which addresses a normal one is about.
func parts(b *policy.Block) int { return 1 + len(b.Except) }

// inUse are those about addresses, without those that are about to go.
func (s *peers) inUse() (of []*peer) {
	for _, p := range s.byID {
		if p != nil && p.block != nil && p.refs > 0 {
			of = append(of, p)
		}
	}
	return of
}

// acquire returns the ID for a peer of a policy of namespace home, with a reference to it. None is there for what fits nobody.
func (s *peers) acquire(home string, p policy.Peer) (uint32, bool) {
	n := &peer{fresh: true}
	k := s.key[:0]
	switch {
	case p.Block != nil:
		b, ok := normal(*p.Block)
		if !ok {
			return 0, false
		}
		n.block = &b
		k = appendPrefix(append(k, 'b'), b.Prefix)
		for _, e := range b.Except {
			k = appendPrefix(k, e)
		}
	case p.Nodes != nil:
		n.nodes = p.Nodes
		k = appendSelector(append(k, 'n'), p.Nodes)
	case p.Namespaces != nil || p.Pods != nil:
		n.namespaces, n.pods = p.Namespaces, p.Pods
		k = append(k, 'e')
		if p.Namespaces == nil {
			n.home = home
			k = appendString(k, home)
		}
		k = appendSelector(appendSelector(k, p.Namespaces), p.Pods)
	default:
		return 0, false
	}
	s.key = k
	if len(k) > 4*sha256.Size {
		sum := sha256.Sum256(k)
		k = sum[:]
	}
	if old := s.byKey[string(k)]; old != nil {
		old.refs++
		return old.id, true
	}
	n.key, n.refs = string(k), 1
	if i := len(s.free); i > 0 {
		n.id, s.free = s.free[i-1], s.free[:i-1]
		s.byID[n.id] = n
	} else {
		n.id = uint32(len(s.byID))
		s.byID = append(s.byID, n)
	}
	s.byKey[n.key] = n
	s.touched = append(s.touched, n)
	return n.id, true
}

// release gives a reference back.
func (s *peers) release(id uint32) {
	p := s.byID[id]
	if p.refs--; p.refs == 0 {
		s.touched = append(s.touched, p)
	}
}

// once sorts IDs, and gives the references back to those that are there twice.
func (s *peers) once(ids []uint32) []uint32 {
	slices.Sort(ids)
	kept := ids[:0]
	for _, id := range ids {
		if n := len(kept); n > 0 && kept[n-1] == id {
			s.release(id)
		} else {
			kept = append(kept, id)
		}
	}
	return kept
}

// settle returns what has come into use, and what has gone out of it, since the last time.
func (s *peers) settle() (added, removed []*peer) {
	touched := s.touched
	s.touched = nil
	for _, p := range touched {
		switch {
		case p.refs == 0 && s.byKey[p.key] == p:
			delete(s.byKey, p.key)
			s.byID[p.id] = nil
			s.freed = append(s.freed, p.id)
			if !p.fresh {
				removed = append(removed, p)
			}
		case p.refs > 0 && p.fresh:
			p.fresh = false
			added = append(added, p)
		}
	}
	if slices.ContainsFunc(removed, (*peer).isEndpoints) {
		var all []*peer
		for _, p := range s.byID {
			if p != nil && p.isEndpoints() {
				all = append(all, p)
			}
		}
		s.index = newIndex(all)
	} else {
		for _, p := range added {
			if p.isEndpoints() {
				s.index.add(p)
			}
		}
	}
	return added, removed
}

// done says that nothing refers to what has been freed.
func (s *peers) done() {
	s.free = append(s.free, s.freed...)
	s.freed = s.freed[:0]
}

// normal returns the block with its parts masked and sorted, none in another. It is false if nothing is left.
func normal(b policy.Block) (policy.Block, bool) {
	p := b.Prefix.Masked()
	if !p.IsValid() {
		return policy.Block{}, false
	}
	var parts []netip.Prefix
	for _, e := range b.Except {
		e = e.Masked()
		if !e.IsValid() || !e.Overlaps(p) {
			continue
		}
		if e.Bits() <= p.Bits() {
			return policy.Block{}, false
		}
		parts = append(parts, e)
	}
	slices.SortFunc(parts, comparePrefixes)
	kept := parts[:0]
	for _, e := range parts {
		if n := len(kept); n == 0 || !kept[n-1].Overlaps(e) {
			kept = append(kept, e)
		}
	}
	return policy.Block{Prefix: p, Except: kept}, true
}

// comparePrefixes orders masked prefixes by address, what is around another one before it.
func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func appendPrefix(k []byte, p netip.Prefix) []byte {
	a := p.Addr().AsSlice()
	return append(append(k, byte(len(a)), byte(p.Bits())), a...)
}

func appendString(k []byte, s string) []byte {
	return append(binary.AppendUvarint(k, uint64(len(s))), s...)
}

func appendSelector(k []byte, s *policy.Selector) []byte {
	if s == nil {
		return append(k, 0)
	}
	k = binary.AppendUvarint(append(k, 1), uint64(len(*s)))
	for _, r := range *s {
		k = append(appendString(k, r.Key), byte(r.Operator))
		k = binary.AppendUvarint(k, uint64(len(r.Values)))
		for _, v := range r.Values {
			k = appendString(k, v)
		}
	}
	return k
}
