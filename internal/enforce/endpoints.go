// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weftnet/weft/policy"
)

// A Local is a workload that this node attaches.
type Local struct {
	Key string // of this node alone
	// Endpoint has name, ID and addresses; Labels and Ports count if Given.
	policy.Endpoint
	// Given tells that labels and ports are those of Endpoint. Otherwise they are what the source says of an endpoint of that name and, unless one of them
	// is empty, that ID.
	Given bool
}

// directory says which endpoints there are, from those that the source tells and those that are attached here, and has a Changes told of it at once. Of
// what is told of other nodes it keeps nothing, as the world has it: there may be tens of thousands. Used by one goroutine.
type directory struct {
	node    string
	world   *policy.World // where all of to arrives
	to      Changes
	told    map[policy.Name]policy.Endpoint     // those that the world has not as they were told, or that are of this node
	claims  map[netip.Addr]map[policy.Name]bool // of told, by address
	locals  map[string]*local
	named   map[policy.Name][]*local              // in the order in which they came
	taken   map[netip.Addr]string                 // by which local
	entries map[policy.Name]map[policy.Name]bool  // what of a name that is in told or named there is in the world
	earlier map[policy.Name]map[string]remembered // by ID: what was known of endpoints in an earlier run
	nodes   map[string]policy.Node                // told
	hosts   map[string][]netip.Addr               // addresses that the mesh knows of nodes
	visible map[string]policy.Node                // nodes, as they were told on
	spaces  spaces
	owners  Owners               // nil: every node may have every address
	strange map[policy.Name]bool // endpoints of which some addresses are not known to be their nodes'
}

// local is what is attached here.
type local struct {
	Local
	known bool // its labels are
	old   bool // it was attached by an earlier run
}

// remembered is what an endpoint had last.
type remembered struct {
	labels map[string]string
	ports  []policy.NamedPort
}

func newDirectory(node string, world *policy.World, to Changes) *directory {
	return &directory{
		node: node, world: world, to: to, told: map[policy.Name]policy.Endpoint{}, claims: map[netip.Addr]map[policy.Name]bool{},
		locals: map[string]*local{}, named: map[policy.Name][]*local{}, taken: map[netip.Addr]string{}, entries: map[policy.Name]map[policy.Name]bool{},
		earlier: map[policy.Name]map[string]remembered{}, nodes: map[string]policy.Node{}, hosts: map[string][]netip.Addr{},
		visible: map[string]policy.Node{}, spaces: newSpaces(), strange: map[policy.Name]bool{},
	}
}

// tell takes what the source says of an endpoint; nil: there is none of that name any more.
func (d *directory) tell(name policy.Name, e *policy.Endpoint) {
	d.recollect(name)
	d.forget(name)
	if e != nil {
		d.keep(*e)
	}
	d.refresh(name)
}

// recollect takes down what the world has of a name, if nothing else is known of that.
func (d *directory) recollect(name policy.Name) {
	if d.entries[name] != nil {
		return
	}
	if e, ok := d.world.Endpoint(name); ok {
		d.keep(e)
		d.entries[name] = map[policy.Name]bool{name: true}
	}
}

// setOwners says whose addresses are. For the first time all that was told before is looked at; later what is in the world is not looked at again: whoever has
// taken an address over has told so.
func (d *directory) setOwners(o Owners) {
	first := d.owners == nil
	d.owners = o
	again := slices.Collect(maps.Keys(d.strange))
	if first {
		for e := range d.world.EachEndpoint() {
			if e.Node != d.node && slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return !o(e.Node, a) }) {
				again = append(again, e.Name)
			}
		}
	}
	slices.SortFunc(again, policy.Name.Compare)
	for _, name := range again {
		d.recollect(name)
		d.refresh(name)
	}
}

// believed are the addresses that an endpoint of another node may have: none that is known to be another's.
func (d *directory) believed(e policy.Endpoint) []netip.Addr {
	left := slices.DeleteFunc(slices.Clone(e.Addrs), func(a netip.Addr) bool { return d.owners != nil && !d.owners(e.Node, a) })
	if len(left) < len(e.Addrs) {
		d.strange[e.Name] = true
	} else {
		delete(d.strange, e.Name)
	}
	return slices.DeleteFunc(left, func(a netip.Addr) bool { return d.taken[a] != "" })
}

func (d *directory) keep(e policy.Endpoint) {
	d.told[e.Name] = e
	for _, a := range e.Addrs {
		if d.claims[a] == nil {
			d.claims[a] = map[policy.Name]bool{}
		}
		d.claims[a][e.Name] = true
	}
}

func (d *directory) forget(name policy.Name) {
	for _, a := range d.told[name].Addrs {
		if delete(d.claims[a], name); len(d.claims[a]) == 0 {
			delete(d.claims, a)
		}
	}
	delete(d.told, name)
}

// bind takes what is attached here, or is to be.
func (d *directory) bind(l Local, old bool) {
	before := d.locals[l.Key]
	if before != nil && before.is(l) {
		return
	}
	d.dismiss(l.Key)
	d.recollect(l.Name)
	b := &local{Local: l, known: l.Given, old: old}
	if before != nil && before.known && !l.Given && !before.Given && before.Name == l.Name && before.ID == l.ID {
		b.known, b.Labels, b.Ports = true, before.Labels, before.Ports
	}
	if r, ok := d.earlier[l.Name][l.ID]; ok && !b.known {
		b.known, b.Labels, b.Ports = true, r.labels, r.ports
	}
	d.locals[l.Key] = b
	d.named[l.Name] = append(d.named[l.Name], b)
	for _, a := range l.Addrs {
		d.taken[a] = l.Key
		for {
			other, ok := d.world.EndpointAt(a)
			if !ok || other.Name == l.Name || d.entries[other.Name] != nil || other.Node == d.node {
				break
			}
			d.recollect(other.Name)
			d.refresh(other.Name)
		}
		d.touch(a)
	}
	d.refresh(l.Name)
}

// is tells whether b came as l.
func (b *local) is(l Local) bool {
	if !l.Given {
		l.Labels, l.Ports = b.Labels, b.Ports
	}
	return b.Given == l.Given && sameEndpoint(b.Endpoint, l.Endpoint)
}

// dismiss lets go of what is not attached any more.
func (d *directory) dismiss(key string) {
	b := d.locals[key]
	if b == nil {
		return
	}
	delete(d.locals, key)
	d.named[b.Name] = slices.DeleteFunc(d.named[b.Name], func(o *local) bool { return o == b })
	if len(d.named[b.Name]) == 0 {
		delete(d.named, b.Name)
	}
	d.refresh(b.Name)
	for _, a := range b.Addrs {
		if d.taken[a] == key {
			delete(d.taken, a)
			d.touch(a)
		}
	}
}

// touch has all that claim an address looked at.
func (d *directory) touch(a netip.Addr) {
	for name := range maps.Clone(d.claims[a]) {
		d.refresh(name)
	}
}

// remember has what is attached here, and nothing is known of, taken for what it was in an earlier run.
func (d *directory) remember(e policy.Endpoint) {
	if d.earlier[e.Name] == nil {
		d.earlier[e.Name] = map[string]remembered{}
	}
	d.earlier[e.Name][e.ID] = remembered{e.Labels, e.Ports}
}

// settle takes what an earlier run has attached, and of which nobody knows anything, for endpoints without labels: they are selected by what selects
// all. What there is was told as a whole.
func (d *directory) settle() {
	clear(d.earlier)
	d.settleSpaces()
	for _, b := range d.locals {
		if b.old && !b.known {
			b.known = true
			d.refresh(b.Name)
		}
	}
}

// tellNode takes what the source says of a node; nil: there is none of that name any more.
func (d *directory) tellNode(name string, n *policy.Node) {
	if n == nil {
		delete(d.nodes, name)
	} else {
		d.nodes[name] = *n
	}
}

// flushNodes tells which nodes have changed.
func (d *directory) flushNodes() {
	now := make(map[string]policy.Node, len(d.nodes)+len(d.hosts))
	for name, n := range d.nodes {
		if name == d.node {
			d.own(now, n)
			continue
		}
		n.Addrs = union(n.Addrs, d.hosts[name])
		now[name] = n
	}
	for name, addrs := range d.hosts {
		if _, ok := now[name]; !ok {
			now[name] = policy.Node{Name: name, Addrs: union(addrs, nil)}
		}
	}
	for name, n := range now {
		if before, ok := d.visible[name]; !ok || !reflect.DeepEqual(before, n) {
			d.to.SetNode(n)
		}
	}
	for name := range d.visible {
		if _, ok := now[name]; !ok {
			d.to.DeleteNode(name)
		}
	}
	d.visible = now
}

// own tells of this node. Its workloads always reach it, so only what is on its interfaces is an address of it, as it says itself; at any other
// that the source knows, such as the public one of a router before it, another host may answer. They are of a node with the same labels.
func (d *directory) own(now map[string]policy.Node, n policy.Node) {
	local := d.hosts[d.node]
	outside := slices.DeleteFunc(union(n.Addrs, nil), func(a netip.Addr) bool { return slices.Contains(local, a) })
	n.Addrs = union(local, nil)
	now[n.Name] = n
	if len(outside) > 0 {
		n.Name, n.Addrs = n.Name+" (outside)", outside
		now[n.Name] = n
	}
}

// union returns all of two lists, each once, in order.
func union(a, b []netip.Addr) []netip.Addr {
	all := slices.SortedFunc(slices.Values(slices.Concat(a, b)), netip.Addr.Compare)
	return slices.Compact(all)
}

// refresh tells what has changed of the endpoints of a name: the one that the source tells, and those that are attached here. Of the latter the
// newest that is what the source tells is that one, with the addresses that it has here. The others bear names that nothing else can have.
func (d *directory) refresh(name policy.Name) {
	now := map[policy.Name]policy.Endpoint{}
	told, ok := d.told[name]
	placed := d.spaces.placed(name.Namespace)
	var first *local
	for _, b := range d.named[name] {
		if ok && !b.Given && sameID(told.ID, b.ID) {
			b.known, b.Labels, b.Ports = true, told.Labels, told.Ports
		}
		if b.known && (!ok || sameID(told.ID, b.ID)) {
			first = b
		}
	}
	for _, b := range d.named[name] {
		if !b.known || !placed {
			continue
		}
		e := b.Endpoint
		e.Node = d.node
		if b != first {
			e.Name.Name += " (" + b.Key + ")"
		}
		now[e.Name] = e
	}
	if ok && first == nil && placed {
		if told.Addrs = d.believed(told); told.Node == d.node {
			told.Addrs = []netip.Addr{}
		}
		now[name] = told
	} else {
		delete(d.strange, name)
	}
	for n := range d.entries[name] {
		if _, stays := now[n]; !stays { // first, as another may have its address now
			d.to.DeleteEndpoint(n)
			d.spaces.within[n.Namespace]--
		}
	}
	for n, e := range now {
		old, is := d.world.Endpoint(n)
		if !is {
			d.spaces.within[n.Namespace]++
		}
		if !is || !sameEndpoint(old, e) {
			d.to.SetEndpoint(e)
		}
	}
	d.emptied(name.Namespace)
	if d.spaces.hold(name, !placed && (ok || len(d.named[name]) > 0)) {
		d.entries[name] = map[policy.Name]bool{}
		return
	}
	if len(now) == 0 || len(d.named[name]) == 0 && told.Node != d.node && len(now[name].Addrs) == len(d.told[name].Addrs) {
		d.forget(name) // the world has it
		delete(d.entries, name)
		return
	}
	d.entries[name] = make(map[policy.Name]bool, len(now))
	for n := range now {
		d.entries[name][n] = true
	}
}

// sameID tells whether two IDs may be one's.
func sameID(a, b string) bool { return a == b || a == "" || b == "" }

func sameEndpoint(a, b policy.Endpoint) bool {
	return a.Name == b.Name && a.ID == b.ID && a.Node == b.Node && maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Ports, b.Ports)
}
