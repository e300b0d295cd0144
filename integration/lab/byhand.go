// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// AttachByHand connects the workload to its host without weft, as an administrator does: by a veth pair of the given MTU. The workload gets the
// second address of the v4 subnet and its default route by the first one, which is the host's; the host forwards from then on.
func (w *Workload) AttachByHand(subnet netip.Prefix, mtu int) {
	w.lab.tb.Helper()
	if err := w.attachByHand(subnet, mtu); err != nil {
		w.lab.tb.Fatalf("lab: attaching %s by hand: %v", w.name, err)
	}
	w.addresses = addresses{V4: subnet.Addr().Next().Next()}
}

func (w *Workload) attachByHand(subnet netip.Prefix, mtu int) error {
	near := subnet.Addr().Next()
	if err := w.host.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(w.fd()), PeerMTU: uint32(mtu)}
	veth.Name, veth.MTU = fmt.Sprintf("hand%x", near.As4()), mtu
	if err := w.host.nl.LinkAdd(veth); err != nil {
		return err
	}
	far, err := w.nl.LinkByName(veth.PeerName)
	if err != nil {
		return err
	}
	if err := w.host.raise(veth, netip.PrefixFrom(near, subnet.Bits())); err != nil {
		return err
	}
	if err := w.raise(far, netip.PrefixFrom(near.Next(), subnet.Bits())); err != nil {
		return err
	}
	return w.nl.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), Gw: near.AsSlice()})
}

// raise gives a device an address and sets it up.
func (n *Namespace) raise(dev netlink.Link, p netip.Prefix) error {
	if err := n.nl.AddrAdd(dev, address(p)); err != nil {
		return err
	}
	return n.nl.LinkSetUp(dev)
}

// RouteByHand gives the host a route by a next hop.
func (h *Host) RouteByHand(to netip.Prefix, by netip.Addr) {
	h.lab.tb.Helper()
	if err := h.nl.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: by.AsSlice()}); err != nil {
		h.lab.tb.Fatalf("lab: route of %s to %v by %v: %v", h.name, to, by, err)
	}
}

// VXLANByHand makes a VXLAN device on the host that leads to one remote underlay address, with an address and an MTU. It learns as the kernel does
// by default.
func (h *Host) VXLANByHand(name string, vni int, port uint16, remote netip.Addr, own netip.Prefix, mtu int) {
	h.lab.tb.Helper()
	local := h.link.v4
	if remote.Is6() {
		local = h.link.v6
	}
	dev := &netlink.Vxlan{
		LinkAttrs: netlink.NewLinkAttrs(), VxlanId: vni, Port: int(port), SrcAddr: local.AsSlice(), Group: remote.AsSlice(), Learning: true,
	}
	dev.Name, dev.MTU = name, mtu
	err := h.nl.LinkAdd(dev)
	if err == nil {
		err = h.raise(dev, own)
	}
	if err != nil {
		h.lab.tb.Fatalf("lab: VXLAN device of %s to %v: %v", h.name, remote, err)
	}
}
