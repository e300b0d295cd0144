// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A surplus is an object that has no place among the others: a second one of the same key. It is removed by what the kernel has said of it.
type surplus struct {
	what   fmt.Stringer
	kind   int // of the request that removes it
	body   []byte
	remove func(error) error
}

// objects lists the objects that bear Weft's marks: once for each kind and family, and for each device. Devices are not among them.
func (c *conn) objects(cfg Config, links map[string]link) (objects, []surplus, error) {
	out := newObjects()
	d := &dumper{conn: c, config: cfg, out: out, names: map[int]string{}}
	for name, l := range links {
		d.names[l.index] = name
	}
	for _, name := range []string{Device4, Device6} {
		if l, ok := links[name]; ok {
			if err := d.device(name, l.index); err != nil {
				return out, nil, err
			}
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := d.routes(family); err != nil {
			return out, nil, err
		}
		if err := d.rules(family); err != nil {
			return out, nil, err
		}
	}
	return out, d.extra, nil
}

type dumper struct {
	*conn
	config Config
	names  map[int]string // of interfaces
	out    objects
	extra  []surplus
}

func (d *dumper) name(index int) string {
	if n, ok := d.names[index]; ok {
		return n
	}
	return fmt.Sprintf("interface %d", index)
}

// device lists the forwarding entries and neighbours of a VXLAN device.
func (d *dumper) device(name string, index int) error {
	msgs, err := d.dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(index)})
	if err != nil {
		return fmt.Errorf("listing the forwarding entries of %s: %w", name, err)
	}
	for _, m := range msgs {
		e, ok := parseEntry(m)
		if !ok || e.index != index || e.family != unix.AF_BRIDGE {
			continue
		}
		key := entryKey{name, e.mac}
		if _, ok := d.out.fdb[key]; ok {
			d.extra = append(d.extra, surplus{key, unix.RTM_DELNEIGH, m, func(err error) error { return goneNeighbour(key, err) }})
			continue
		}
		d.out.fdb[key] = e.remote(d.config.Port)
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msgs, err := d.dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: family}, attr32(unix.NDA_IFINDEX, uint32(index)))
		if err != nil {
			return fmt.Errorf("listing the neighbours on %s: %w", name, err)
		}
		for _, m := range msgs {
			if e, ok := parseEntry(m); ok && e.index == index && e.family == family && e.state == unix.NUD_PERMANENT && e.hard {
				d.out.neighbours[neighbourKey{name, e.addr}] = e.mac
			}
		}
	}
	return nil
}

// remote is where a forwarding entry leads to, invalid if that is nothing that Weft would set.
func (e entry) remote(port uint16) netip.AddrPort {
	if e.odd || !e.hard {
		return netip.AddrPort{}
	}
	if e.port != 0 {
		port = e.port
	}
	return netip.AddrPortFrom(e.addr, port)
}

func (d *dumper) routes(family uint8) error {
	msgs, err := d.dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Protocol: RouteProtocol}})
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, m := range msgs {
		key, r, ours := parseRoute(m, d.name)
		if !ours || m[0] != family {
			continue
		}
		if _, ok := d.out.routes[key]; ok {
			d.extra = append(d.extra, surplus{key, unix.RTM_DELROUTE, m, func(err error) error { return goneRoute(key, err) }})
			continue
		}
		d.out.routes[key] = r
	}
	return nil
}

func (d *dumper) rules(family uint8) error {
	msgs, err := d.dump(unix.RTM_GETRULE, unix.RTM_NEWRULE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
	if err != nil {
		return fmt.Errorf("listing rules: %w", err)
	}
	for _, m := range msgs {
		r, ours := parseRule(m)
		if !ours || m[0] != family {
			continue
		}
		if _, ok := d.out.rules[r]; ok || r.odd {
			d.extra = append(d.extra, surplus{r, unix.RTM_DELRULE, m, func(err error) error { return goneRule(r, err) }})
			continue
		}
		d.out.rules[r] = struct{}{}
	}
	return nil
}
