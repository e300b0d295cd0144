// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/manifest"
)

// Changes is where objects that network policies are about are put. They are never changed once given.
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

// A Sink is who is told of all such objects, as they come and go. Its methods do not block.
type Sink interface {
	// Change has f put changes, which belong together.
	Change(f func(Changes))
	// Synced says that all has been told that there was.
	Synced()
	// Awaits says what is waited for until then. It follows "waiting for ".
	Awaits(what string)
	// Behind says what cannot be followed since then; empty: all is followed. It follows "waiting for ".
	Behind(what string)
}

// feedSpread is the time over which nodes that start spread their first requests for what policies are about: pods cannot start meanwhile.
const feedSpread = 3 * time.Second

// feed tells a sink what the API server says of policies, and of pods, namespaces and nodes. It keeps nothing of that but names; as long as there is no
// sink, which is while this node stands by, it gathers what it will tell. It is safe for concurrent use.
type feed struct {
	cluster *Cluster
	log     *zap.Logger
	found   func(found) // a policy with problems
	news    func()      // what it waits for may be something else now

	mu     sync.Mutex
	sink   Sink
	held   *held
	round  int             // how often it was begun anew
	listed map[string]bool // by resource, in this round
	errs   map[string]error
	synced bool
	behind string                    // as the sink was told
	nodes  map[string]policy.Node    // that were told
	stop   context.CancelFunc        // of this round
	last   func() map[string]machine // of all nodes; nil: not known yet
}

func newFeed(c *Cluster, log *zap.Logger, tellFound func(found), news func()) *feed {
	return &feed{
		cluster: c, log: log, found: tellFound, news: news, held: newHeld(), listed: map[string]bool{}, errs: map[string]error{}, nodes: map[string]policy.Node{},
	}
}

// followers are those of a round. Nodes are told by followNodes.
func (f *feed) followers(round int) []*follower {
	var all []*follower
	add := func(of resource, optional bool, read func(raw []byte) (one, error), drop func(Changes, policy.Name)) {
		all = append(all, &follower{
			of: of, optional: optional, read: read, drop: drop,
			tell:   func(change func(Changes)) { f.tell(round, change) },
			listed: func() { f.hasListed(round, of.plural) },
			heard:  func(err error) { f.heard(round, of.plural, err) },
		})
	}
	add(f.cluster.namespaces(), false, readNamespace, func(to Changes, n policy.Name) { to.DeleteNamespace(n.Name) })
	add(f.cluster.pods(), false, readPod, func(to Changes, n policy.Name) { to.DeleteEndpoint(n) })
	for _, p := range []struct {
		of       resource
		kind     policy.Tier
		optional bool
		read     func(raw []byte) (*policy.Policy, error)
	}{
		{f.cluster.networkPolicies(), policy.Network, false, manifest.NetworkPolicy},
		{f.cluster.clusterNetworkPolicies(), policy.Admin, true, manifest.ClusterNetworkPolicy},
	} {
		add(p.of, p.optional, func(raw []byte) (one, error) { return f.readPolicy(raw, p.read) }, func(to Changes, n policy.Name) {
			key := policy.PolicyKey{Kind: p.kind, Name: n}
			f.found(found{policy: key})
			to.DeletePolicy(key)
		})
	}
	return all
}

// run follows until ctx ends, from some time within the first while on, and anew whenever there is another sink.
func (f *feed) run(ctx context.Context, within time.Duration) {
	if within > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(within)):
		}
	}
	for ctx.Err() == nil {
		of, stop := context.WithCancel(ctx)
		f.mu.Lock()
		f.stop = stop
		all := f.followers(f.round)
		f.mu.Unlock()
		f.tellNodes()
		var running sync.WaitGroup
		for _, one := range all {
			running.Go(func() { one.run(of) })
		}
		<-of.Done()
		stop()
		running.Wait()
	}
}

// to tells s from now on. If another one was told before, all is read anew.
func (f *feed) to(s Sink) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sink == nil {
		s.Change(f.held.into)
		f.sink, f.held = s, nil
		f.speak()
		return
	}
	f.sink = s
	f.round++
	f.synced, f.behind, f.listed, f.nodes = false, "", map[string]bool{}, map[string]policy.Node{}
	if f.stop != nil {
		f.stop()
	}
	f.speak()
}

// tell tells on what is of this round.
func (f *feed) tell(round int, change func(Changes)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case round != f.round:
	case f.sink != nil:
		f.sink.Change(change)
	default:
		change(f.held)
	}
}

func (f *feed) hasListed(round int, what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if round == f.round && !f.listed[what] {
		f.listed[what] = true
		f.speak()
	}
}

func (f *feed) heard(round int, what string, err error) {
	f.mu.Lock()
	before := f.errs[what]
	if round == f.round {
		f.errs[what] = err
		f.speak()
	}
	f.mu.Unlock()
	if (before == nil) != (err == nil) || err != nil && before.Error() != err.Error() {
		if err != nil {
			f.log.Warn("what network policies are about cannot be followed; what was seen last stays in force", zap.String("resource", what), zap.Error(err))
		}
		f.news()
	}
}

// resources are all that must be listed.
func (f *feed) resources() []string {
	return []string{"nodes", "namespaces", "pods", "networkpolicies", "clusternetworkpolicies"}
}

// speak tells the sink how far this has come. The caller has the lock.
func (f *feed) speak() {
	if f.sink == nil {
		return
	}
	var lacking []string
	for _, r := range f.resources() {
		if !f.listed[r] || f.synced && f.errs[r] != nil {
			text := r
			if err := f.errs[r]; err != nil {
				text += fmt.Sprintf(" (%v)", err)
			}
			lacking = append(lacking, text)
		}
	}
	what := ""
	if len(lacking) > 0 {
		what = "the API server's " + strings.Join(lacking, ", ")
	}
	switch {
	case f.synced && what != f.behind:
		f.behind = what
		f.sink.Behind(what)
	case f.synced:
	case what == "":
		f.synced = true
		f.sink.Synced()
		f.speak() // of what was listed and is not followed any more
	default:
		f.sink.Awaits(what)
	}
}

// trouble is what cannot be followed, a line; empty if all can.
func (f *feed) trouble() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, r := range f.resources() {
		if err := f.errs[r]; err != nil {
			lines = append(lines, fmt.Sprintf("%s: %v", r, err))
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return "network policies stay as they were seen last, as these cannot be followed: " + strings.Join(lines, "; ")
}

// followNodes has last asked for all nodes whenever they change.
func (f *feed) followNodes(last func() map[string]machine) {
	f.mu.Lock()
	f.last = last
	f.mu.Unlock()
	f.tellNodes()
}

// tellNodes tells which nodes have changed.
func (f *feed) tellNodes() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == nil {
		return
	}
	all := f.last()
	change := func(to Changes) {
		for name, m := range all {
			before, is := f.nodes[name]
			if !is || !maps.Equal(before.Labels, m.labels) || !slices.Equal(before.Addrs, m.all) {
				f.nodes[name] = policy.Node{Name: name, Labels: m.labels, Addrs: m.all}
				to.SetNode(f.nodes[name])
			}
		}
		for name := range f.nodes {
			if _, is := all[name]; !is {
				to.DeleteNode(name)
				delete(f.nodes, name)
			}
		}
	}
	if f.sink != nil {
		f.sink.Change(change)
	} else {
		change(f.held)
	}
	if !f.listed["nodes"] {
		f.listed["nodes"] = true
		f.speak()
	}
}

func readNamespace(raw []byte) (one, error) {
	var n manifest.Namespace
	err := json.Unmarshal(raw, &n)
	is := n.Namespace()
	return one{policy.Name{Name: is.Name}, n.Metadata.ResourceVersion, func(to Changes) { to.SetNamespace(is) }}, err
}

func readPod(raw []byte) (one, error) {
	var p manifest.Pod
	err := json.Unmarshal(raw, &p)
	o := one{policy.Name{Namespace: p.Metadata.Namespace, Name: p.Metadata.Name}, p.Metadata.ResourceVersion, nil}
	if e, ok := p.Endpoint(); ok {
		o.Name, o.set = e.Name, func(to Changes) { to.SetEndpoint(e) }
	}
	return o, err
}

func (f *feed) readPolicy(raw []byte, read func(raw []byte) (*policy.Policy, error)) (one, error) {
	var o struct {
		Metadata manifest.Metadata `json:"metadata"`
	}
	err := json.Unmarshal(raw, &o)
	if err != nil {
		return one{}, err //nolint:wrapcheck // the caller says of what
	}
	p, err := read(raw)
	if err != nil {
		return one{}, err
	}
	f.found(found{policy: p.PolicyKey, uid: o.Metadata.UID, generation: o.Metadata.Generation, problems: p.Problems})
	return one{p.Name, o.Metadata.ResourceVersion, func(to Changes) { to.SetPolicy(p) }}, nil
}

// held is what was told while there was no sink.
type held struct {
	policies   map[policy.PolicyKey]*policy.Policy
	endpoints  map[policy.Name]policy.Endpoint
	namespaces map[string]policy.Namespace
	nodes      map[string]policy.Node
}

func newHeld() *held {
	return &held{map[policy.PolicyKey]*policy.Policy{}, map[policy.Name]policy.Endpoint{}, map[string]policy.Namespace{}, map[string]policy.Node{}}
}

func (h *held) SetPolicy(p *policy.Policy)      { h.policies[p.PolicyKey] = p }
func (h *held) DeletePolicy(k policy.PolicyKey) { delete(h.policies, k) }
func (h *held) SetEndpoint(e policy.Endpoint)   { h.endpoints[e.Name] = e }
func (h *held) DeleteEndpoint(n policy.Name)    { delete(h.endpoints, n) }
func (h *held) SetNamespace(n policy.Namespace) { h.namespaces[n.Name] = n }
func (h *held) DeleteNamespace(name string)     { delete(h.namespaces, name) }
func (h *held) SetNode(n policy.Node)           { h.nodes[n.Name] = n }
func (h *held) DeleteNode(name string)          { delete(h.nodes, name) }

func (h *held) into(to Changes) {
	for p := range maps.Values(h.policies) {
		to.SetPolicy(p)
	}
	for e := range maps.Values(h.endpoints) {
		to.SetEndpoint(e)
	}
	for n := range maps.Values(h.namespaces) {
		to.SetNamespace(n)
	}
	for n := range maps.Values(h.nodes) {
		to.SetNode(n)
	}
}
