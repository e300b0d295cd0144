// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/replica"
)

// On hosts without Kubernetes the mesh is the source of network policies: the manifests that were applied on any of them, and what each
// tells of its workloads, are two states that it replicates (package replica). Manifests are on disk where they are applied before that is acknowledged,
// and before anybody is told of them. Others pass on at once what they hear, and have it on disk some moments later, many changes at once: one that loses power
// in between goes on with what it had, and hears the rest again from any other, as their digests differ. Of its own workloads a node has the records on disk
// already; what it knows of the others' it keeps now and then, so that it can go on with it after a restart while it reaches nobody.

const (
	stateManifests = "policies"  // of mesh.Register
	stateEndpoints = "endpoints" // of mesh.Register
	keyManifests   = "policies"  // in the store's Meta bucket: setLog
	keyEndpoints   = "endpoints" // in the store's Meta bucket: setLog
	keyUntold      = "untold"    // in the store's Meta bucket: this node joined, and nobody has told it yet which policies there are

	// seqShift makes a floor for a node's numbers of its clock's seconds: as long as it writes less than 2^20 things a second, none is
	// used twice even if its disk is put back to an earlier time.
	seqShift = 20
	// hostsGap is the least time between two looks at what is shared, or hostsShare times what the last one took, up to hostsGapMost: a look goes through all
	// workloads of this node. manifestsGap is the least between two writes of what was heard of manifests, endpointsGap of the others' endpoints.
	hostsGap     = 20 * time.Millisecond
	hostsShare   = 20
	hostsGapMost = 200 * time.Millisecond
	manifestsGap = 100 * time.Millisecond
	endpointsGap = time.Second
	// keepAgain is how long after a write that failed the next one follows.
	keepAgain = 10 * time.Second
	// olderPatience is for how long one that has joined waits for others to tell it the policies. By then it has compared states with many, and nobody has any:
	// they are of versions without policies.
	olderPatience = time.Minute
)

func manifestLimits() replica.Limits {
	return replica.Limits{Items: 10_000, Value: 1 << 20, Bytes: 6 << 20, Writers: 4096}
}

func endpointLimits() replica.Limits {
	return replica.Limits{Items: 50_000, Value: 16 << 10, Bytes: 6 << 20, Writers: 8192}
}

// policySource is who puts in force what hosts share; *enforce.Enforcer is one.
type policySource interface {
	ChangeOwned(o enforce.Owners, f func(c enforce.Changes))
	Synced()
	Awaits(what string)
}

// policyHosts is this node's part in what plain hosts share of network policies.
type policyHosts struct {
	n      *Node
	e      *engines
	store  *store.Store
	sink   policySource
	wake   signal
	keeps  signal          // manifests have changed that are not on disk
	joined <-chan struct{} // closed when states were exchanged with another node

	looking sync.Mutex   // held by whoever looks, and tells the sink
	told    hostShare    // under looking
	owners  *addrOwners  // as told; under looking
	own     ownEndpoints // under looking

	changing sync.Mutex // held by whoever changes manifests, from the disk to the mesh
	onDisk   setLog     // of manifests; under changing
	unkept   unwritten  // changes of manifests that are not on disk; under changing
	others   setLog     // of endpoints; of run's goroutine

	mu        sync.Mutex
	manifests *replica.Set          // changed while mu and changing are held, so that either is enough to read it
	endpoints *replica.Set          // under mu
	unsaved   unwritten             // changes of endpoints that are not on disk; under mu
	stale     bool                  // the endpoints on disk are more than there are; under mu
	pruned    map[mesh.NodeID]bool  // whose endpoints are not taken in; under mu
	news      [2]map[string]bool    // keys of manifests, and of endpoints, that have changed since the last look; under mu
	known     map[string]understood // what the last command since then has understood of manifests, by key; under mu
	untold    bool                  // no other node has told yet which manifests there are, and that is waited for; under mu
	heard     bool                  // some node has sent manifests, whole or not; under mu
	whole     chan struct{}         // closed when untold ends
}

// newPolicyHosts reads what is on disk. The sink is told of it by run.
func (n *Node) newPolicyHosts(e *engines, sink policySource) (*policyHosts, error) {
	self, floor := uint64(n.state.identity.ID), uint64(max(time.Now().Unix(), 0))<<seqShift
	h := &policyHosts{
		n: n, e: e, store: n.store, sink: sink, wake: newSignal(), keeps: newSignal(),
		manifests: replica.New(self, floor, manifestLimits()), endpoints: replica.New(self, floor, endpointLimits()),
		onDisk: setLog{key: keyManifests}, others: setLog{key: keyEndpoints}, told: newHostShare(self),
		untold: n.state.first && len(n.cfg.Peers) > 0 && len(n.cfg.Seed) == 0, whole: make(chan struct{}),
	}
	err := n.store.Update(func(tx *store.Tx) error {
		if err := h.onDisk.read(tx, h.manifests); err != nil {
			return fmt.Errorf("the policies that were applied: %w", err)
		}
		if err := h.others.read(tx, h.endpoints); err != nil {
			return fmt.Errorf("what is known of other nodes' workloads: %w", err)
		}
		if h.untold = h.untold || tx.Get(store.Meta, keyUntold) != nil; !h.untold {
			return nil
		}
		return tx.Put(store.Meta, keyUntold, []byte("1"))
	})
	if err != nil {
		return nil, fmt.Errorf("reading network policies in %s: %w", n.store.Dir(), err)
	}
	if !h.untold {
		close(h.whole)
	}
	h.noteAll()
	return h, nil
}

// noteAll has all be looked at.
func (h *policyHosts) noteAll() {
	h.note(0, h.manifests.Keys())
	h.note(1, h.endpoints.Keys())
}

// note takes down keys of manifests (0) or endpoints (1) that have changed. The caller has mu, or alone h.
func (h *policyHosts) note(what int, keys []string) {
	if h.news[what] == nil && len(keys) > 0 {
		h.news[what] = make(map[string]bool, len(keys))
	}
	for _, k := range keys {
		h.news[what][k] = true
	}
}

// register makes what is shared known to the mesh, before that runs.
func (h *policyHosts) register() {
	h.e.mesh.Register(stateManifests, manifestState{h})
	h.e.mesh.Register(stateEndpoints, endpointState{h})
	h.joined = h.e.mesh.Joined()
}

// raise has what is shared looked at soon. It may be called of a nil one.
func (h *policyHosts) raise() {
	if h != nil {
		h.wake.raise()
	}
}

// manifestState is the mesh's state of manifests.
type manifestState struct{ h *policyHosts }

func (s manifestState) Encode() (b []byte) {
	s.h.view(func(set *replica.Set) { b = set.Encode() })
	return b
}

// Digest implements [mesh.Digester]. As long as nobody has told this node anything it differs from everybody's, so that an exchange brings what others
// have even if that is nothing.
func (s manifestState) Digest() uint64 {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	d := s.h.manifests.Digest()
	if s.h.untold {
		d ^= uint64(s.h.n.state.identity.ID)
	}
	return d
}

// Exchanged implements [mesh.Exchanger]. What was told is on disk before this node acts on it: a restart does not ask again.
func (s manifestState) Exchanged() {
	h := s.h
	h.mu.Lock()
	untold := h.untold
	h.mu.Unlock()
	if !untold {
		return
	}
	if err := h.keep(func(tx *store.Tx) error { return tx.Delete(store.Meta, keyUntold) }); err != nil {
		h.n.log.Warn("the network policies that another node has told could not be kept; waiting for the next one to tell them", zap.Error(err))
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.untold {
		h.untold = false
		close(h.whole)
	}
}

// Merge implements [mesh.State].
func (s manifestState) Merge(b []byte) ([]byte, error) {
	h := s.h
	h.changing.Lock()
	defer h.changing.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard = true
	news, changed, err := h.manifests.Merge(b, nil)
	if err != nil {
		if h.untold {
			h.sink.Awaits(fmt.Sprintf("another node to say which network policies there are, after one whose could not be taken in: %v", err))
		}
		return nil, err
	}
	if news != nil {
		h.unkept.add(news)
		h.note(0, changed)
		h.keeps.raise()
		h.wake.raise()
	}
	return news, nil
}

// endpointState is the mesh's state of endpoints.
type endpointState struct{ h *policyHosts }

func (s endpointState) Encode() []byte {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return s.h.endpoints.Encode()
}

// Digest implements [mesh.Digester].
func (s endpointState) Digest() uint64 {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return s.h.endpoints.Digest()
}

// Merge implements [mesh.State]. What nodes have said that were declared gone is nobody's any more.
func (s endpointState) Merge(b []byte) ([]byte, error) {
	gone := retirees(s.h.e.alloc.Retirements())
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	news, changed, err := s.h.endpoints.Merge(b, func(w uint64) bool { return gone[mesh.NodeID(w)] })
	if news != nil {
		s.h.unsaved.add(news)
		s.h.note(1, changed)
		s.h.wake.raise()
	}
	return news, err
}

// view lets f look at the manifests.
func (h *policyHosts) view(f func(set *replica.Set)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.manifests)
}

// run keeps the sink and the mesh in step until ctx ends.
func (h *policyHosts) run(ctx context.Context) {
	defer h.save()
	h.sink.Awaits("another node to say which network policies there are")
	saving := time.NewTicker(endpointsGap)
	defer saving.Stop()
	synced := make(chan struct{})
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() {
		defer close(synced)
		h.await(ctx)
	})
	waiting.Go(func() { h.keepOn(ctx) })
	for done := (<-chan struct{})(synced); ; {
		began := time.Now()
		h.look()
		looked := time.Now()
		next := looked.Add(max(hostsGap, min(hostsShare*looked.Sub(began), hostsGapMost)))
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-h.e.workloads.known:
		case <-saving.C:
			h.save()
		case <-done:
			done = nil
			h.look() // with what came last
			h.sink.Synced()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
	}
}

// await waits until this node may act on what it knows. What is on disk it may act on at once, as it would if it had been cut off from the others; one
// that joins has nothing there, and waits until another one has told it what there is: one that knows of policies, and whose it could read. Where nobody
// knows of any, as they are of an older version, it goes on after a while.
func (h *policyHosts) await(ctx context.Context) {
	joined, older := h.joined, (<-chan time.Time)(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.whole:
			return
		case <-joined:
			joined, older = nil, time.After(olderPatience)
		case <-older:
			h.mu.Lock()
			heard := h.heard
			h.mu.Unlock()
			if !heard {
				h.n.log.Warn("no other node has told any network policies: the mesh seems to be of older versions of weft, which do not enforce them; upgrade all hosts")
				return
			}
			older = time.After(olderPatience)
		}
	}
}

// look tells the others what this node has, and the sink what has changed.
func (h *policyHosts) look() {
	h.looking.Lock()
	defer h.looking.Unlock()
	nodes, retired := h.e.mesh.Nodes(), retirees(h.e.alloc.Retirements())
	owners := enforce.Owners(nil)
	if now := newOwners(h.e.universe, h.e.alloc.Owned(), nodes); now.changed(h.owners) {
		h.owners, owners = now, now.owns
	}
	turn := h.ownTurn()
	h.mu.Lock()
	if !maps.Equal(retired, h.pruned) {
		h.pruned = retired
		if changed := h.endpoints.Prune(func(w uint64) bool { return retired[mesh.NodeID(w)] }); len(changed) > 0 {
			h.stale = true
			h.note(1, changed)
		}
	}
	delta, changed, err := h.tellOwn(turn)
	if h.note(1, changed); delta != nil {
		h.unsaved.add(delta)
	}
	news := h.takeNews()
	h.mu.Unlock()
	if delta != nil {
		h.e.mesh.Broadcast(stateEndpoints, delta)
	}
	text := ""
	if err != nil {
		text = fmt.Sprintf("the other nodes are not told of this one's workloads, so that policies there may not allow what they should: %v; detach some", err)
	}
	h.n.setWarning("endpoints", text)

	names := nodesByID(nodes, retired, h.n.state.identity.ID)
	h.sink.ChangeOwned(owners, func(c enforce.Changes) { h.told.update(news, names, c) })
	h.n.setWarning("policies", h.told.warning())
}

// takeNews returns what has changed since the last time. The caller has mu.
func (h *policyHosts) takeNews() shareNews {
	n := shareNews{
		manifests: make(map[string]*replica.Item, len(h.news[0])), policies: make(map[string]*policy.Policy, len(h.known)),
		endpoints: make(map[string][]replica.Item, len(h.news[1])),
	}
	for key := range h.news[0] {
		n.manifests[key] = nil
		if i, ok := h.manifests.Get(key); ok {
			n.manifests[key] = &i
			if k := h.known[key]; k.policy != nil && bytes.Equal(k.manifest, i.Value) {
				n.policies[key] = k.policy
			}
		}
	}
	for key := range h.news[1] {
		n.endpoints[key] = h.endpoints.At(key)
	}
	h.news, h.known = [2]map[string]bool{}, nil
	return n
}

// nodesByID returns what nodes that may have workloads are called: each by another name. This one has its own.
func nodesByID(nodes []mesh.Node, retired map[mesh.NodeID]bool, self mesh.NodeID) map[uint64]string {
	names, count := map[uint64]string{}, map[string]int{}
	for _, m := range nodes {
		if m.Status != mesh.Left && !retired[m.ID] {
			names[uint64(m.ID)] = m.Name
			count[m.Name]++
		}
	}
	for id, name := range names {
		if mesh.NodeID(id) != self && (name == "" || count[name] > 1) {
			names[id] = name + "." + mesh.NodeID(id).String()
		}
	}
	for _, m := range nodes {
		if m.Status == mesh.Left {
			names[uint64(m.ID)] = "" // what it has said is of no meaning
		}
	}
	return names
}

// endpointOf is what a node tells of a workload, as the policies have it.
func endpointOf(e replica.Endpoint, node string) policy.Endpoint {
	out := policy.Endpoint{Name: fullName(e.Namespace, e.Name, node), ID: e.ID, Node: node, Labels: e.Labels, Addrs: e.Addrs}
	for _, p := range e.Ports {
		out.Ports = append(out.Ports, policy.NamedPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	return out
}
