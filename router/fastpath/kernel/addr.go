// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// addrs lists the IPv4 addresses of an interface, with the lengths of their networks.
func (c *conn) addrs(index int) ([]netip.Prefix, error) {
	head := nl.NewIfAddrmsg(unix.AF_INET)
	head.Index = uint32(index)
	msgs, err := c.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, head)
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	var out []netip.Prefix
	for _, m := range msgs {
		if a, at, ok := parseAddr(m); ok && at == index && a.Addr().Is4() {
			out = append(out, a)
		}
	}
	return out, nil
}

// parseAddr reads an ifaddrmsg with its attributes, and tells the interface.
func parseAddr(b []byte) (a netip.Prefix, index int, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, 0, false
	}
	var local, remote netip.Addr // the latter if there is no peer at the other end: the same
	ok = attributes(b, unix.SizeofIfAddrmsg, func(kind uint16, v []byte) {
		switch kind {
		case unix.IFA_LOCAL:
			local = readAddr(v)
		case unix.IFA_ADDRESS:
			remote = readAddr(v)
		}
	})
	if !local.IsValid() { // of IPv6
		local = remote
	}
	a = netip.PrefixFrom(local, int(b[1]))
	return a, int(int32(nl.NativeEndian().Uint32(b[4:]))), ok && a.IsValid()
}

// addAddr and removeAddr change the addresses of an interface; they may be so already. An address of the scope of this host is no
// source of its own accord.

func (c *conn) addAddr(index int, a netip.Prefix) error {
	if err := c.changeAddr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, a); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func (c *conn) removeAddr(index int, a netip.Prefix) error {
	if err := c.changeAddr(unix.RTM_DELADDR, 0, index, a); !errors.Is(err, unix.EADDRNOTAVAIL) {
		return err
	}
	return nil
}

func (c *conn) changeAddr(kind, flags, index int, a netip.Prefix) error {
	head := nl.NewIfAddrmsg(int(familyOf(a.Addr())))
	head.Index, head.Prefixlen, head.Scope = uint32(index), uint8(a.Bits()), unix.RT_SCOPE_HOST
	return c.change(kind, flags, head, attrAddr(unix.IFA_LOCAL, a.Addr()), attrAddr(unix.IFA_ADDRESS, a.Addr()))
}

// address gives a VXLAN device the host's address of IPv4, and no other.
//
// The kernel drops what comes by an interface without any, unless the way back is the same or nothing at all is checked, also where
// the reverse path filter is loose (fib_validate_source); and while the path to a peer changes, the way back is another.
func (d *devices) address(l link, want device, tell func(string, ...any)) error {
	have, err := d.conn.addrs(l.index)
	if err != nil {
		return err
	}
	want4 := netip.PrefixFrom(want.source, 32)
	if want.source.IsValid() && !slices.Contains(have, want4) {
		d.touched[l.name] = true
		if err := d.conn.addAddr(l.index, want4); err != nil {
			return explainDevice(l.name, fmt.Sprintf("adding the address %v to", want.source), err)
		}
		tell("address %v of device %s was deleted by somebody; set again", want.source, l.name)
	}
	for _, a := range have { // afterwards: with the last one go all routes
		if a == want4 {
			continue
		}
		if err := d.conn.removeAddr(l.index, a); err != nil {
			return explainDevice(l.name, fmt.Sprintf("removing the address %v of", a), err)
		}
		tell("address %v was added to device %s by somebody; removed", a, l.name)
	}
	return nil
}
