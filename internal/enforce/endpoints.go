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

// directory says which endpoints there are, from those that the source tells and those that are attached here. Pure; used by one goroutine.
type directory struct {
	node    string
	told    map[policy.Name]policy.Endpoint
	claims  map[netip.Addr]map[policy.Name]bool // told endpoints by address
	locals  map[string]*local
	named   map[policy.Name][]*local              // in the order in which they came
	taken   map[netip.Addr]string                 // by which local
	entries map[policy.Name]map[policy.Name]bool  // what of a name there is in shown
	shown   map[policy.Name]policy.Endpoint       // what there is
	earlier map[policy.Name]map[string]remembered // by ID: what was known of endpoints in an earlier run
	nodes   map[string]policy.Node                // told
	hosts   map[string][]netip.Addr               // addresses that the mesh knows of nodes
	stale   []policy.Name                         // names to look at, in order
	visible map[string]policy.Node                // nodes, as they were told on
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

func newDirectory(node string) *directory {
	return &directory{
		node: node, told: map[policy.Name]policy.Endpoint{}, claims: map[netip.Addr]map[policy.Name]bool{}, locals: map[string]*local{},
		named: map[policy.Name][]*local{}, taken: map[netip.Addr]string{}, entries: map[policy.Name]map[policy.Name]bool{},
		shown: map[policy.Name]policy.Endpoint{}, earlier: map[policy.Name]map[string]remembered{}, nodes: map[string]policy.Node{},
		hosts: map[string][]netip.Addr{}, visible: map[string]policy.Node{},
	}
}

// tell takes what the source says of an endpoint; nil: there is none of that name any more.
func (d *directory) tell(name policy.Name, e *policy.Endpoint) {
	d.stale = append(d.stale, name)
	for _, a := range d.told[name].Addrs {
		delete(d.claims[a], name)
		if len(d.claims[a]) == 0 {
			delete(d.claims, a)
		}
	}
	if e == nil {
		delete(d.told, name)
		return
	}
	d.told[name] = *e
	for _, a := range e.Addrs {
		if d.claims[a] == nil {
			d.claims[a] = map[policy.Name]bool{}
		}
		d.claims[a][name] = true
	}
}

// bind takes what is attached here, or is to be.
func (d *directory) bind(l Local, old bool) {
	before := d.locals[l.Key]
	if before != nil && before.is(l) {
		return
	}
	d.dismiss(l.Key)
	b := &local{Local: l, known: l.Given, old: old}
	if before != nil && before.known && !l.Given && !before.Given && before.Name == l.Name && before.ID == l.ID {
		b.known, b.Labels, b.Ports = true, before.Labels, before.Ports
	}
	if r, ok := d.earlier[l.Name][l.ID]; ok && !b.known {
		b.known, b.Labels, b.Ports = true, r.labels, r.ports
	}
	d.locals[l.Key] = b
	d.named[l.Name] = append(d.named[l.Name], b)
	d.stale = append(d.stale, l.Name)
	for _, a := range l.Addrs {
		d.taken[a] = l.Key
		d.touch(a)
	}
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
	d.stale = append(d.stale, b.Name)
	for _, a := range b.Addrs {
		if d.taken[a] == key {
			delete(d.taken, a)
			d.touch(a)
		}
	}
}

// touch has all that claim an address looked at.
func (d *directory) touch(a netip.Addr) {
	for name := range d.claims[a] {
		d.stale = append(d.stale, name)
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
// all.
func (d *directory) settle() {
	clear(d.earlier)
	for _, b := range d.locals {
		if b.old && !b.known {
			b.known = true
			d.stale = append(d.stale, b.Name)
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

// flush tells what has changed.
func (d *directory) flush(to Changes) {
	for _, name := range d.stale {
		d.refresh(name, to)
	}
	d.stale = d.stale[:0]
}

// flushNodes tells which nodes have changed.
func (d *directory) flushNodes(to Changes) {
	now := make(map[string]policy.Node, len(d.nodes)+len(d.hosts))
	for name, n := range d.nodes {
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
			to.SetNode(n)
		}
	}
	for name := range d.visible {
		if _, ok := now[name]; !ok {
			to.DeleteNode(name)
		}
	}
	d.visible = now
}

// union returns all of two lists, each once, in order.
func union(a, b []netip.Addr) []netip.Addr {
	all := slices.SortedFunc(slices.Values(slices.Concat(a, b)), netip.Addr.Compare)
	return slices.Compact(all)
}

// refresh tells what has changed of the endpoints of a name: the one that the source tells, and those that are attached here. Of the latter the
// newest that is what the source tells is that one, with the addresses that it has here. The others bear names that nothing else can have.
func (d *directory) refresh(name policy.Name, to Changes) {
	now := map[policy.Name]policy.Endpoint{}
	told, ok := d.told[name]
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
		if !b.known {
			continue
		}
		e := b.Endpoint
		e.Node = d.node
		if b != first {
			e.Name.Name += " (" + b.Key + ")"
		}
		now[e.Name] = e
	}
	if ok && first == nil {
		told.Addrs = slices.DeleteFunc(slices.Clone(told.Addrs), func(a netip.Addr) bool { return told.Node == d.node || d.taken[a] != "" })
		now[name] = told
	}
	before := d.entries[name]
	for n := range before {
		if _, stays := now[n]; !stays { // first, as another may have its address now
			to.DeleteEndpoint(n)
			delete(d.shown, n)
		}
	}
	for n, e := range now {
		if old, is := d.shown[n]; !is || !sameEndpoint(old, e) {
			to.SetEndpoint(e)
			d.shown[n] = e
		}
	}
	if len(now) == 0 {
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
