// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
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
// tells of its workloads, are two states that it replicates (package replica). Manifests are on disk before anybody is told of them, and whoever
// learns of one has it on disk before passing it on. Of its own workloads a node has the records on disk already; what it knows of the others' it
// keeps now and then, so that it can go on with it after a restart while it reaches nobody.

const (
	stateManifests = "policies"  // of mesh.Register
	stateEndpoints = "endpoints" // of mesh.Register
	keyManifests   = "policies"  // in the store's Meta bucket: replica.Set
	keyEndpoints   = "endpoints" // in the store's Meta bucket: replica.Set

	// seqShift makes a floor for a node's numbers of its clock's seconds: as long as it writes less than 2^20 things a second, none is
	// used twice even if its disk is put back to an earlier time.
	seqShift = 20
	// hostsGap is the least time between two looks at what is shared, and endpointsGap between two writes of the others' endpoints.
	hostsGap     = 20 * time.Millisecond
	endpointsGap = 10 * time.Second
)

func manifestLimits() replica.Limits {
	return replica.Limits{Items: 10_000, Value: 1 << 20, Bytes: 6 << 20, Writers: 4096}
}

func endpointLimits() replica.Limits {
	return replica.Limits{Items: 50_000, Value: 16 << 10, Bytes: 6 << 20, Writers: 8192}
}

// policySource is who puts in force what hosts share; *enforce.Enforcer is one.
type policySource interface {
	Change(f func(c enforce.Changes))
	Synced()
	Awaits(what string)
}

// policyHosts is this node's part in what plain hosts share of network policies.
type policyHosts struct {
	n    *Node
	e    *engines
	sink policySource
	wake signal

	changing sync.Mutex // held by whoever changes manifests, from the disk to the mesh
	looking  sync.Mutex // held by whoever looks, and tells the sink
	told     hostShare  // under looking

	mu        sync.Mutex
	manifests *replica.Set  // replaced as a whole, never changed; under mu
	endpoints *replica.Set  // under mu
	unsaved   bool          // endpoints differ from the disk; under mu
	untold    bool          // no other node has told yet which manifests there are, and that is waited for; under mu
	whole     chan struct{} // closed when untold ends
}

// newPolicyHosts reads what is on disk. The sink is told of it by run.
func (n *Node) newPolicyHosts(e *engines, sink policySource) (*policyHosts, error) {
	self, floor := uint64(n.state.identity.ID), uint64(max(time.Now().Unix(), 0))<<seqShift
	h := &policyHosts{
		n: n, e: e, sink: sink, wake: newSignal(),
		manifests: replica.New(self, floor, manifestLimits()), endpoints: replica.New(self, floor, endpointLimits()),
		untold: n.state.first && len(n.cfg.Peers) > 0 && len(n.cfg.Seed) == 0, whole: make(chan struct{}),
	}
	if !h.untold {
		close(h.whole)
	}
	err := n.store.View(func(tx *store.Tx) error {
		if _, _, err := h.manifests.Merge(tx.Get(store.Meta, keyManifests), nil); err != nil {
			return fmt.Errorf("the policies that were applied: %w", err)
		}
		if _, _, err := h.endpoints.Merge(tx.Get(store.Meta, keyEndpoints), nil); err != nil {
			return fmt.Errorf("what is known of other nodes' workloads: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading network policies in %s: %w", n.store.Dir(), err)
	}
	return h, nil
}

// register makes what is shared known to the mesh, before that runs.
func (h *policyHosts) register() {
	h.e.mesh.Register(stateManifests, manifestState{h})
	h.e.mesh.Register(stateEndpoints, endpointState{h})
}

// raise has what is shared looked at soon. It may be called of a nil one.
func (h *policyHosts) raise() {
	if h != nil {
		h.wake.raise()
	}
}

// manifestState is the mesh's state of manifests.
type manifestState struct{ h *policyHosts }

func (s manifestState) Encode() []byte { return s.h.applied().Encode() }

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

// Exchanged implements [mesh.Exchanger].
func (s manifestState) Exchanged() {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.h.untold {
		s.h.untold = false
		close(s.h.whole)
	}
}

// Merge implements [mesh.State].
func (s manifestState) Merge(b []byte) ([]byte, error) {
	var news []byte
	err := s.h.change(func(set *replica.Set) (changed bool, err error) {
		news, _, err = set.Merge(b, nil)
		return news != nil, err
	})
	if err != nil {
		return nil, err
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
	news, _, err := s.h.endpoints.Merge(b, func(w uint64) bool { return gone[mesh.NodeID(w)] })
	if news != nil {
		s.h.unsaved = true
		s.h.wake.raise()
	}
	return news, err
}

// applied are the manifests, which nobody changes.
func (h *policyHosts) applied() *replica.Set {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.manifests
}

// change has f change a copy of the manifests, and makes it what counts once it is on disk.
func (h *policyHosts) change(f func(set *replica.Set) (changed bool, err error)) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	next := h.applied().Clone()
	changed, err := f(next)
	if err != nil || !changed {
		return err
	}
	if err := h.n.store.Update(func(tx *store.Tx) error { return tx.Put(store.Meta, keyManifests, next.Encode()) }); err != nil {
		return fmt.Errorf("keeping network policies: %w", err)
	}
	h.mu.Lock()
	h.manifests = next
	h.mu.Unlock()
	h.wake.raise()
	return nil
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
	for done := (<-chan struct{})(synced); ; {
		h.look()
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
		case <-time.After(hostsGap):
		}
	}
}

// await waits until this node may act on what it knows. What is on disk it may act on at once, as it would if it had been cut off from the others; one
// that joins has nothing there, and waits until another one has told it what there is: one that knows of policies, and whose it could read.
func (h *policyHosts) await(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-h.whole:
	}
}

// save keeps what is known of other nodes' workloads.
func (h *policyHosts) save() {
	h.mu.Lock()
	var b []byte
	if h.unsaved {
		b = h.endpoints.Encode()
	}
	h.unsaved = false
	h.mu.Unlock()
	if b == nil {
		return
	}
	if err := h.n.store.Update(func(tx *store.Tx) error { return tx.Put(store.Meta, keyEndpoints, b) }); err != nil {
		h.n.log.Warn("what is known of other nodes' workloads could not be kept; trying again", zap.Error(err))
		h.mu.Lock()
		h.unsaved = true
		h.mu.Unlock()
	}
}

// look tells the others what this node has, and the sink what there is.
func (h *policyHosts) look() {
	h.looking.Lock()
	defer h.looking.Unlock()
	nodes, retired := h.e.mesh.Nodes(), retirees(h.e.alloc.Retirements())
	values, err := h.own()
	if err == nil {
		h.mu.Lock()
		if len(h.endpoints.Prune(func(w uint64) bool { return retired[mesh.NodeID(w)] })) > 0 {
			h.unsaved = true
		}
		var delta []byte
		delta, _, err = h.endpoints.Own(values)
		h.mu.Unlock()
		if delta != nil {
			h.e.mesh.Broadcast(stateEndpoints, delta)
		}
	}
	text := ""
	if err != nil {
		text = fmt.Sprintf("the other nodes are not told of this one's workloads, so that policies there may not allow what they should: %v; detach some", err)
	}
	h.n.setWarning("endpoints", text)

	h.mu.Lock()
	items := h.endpoints.Items()
	h.mu.Unlock()
	now := h.told.next(h.applied(), items, uint64(h.n.state.identity.ID), nodesByID(nodes, retired, h.n.state.identity.ID))
	h.n.setWarning("policies", now.warning)
	h.sink.Change(func(c enforce.Changes) { h.told.tell(now, c) })
	h.told = now
}

// own is what this node tells of itself.
func (h *policyHosts) own() (map[string][]byte, error) {
	values := map[string][]byte{}
	if h.n.whyRetired() != nil || h.n.isLeaving() {
		return values, nil
	}
	put := func(key string, e replica.Endpoint) error {
		b, err := e.Encode()
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		values[key] = b
		return nil
	}
	if lease, ok := h.e.alloc.Lookup(hostOwner); ok {
		if err := put(replica.HostKey, replica.Endpoint{Addrs: addresses(lease)}); err != nil {
			return nil, err
		}
	}
	for _, w := range h.e.workloads.list() {
		if lease, ok := h.e.alloc.Lookup(w.ID); ok {
			if err := put(replica.EndpointKey(w.ID), w.endpoint(lease)); err != nil {
				return nil, err
			}
		}
	}
	return values, nil
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

// keyed sorts the keys of a map.
func keyed[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func same(a, b any) bool { return reflect.DeepEqual(a, b) }
