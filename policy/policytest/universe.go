// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/policy"
)

// A Setter is given objects, as policy.World and what follows changes of one.
type Setter interface {
	SetPolicy(*policy.Policy)
	DeletePolicy(policy.PolicyKey)
	SetEndpoint(policy.Endpoint)
	DeleteEndpoint(policy.Name)
	SetNamespace(policy.Namespace)
	DeleteNamespace(string)
	SetNode(policy.Node)
	DeleteNode(string)
}

// A Universe is the objects of a world.
type Universe struct {
	Namespaces []policy.Namespace
	Nodes      []policy.Node
	Endpoints  []policy.Endpoint
	Policies   []*policy.Policy
}

// The alphabets. Of the namespaces the last one never has an object.
func namespaces() []string { return []string{"default", "prod", "ghost"} }
func keys() []string       { return []string{"app", "role"} }
func values() []string     { return []string{"a", "b", ""} }
func nodes() []string      { return []string{"n1", "n2", "n3"} }

// Sizes of universes.
const (
	maxEndpoints = 8
	maxPolicies  = 8
)

// Generate returns a universe. No two of its endpoints have an address in common, nor do an endpoint and a node.
func Generate(s Source) Universe {
	var u Universe
	for _, n := range namespaces()[:2] {
		if s.IntN(4) > 0 {
			u.Namespaces = append(u.Namespaces, Namespace(s, n))
		}
	}
	for _, n := range nodes()[:1+s.IntN(len(nodes()))] {
		u.Nodes = append(u.Nodes, Node(s, n))
	}
	for i := range 2 + s.IntN(maxEndpoints-1) {
		u.Endpoints = append(u.Endpoints, Endpoint(s, i))
	}
	for i := range 1 + s.IntN(maxPolicies) {
		u.Policies = append(u.Policies, Policy(s, i))
	}
	return u
}

// World returns a world of these objects.
func (u Universe) World() *policy.World {
	w := policy.NewWorld()
	u.Tell(w)
	return w
}

// Tell gives the objects to another.
func (u Universe) Tell(to Setter) {
	for _, n := range u.Namespaces {
		to.SetNamespace(n)
	}
	for _, n := range u.Nodes {
		to.SetNode(n)
	}
	for _, e := range u.Endpoints {
		to.SetEndpoint(e)
	}
	for _, p := range u.Policies {
		to.SetPolicy(p)
	}
}

// Of returns the objects of a world.
func Of(w *policy.World) Universe {
	var u Universe
	for n := range w.Namespaces() {
		u.Namespaces = append(u.Namespaces, n)
	}
	for n := range w.Nodes() {
		u.Nodes = append(u.Nodes, n)
	}
	for e := range w.Endpoints() {
		u.Endpoints = append(u.Endpoints, e)
	}
	for p := range w.Policies() {
		u.Policies = append(u.Policies, p)
	}
	return u
}

// Namespace returns one of that name.
func Namespace(s Source, name string) policy.Namespace {
	return policy.Namespace{Name: name, Labels: labels(s)}
}

// Node returns one of that name. Two nodes may have an address in common.
func Node(s Source, name string) policy.Node {
	n := policy.Node{Name: name, Labels: labels(s)}
	for i, of := range nodes() {
		if of != name {
			continue
		}
		n.Addrs = []netip.Addr{
			netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}),
			netip.AddrFrom4([4]byte{10, 32, 1, byte(i + 1)}), // its own of the overlay
			v6(0x100 + i),
		}
	}
	if chance(s, 6) {
		n.Addrs = append(n.Addrs, netip.AddrFrom4([4]byte{192, 0, 2, 9}))
	}
	return n
}

// Endpoint returns the i-th one, with its own addresses.
func Endpoint(s Source, i int) policy.Endpoint {
	e := policy.Endpoint{
		Name:   policy.Name{Namespace: namespaces()[i%len(namespaces())], Name: fmt.Sprintf("e%d", i)},
		ID:     fmt.Sprintf("id%d", i),
		Node:   pick(s, nodes()...),
		Labels: labels(s),
		Ports: some(s, 3, func(int) policy.NamedPort {
			return policy.NamedPort{Name: pick(s, portNames()...), Protocol: pick(s, protocols()...), Port: pick(s, ports()...)}
		}),
	}
	if a := netip.AddrFrom4([4]byte{10, 32, 0, byte(i + 1)}); !chance(s, 8) {
		e.Addrs = append(e.Addrs, a)
	}
	if !chance(s, 3) {
		e.Addrs = append(e.Addrs, v6(i+1))
	}
	return e
}

// v6 returns an address of the overlay.
func v6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x32, 14: byte(i >> 8), 15: byte(i)})
}

// outside are addresses of nobody.
func outside() []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("10.32.0.200"), netip.MustParseAddr("192.0.2.77"),
		netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("fd32::200"),
	}
}

// labels returns some, nil at times.
func labels(s Source) map[string]string {
	var l map[string]string
	for _, k := range keys() {
		if i := s.IntN(len(values()) + 1); i > 0 {
			if l == nil {
				l = map[string]string{}
			}
			l[k] = values()[i-1]
		}
	}
	return l
}

// A Change is of one object.
type Change struct {
	what  string
	apply func(Setter)
}

// Apply makes the change.
func (c Change) Apply(to Setter) { c.apply(to) }

// String says what it does.
func (c Change) String() string { return c.what }

// NewChange returns a change of a universe like those of [Generate]: an object is added, replaced or deleted. Endpoints keep their addresses to
// themselves.
func NewChange(s Source) Change {
	switch s.IntN(12) {
	case 0, 1, 2:
		e := Endpoint(s, s.IntN(maxEndpoints))
		return Change{fmt.Sprintf("set endpoint %+v", e), func(to Setter) { to.SetEndpoint(e) }}
	case 3:
		e := Endpoint(s, s.IntN(maxEndpoints))
		return Change{fmt.Sprintf("delete endpoint %+v", e.Name), func(to Setter) { to.DeleteEndpoint(e.Name) }}
	case 4:
		n := Namespace(s, pick(s, namespaces()...))
		return Change{fmt.Sprintf("set namespace %+v", n), func(to Setter) { to.SetNamespace(n) }}
	case 5:
		n := pick(s, namespaces()...)
		return Change{"delete namespace " + n, func(to Setter) { to.DeleteNamespace(n) }}
	case 6:
		n := Node(s, pick(s, nodes()...))
		return Change{fmt.Sprintf("set node %+v", n), func(to Setter) { to.SetNode(n) }}
	case 7:
		n := pick(s, nodes()...)
		return Change{"delete node " + n, func(to Setter) { to.DeleteNode(n) }}
	case 8:
		p := Policy(s, s.IntN(maxPolicies))
		return Change{fmt.Sprintf("delete policy %+v", p.PolicyKey), func(to Setter) { to.DeletePolicy(p.PolicyKey) }}
	default:
		p := Policy(s, s.IntN(maxPolicies))
		return Change{fmt.Sprintf("set policy %+v", *p), func(to Setter) { to.SetPolicy(p) }}
	}
}

// NewTakeover returns a change that gives an endpoint an address that may be another's, or a node's: a successor comes before its predecessor
// has gone.
func NewTakeover(s Source) Change {
	e := Endpoint(s, s.IntN(maxEndpoints))
	e.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 32, byte(s.IntN(2)), byte(s.IntN(maxEndpoints) + 1)})}
	return Change{fmt.Sprintf("set endpoint %+v", e), func(to Setter) { to.SetEndpoint(e) }}
}
