// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netns"
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
	_, _ = n.workOff(e, keyID(r.Key)) // has told
	return cniError(cni.CodeFailed, e.workloads.checkCNI(r))
}

// available says why nothing can be attached; and by its code, whether what is attached may not be reached either.
func (n *Node) available() error {
	e, err := n.ready()
	if err != nil {
		attached, lerr := n.attached()
		if lerr != nil {
			return cniError(cni.CodeUnavailable, errors.Join(err, lerr))
		}
		if attached > 0 {
			return cniError(cni.CodeLimited, err)
		}
		return cniError(cni.CodeUnavailable, err)
	}
	if err := e.workloads.disordered(); err != nil {
		return cniError(cni.CodeLimited, fmt.Errorf("the host's network is not in order: %w; see weft status", err))
	}
	if err := e.workloads.admits(""); err != nil { // a new one
		return cniError(cni.CodeUnavailable, err)
	}
	return cniError(cni.CodeUnavailable, e.alloc.Exhausted())
}

// attached is how many workloads there are, also before the node has come up.
func (n *Node) attached() (int, error) {
	if e := n.engines(); e != nil {
		return len(e.workloads.list()), nil
	}
	all, err := loadWorkloads(n.store)
	return len(all), err
}

// checkCNI names the first difference between what a runtime was told and the record, or between the record and the host.
func (ws *workloads) checkCNI(r cni.CheckRequest) error {
	var ns netns.ID
	var nsErr error
	if !r.AddressesOnly { // before the gate: a path may lead to a file system that does not answer
		ns, nsErr = ws.namespace(r.Netns)
	}
	id := keyID(r.Key)
	defer ws.lock.lock(id)()
	ws.gate.RLock()
	defer ws.gate.RUnlock()
	w, ok := ws.get(id)
	lease, held := ws.alloc.Lookup(id)
	if !ok || !held || w.CNI == nil || w.CNI.Network != r.Network {
		return cniError(cni.CodeUnknown, fmt.Errorf("container %s has no %s of network %s; add it", r.ContainerID, r.IfName, r.Network))
	}
	differs := func(err error) error {
		return cniError(cni.CodeDiffers, fmt.Errorf("%s of container %s: %w; delete it, and add it again", r.IfName, r.ContainerID, err))
	}
	if w.AddressesOnly != r.AddressesOnly {
		return differs(errors.New("it was added for another kind of plugin"))
	}
	if !w.AddressesOnly {
		if nsErr != nil {
			return cniError(cni.CodeEnvironment, advised(nsErr))
		}
		if string(ns) != w.NetnsID {
			return differs(fmt.Errorf("it is in %s, and not in %s", w.Netns, r.Netns))
		}
		w.Netns = r.Netns
	}
	want := onHost(w, lease)
	// Plugins behind Weft's may have added others.
	r.Want.Addresses = slices.DeleteFunc(slices.Clone(r.Want.Addresses), func(a netip.Addr) bool { return !ws.space.Contains(a) })
	if err := ws.promised(want, r.Want); err != nil {
		return differs(err)
	}
	if len(r.Want.Addresses) > 0 {
		want.Addrs = r.Want.Addresses // the namespace may be without IPv6
	}
	err := ws.host.Check(want)
	var d *hostnet.DifferenceError
	if errors.As(err, &d) {
		return differs(err)
	}
	return err
}

// promised names the first thing that a runtime was told otherwise than it is meant to be.
func (ws *workloads) promised(w hostnet.Workload, want cni.Attachment) error {
	is := func(what string, is, was any) error { return fmt.Errorf("it has %s %v, and not %v", what, is, was) }
	if !w.AddressesOnly {
		host, inside := hostnet.MACs(w)
		switch {
		case want.HostIf != "" && want.HostIf != hostnet.HostIf(w.ID):
			return is("the interface on the host", hostnet.HostIf(w.ID), want.HostIf)
		case want.HostMAC != "" && want.HostMAC != host.String():
			return is("the hardware address on the host", host, want.HostMAC)
		case want.MAC != "" && want.MAC != inside.String():
			return is("the hardware address", inside, want.MAC)
		case want.MTU != 0 && want.MTU != w.MTU:
			return is("an MTU of", w.MTU, want.MTU)
		}
	}
	for _, a := range want.Addresses {
		if !slices.Contains(w.Addrs, a) {
			return is("the addresses", w.Addrs, a)
		}
	}
	own, _ := ws.alloc.Lookup(hostOwner)
	for _, r := range want.Routes {
		if ws.space.Contains(r.GW) && !slices.Contains(addresses(own), r.GW) {
			return is("the gateways", addresses(own), r.GW)
		}
	}
	return nil
}
