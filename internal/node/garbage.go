// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/store"
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

// collect releases the addresses that nobody can use any more, unless they are only to be listed.
//
// A namespace is gone when its interface is, which the kernel removes with it, and its path does not lead to it any more.
// A path alone proves nothing: a process may live on in a namespace without one. The host's own addresses and those of
// WireGuard clients are nobody's garbage.
func (ws *workloads) collect(dryRun bool) ([]api.Garbage, error) {
	ws.gate.Lock()
	defer ws.gate.Unlock()
	garbage := []api.Garbage{}
	var errs []error
	found := func(owner, path, reason string, lease ipam.Lease, release func() error) {
		if !dryRun {
			if err := release(); err != nil {
				errs = append(errs, fmt.Errorf("releasing what %s has: %w", owner, err))
				return
			}
			ws.log.Info("address released", zap.String("owner", owner), zap.String("reason", reason), zap.Stringers("addresses", addresses(lease)))
		}
		garbage = append(garbage, api.Garbage{Owner: owner, Addresses: addresses(lease), Netns: path, Reason: reason})
	}
	for _, l := range ws.strays() {
		found(l.Owner, "", "no workload is attached under this name", l, func() error { return ws.alloc.Release(l.Owner) })
	}
	var all []hostnet.Workload
	for _, w := range ws.list() {
		lease, _ := ws.alloc.Lookup(w.ID)
		all = append(all, kernel(w, lease))
	}
	missing, err := ws.host.Missing(all)
	if err != nil {
		return garbage, errors.Join(append(errs, err)...)
	}
	for _, id := range missing {
		w, ok := ws.get(id)
		if !ok || !ws.orphan(w) {
			continue
		}
		lease, _ := ws.alloc.Lookup(id)
		found(id, w.Netns, "its namespace is gone", lease, func() error { return ws.forget(w, lease) })
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

// orphan tells whether the namespace of a workload that has lost its interface is gone.
func (ws *workloads) orphan(w workload) bool {
	ns, err := ws.netnsAt(w.Netns)
	return err != nil || string(ns) != w.NetnsID
}

// forgetLastBoot forgets the workloads of before the reboot, whose namespaces did not outlive it, and releases their
// addresses: many of them in few commits, as a host may have had hundreds. What a crash leaves undone is a stray.
func (ws *workloads) forgetLastBoot() error {
	var gone []workload
	for _, w := range ws.list() {
		if w.Boot != ws.boot {
			gone = append(gone, w)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	for _, w := range gone { // nothing is left of it, unless the boot ID is wrong
		if err := ws.host.Detach(kernel(w, ipam.Lease{})); err != nil {
			return err
		}
	}
	if err := ws.st.Update(func(tx *store.Tx) error {
		for _, w := range gone {
			if err := tx.Delete(store.Workloads, w.ID); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("forgetting the workloads of before the reboot: %w", err)
	}
	ws.mu.Lock()
	for _, w := range gone {
		delete(ws.all, w.ID)
		delete(ws.state, w.ID)
	}
	ws.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(releases)
	for _, w := range gone {
		g.Go(func() error { return ws.alloc.Release(w.ID) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	ws.log.Info("workloads of before the reboot forgotten, and their addresses released", zap.Int("workloads", len(gone)))
	return nil
}
