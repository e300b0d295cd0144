// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// kind is what is special about a class.
type kind byte

const (
	own    kind = 1 << iota // addresses of this node
	self                    // a local endpoint's address as it sees that itself
	beyond                  // what peers it is of is not known: Limits
)

// A class is what an identity stands for: all addresses of the same peers in use and the same ports of names in use.
type class struct {
	id    Identity
	key   string // kind, number of peers, peers, values
	refs  int    // addresses, blocks, selves
	dead  bool
	there bool // it has been among those that have come
}

// Of a key: where the peers begin, and the sizes of one and of a value.
const (
	keyPeers  = 5
	peerSize  = 4
	valueSize = 7
)

func (c *class) kind() kind { return kind(c.key[0]) }

// peers is how many it is of; peer returns one of them.
func (c *class) peers() int        { return int(be32(c.key[1:])) }
func (c *class) peer(i int) uint32 { return be32(c.key[keyPeers+i*peerSize:]) }
func (c *class) values() int       { return (len(c.key) - keyPeers - c.peers()*peerSize) / valueSize }

func (c *class) value(i int) value { return valueOf(c.key[keyPeers+c.peers()*peerSize+i*valueSize:]) }
func (c *class) is(k kind) bool    { return c.kind()&k != 0 }
func be32(s string) uint32 {
	return uint32(s[0])<<24 | uint32(s[1])<<16 | uint32(s[2])<<8 | uint32(s[3])
}

func valueOf(s string) value {
	return value{be32(s), policy.Protocol(s[4]), uint16(s[5])<<8 | uint16(s[6])}
}

// A value is a port that has a name in use.
type value struct {
	name     uint32
	protocol policy.Protocol
	port     uint16
}

func compareValues(a, b value) int {
	if a.name != b.name {
		return int(int64(a.name) - int64(b.name))
	}
	if a.protocol != b.protocol {
		return int(a.protocol) - int(b.protocol)
	}
	return int(a.port) - int(b.port)
}

// classes are all that there are.
type classes struct {
	byKey       map[string]*class
	fresh       []*class // since the last commit
	dead        []*class // without a reference in this commit, at least for a while
	free, freed []Identity
	last, own   Identity // the greatest ones given
	sorted      int      // how many count for Limits.Identities
	memberships int
	key         []byte
}

// class returns the one for these sorted peers and values, with a reference to it.
func (c *Compiler) class(k kind, peers []uint32, values []value) *class {
	s := &c.classes
	if k == 0 && len(peers) == 0 && len(values) == 0 {
		return c.everyone
	}
	if k&beyond != 0 {
		peers, values = nil, nil
	}
	key := binary.BigEndian.AppendUint32(append(s.key[:0], byte(k)), uint32(len(peers)))
	for _, p := range peers {
		key = binary.BigEndian.AppendUint32(key, p)
	}
	for _, v := range values {
		key = binary.BigEndian.AppendUint32(key, v.name)
		key = binary.BigEndian.AppendUint16(append(key, byte(v.protocol)), v.port)
	}
	s.key = key
	if x := s.byKey[string(key)]; x != nil {
		x.refs++
		return x
	}
	if k == 0 && (s.sorted >= c.limits.Identities || s.memberships+len(peers)+len(values) > c.limits.Memberships) {
		return c.class(beyond, nil, nil)
	}
	x := &class{key: string(key), refs: 1}
	switch {
	case k&own != 0:
		x.id = s.next(&s.own)
	case k == beyond:
		x.id = Unsorted
	default:
		x.id = s.next(&s.last)
	}
	if k == 0 {
		s.sorted++
		s.memberships += len(peers) + len(values)
	}
	s.byKey[x.key] = x
	s.fresh = append(s.fresh, x)
	return x
}

// next returns an identity that is not in use, of the kind of last.
func (s *classes) next(last *Identity) Identity {
	for i, id := range s.free {
		if id.IsOwnNode() == last.IsOwnNode() {
			s.free[i] = s.free[len(s.free)-1]
			s.free = s.free[:len(s.free)-1]
			return id
		}
	}
	*last++
	return *last
}

// drop gives a reference back. The class may come by another one before the commit is over.
func (c *Compiler) drop(x *class) {
	if x == c.everyone {
		return
	}
	if x.refs--; x.refs == 0 {
		c.classes.dead = append(c.classes.dead, x)
	}
}

// settle returns the classes that have come and gone.
func (c *Compiler) settleClasses() (added, removed []*class) {
	s := &c.classes
	for _, x := range s.dead {
		if x.refs > 0 || x.dead {
			continue
		}
		x.dead = true
		if s.byKey[x.key] == x {
			delete(s.byKey, x.key)
		}
		if x.kind() == 0 {
			s.sorted--
			s.memberships -= x.peers() + x.values()
		}
		if x.id != Unsorted && x.id != OwnNode {
			s.freed = append(s.freed, x.id)
		}
		if x.there {
			removed = append(removed, x)
		}
	}
	for _, x := range s.fresh {
		if !x.dead {
			x.there = true
			added = append(added, x)
		}
	}
	s.dead, s.fresh = nil, nil
	return added, removed
}

// classAt returns the class of an address, as what kind of address it is asked for, with a reference to it.
func (c *Compiler) classAt(a netip.Addr, k kind) *class {
	peers, values := c.scratch.peers[:0], c.scratch.values[:0]
	if e, ok := c.world.EndpointAt(a); ok {
		peers = append(peers, c.sets.of(e).peers...)
		for _, p := range e.Ports {
			if n := c.names[p.Name]; n != nil && p.Protocol != 0 {
				values = append(values, value{n.id, p.Protocol, p.Port})
			}
		}
		slices.SortFunc(values, compareValues)
		values = slices.Compact(values)
	} else {
		for _, n := range c.nodesAt[a] {
			peers = append(peers, n.peers...)
			if n.name == c.node {
				k |= own
			}
		}
	}
	if b := c.blocks.at(a); b != nil {
		if k == 0 && len(peers) == 0 && len(values) == 0 {
			if b.class != c.everyone {
				b.class.refs++
			}
			return b.class
		}
		if b.beyond {
			k |= beyond
		}
		peers = append(peers, b.peers...)
	}
	slices.Sort(peers)
	peers = slices.Compact(peers)
	c.scratch.peers, c.scratch.values = peers, values
	return c.class(k, peers, values)
}

// identify gives the address the identity that it has now.
func (c *Compiler) identify(a netip.Addr) {
	x := c.classAt(a, 0)
	usual := c.everyone
	if b := c.blocks.at(a); b != nil {
		usual = b.class
	}
	if x.is(beyond) {
		c.unsorted[a] = struct{}{}
	} else {
		delete(c.unsorted, a)
	}
	old := c.identities[a]
	if x == usual {
		c.drop(x)
		if old != nil {
			delete(c.identities, a)
			c.delta.DropIdentities = append(c.delta.DropIdentities, a)
			c.drop(old)
		}
		return
	}
	if old == nil || old.id != x.id {
		put(&c.delta.SetIdentities, a, x.id)
	}
	c.identities[a] = x
	if old != nil {
		c.drop(old)
	}
}

// settleOwn works out what this node is by an address that no one knows.
func (c *Compiler) settleOwn() {
	peers := []uint32(nil)
	if n := c.nodes[c.node]; n != nil {
		peers = n.peers
	}
	key := binary.BigEndian.AppendUint32([]byte{byte(own)}, uint32(len(peers)))
	for _, p := range peers {
		key = binary.BigEndian.AppendUint32(key, p)
	}
	if c.own != nil && c.own.key == string(key) {
		return
	}
	x := &class{id: OwnNode, key: string(key), refs: 1}
	if c.own != nil {
		c.drop(c.own)
	}
	c.own = x
	c.classes.byKey[x.key] = x
	c.classes.fresh = append(c.classes.fresh, x)
	// All own addresses are looked at again, so that none keeps to the class that was this one's, or to another one of the same key.
	if n := c.nodes[c.node]; n != nil {
		for _, a := range n.addrs {
			c.dirty.addrs[a] = struct{}{}
		}
	}
}

// put sets an entry of a map that may not be there yet.
func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}
