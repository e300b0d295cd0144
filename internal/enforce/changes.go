// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// Changes is where a source puts what it knows. Objects are never changed once given. An endpoint's name is its own in the whole
// mesh; Node is the name that [Config.Node] has on its node.
type Changes interface {
	SetPolicy(p *policy.Policy)
	DeletePolicy(k policy.PolicyKey)
	SetEndpoint(e policy.Endpoint)
	DeleteEndpoint(n policy.Name)
	SetNamespace(n policy.Namespace)
	DeleteNamespace(name string)
	SetNode(n policy.Node)
	DeleteNode(name string)
}

// batch is changes that wait to be made, of each object the last; nil means that it goes.
type batch struct {
	policies   map[policy.PolicyKey]*policy.Policy
	endpoints  map[policy.Name]toldEndpoint
	namespaces map[string]*policy.Namespace
	nodes      map[string]*policy.Node
	hosts      map[string][]netip.Addr // of all nodes, by name; nil: as before
	owners     Owners                  // nil: as before
	locals     []localChange           // in order
	settles    []chan<- struct{}       // closed when all of it is in force
	at         int                     // the next place
}

// toldEndpoint is an endpoint, nil if there is none any more. The order is of meaning: of two with one address it is that of the later one.
type toldEndpoint struct {
	*policy.Endpoint
	at int // its place
}

// localChange is one of what this node has attached.
type localChange struct {
	bind    *Local  // nil: the one of that key is detached, unless somebody waits
	waits   *waiter // for bind, or what has its key, to be in force; nil: nobody does
	dismiss string
	there   bool    // bind is there, or is detached by now
	old     bool    // bind was attached before the Enforcer was made
	gone    *waiter // who waits no longer; nil: that is not it
}

func newBatch() *batch {
	return &batch{
		policies: map[policy.PolicyKey]*policy.Policy{}, endpoints: map[policy.Name]toldEndpoint{},
		namespaces: map[string]*policy.Namespace{}, nodes: map[string]*policy.Node{},
	}
}

func (b *batch) SetPolicy(p *policy.Policy)      { b.policies[p.PolicyKey] = p }
func (b *batch) DeletePolicy(k policy.PolicyKey) { b.policies[k] = nil }
func (b *batch) SetEndpoint(e policy.Endpoint)   { b.endpoint(e.Name, &e) }
func (b *batch) DeleteEndpoint(n policy.Name)    { b.endpoint(n, nil) }
func (b *batch) SetNamespace(n policy.Namespace) { b.namespaces[n.Name] = &n }
func (b *batch) DeleteNamespace(name string)     { b.namespaces[name] = nil }
func (b *batch) SetNode(n policy.Node)           { b.nodes[n.Name] = &n }
func (b *batch) DeleteNode(name string)          { b.nodes[name] = nil }

func (b *batch) endpoint(n policy.Name, e *policy.Endpoint) {
	b.endpoints[n] = toldEndpoint{e, b.at}
	b.at++
}

// inOrder are the names of the endpoints, in the order in which they were told.
func (b *batch) inOrder() []policy.Name {
	return slices.SortedFunc(maps.Keys(b.endpoints), func(x, y policy.Name) int { return cmp.Compare(b.endpoints[x].at, b.endpoints[y].at) })
}

// add adds the changes of a later batch, which is of no use afterwards.
func (b *batch) add(later *batch) {
	if b.empty() {
		*b = *later
		return
	}
	maps.Copy(b.policies, later.policies)
	for _, n := range later.inOrder() {
		b.endpoint(n, later.endpoints[n].Endpoint)
	}
	maps.Copy(b.namespaces, later.namespaces)
	maps.Copy(b.nodes, later.nodes)
	if later.hosts != nil {
		b.hosts = later.hosts
	}
	if later.owners != nil {
		b.owners = later.owners
	}
	b.locals = append(b.locals, later.locals...)
	b.settles = append(b.settles, later.settles...)
}

func (b *batch) empty() bool {
	return len(b.policies)+len(b.endpoints)+len(b.namespaces)+len(b.nodes)+len(b.locals)+len(b.settles) == 0 && b.hosts == nil && b.owners == nil
}
