// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weftnet/weft/cni"
)

// given is what a container has.
type given struct {
	request cni.Request
	is      cni.Attachment
}

// CNIAttach implements api.Service: the n-th container gets 10.32.0.n+1, or what it wants.
func (d *Daemon) CNIAttach(_ context.Context, r cni.Request) (cni.Attachment, error) {
	if d.Refuse != "" {
		return cni.Attachment{}, &cni.Error{Code: cni.CodeFailed, Msg: d.Refuse}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if g, ok := d.given[r.Key]; ok {
		if !reflect.DeepEqual(g.request, r) {
			return cni.Attachment{}, &cni.Error{Code: cni.CodeFailed, Msg: fmt.Sprintf("%s of container %s exists, and was asked for otherwise", r.IfName, r.ContainerID), Details: "delete it first"}
		}
		return g.is, nil
	}
	host, mtu := netip.MustParseAddr("10.32.0.1"), 1420
	a := cni.Attachment{
		MTU: mtu, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 32, 0, byte(len(d.given) + 2)})},
		Routes: []cni.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: host}},
	}
	if len(r.IPs) > 0 {
		a.Addresses = slices.Clone(r.IPs)
	}
	if r.MTU != 0 {
		a.MTU = r.MTU
	}
	if r.AddressesOnly {
		a.Universe = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}
	} else {
		a.HostIf, a.HostMAC, a.MAC = "weft0123456789", "06:01:23:45:67:89", "0a:01:23:45:67:89"
		if r.MAC != "" {
			a.MAC = r.MAC
		}
	}
	if d.given == nil {
		d.given = map[cni.Key]given{}
	}
	d.given[r.Key] = given{r, a}
	return a, nil
}

// CNICheck implements api.Service.
func (d *Daemon) CNICheck(_ context.Context, r cni.CheckRequest) error {
	if d.Refuse != "" {
		return &cni.Error{Code: cni.CodeFailed, Msg: d.Refuse}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Key == (cni.Key{}) {
		if d.Unavailable != nil {
			return d.Unavailable
		}
		return nil
	}
	g, ok := d.given[r.Key]
	switch {
	case !ok || g.request.Network != r.Network:
		return &cni.Error{Code: cni.CodeUnknown, Msg: fmt.Sprintf("container %s has no %s", r.ContainerID, r.IfName), Details: "add it"}
	case len(r.Want.Addresses) > 0 && !slices.Equal(g.is.Addresses, r.Want.Addresses):
		return &cni.Error{Code: cni.CodeDiffers, Msg: fmt.Sprintf("it has %v, not %v", g.is.Addresses, r.Want.Addresses), Details: "make it anew"}
	}
	return nil
}

// CNIDetach implements api.Service.
func (d *Daemon) CNIDetach(_ context.Context, r cni.Release) error {
	if d.Refuse != "" {
		return &cni.Error{Code: cni.CodeFailed, Msg: d.Refuse}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, g := range d.given {
		if g.request.Network == r.Network && (key == r.Key || r.Key == (cni.Key{}) && !slices.Contains(r.Valid, key)) {
			delete(d.given, key)
		}
	}
	return nil
}
