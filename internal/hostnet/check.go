// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A DifferenceError says what of a workload is not as Attach has made it.
type DifferenceError struct{ Text string }

func (e *DifferenceError) Error() string { return e.Text }

func differs(format string, args ...any) error {
	return &DifferenceError{Text: fmt.Sprintf(format, args...)}
}

// Check compares a workload with what the kernel has, changes nothing, and returns the first difference, a [DifferenceError]: of the
// interface on the host, that inside, their connection, state, hardware addresses and MTU; then of addresses, routes and neighbours inside; then
// of those on the host. Other errors say that it cannot be told. w.Addrs are those that [Host.Attach] has said to be in use.
//
// Of addresses alone it looks whether the rules let their packets pass, and whether the host has a route to them by somebody else's interface.
//
// What others have added to the namespace is no difference, but for addresses of the universe on the interface.
func (h *Host) Check(w Workload) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	w, err := h.complete(w)
	if err != nil {
		return err
	}
	if w.AddressesOnly {
		return h.checkGiven(w)
	}
	defer h.lanes.lock(w.ID)()
	file, err := openWorkload(w.Netns, h.ns)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // opened for reading
	c := &checker{attacher{Workload: w, state: h.last, netns: namespace(file.Fd())}}
	if c.host, err = h.ns.open(); err != nil {
		return err
	}
	defer c.host.Close()
	if c.inner, err = c.netns.open(); err != nil {
		return err
	}
	defer c.inner.Close()
	for _, step := range []func() error{c.ends, c.links, c.addresses, c.inside, c.outside} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// checker looks at one workload, in the way in which it was attached.
type checker struct{ attacher }

func (c *checker) ends() (err error) {
	name := HostIf(c.ID)
	if c.outer, err = c.host.link(name); err != nil {
		return err
	}
	if c.peer, err = c.inner.link(c.IfName); err != nil {
		return err
	}
	switch {
	case !vethOf(c.outer, c.ID):
		return differs("interface %s on the host is gone", name)
	case c.peer == nil:
		return differs("interface %s in %s is gone", c.IfName, c.Netns)
	case !c.attacher.ends():
		return differs("interface %s in %s is not the other end of %s", c.IfName, c.Netns, name)
	}
	return nil
}

func (c *checker) links() error {
	inside := fmt.Sprintf("%s in %s", c.IfName, c.Netns)
	for _, x := range []struct {
		name string
		link *netlink.LinkAttrs
		mac  net.HardwareAddr
	}{
		{HostIf(c.ID) + " on the host", c.outer.Attrs(), hostMAC(c.ID)},
		{inside, c.peer.Attrs(), c.mac()},
	} {
		switch {
		case x.link.Flags&net.FlagUp == 0:
			return differs("interface %s is down", x.name)
		case x.link.HardwareAddr.String() != x.mac.String():
			return differs("interface %s has the hardware address %v instead of %v", x.name, x.link.HardwareAddr, x.mac)
		case x.link.MTU != c.MTU:
			return differs("interface %s has an MTU of %d instead of %d", x.name, x.link.MTU, c.MTU)
		}
	}
	return nil
}

func (c *checker) addresses() error {
	list, err := c.inner.addrs(c.peer, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	have := map[netip.Addr]bool{}
	for _, x := range list {
		a, _ := netip.AddrFromSlice(x.IP)
		if a = a.Unmap(); !slices.Contains(c.Addrs, a) && within(a, c.state.universe) == nil {
			return differs("interface %s in %s has the address %v, which is not its own", c.IfName, c.Netns, a)
		}
		have[a] = x.IPNet.String() == hostPrefix(a).String()
	}
	for _, a := range c.state.usable(c.Workload) {
		if whole, ok := have[a]; !ok {
			return differs("interface %s in %s lacks the address %v", c.IfName, c.Netns, a)
		} else if !whole {
			return differs("interface %s in %s has the address %v with another prefix than %v", c.IfName, c.Netns, a, hostPrefix(a))
		}
	}
	return nil
}

// inside looks at the way out.
func (c *checker) inside() error {
	lo, err := c.inner.LinkByIndex(1)
	if err != nil {
		return fmt.Errorf("looking for lo in %s: %w", c.Netns, err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		return differs("interface lo in %s is down", c.Netns)
	}
	index := c.peer.Attrs().Index
	for _, a := range c.state.usable(c.Workload) {
		gateway := c.state.gateways[a.Is6()]
		list, err := c.inner.routes(family(a))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list, func(r netlink.Route) bool {
			k, ok := keyOf(r)
			return ok && (k.dst.Bits() == 0 || slices.Contains(c.state.universe, k.dst)) && r.Protocol == RouteProtocol &&
				r.LinkIndex == index && r.Gw.Equal(gateway.AsSlice()) && r.Src.Equal(a.AsSlice()) && r.Type == unix.RTN_UNICAST
		}) {
			return differs("%s has no route out by %v from %v", c.Netns, gateway, a)
		}
		if err := c.neighbour(c.inner, index, gateway, hostMAC(c.ID), "in "+c.Netns); err != nil {
			return err
		}
	}
	return nil
}

// outside looks at the way in.
func (c *checker) outside() error {
	index := c.outer.Attrs().Index
	for _, a := range c.state.usable(c.Workload) {
		want := c.state.route(netip.PrefixFrom(a, a.BitLen()), index)
		key, _ := keyOf(want)
		list, err := c.host.routes(family(a))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list, func(r netlink.Route) bool {
			k, ok := keyOf(r)
			return ok && k == key && r.Protocol == RouteProtocol && same(want, r)
		}) {
			return differs("the host has no route to %v by %s", a, HostIf(c.ID))
		}
		if err := c.neighbour(c.host, index, a, c.mac(), "on the host"); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) neighbour(k conn, link int, a netip.Addr, mac net.HardwareAddr, where string) error {
	list, err := dump(func() ([]netlink.Neigh, error) { return k.NeighList(link, family(a)) })
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	for _, n := range list {
		if n.IP.Equal(a.AsSlice()) && n.State == netlink.NUD_PERMANENT {
			if n.HardwareAddr.String() != mac.String() {
				return differs("the neighbour %v %s has the hardware address %v instead of %v", a, where, n.HardwareAddr, mac)
			}
			return nil
		}
	}
	return differs("the permanent neighbour %v %s is gone", a, where)
}
