// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/policy/replica"
)

// How what hosts share comes to be on disk: see setLog for the form.

// change has f change a copy of the manifests, and makes it what counts once it is on disk. f returns what replica.Set.Write does; no delta: nothing is changed. Known
// are what is understood of manifests by then, by key.
func (h *policyHosts) change(known map[string]understood, f func(set *replica.Set) (delta []byte, changed []string, err error)) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	next := h.manifests.Clone()
	delta, changed, err := f(next)
	if err != nil || delta == nil {
		return err
	}
	unkept := h.unkept
	unkept.changes = slices.Clip(unkept.changes)
	unkept.add(delta)
	if err := h.write(unkept, next, nil); err != nil {
		return err
	}
	h.mu.Lock()
	h.manifests, h.known = next, known
	h.note(0, changed)
	h.mu.Unlock()
	h.wake.raise()
	return nil
}

// keep puts on disk what is not there, together with what f does if that is not nil.
func (h *policyHosts) keep(f func(tx *store.Tx) error) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	if h.unkept.empty() && f == nil {
		return nil
	}
	return h.write(h.unkept, h.manifests, f)
}

// write puts changes of manifests on disk, after which they are what set says. The caller has changing.
func (h *policyHosts) write(u unwritten, set *replica.Set, f func(tx *store.Tx) error) error {
	before := h.onDisk
	before.stale = before.stale || u.beyond
	var now setLog
	err := h.store.Update(func(tx *store.Tx) (err error) {
		if now, err = before.write(tx, u.changes, set.Encode); err == nil && f != nil {
			err = f(tx)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keeping network policies: %w", err)
	}
	h.onDisk, h.unkept = now, unwritten{}
	return nil
}

// keepOn has manifests on disk soon after they were heard of, until ctx ends.
func (h *policyHosts) keepOn(ctx context.Context) {
	wait, failing := time.Duration(0), false
	for {
		var again <-chan time.Time
		if wait > 0 {
			again = time.After(wait)
		}
		done := false
		select {
		case <-ctx.Done():
			done = true
		case <-h.keeps:
		case <-again:
		}
		if !done {
			select {
			case <-ctx.Done():
				done = true
			case <-time.After(manifestsGap):
			}
		}
		err := h.keep(nil)
		if err != nil && !failing {
			h.n.log.Warn("network policies that were applied on other hosts could not be kept; trying again", zap.Error(err))
		}
		if done {
			return
		}
		if failing, wait = err != nil, 0; failing {
			wait = keepAgain
		}
	}
}

// save keeps what is known of other nodes' workloads.
func (h *policyHosts) save() {
	h.mu.Lock()
	unsaved, stale := h.unsaved, h.stale
	h.unsaved, h.stale = unwritten{}, false
	h.mu.Unlock()
	if unsaved.empty() && !stale {
		return
	}
	before := h.others
	before.stale = stale || unsaved.beyond
	var now setLog
	err := h.store.Update(func(tx *store.Tx) (err error) {
		now, err = before.write(tx, unsaved.changes, func() []byte {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.endpoints.Encode()
		})
		return err
	})
	if err != nil {
		h.n.log.Warn("what is known of other nodes' workloads could not be kept; trying again", zap.Error(err))
		h.mu.Lock()
		h.stale = true
		h.mu.Unlock()
		return
	}
	h.others = now
}
