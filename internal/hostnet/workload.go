// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/fault"
)

// DefaultIfName is the interface in a workload unless told otherwise.
const DefaultIfName = "eth0"

// loopback is the index of lo, in every namespace.
const loopback = 1

// Attach connects w, with the gateway addresses of the last Apply, which must have succeeded so far as to set up the device.
// When it returns, packets flow, unless it says that they do not yet, as [Host.Settle] waits for. If w is connected already, differences are put right and all else stays; if its namespace was
// made anew, so is the interface. On error nothing of a new connection remains; one that existed is left as it is.
//
// Inside, the interface gets its addresses, the MTU, the host as default gateway, with a permanent neighbour entry, and the
// loopback is brought up. A namespace that has a default route of another's making keeps it, for that family, and gets a route to the
// universe only; a namespace that can do no IPv6 gets none. Both are warnings.
//
// The errors of internal/netns say that w.Netns is no network namespace.
func (h *Host) Attach(w Workload) (Attached, error) {
	if w.AddressesOnly {
		return h.give(w)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	w, err := h.complete(w)
	if err != nil {
		return Attached{}, err
	}
	defer h.lanes.lock(w.ID)()
	file, err := openWorkload(w.Netns, h.ns)
	if err != nil {
		return Attached{}, err
	}
	defer func() { _ = file.Close() }() // opened for reading
	a := &attacher{Workload: w, state: h.last, netns: namespace(file.Fd())}
	defer a.hangUp()
	if done, made := a.quick(h.ns); !done {
		err = a.thorough(h.ns, made)
	}
	if err != nil {
		return Attached{}, err
	}
	return Attached{
		HostMAC: hostMAC(w.ID), MAC: w.mac(), MTU: w.MTU, Addrs: a.used, Routes: a.ways, Warnings: a.warnings, Unsettled: a.unsettled,
	}, nil
}

// thorough connects a workload whatever it finds. If the interface was made just now it does not outlive an error.
func (a *attacher) thorough(host namespace, made bool) (err error) {
	defer func() {
		if err != nil && made {
			err = errors.Join(err, a.discard())
		}
	}()
	if a.host, err = host.open(); err != nil {
		return err
	}
	defer a.host.Close()
	if a.inner, err = a.netns.open(); err != nil {
		return err
	}
	defer a.inner.Close()
	created, err := a.pair()
	made = made || created
	if err == nil {
		err = vethSettings(host, HostIf(a.ID), a.state)
	}
	for _, step := range []func() error{a.links, a.inside, a.outside, a.settle, a.finish} {
		if err == nil {
			err = step()
		}
	}
	return err
}

// complete fills in defaults and refuses what cannot be.
func (h *Host) complete(w Workload) (Workload, error) {
	if h.last == nil {
		return w, errors.New("the host's network is not set up yet; try again in a moment")
	}
	if w.ID == "" || len(w.ID) > maxID {
		return w, fmt.Errorf("workload ID %q has %d bytes; use 1 to %d", w.ID, len(w.ID), maxID)
	}
	w.IfName = cmp.Or(w.IfName, DefaultIfName)
	w.MTU = cmp.Or(w.MTU, h.last.mtu)
	if w.MTU < minMTU || w.MTU > maxMTU {
		return w, fmt.Errorf("an MTU of %d is not possible for workload %s; choose %d to %d", w.MTU, w.ID, minMTU, maxMTU)
	}
	if err := w.checkMAC(); err != nil {
		return w, err
	}
	if len(w.Addrs) == 0 {
		return w, fmt.Errorf("workload %s has no address", w.ID)
	}
	if err := onePerFamily(w.Addrs, func(a netip.Addr) netip.Addr { return a }); err != nil {
		return w, fmt.Errorf("workload %s has %w", w.ID, err)
	}
	for _, a := range w.Addrs {
		if err := within(a, h.last.universe); err != nil {
			return w, err
		}
	}
	for _, a := range h.last.usable(w) {
		if _, ok := h.last.gateways[a.Is6()]; !ok {
			return w, fmt.Errorf("the host has no overlay address yet to be the gateway of %v; try again in a moment", a)
		}
	}
	return w, nil
}

// Detach disconnects a workload, of which the ID counts, or the addresses if it has nothing else; with the addresses of one that has an interface it is quicker. It is
// no error if it is not connected, or if its namespace is gone.
func (h *Host) Detach(w Workload) error {
	if w.AddressesOnly {
		return h.take(w)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	defer h.lanes.lock(w.ID)()
	l, err := h.ns.line()
	if err != nil {
		return err
	}
	defer l.close()
	link, err := l.link(HostIf(w.ID), 0)
	if err != nil || !vethOf(link, w.ID) {
		return err
	}
	return h.unplug(l, link, w.Addrs) // with the peer, and all routes and neighbours of both
}

// attacher connects one workload.
type attacher struct {
	Workload
	state       *applied
	netns       namespace
	host, inner conn
	exit        *line // to the host, from quick on; nil: it could not be opened
	heard       int   // bytes of what the kernel has answered by lines that are closed

	outer, peer netlink.Link // the two ends
	used        []netip.Addr // addresses that the workload got
	ways        []Route
	warnings    []string
	unsettled   bool
}

// pair finds the workload's veth or makes one, with both ends down and at their final places.
func (a *attacher) pair() (created bool, err error) {
	name := HostIf(a.ID)
	if a.outer, err = a.host.link(name); err != nil {
		return false, err
	}
	if a.peer, err = a.inner.link(a.IfName); err != nil {
		return false, err
	}
	if a.outer != nil {
		if !vethOf(a.outer, a.ID) {
			return false, fmt.Errorf("interface %s exists on the host and is not that of workload %s; delete it, as by: ip link delete %s", name, a.ID, name)
		}
		if a.ends() {
			return false, nil
		}
	}
	if a.peer != nil {
		return false, a.taken()
	}
	if a.outer != nil { // leads to a namespace that was replaced, or to another name
		if err := a.host.remove(a.outer); err != nil {
			return false, err
		}
		fault.Point("thorough-removed")
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Group = name, a.MTU, hostMAC(a.ID), groupWorkloads
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // see newVeth
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerMTU, v.PeerHardwareAddr, v.PeerNamespace = a.IfName, uint32(a.MTU), a.mac(), netlink.NsFd(a.netns)
	err = a.host.LinkAdd(v)
	if errors.Is(err, unix.EEXIST) {
		if a.peer, _ = a.inner.link(a.IfName); a.peer != nil {
			return false, a.taken()
		}
	}
	if err != nil {
		return false, fmt.Errorf("making interface %s in %s: %w", a.IfName, a.Netns, err)
	}
	fault.Point("thorough-made")
	a.outer = v
	a.peer, err = a.inner.link(a.IfName)
	if err == nil && a.peer == nil {
		err = fmt.Errorf("interface %s has gone from %s while it was set up; try again", a.IfName, a.Netns)
	}
	if err != nil {
		return false, errors.Join(err, a.host.remove(a.outer))
	}
	return true, nil
}

// ends says whether the two links are the ends of one veth: each names the other by its index, and the host's end names the
// namespace of the other.
func (a *attacher) ends() bool {
	if a.peer == nil || a.peer.Type() != "veth" {
		return false
	}
	outer, peer := a.outer.Attrs(), a.peer.Attrs()
	if outer.ParentIndex != peer.Index || peer.ParentIndex != outer.Index {
		return false
	}
	id, err := a.host.GetNetNsIdByFd(int(a.netns))
	return err == nil && id == outer.NetNsID
}

// taken says whose the interface in the workload is.
func (a *attacher) taken() error {
	l, err := a.host.LinkByIndex(a.peer.Attrs().ParentIndex)
	if err == nil && a.peer.Type() == "veth" {
		if id, ours := veth(l); ours && id != "" && id != a.ID && l.Attrs().ParentIndex == a.peer.Attrs().Index {
			return fmt.Errorf("interface %s in %s belongs to workload %s; detach that first, or choose another with --ifname", a.IfName, a.Netns, id)
		}
	}
	return fmt.Errorf("interface %s already exists in %s and is not Weft's; choose another with --ifname", a.IfName, a.Netns)
}

// links brings both ends up: the host's first and the workload's second, so that the workload can send at once.
func (a *attacher) links() error {
	fault.Point("thorough-links")
	m := &mender{c: a.host, state: a.state}
	if err := m.up(a.outer, a.Workload); err != nil {
		return err
	}
	p := a.peer.Attrs()
	fail := func(err error) error { return fmt.Errorf("setting up %s in %s: %w", a.IfName, a.Netns, err) }
	if p.HardwareAddr.String() != a.mac().String() {
		if err := a.inner.LinkSetHardwareAddr(a.peer, a.mac()); err != nil {
			return fail(err)
		}
	}
	if p.MTU != a.MTU {
		if err := a.inner.LinkSetMTU(a.peer, a.MTU); err != nil {
			return fail(err)
		}
	}
	return nil
}

// inside gives the workload its addresses, the way out and its loopback.
func (a *attacher) inside() error {
	fail := func(what any, err error) error {
		return fmt.Errorf("setting up %s in %s: %v: %w", a.IfName, a.Netns, what, err)
	}
	fault.Point("thorough-inside")
	if err := a.strays(); err != nil {
		return err
	}
	for _, addr := range a.state.usable(a.Workload) { // of the others Apply has warned
		err := a.inner.AddrReplace(a.peer, address(addr))
		if addr.Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)) {
			a.warnings = append(a.warnings, fmt.Sprintf("IPv6 is disabled in %s: it gets no IPv6 address; set net.ipv6.conf.default.disable_ipv6 to 0 there and attach it anew", a.Netns))
			continue
		}
		if err != nil {
			return fail(addr, err)
		}
		a.used = append(a.used, addr)
	}
	if err := a.inner.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: loopback}}); err != nil {
		return fail("lo", err)
	}
	if err := a.inner.LinkSetUp(a.peer); err != nil {
		return fail("up", err)
	}
	for _, addr := range a.used {
		gateway := a.state.gateways[addr.Is6()]
		if err := a.inner.NeighSet(neighbour(a.peer.Attrs().Index, gateway, hostMAC(a.ID))); err != nil {
			return fail(gateway, err)
		}
		if err := a.wayOut(addr, gateway); err != nil {
			return err
		}
	}
	return nil
}

// strays removes addresses inside the universe that the workload does not have any more; others are none of Weft's business.
func (a *attacher) strays() error {
	have, err := a.inner.addrs(a.peer, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for i, x := range have {
		addr, ok := netip.AddrFromSlice(x.IP)
		addr = addr.Unmap()
		if !ok || within(addr, a.state.universe) != nil || slices.Contains(a.Addrs, addr) {
			continue
		}
		if err := a.inner.AddrDel(a.peer, &have[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("removing %v from %s in %s: %w", addr, a.IfName, a.Netns, err)
		}
	}
	return nil
}

// defaultBy is a workload's default route.
func defaultBy(addr, gateway netip.Addr, link int) netlink.Route {
	r := netlink.Route{
		LinkIndex: link, Gw: gateway.AsSlice(), Src: addr.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN, Family: family(addr), Type: unix.RTN_UNICAST,
	}
	if addr.Is6() {
		r.Priority = metric6
	}
	return r
}

// wayOut sets the default route, or that to the universe only.
func (a *attacher) wayOut(addr, gateway netip.Addr) error {
	list, err := a.inner.routes(family(addr))
	if err != nil {
		return err
	}
	index := a.peer.Attrs().Index
	want := defaultBy(addr, gateway, index)
	dst := everywhere(addr.Is6())
	var universe netip.Prefix
	for _, p := range a.state.universe {
		if p.Contains(addr) {
			universe = p
		}
	}
	mine, foreign := false, 0
	for _, r := range list {
		k, ok := keyOf(r)
		switch {
		case !ok:
		case r.Protocol == RouteProtocol && r.LinkIndex != index:
			return fmt.Errorf("%s is attached already, by another interface than %s; detach that first", a.Netns, a.IfName)
		case k.dst.Bits() != 0:
		case r.Protocol == RouteProtocol:
			mine = true
		default:
			foreign = r.LinkIndex
		}
	}
	if foreign != 0 && !mine {
		dst, want.Dst = universe, ipNet(universe)
		via := fmt.Sprintf("interface %d", foreign)
		if l, err := a.inner.LinkByIndex(foreign); err == nil {
			via = l.Attrs().Name
		}
		a.warnings = append(a.warnings, fmt.Sprintf("%s keeps its default route by %s: only %v is reached through Weft", a.Netns, via, universe))
	}
	err = a.inner.RouteAdd(&want)
	switch {
	case errors.Is(err, unix.EEXIST):
		if err := a.replace(want, dst, list); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("setting the route by %v in %s: %w", gateway, a.Netns, err)
	}
	a.ways = append(a.ways, Route{Dst: dst, Gateway: gateway})
	return nil
}

// replace puts the route in the place of an earlier one of Weft's.
func (a *attacher) replace(want netlink.Route, dst netip.Prefix, list []netlink.Route) error {
	for _, r := range list {
		if k, ok := keyOf(r); ok && k == (routeKey{dst, want.Priority}) && r.Protocol == RouteProtocol {
			if r.Gw.Equal(want.Gw) && r.Src.Equal(want.Src) {
				return nil
			}
			return explainRoute(k, a.inner.RouteReplace(&want))
		}
	}
	return fmt.Errorf("there is a route to %v in %s already that is not Weft's; delete it", dst, a.Netns)
}

// outside leads the workload's addresses to it.
func (a *attacher) outside() error {
	fault.Point("thorough-outside")
	index := a.outer.Attrs().Index
	for _, addr := range a.state.usable(a.Workload) {
		if err := a.host.NeighSet(neighbour(index, addr, a.mac())); err != nil {
			return fmt.Errorf("setting the neighbour %v: %w", addr, err)
		}
		r := a.state.route(netip.PrefixFrom(addr, addr.BitLen()), index)
		k, _ := keyOf(r)
		err := a.host.RouteAdd(&r)
		if errors.Is(err, unix.EEXIST) {
			err = a.reroute(r, k)
		}
		if err := explainRoute(k, err); err != nil {
			return err
		}
	}
	return nil
}

// reroute replaces an earlier route of Weft's on the host; that of others stays, and is the error EEXIST.
func (a *attacher) reroute(want netlink.Route, k routeKey) error {
	list, err := a.host.routes(want.Family)
	if err != nil {
		return err
	}
	for _, r := range list {
		if old, ok := keyOf(r); ok && old == k && r.Protocol == RouteProtocol {
			if same(want, r) {
				return nil
			}
			return a.host.RouteReplace(&want)
		}
	}
	return unix.EEXIST
}

// settle notes whether packets flow yet.
func (a *attacher) settle() error {
	fault.Point("thorough-settle")
	a.unsettled = !a.host.running(a.outer, briefly) || !a.inner.running(a.peer, briefly)
	for _, addr := range a.used {
		a.unsettled = a.unsettled || !a.inner.settled(addr, briefly)
	}
	a.host.slim(a.outer.Attrs().Index)
	return nil
}

// finish gives the host's end its alias, which says that all is done: one without it is connected again by whoever comes next.
func (a *attacher) finish() error {
	fault.Point("thorough-finish")
	if a.outer.Attrs().Alias != "" {
		return nil
	}
	if err := a.host.LinkSetAlias(a.outer, aliasPrefix+a.ID); err != nil {
		return fmt.Errorf("marking interface %s: %w", a.outer.Attrs().Name, err)
	}
	return nil
}
