// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"time"

	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/policy/replica"
)

// ownGap is how often all that this node tells of its workloads is compared with what they are. In between only those are looked at of which it is known that they
// have changed: there may be a thousand, of which one comes or goes.
const ownGap = time.Second

// ownEndpoints is what this node tells of itself.
type ownEndpoints struct {
	encoded   map[string]encodedEndpoint // as it was worked out last, by key
	wholeAt   time.Time                  // when all of it was, if the set has taken that
	disturbed uint64                     // of the set, then
	looks     uint64                     // workloads that were looked at, since the start
}

// endpointOrigin is what is told of a workload is made of. What it points to is never modified.
type endpointOrigin struct {
	lease  ipam.Lease
	policy *policyIdentity
	cni    *cniOrigin
	netns  string
}

// encodedEndpoint is what was told of a workload.
type encodedEndpoint struct {
	endpointOrigin
	value []byte
}

// ownTurn is a look at what this node has to tell: of all keys, or of some. What is not among its values is to be told no longer.
type ownTurn struct {
	whole  bool
	at     time.Time
	keys   []string
	values map[string][]byte
	err    error
}

// ownTurn looks at what there is to tell, and works out anew what has changed. The caller has looking.
func (h *policyHosts) ownTurn() ownTurn {
	t := ownTurn{at: time.Now(), values: map[string][]byte{}}
	altered := h.e.workloads.takeAltered()
	silent := h.n.whyRetired() != nil || h.n.isLeaving()
	h.mu.Lock()
	disturbed := h.endpoints.Disturbed()
	h.mu.Unlock()
	t.whole = silent || h.own.wholeAt.IsZero() || t.at.Sub(h.own.wholeAt) >= ownGap || disturbed != h.own.disturbed
	h.own.disturbed = disturbed
	before := h.own.encoded
	if t.whole {
		h.own.encoded = make(map[string]encodedEndpoint, len(before))
	}
	if silent {
		t.at = time.Time{} // what comes after it is whole, too
		return t
	}
	put := func(key string, from endpointOrigin, e func() replica.Endpoint) {
		have, ok := before[key]
		if !ok || have.endpointOrigin != from {
			b, err := e().Encode()
			if err != nil {
				t.err = fmt.Errorf("%s: %w", key, err)
				return
			}
			have = encodedEndpoint{from, b}
		}
		h.own.encoded[key], t.values[key] = have, have.value
	}
	t.keys = append(t.keys, replica.HostKey)
	if lease, ok := h.e.alloc.Lookup(hostOwner); ok {
		put(replica.HostKey, endpointOrigin{lease: lease}, func() replica.Endpoint { return replica.Endpoint{Addrs: addresses(lease)} })
	}
	tell := func(w workload) {
		h.own.looks++
		if lease, ok := h.e.alloc.Lookup(w.ID); ok {
			put(replica.EndpointKey(w.ID), endpointOrigin{lease, w.Policy, w.CNI, w.Netns}, func() replica.Endpoint { return w.endpoint(lease) })
		}
	}
	if t.whole {
		for _, w := range h.e.workloads.unsorted() {
			tell(w)
		}
		return t
	}
	for _, id := range altered {
		t.keys = append(t.keys, replica.EndpointKey(id))
		if w, ok := h.e.workloads.get(id); ok {
			tell(w)
		}
	}
	for _, key := range t.keys {
		if _, ok := t.values[key]; !ok {
			delete(h.own.encoded, key)
		}
	}
	return t
}

// tellOwn takes a turn into the set of endpoints, and returns what Own does. After an error all is looked at again. The caller has looking and mu.
func (h *policyHosts) tellOwn(t ownTurn) (delta []byte, changed []string, err error) {
	switch {
	case t.err != nil:
		err = t.err
	case t.whole:
		delta, changed, err = h.endpoints.Own(t.values)
	default:
		delta, changed, err = h.endpoints.OwnOf(t.keys, t.values)
	}
	switch {
	case err != nil:
		h.own.wholeAt = time.Time{}
	case t.whole:
		h.own.wholeAt = t.at
	}
	return delta, changed, err
}
