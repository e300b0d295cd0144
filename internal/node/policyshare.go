// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
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

// hostShare is what the sink knows of what hosts share, and how it was read. It is never changed once made.
type hostShare struct {
	manifests map[string]readManifest // by key
	endpoints map[policy.Name]policy.Endpoint
	nodes     map[string]policy.Node
	read      map[replica.Dot]readEndpoint
	warning   string // what nobody can enforce, or make out
}

// readManifest is an item as it was understood: one of policy and namespace, or neither.
type readManifest struct {
	dot       replica.Dot
	policy    *policy.Policy
	namespace *policy.Namespace
	err       error
}

type readEndpoint struct {
	replica.Endpoint
	err error
}

// next is what there is to be told. names are the nodes, by NodeID; of one without a name nothing is.
func (t hostShare) next(manifests *replica.Set, items []replica.Item, self uint64, names map[uint64]string) hostShare {
	now := hostShare{
		manifests: map[string]readManifest{}, endpoints: map[policy.Name]policy.Endpoint{}, nodes: map[string]policy.Node{}, read: map[replica.Dot]readEndpoint{},
	}
	var odd []string
	for _, key := range manifests.Keys() {
		i, _ := manifests.Get(key)
		m, ok := t.manifests[key]
		if !ok || m.dot != i.Dot {
			m = understand(i)
		}
		if m.err != nil {
			odd = append(odd, fmt.Sprintf("%s: %v", key, m.err))
		}
		now.manifests[key] = m
	}
	if len(odd) > 0 {
		now.warning = fmt.Sprintf("%d of the objects that were applied cannot be enforced by this version of weft; upgrade it: %.500s", len(odd), strings.Join(odd, "; "))
	}
	for _, name := range names {
		if name != "" {
			now.nodes[name] = policy.Node{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}
		}
	}
	for _, i := range items {
		r, ok := t.read[i.Dot]
		if !ok {
			r.Endpoint, r.err = replica.DecodeEndpoint(i.Value)
		}
		now.read[i.Dot] = r
		name, known := names[i.Writer]
		if !known {
			name = mesh.NodeID(i.Writer).String() // its record is still to come
		}
		switch {
		case r.err != nil, name == "":
		case i.Key == replica.HostKey:
			n := now.nodes[name]
			n.Name, n.Addrs = name, r.Addrs
			now.nodes[name] = n
		case i.Writer != self && r.Name != "":
			e := endpointOf(r.Endpoint, name)
			if _, twice := now.endpoints[e.Name]; twice {
				e.Name.Name += "." + fmt.Sprint(i.Seq)
			}
			now.endpoints[e.Name] = e
		}
	}
	return now
}

// understand reads a manifest that was applied by some version of weft. What it does not understand it takes strictly.
func understand(i replica.Item) readManifest {
	m := readManifest{dot: i.Dot}
	kind, rest, _ := strings.Cut(i.Key, "/")
	namespace, name, _ := strings.Cut(rest, "/")
	is := policy.Name{Namespace: namespace, Name: name}
	switch kind {
	case strings.ToLower(kindNetwork):
		m.policy, m.err = manifest.NetworkPolicy(i.Value)
	case strings.ToLower(kindCluster):
		m.policy, m.err = manifest.ClusterNetworkPolicy(i.Value)
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

// tell tells the changes from t to now.
func (t hostShare) tell(now hostShare, c enforce.Changes) {
	for key, m := range t.manifests {
		n := now.manifests[key]
		if m.policy != nil && (n.policy == nil || n.policy.PolicyKey != m.policy.PolicyKey) {
			c.DeletePolicy(m.policy.PolicyKey)
		}
		if m.namespace != nil && n.namespace == nil {
			c.DeleteNamespace(m.namespace.Name)
		}
	}
	for key, n := range now.manifests {
		m := t.manifests[key]
		if n.policy != nil && m.policy != n.policy {
			c.SetPolicy(n.policy)
		}
		if n.namespace != nil && m.namespace != n.namespace {
			c.SetNamespace(*n.namespace)
		}
	}
	for name := range t.endpoints {
		if _, ok := now.endpoints[name]; !ok {
			c.DeleteEndpoint(name)
		}
	}
	for name, e := range now.endpoints {
		if before, ok := t.endpoints[name]; !ok || !same(before, e) {
			c.SetEndpoint(e)
		}
	}
	for _, name := range keyed(t.nodes) {
		if _, ok := now.nodes[name]; !ok {
			c.DeleteNode(name)
		}
	}
	for _, name := range keyed(now.nodes) {
		if before, ok := t.nodes[name]; !ok || !same(before, now.nodes[name]) {
			c.SetNode(now.nodes[name])
		}
	}
}
