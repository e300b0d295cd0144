// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/hostnet"
)

// CNICheck implements [api.Service].
func (n *Node) CNICheck(ctx context.Context, r cni.CheckRequest) error {
	if r.Key == (cni.Key{}) {
		return n.available()
	}
	if err := checkKey(r.Key); err != nil {
		return err
	}
	e, err := n.forCNI(ctx)
	if err != nil {
		return err
	}
	_, _ = n.workOff(e) // has told
	return cniError(cni.CodeDiffers, e.workloads.checkCNI(r))
}

// checkCNI names the first difference between what a runtime was told, the record, and the host.
func (ws *workloads) checkCNI(r cni.CheckRequest) error {
	id := keyID(r.Key)
	defer ws.lock.lock(id)()
	w, ok := ws.get(id)
	if !ok || w.CNI.Network != r.Network {
		return cniError(cni.CodeUnknown, fmt.Errorf("container %s has no %s of network %s; add it", r.ContainerID, r.IfName, r.Network))
	}
	if w.AddressesOnly != r.AddressesOnly {
		return fmt.Errorf("%s of container %s is attached for another kind of plugin; delete it and add it again", r.IfName, r.ContainerID)
	}
	if !w.AddressesOnly {
		ns, err := ws.namespace(r.Netns)
		if err != nil {
			return cniError(cni.CodeEnvironment, err)
		}
		if string(ns) != w.NetnsID {
			return fmt.Errorf("%s of container %s is in %s, which is not %s; delete it and add it again", r.IfName, r.ContainerID, w.Netns, r.Netns)
		}
	}
	lease, ok := ws.alloc.Lookup(id)
	if !ok {
		return fmt.Errorf("the addresses of %s of container %s are not allocated; delete it and add it again", r.IfName, r.ContainerID)
	}
	if err := ws.compare(w, addresses(lease), r.Want); err != nil {
		return fmt.Errorf("%s of container %s %w; delete it and add it again", r.IfName, r.ContainerID, err)
	}
	return nil
}

// compare names the first thing that a runtime was told otherwise than it is.
func (ws *workloads) compare(w workload, addrs []netip.Addr, want cni.Attachment) error {
	is := func(what string, is, was any) error { return fmt.Errorf("has %s %v, and was said to have %v", what, is, was) }
	switch {
	case want.HostIf != "" && want.HostIf != hostnet.HostIf(w.ID):
		return is("the interface on the host", hostnet.HostIf(w.ID), want.HostIf)
	case want.MTU != 0 && want.MTU != w.MTU:
		return is("the MTU", w.MTU, want.MTU)
	}
	for _, a := range want.Addresses {
		if !slices.Contains(addrs, a.Unmap()) {
			return is("the addresses", addrs, a)
		}
	}
	return nil
}

// available says why nothing can be attached.
func (n *Node) available() error {
	if _, err := n.ready(); err != nil {
		return cniError(cni.CodeUnavailable, err)
	}
	return nil
}
