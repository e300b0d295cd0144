// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// A Compiler turns the objects that it is given into what the kernel of one node looks up. Its zero value is not usable. One goroutine at a
// time may use it.
//
// It keeps the objects in a policy.World of its own, where equal labels are one map: with 30,000 endpoints that takes less memory than the
// objects alone. Whoever judges connections asks that world, [Compiler.World], and keeps no second one.
type Compiler struct {
	node   string
	limits Limits
	world  *policy.World
	dirty  dirty
	delta  Delta // of this commit

	sets    labelSets
	nodes   map[string]*node
	nodesAt map[netip.Addr][]*node
	byKey   map[policy.PolicyKey]*pol
	order   []*pol // as they are asked
	seq     uint64
	locals  map[policy.Name]*local
	claims  map[netip.Addr][]policy.Name // locals by their addresses, also those that others have come by

	peers    peers
	counted  counted
	names    map[string]*portName // that rules for egress in use ask for
	byName   map[uint32]*portName
	lastName uint32

	blocks     blocks
	classes    classes
	everyone   *class // World
	own        *class // OwnNode
	identities map[netip.Addr]*class
	unsorted   map[netip.Addr]struct{}
	selves     map[netip.Addr]*class

	byHash    map[uint64]*table
	tables    []*table // in the order in which they have come
	lastTable TableID
	sides     map[Side]*table
	rules     int // of all tables that are built
	weight    int // rules of all tables, denied or not
	cells     int // that there are
	short     [ofCells + 1]shortage
	recount   bool // who lacks blocks is to be worked out again
	marks     uint64

	verdicts struct{ open, itself, ownNode, beyond *policy.Verdict } // without a rule
	scratch  scratch
}

// dirty is what has been set or deleted since the last commit, or has to be looked at again for what has.
type dirty struct {
	policies map[policy.PolicyKey]struct{}
	locals   map[policy.Name]struct{}
	addrs    map[netip.Addr]struct{}
	nodes    map[string]struct{}
	spaces   bool // some are stale
	less     bool // policies have gone
	names    []string
	any      bool
}

// scratch is memory that is used again and again.
type scratch struct {
	pols    []*pol
	peers   []uint32
	values  []value
	ranks   []int32
	strokes []stroke
	pieces  []piece
	at      []int32
	bare    []int32
	tables  []*table
}

// A node is a host, with the peers in use that it is.
type node struct {
	name   string
	labels map[string]string
	addrs  []netip.Addr
	peers  []uint32 // sorted
	fresh  bool     // peers is not worked out
}

// A local is an endpoint of this node that has addresses.
type local struct {
	tables [2]*table
	addrs  []netip.Addr
	idle   bool // others have come by its addresses: it is in no table
}

// New returns a Compiler without objects, for the node of that name.
func New(name string, limits Limits) *Compiler {
	c := &Compiler{
		node: name, limits: limits.or(), world: policy.NewWorld(),
		sets:       labelSets{seed: maphash.MakeSeed(), byHash: map[uint64]*labelSet{}, byMap: map[mapKey]*labelSet{}, spaces: map[string]*space{}},
		nodes:      map[string]*node{},
		nodesAt:    map[netip.Addr][]*node{},
		byKey:      map[policy.PolicyKey]*pol{},
		locals:     map[policy.Name]*local{},
		claims:     map[netip.Addr][]policy.Name{},
		peers:      peers{byKey: map[string]*peer{}, index: newIndex(nil)},
		counted:    counted{seed: maphash.MakeSeed(), byHash: map[uint64]uint32{}},
		names:      map[string]*portName{},
		byName:     map[uint32]*portName{},
		blocks:     blocks{all: map[netip.Prefix]*block{}},
		classes:    classes{byKey: map[string]*class{}, last: Unsorted, own: OwnNode},
		everyone:   &class{id: World, key: string(make([]byte, keyPeers))},
		identities: map[netip.Addr]*class{},
		unsorted:   map[netip.Addr]struct{}{},
		selves:     map[netip.Addr]*class{},
		byHash:     map[uint64]*table{},
		sides:      map[Side]*table{},
	}
	c.verdicts.open = &policy.Verdict{Allowed: true, Reason: policy.Open}
	c.verdicts.itself = &policy.Verdict{Allowed: true, Reason: policy.Itself}
	c.verdicts.ownNode = &policy.Verdict{Allowed: true, Reason: policy.OwnNode}
	c.verdicts.beyond = &policy.Verdict{Reason: policy.Beyond}
	c.clean()
	return c
}

// clean forgets what was dirty.
func (c *Compiler) clean() {
	c.dirty = dirty{
		policies: map[policy.PolicyKey]struct{}{}, locals: map[policy.Name]struct{}{}, addrs: map[netip.Addr]struct{}{}, nodes: map[string]struct{}{},
	}
}

// World returns all objects as they are now, committed or not. It belongs to the Compiler, whose setters alone change it.
func (c *Compiler) World() *policy.World { return c.world }

// SetPolicy adds p, or replaces the one with its key.
func (c *Compiler) SetPolicy(p *policy.Policy) {
	c.world.SetPolicy(p)
	c.dirty.policies[p.PolicyKey] = struct{}{}
	c.dirty.any = true
}

// DeletePolicy removes a policy, if it is there.
func (c *Compiler) DeletePolicy(k policy.PolicyKey) {
	c.world.DeletePolicy(k)
	c.dirty.policies[k] = struct{}{}
	c.dirty.any = true
}

// SetEndpoint adds e, or replaces the one of its name. It is a local one if its node is that of the Compiler.
func (c *Compiler) SetEndpoint(e policy.Endpoint) {
	set := c.sets.intern(c.world, e.Namespace, e.Labels)
	e.Labels, e.Namespace = set.labels, set.space.name
	if n := c.nodes[e.Node]; n != nil {
		e.Node = n.name
	}
	if set.ports == nil {
		set.ports = e.Ports
	} else if slices.Equal(set.ports, e.Ports) {
		e.Ports = set.ports
	}
	old, had := c.world.Endpoint(e.Name)
	c.world.SetEndpoint(e)
	if had {
		before := c.sets.of(old)
		c.sets.release(before)
		if before == set && old.ID == e.ID && old.Node == e.Node && slices.Equal(old.Addrs, e.Addrs) && slices.Equal(old.Ports, e.Ports) {
			return
		}
	}
	c.touch(old, had)
	c.touch(e, true)
}

// DeleteEndpoint removes an endpoint, if it is there.
func (c *Compiler) DeleteEndpoint(n policy.Name) {
	old, had := c.world.Endpoint(n)
	if !had {
		return
	}
	c.world.DeleteEndpoint(n)
	c.sets.release(c.sets.of(old))
	c.touch(old, true)
}

// touch notes that an endpoint comes, goes or changes.
func (c *Compiler) touch(e policy.Endpoint, there bool) {
	if !there {
		return
	}
	c.dirty.any = true
	if c.own != nil { // before the first commit all are
		for _, a := range e.Addrs {
			c.dirty.addrs[a] = struct{}{}
		}
	}
	if e.Node == c.node {
		c.dirty.locals[e.Name] = struct{}{}
	}
}

// SetNamespace adds n, or replaces the one of its name.
func (c *Compiler) SetNamespace(n policy.Namespace) {
	c.world.SetNamespace(n)
	c.relabel(n.Name)
}

// DeleteNamespace removes a namespace, if it is there.
func (c *Compiler) DeleteNamespace(name string) {
	c.world.DeleteNamespace(name)
	c.relabel(name)
}

// relabel takes over the labels of a namespace.
func (c *Compiler) relabel(name string) {
	s := c.sets.spaces[name]
	if s == nil {
		return
	}
	labels := c.world.NamespaceLabels(name)
	if !maps.Equal(s.labels, labels) {
		s.stale, c.dirty.spaces, c.dirty.any = true, true, true
	}
	s.labels = labels
}

// SetNode adds n, or replaces the one of its name.
func (c *Compiler) SetNode(n policy.Node) {
	c.world.SetNode(n)
	old := c.nodes[n.Name]
	if old != nil && maps.Equal(old.labels, n.Labels) && slices.Equal(old.addrs, n.Addrs) {
		return
	}
	c.removeNode(old)
	now := &node{name: n.Name, labels: n.Labels, addrs: n.Addrs, fresh: true}
	c.nodes[n.Name] = now
	for _, a := range n.Addrs {
		c.dirty.addrs[a] = struct{}{}
		if !slices.Contains(c.nodesAt[a], now) {
			c.nodesAt[a] = append(c.nodesAt[a], now)
		}
	}
	c.dirty.nodes[n.Name] = struct{}{}
	c.dirty.any = true
}

// DeleteNode removes a node, if it is there.
func (c *Compiler) DeleteNode(name string) {
	c.world.DeleteNode(name)
	c.removeNode(c.nodes[name])
}

// removeNode forgets one that is there no more.
func (c *Compiler) removeNode(n *node) {
	if n == nil {
		return
	}
	delete(c.nodes, n.name)
	for _, a := range n.addrs {
		c.dirty.addrs[a] = struct{}{}
		rest := slices.DeleteFunc(c.nodesAt[a], func(x *node) bool { return x == n })
		if c.nodesAt[a] = rest; len(rest) == 0 {
			delete(c.nodesAt, a)
		}
	}
	c.dirty.any = true
}

// has says whether an address is that endpoint's, and not that of another one that has come by it later.
func (c *Compiler) has(n policy.Name, a netip.Addr) bool {
	e, ok := c.world.EndpointAt(a)
	return ok && e.Name == n
}

// State returns what has been committed.
func (c *Compiler) State() *State {
	s := NewState()
	for _, t := range c.tables {
		s.Tables[t.id] = t.export(c.def(t))
	}
	for side, t := range c.sides {
		s.Sides[side] = t.id
	}
	for a, x := range c.identities {
		s.Identities[a] = x.id
	}
	for p, b := range c.blocks.all {
		if b.listed {
			s.Blocks[p] = b.class.id
		}
	}
	for a, x := range c.selves {
		s.Selves[a] = x.id
	}
	return s
}

// Problems says what is denied because it is beyond [Limits], a line each, sorted.
func (c *Compiler) Problems() []string {
	var lines []string
	names := [2]string{policy.Ingress: "ingress", policy.Egress: "egress"}
	if slices.ContainsFunc(c.tables, func(t *table) bool { return t.denied != 0 }) {
		for n, l := range c.locals {
			for d, t := range l.tables {
				if t != nil && t.denied != 0 {
					lines = append(lines, fmt.Sprintf(
						"%s/%s: all %s is denied: the %d policies that select it have more rules than this node can enforce; select it by fewer, or use fewer peers and ports",
						n.Namespace, n.Name, names[d], len(t.pols)))
				}
			}
		}
	}
	slices.Sort(lines)
	lines = append(c.shortages(), lines...)
	unsorted := len(c.unsorted)
	for _, b := range c.blocks.all {
		if b.class.is(beyond) {
			unsorted++
		}
	}
	if unsorted > 0 {
		lines = append(lines, fmt.Sprintf(
			"%d addresses and blocks are denied by all policies that are about some peers: the peers in the policies of this node's endpoints tell more of them apart than this node can enforce; use fewer peers",
			unsorted))
	}
	return lines
}
