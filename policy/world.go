// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// NameLabel is the label that every namespace has, with its name as the value, whatever its object says.
const NameLabel = "kubernetes.io/metadata.name"

// A World is all objects that there are. Its look-ups are slow and obvious.
//
// Objects given to it are not copied and must not be changed afterwards, nor what it returns. One goroutine at a time may change it; while
// none does, any number may ask it.
type World struct {
	policies   map[PolicyKey]*Policy
	endpoints  map[string]map[string]*Endpoint // by namespace and name
	namespaces map[string]map[string]string
	nodes      map[string]Node
	owners     map[netip.Addr]*Endpoint // whose address it is: who has come by it last
	earlier    map[netip.Addr][]Name    // who has it too, and has come by it before, in that order
}

// NewWorld returns one without objects.
func NewWorld() *World {
	return &World{
		policies:   map[PolicyKey]*Policy{},
		endpoints:  map[string]map[string]*Endpoint{},
		namespaces: map[string]map[string]string{},
		nodes:      map[string]Node{},
		owners:     map[netip.Addr]*Endpoint{},
		earlier:    map[netip.Addr][]Name{},
	}
}

// SetPolicy adds p, or replaces the one with its key. It is not checked: [Policy.Check] does that.
func (w *World) SetPolicy(p *Policy) { w.policies[p.PolicyKey] = p }

// DeletePolicy removes a policy, if it is there.
func (w *World) DeletePolicy(k PolicyKey) { delete(w.policies, k) }

// SetEndpoint adds e, or replaces the one of its name. An address that another endpoint has belongs to the one that has come by it last: a
// successor may be known before the end of its predecessor is.
func (w *World) SetEndpoint(e Endpoint) {
	var before []netip.Addr
	if old := w.endpoint(e.Name); old != nil && old.ID == e.ID {
		before = old.Addrs
	}
	w.unclaim(e.Name, e.Addrs, before)
	for _, a := range e.Addrs {
		switch owner := w.owners[a]; {
		case owner == nil || owner.Name == e.Name:
			w.owners[a] = &e
		case !slices.Contains(w.earlier[a], e.Name):
			w.earlier[a] = append(w.earlier[a], owner.Name)
			w.owners[a] = &e
		}
	}
	if w.endpoints[e.Namespace] == nil {
		w.endpoints[e.Namespace] = map[string]*Endpoint{}
	}
	w.endpoints[e.Namespace][e.Name.Name] = &e
}

// DeleteEndpoint removes an endpoint, if it is there. Its addresses are those of who had them before, if they still have.
func (w *World) DeleteEndpoint(n Name) {
	w.unclaim(n, nil, nil)
	if delete(w.endpoints[n.Namespace], n.Name); len(w.endpoints[n.Namespace]) == 0 {
		delete(w.endpoints, n.Namespace)
	}
}

// unclaim takes n's addresses from it, but for those that it has had and keeps.
func (w *World) unclaim(n Name, now, before []netip.Addr) {
	old := w.endpoint(n)
	if old == nil {
		return
	}
	for _, a := range old.Addrs {
		if slices.Contains(now, a) && slices.Contains(before, a) {
			continue
		}
		rest := w.earlier[a]
		switch owner := w.owners[a]; {
		case owner == nil: // it has the address twice
			continue
		case owner.Name != n:
			rest = slices.DeleteFunc(rest, func(c Name) bool { return c == n })
		case len(rest) == 0:
			delete(w.owners, a)
		default:
			last := len(rest) - 1
			w.owners[a], rest = w.endpoint(rest[last]), rest[:last]
		}
		if len(rest) == 0 {
			delete(w.earlier, a)
		} else {
			w.earlier[a] = rest
		}
	}
}

// SetNamespace adds n, or replaces the one of its name.
func (w *World) SetNamespace(n Namespace) { w.namespaces[n.Name] = named(n.Name, n.Labels) }

// DeleteNamespace removes a namespace, if it is there. Endpoints of it keep to be in one that has no label but [NameLabel].
func (w *World) DeleteNamespace(name string) { delete(w.namespaces, name) }

// SetNode adds n, or replaces the one of its name.
func (w *World) SetNode(n Node) { w.nodes[n.Name] = n }

// DeleteNode removes a node, if it is there.
func (w *World) DeleteNode(name string) { delete(w.nodes, name) }

// Policy returns the policy of that key, nil if there is none.
func (w *World) Policy(k PolicyKey) *Policy { return w.policies[k] }

// Policies are all policies in the order of [ComparePolicies].
func (w *World) Policies() iter.Seq[*Policy] {
	return slices.Values(slices.SortedFunc(maps.Values(w.policies), ComparePolicies))
}

// ComparePolicies orders policies as they are asked: by tier, priority (of the Network tier, which has none, it does not count), namespace and name.
func ComparePolicies(a, b *Policy) int {
	if c := cmp.Compare(a.Tier, b.Tier); c != 0 {
		return c
	}
	if a.Tier != Network {
		if c := cmp.Compare(a.Priority, b.Priority); c != 0 {
			return c
		}
	}
	return a.PolicyKey.Compare(b.PolicyKey)
}

// Compare orders keys by namespace, name and kind.
func (k PolicyKey) Compare(o PolicyKey) int {
	return cmp.Or(k.Name.Compare(o.Name), cmp.Compare(k.Kind, o.Kind))
}

// Compare orders names by namespace, then name.
func (n Name) Compare(o Name) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Name, o.Name))
}

func (w *World) endpoint(n Name) *Endpoint { return w.endpoints[n.Namespace][n.Name] }

// Endpoint returns the endpoint of that name.
func (w *World) Endpoint(n Name) (Endpoint, bool) {
	if e := w.endpoint(n); e != nil {
		return *e, true
	}
	return Endpoint{}, false
}

// EndpointAt returns the endpoint that has that address.
func (w *World) EndpointAt(a netip.Addr) (Endpoint, bool) {
	if e := w.owners[a]; e != nil {
		return *e, true
	}
	return Endpoint{}, false
}

// Endpoints are all endpoints in the order of their names.
func (w *World) Endpoints() iter.Seq[Endpoint] {
	return func(yield func(Endpoint) bool) {
		for _, namespace := range slices.Sorted(maps.Keys(w.endpoints)) {
			in := w.endpoints[namespace]
			for _, name := range slices.Sorted(maps.Keys(in)) {
				if !yield(*in[name]) {
					return
				}
			}
		}
	}
}

// EachEndpoint are all endpoints in no order, which costs less than [World.Endpoints].
func (w *World) EachEndpoint() iter.Seq[Endpoint] {
	return func(yield func(Endpoint) bool) {
		for _, in := range w.endpoints {
			for _, e := range in {
				if !yield(*e) {
					return
				}
			}
		}
	}
}

// Nodes are all nodes in the order of their names.
func (w *World) Nodes() iter.Seq[Node] {
	return func(yield func(Node) bool) {
		for _, n := range slices.Sorted(maps.Keys(w.nodes)) {
			if !yield(w.nodes[n]) {
				return
			}
		}
	}
}

// Namespaces are all namespaces that have an object, in the order of their names.
func (w *World) Namespaces() iter.Seq[Namespace] {
	return func(yield func(Namespace) bool) {
		for _, n := range slices.Sorted(maps.Keys(w.namespaces)) {
			if !yield(Namespace{Name: n, Labels: w.namespaces[n]}) {
				return
			}
		}
	}
}

// NodesAt are the nodes that have that address, in the order of their names. What is an endpoint's is no node's.
func (w *World) NodesAt(a netip.Addr) []Node {
	if w.owners[a] != nil {
		return nil
	}
	var at []Node
	for n := range w.Nodes() {
		if slices.Contains(n.Addrs, a) {
			at = append(at, n)
		}
	}
	return at
}

// NamespaceLabels returns the labels of a namespace, [NameLabel] among them, whether or not there is an object of it.
func (w *World) NamespaceLabels(name string) map[string]string {
	if l, ok := w.namespaces[name]; ok {
		return l
	}
	return named(name, nil)
}

// named returns labels with the name.
func named(name string, labels map[string]string) map[string]string {
	if labels[NameLabel] == name && labels != nil {
		return labels
	}
	l := maps.Clone(labels)
	if l == nil {
		l = map[string]string{}
	}
	l[NameLabel] = name
	return l
}

// Selecting are the policies of a tier that select e and have something to say in that direction, in the order in which they are asked:
// those of the Network tier that isolate, the others that have rules.
func (w *World) Selecting(e Endpoint, t Tier, d Direction) []*Policy {
	var found []*Policy
	for _, p := range w.policies {
		says := len(p.Rules[d]) > 0
		if p.Tier == Network {
			says = p.Isolates[d]
		}
		if p.Tier == t && says && w.Selects(p, e) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, ComparePolicies)
	return found
}
