// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Addresses alone are for an interface that somebody else makes, such as another plugin of a container runtime, and for which they make a route on
// the host. The rules let packets pass from such an address if they come by the device to which its route leads, and to it by whichever device
// its route says. As long as it has none, its packets are on the TUN device, as those of any address that nobody has.

// givenSet holds those addresses.
func givenSet(v6 bool) setKind { return setKind{name: "given" + digit(v6), key: addrType(v6)} }

// given matches packets of the range p with such an address.
func given(p netip.Prefix, f field) []expr.Any {
	v6 := p.Addr().Is6()
	return append(match(p, f, expr.CmpOpEq), f.load(v6, register), &expr.Lookup{SourceRegister: register, SetName: givenSet(v6).name})
}

// addGiven adds the sets.
func (f filters) addGiven(r *rules) {
	for _, v6 := range []bool{false, true} {
		s := givenSet(v6)
		r.sets = append(r.sets, s)
		r.elements[s.name] = map[element]bool{}
	}
	for _, a := range f.given {
		r.elements[givenSet(a.Is6()).name][element{key: string(a.AsSlice())}] = true
	}
}

// addressesOnly are the addresses for interfaces of others.
func (d Desired) addressesOnly() (list []netip.Addr) {
	for _, w := range d.Workloads {
		if w.AddressesOnly {
			list = append(list, w.Addrs...)
		}
	}
	return list
}

// give lets packets from and to the addresses of a workload pass that has nothing but addresses.
func (h *Host) give(w Workload) (Attached, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w, err := h.complete(w)
	if err != nil {
		return Attached{}, err
	}
	if h.table == nil || !h.table.use.fib {
		return Attached{}, errors.New("addresses cannot be given to other plugins on this host, as nftables cannot tell where their packets come from; use a kernel with CONFIG_NFT_FIB_INET")
	}
	before := h.table.filters.given
	got := Attached{MTU: w.MTU, Addrs: h.last.usable(w)}
	for _, a := range got.Addrs {
		got.Routes = append(got.Routes, Route{Dst: everywhere(a.Is6()), Gateway: h.last.gateways[a.Is6()]})
	}
	if err := h.setGiven(append(slices.Clone(before), w.Addrs...)); err != nil {
		return Attached{}, errors.Join(fmt.Errorf("letting packets of %v pass: %w", w.Addrs, err), h.setGiven(before))
	}
	return got, nil
}

// take has packets from and to those addresses pass no longer.
func (h *Host) take(w Workload) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.table == nil {
		return nil
	}
	left := slices.DeleteFunc(slices.Clone(h.table.filters.given), func(a netip.Addr) bool { return slices.Contains(w.Addrs, a) })
	if err := h.setGiven(left); err != nil {
		return fmt.Errorf("letting no more packets of %v pass: %w", w.Addrs, err)
	}
	return nil
}

// setGiven sends the difference to what was given so far, or puts the whole table right if the kernel does not have what it should.
func (h *Host) setGiven(addrs []netip.Addr) error {
	h.table.filters.given = addrs
	before := h.table.rules.elements
	h.table.rules = h.table.filters.table(h.table.use, before)
	del, add := difference(before, h.table.rules.elements)
	if len(del)+len(add) == 0 || h.change(del, add) == nil {
		return nil
	}
	have, _ := h.look()
	h.inspect(have)
	return h.table.put(h, have)
}

// checkGiven says whether the kernel lets packets of a workload pass that has nothing but addresses, and leads those to it to an interface that
// somebody has made for it.
func (h *Host) checkGiven(w Workload) error {
	c, err := h.ns.open()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, a := range h.last.usable(w) {
		passing, err := readSet(h.ns, givenSet(a.Is6()).name)
		if err != nil && !errors.Is(err, unix.ENOENT) { // the table may be gone
			return err
		}
		if _, ok := passing[element{key: string(a.AsSlice())}]; !ok {
			return differs("packets of %v are not let through", a)
		}
		led, err := c.led(a)
		if err != nil {
			return err
		}
		if !led {
			return differs("the host has no route to %v by an interface of another plugin", a)
		}
	}
	return nil
}

// led says whether packets to an address leave by a device that is not the TUN device.
func (c conn) led(a netip.Addr) (bool, error) {
	routes, err := c.RouteGet(a.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking for the route to %v: %w", a, err)
	}
	for _, r := range routes {
		l, err := c.LinkByIndex(r.LinkIndex)
		if err != nil {
			return false, fmt.Errorf("looking for the interface that leads to %v: %w", a, err)
		}
		if r.Type != unix.RTN_UNICAST || tunnel(l) {
			return false, nil
		}
	}
	return len(routes) > 0, nil
}
