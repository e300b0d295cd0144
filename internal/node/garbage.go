// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/fault"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netns"
	"github.com/weftnet/weft/ipam"
)

// releases is how many releases share the store's commits.
const releases = 64

// GC implements [api.Service].
func (n *Node) GC(r api.GCRequest) (api.GCResult, error) {
	e, err := n.ready()
	if err != nil {
		return api.GCResult{}, err
	}
	garbage, err := e.workloads.collect(r.DryRun)
	return api.GCResult{Garbage: garbage}, err
}

// collect releases the addresses that nobody can use any more, unless they are only to be listed. What fails is left, and
// keeps nothing else.
//
// A namespace is gone when its interface is, which the kernel removes with it, and its path does not lead to it any more.
// A path alone proves nothing: a process may live on in a namespace without one. The host's own addresses and those of
// WireGuard clients are nobody's garbage.
func (ws *workloads) collect(dryRun bool) ([]api.Garbage, error) {
	ws.gate.Lock()
	defer ws.gate.Unlock()
	var found []api.Garbage
	var errs []error
	var strays []string
	for _, l := range ws.strays() {
		strays = append(strays, l.Owner)
		found = append(found, api.Garbage{Owner: l.Owner, Addresses: addresses(l), Reason: "no workload is attached under this name"})
	}
	var all []hostnet.Workload
	for _, w := range ws.list() {
		lease, _ := ws.alloc.Lookup(w.ID)
		all = append(all, onHost(w, lease))
	}
	missing, err := ws.host.Missing(all)
	if err != nil {
		errs, missing = append(errs, err), nil
	}
	var gone []workload
	for _, id := range missing {
		w, ok := ws.get(id)
		if !ok || ws.expected(id) {
			continue
		}
		orphan, err := ws.orphan(w)
		if err != nil {
			errs = append(errs, err)
		} else if orphan {
			lease, _ := ws.alloc.Lookup(id)
			gone = append(gone, w)
			found = append(found, api.Garbage{Owner: id, Addresses: addresses(lease), Netns: w.Netns, Reason: "its namespace is gone"})
		}
	}
	failed := map[string]error{}
	if !dryRun {
		failed = ws.forgetAll(gone)
		maps.Copy(failed, ws.release(strays))
	}
	garbage := []api.Garbage{}
	for _, g := range found {
		if err := failed[g.Owner]; err != nil {
			errs = append(errs, fmt.Errorf("releasing what %s has: %w", g.Owner, err))
			continue
		}
		if !dryRun {
			ws.log.Info("address released", zap.String("owner", g.Owner), zap.String("reason", g.Reason), zap.Stringers("addresses", g.Addresses))
		}
		garbage = append(garbage, g)
	}
	return garbage, errors.Join(errs...)
}

// strays are the leases that belong to nobody.
func (ws *workloads) strays() []ipam.Lease {
	var strays []ipam.Lease
	for _, l := range ws.alloc.List() {
		if _, ok := ws.get(l.Owner); !ok && l.Owner != hostOwner && !ws.expected(l.Owner) && !ws.kept(l.Owner) {
			strays = append(strays, l)
		}
	}
	return strays
}

// orphan tells whether the namespace of a workload that has lost its interface is gone. Where that cannot be told, as for want
// of descriptors, it is an error: the namespace may be there.
func (ws *workloads) orphan(w workload) (bool, error) {
	if w.Boot != ws.boot {
		return true, nil
	}
	ns, err := ws.netnsAt(w.Netns)
	if err != nil && !errors.Is(err, netns.ErrNotNetns) && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("whether the namespace of %s is gone cannot be told, so it keeps its addresses: %w", w.ID, err)
	}
	return err != nil || string(ns) != w.NetnsID, nil
}

// forgetAll removes interface, record and addresses of workloads, in few commits, as there may be hundreds, and returns what
// failed, by workload; such a one keeps what is left of it. After a crash in between it has lost its interface. The caller has the gate.
func (ws *workloads) forgetAll(gone []workload) (failed map[string]error) {
	failed = map[string]error{}
	leased := map[string]bool{}
	var ids []string
	for _, w := range gone {
		lease, ok := ws.alloc.Lookup(w.ID)
		leased[w.ID] = ok
		if err := ws.host.Detach(onHost(w, lease)); err != nil {
			failed[w.ID] = err
			continue
		}
		ids = append(ids, w.ID)
	}
	if len(ids) == 0 {
		return failed
	}
	fault.Point("forget-disconnected")
	maps.Copy(failed, ws.release(ids)) // with their records
	var bare []string
	for _, id := range ids {
		if !leased[id] {
			bare = append(bare, id)
		}
	}
	if len(bare) > 0 {
		if err := deleteWorkloads(ws.st, bare); err != nil {
			for _, id := range bare {
				failed[id] = err
			}
		}
	}
	for _, id := range ids {
		if failed[id] == nil {
			ws.unpermit(id)
		}
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.known.raise()
	for _, id := range ids {
		if failed[id] == nil {
			delete(ws.all, id)
			delete(ws.state, id)
			ws.alter(id)
		}
	}
	fault.Point("forget-forgotten")
	return failed
}

// release releases what many owners have, at once, so that they share the store's commits. It returns what failed, by owner.
func (ws *workloads) release(owners []string) (failed map[string]error) {
	failed = map[string]error{}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(releases)
	for _, o := range owners {
		g.Go(func() error {
			if err := ws.alloc.Release(o); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed[o] = err
			}
			return nil
		})
	}
	_ = g.Wait() // which is told in failed
	return failed
}

// forgetLastBoot forgets the workloads of before the reboot, whose namespaces did not outlive it, and releases their
// addresses.
func (ws *workloads) forgetLastBoot() error {
	var gone []workload
	for _, w := range ws.list() {
		if w.Boot != ws.boot && !ws.expected(w.ID) {
			gone = append(gone, w)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	failed := ws.forgetAll(gone) // the interfaces went with the boot, unless its ID is wrong
	if n := len(gone) - len(failed); n > 0 {
		ws.log.Info("workloads of before the reboot forgotten, and their addresses released", zap.Int("workloads", n))
	}
	return failures("forgetting workloads of before the reboot", failed)
}

// failures makes one error of those of many owners; nil if there are none. Of hundreds that fail alike the first few tell enough.
func failures(what string, failed map[string]error) error {
	if len(failed) == 0 {
		return nil
	}
	var texts []string
	for _, o := range slices.Sorted(maps.Keys(failed)) {
		texts = append(texts, fmt.Sprintf("%s: %v", o, failed[o]))
	}
	return fmt.Errorf("%s: %s; trying again twice a minute", what, strings.Join(head(texts, 3), ", "))
}
