// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/manifest"
	"github.com/weftnet/weft/policy/replica"
)

// The kinds of manifests.
const (
	kindNetwork   = "NetworkPolicy"
	kindCluster   = "ClusterNetworkPolicy"
	kindNamespace = "Namespace"
)

// manifestKey is the key under which the manifest of an object is shared.
func manifestKey(o api.PolicyObject) string {
	return strings.ToLower(o.Kind) + "/" + o.Namespace + "/" + o.Name
}

// hostShare is what the sink knows of what hosts share. It is brought up to date by what has changed, as there may be tens of thousands of workloads.
type hostShare struct {
	self      uint64
	names     map[uint64]string // of nodes, by NodeID; of one whose name is empty nothing counts
	manifests map[string]readManifest
	odd       map[string]string        // what is wrong with some of these
	keys      map[string][]replica.Dot // of endpoints
	endpoints map[replica.Dot]sharedEndpoint
	writers   map[uint64]map[replica.Dot]bool // endpoints
	claims    map[policy.Name][]replica.Dot   // of others' endpoints, by number: the first one has the name, and the others one with their number behind it
	nodes     map[uint64]policy.Node          // by NodeID, as the sink knows them
}

// readManifest is an item as it was understood: one of policy and namespace, or neither.
type readManifest struct {
	policy    *policy.Policy
	namespace *policy.Namespace
	err       error
}

// sharedEndpoint is what a node tells of an endpoint, or of itself.
type sharedEndpoint struct {
	replica.Endpoint
	key  string
	name policy.Name // that it claims; none: it does not count, or is a node
}

// understood is a manifest, and the policy that it says; nil if it says none.
type understood struct {
	manifest []byte
	policy   *policy.Policy
}

// shareNews is what has changed: manifests, nil for those that are gone, and all that there is of the keys of endpoints.
type shareNews struct {
	manifests map[string]*replica.Item
	policies  map[string]*policy.Policy // what some of those say, where that is known
	endpoints map[string][]replica.Item
}

func newHostShare(self uint64) hostShare {
	return hostShare{
		self: self, names: map[uint64]string{}, manifests: map[string]readManifest{}, odd: map[string]string{}, keys: map[string][]replica.Dot{},
		endpoints: map[replica.Dot]sharedEndpoint{}, writers: map[uint64]map[replica.Dot]bool{}, claims: map[policy.Name][]replica.Dot{},
		nodes: map[uint64]policy.Node{},
	}
}

// update takes in what has changed, and what nodes are called now, and tells c what that changes.
func (t *hostShare) update(news shareNews, names map[uint64]string, c enforce.Changes) {
	parser := manifest.NewParser()
	for _, key := range slices.Sorted(maps.Keys(news.manifests)) {
		t.manifest(key, news.manifests[key], news.policies[key], parser, c)
	}
	turn := turn{t: t, names: map[policy.Name][]policy.Name{}, nodes: map[uint64]bool{}}
	for _, all := range []map[uint64]string{t.names, names} {
		for w := range all {
			if t.names[w] != names[w] || has(t.names, w) != has(names, w) {
				turn.nodes[w] = true
			}
		}
	}
	t.names = names
	for w := range turn.nodes {
		for dot := range t.writers[w] {
			turn.claim(dot)
		}
	}
	for key, items := range news.endpoints {
		turn.replace(key, items)
	}
	turn.tell(c)
}

func has[K comparable, V any](m map[K]V, k K) bool {
	_, ok := m[k]
	return ok
}

// nameOf is what a node is called.
func (t *hostShare) nameOf(writer uint64) string {
	if name, known := t.names[writer]; known {
		return name
	}
	return mesh.NodeID(writer).String() // its record is still to come
}

// warning is what nobody can enforce, or make out.
func (t *hostShare) warning() string {
	if len(t.odd) == 0 {
		return ""
	}
	var odd []string
	for _, key := range slices.Sorted(maps.Keys(t.odd)) {
		odd = append(odd, key+": "+t.odd[key])
	}
	return fmt.Sprintf("%d of the objects that were applied cannot be enforced by this version of weft; upgrade it: %.500s", len(odd), strings.Join(odd, "; "))
}

// manifest takes in one, of which it may be known which policy it says, and tells what that changes.
func (t *hostShare) manifest(key string, i *replica.Item, says *policy.Policy, parser *manifest.Parser, c enforce.Changes) {
	before, now := t.manifests[key], readManifest{}
	delete(t.manifests, key)
	delete(t.odd, key)
	if i != nil {
		if now.policy = says; says == nil {
			now = understand(*i, parser)
		}
		t.manifests[key] = now
		if now.err != nil {
			t.odd[key] = now.err.Error()
		}
	}
	if before.policy != nil && (now.policy == nil || now.policy.PolicyKey != before.policy.PolicyKey) {
		c.DeletePolicy(before.policy.PolicyKey)
	}
	if before.namespace != nil && now.namespace == nil {
		c.DeleteNamespace(before.namespace.Name)
	}
	if now.policy != nil {
		c.SetPolicy(now.policy)
	}
	if now.namespace != nil {
		c.SetNamespace(*now.namespace)
	}
}

// turn is an update of what endpoints there are, under way.
type turn struct {
	t     *hostShare
	names map[policy.Name][]policy.Name // that are claimed otherwise now, and what those who had claimed them were called before
	nodes map[uint64]bool               // of which something else is known
}

// called are the names of those who claim one.
func (t *hostShare) called(name policy.Name) (all []policy.Name) {
	for i, dot := range t.claims[name] {
		all = append(all, name)
		if i > 0 {
			all[i].Name += "." + fmt.Sprint(dot.Seq)
		}
	}
	return all
}

// replace takes in what there is of a key.
func (u turn) replace(key string, items []replica.Item) {
	t := u.t
	var now []replica.Dot
	for _, i := range items {
		now = append(now, i.Dot)
	}
	for _, dot := range t.keys[key] {
		if e := t.endpoints[dot]; !slices.Contains(now, dot) {
			u.unclaim(dot, e)
			delete(t.endpoints, dot)
			delete(t.writers[dot.Writer], dot)
		}
	}
	for _, i := range items {
		if has(t.endpoints, i.Dot) { // as it was
			continue
		}
		e, err := replica.DecodeEndpoint(i.Value)
		if err != nil {
			e = replica.Endpoint{} // which counts as nothing
		}
		t.endpoints[i.Dot] = sharedEndpoint{Endpoint: e, key: key}
		if t.writers[i.Writer] == nil {
			t.writers[i.Writer] = map[replica.Dot]bool{}
		}
		t.writers[i.Writer][i.Dot] = true
		u.claim(i.Dot)
	}
	if t.keys[key] = now; len(now) == 0 {
		delete(t.keys, key)
	}
}

// claim gives an endpoint the name that it has by its node's.
func (u turn) claim(dot replica.Dot) {
	t := u.t
	e := t.endpoints[dot]
	u.unclaim(dot, e)
	e.name = policy.Name{}
	if node := t.nameOf(dot.Writer); node != "" && e.key != replica.HostKey && e.Name != "" && dot.Writer != t.self {
		e.name = endpointOf(e.Endpoint, node).Name
		u.touch(e.name)
		at, _ := slices.BinarySearchFunc(t.claims[e.name], dot, compareDots)
		t.claims[e.name] = slices.Insert(t.claims[e.name], at, dot)
	}
	t.endpoints[dot] = e
}

// unclaim takes an endpoint its name, and notes what its node has to be told of.
func (u turn) unclaim(dot replica.Dot, e sharedEndpoint) {
	if e.key == replica.HostKey {
		u.nodes[dot.Writer] = true
	}
	if e.name == (policy.Name{}) {
		return
	}
	u.touch(e.name)
	left := slices.DeleteFunc(u.t.claims[e.name], func(o replica.Dot) bool { return o == dot })
	if u.t.claims[e.name] = left; len(left) == 0 {
		delete(u.t.claims, e.name)
	}
}

func (u turn) touch(name policy.Name) {
	if !has(u.names, name) {
		u.names[name] = u.t.called(name)
	}
}

func compareDots(a, b replica.Dot) int {
	return cmp.Or(cmp.Compare(a.Writer, b.Writer), cmp.Compare(a.Seq, b.Seq))
}

// tell tells what has changed of endpoints and nodes: first what goes, as something else may have its name or address now.
func (u turn) tell(c enforce.Changes) {
	t := u.t
	names := slices.SortedFunc(maps.Keys(u.names), policy.Name.Compare)
	for _, name := range names {
		for _, before := range u.names[name] {
			c.DeleteEndpoint(before)
		}
	}
	for _, name := range names {
		called := t.called(name)
		for i, dot := range t.claims[name] {
			e := endpointOf(t.endpoints[dot].Endpoint, t.nameOf(dot.Writer))
			e.Name = called[i]
			c.SetEndpoint(e)
		}
	}
	now := map[uint64]policy.Node{}
	for w := range u.nodes {
		if n, ok := t.node(w); ok {
			now[w] = n
		}
	}
	for w := range u.nodes {
		if before, ok := t.nodes[w]; ok && before.Name != now[w].Name {
			c.DeleteNode(before.Name)
		}
	}
	for _, w := range slices.Sorted(maps.Keys(u.nodes)) {
		before, was := t.nodes[w]
		if n, is := now[w]; !is {
			delete(t.nodes, w)
		} else if t.nodes[w] = n; !was || !reflect.DeepEqual(before, n) {
			c.SetNode(n)
		}
	}
}

// node is what there is to tell of one: its name, by which policies find it, and addresses.
func (t *hostShare) node(w uint64) (n policy.Node, ok bool) {
	name, known := t.names[w]
	if known && name != "" {
		n.Labels, ok = map[string]string{"kubernetes.io/hostname": name}, true
	}
	if n.Name = t.nameOf(w); n.Name == "" {
		return n, false
	}
	for _, dot := range t.keys[replica.HostKey] {
		if dot.Writer == w {
			n.Addrs, ok = t.endpoints[dot].Addrs, true
		}
	}
	return n, ok
}

// understand reads a manifest that was applied by some version of weft. What it does not understand it takes strictly.
func understand(i replica.Item, parser *manifest.Parser) readManifest {
	m := readManifest{}
	kind, rest, _ := strings.Cut(i.Key, "/")
	namespace, name, _ := strings.Cut(rest, "/")
	is := policy.Name{Namespace: namespace, Name: name}
	switch kind {
	case strings.ToLower(kindNetwork):
		m.policy, m.err = parser.NetworkPolicy(i.Value)
	case strings.ToLower(kindCluster):
		m.policy, m.err = parser.ClusterNetworkPolicy(i.Value)
	case strings.ToLower(kindNamespace):
		var n manifest.Namespace
		if m.err = json.Unmarshal(i.Value, &n); m.err == nil {
			ns := n.Namespace()
			m.namespace = &ns
			is.Namespace, is.Name = "", cmp.Or(is.Name, is.Namespace)
		}
	default:
		m.err = errors.New("such a kind of object is not known")
	}
	if m.err == nil && (m.policy != nil && m.policy.Name != is || m.namespace != nil && m.namespace.Name != is.Name) {
		m.err = errors.New("it calls itself otherwise")
	}
	if m.err != nil {
		m.policy, m.namespace = nil, nil
	}
	return m
}
