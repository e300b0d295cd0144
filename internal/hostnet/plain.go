// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Plaintext is what may leave this host and come to it by kernel paths, that is, unsealed. The zero value is nothing.
//
// With a port alone nothing may leave or come, and workloads, and whoever is translated to an address of this host, still cannot send to
// it, so that they cannot pretend to be this host towards peers that take its tunnels yet.
//
// Of prefixes in one list that overlap at one place the larger one counts.
type Plaintext struct {
	VXLANPort uint16   // UDP port where tunnels end on this host; 0: there are no kernel paths at all, and the rest must be empty
	Devices   []string // of VXLAN; their names begin with "weft-"
	Out       []Out
	In        []In
	Tunnels   []Tunnel

	// Keep, in a [Desired], keeps what the last [Host.SetPlain] has set, all of it; before the first one what an earlier run has left
	// in the sets of the table, so that its traffic goes on until this run knows better. Out, In and Tunnels do not count then.
	Keep bool
}

// Out is a destination on the overlay that packets may leave for by a device that is neither the TUN device nor a workload's. Probes of
// kernel paths, by their marks, need none.
type Out struct {
	Device string // of VXLAN, or a link of the host
	Prefix netip.Prefix
}

// In is a source on the overlay that may come in by a link of the host. What comes by VXLAN is a [Tunnel]'s.
type In struct {
	Device string
	MAC    net.HardwareAddr // of the neighbour that it has to come from
	Prefix netip.Prefix
}

// Tunnel is a source on the overlay that may come in by VXLAN from a node.
type Tunnel struct {
	Remote netip.Addr   // underlay address of the node
	Port   uint16       // UDP, where tunnels end on the node; 0: as on this host
	Prefix netip.Prefix // what the node has
}

// linkPrefix begins the names of devices that are no workload's, but the TUN device's.
const linkPrefix = ifPrefix + "-"

// normal returns p with addresses in their shortest form, or says what is wrong with it.
func (p Plaintext) normal(universe []netip.Prefix) (Plaintext, error) {
	if p.VXLANPort == 0 {
		if len(p.Devices)+len(p.Out)+len(p.In)+len(p.Tunnels) > 0 {
			return p, errors.New("kernel paths need a UDP port for VXLAN, also if there is none of that kind")
		}
		return p, nil
	}
	p.Devices = slices.Clone(p.Devices)
	slices.Sort(p.Devices)
	for _, d := range p.Devices {
		if !strings.HasPrefix(d, linkPrefix) {
			return p, fmt.Errorf("%s is no device of VXLAN that Weft could have made; its name has to begin with %s", d, linkPrefix)
		}
	}
	for _, o := range p.Out {
		if err := errors.Join(named(o.Device), inside(o.Prefix, universe)); err != nil {
			return p, err
		}
	}
	for _, i := range p.In {
		if err := errors.Join(named(i.Device), inside(i.Prefix, universe)); err != nil {
			return p, err
		}
		if len(i.MAC) != 6 || slices.Contains(p.Devices, i.Device) {
			return p, fmt.Errorf("%v cannot come by %s from the hardware address %q; a link has neighbours with one of 6 bytes, VXLAN has tunnels", i.Prefix, i.Device, i.MAC)
		}
	}
	p.Tunnels = slices.Clone(p.Tunnels)
	for n := range p.Tunnels {
		t := &p.Tunnels[n]
		t.Remote = t.Remote.Unmap()
		if !t.Remote.IsValid() || t.Remote.Zone() != "" || within(t.Remote, universe) == nil {
			return p, fmt.Errorf("%v is no address of the underlay", t.Remote)
		}
		if err := inside(t.Prefix, universe); err != nil {
			return p, err
		}
	}
	return p, nil
}

func named(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return fmt.Errorf("%q is no name of a device; it has 1 to %d bytes", name, unix.IFNAMSIZ-1)
	}
	return nil
}

// inside says what is wrong with a prefix that is to be a part of the universe.
func inside(p netip.Prefix, universe []netip.Prefix) error {
	if !p.IsValid() || p != p.Masked() {
		return fmt.Errorf("%v is no range; give one whose host bits are zero", p)
	}
	if !slices.ContainsFunc(universe, func(u netip.Prefix) bool { return u.Bits() <= p.Bits() && u.Contains(p.Addr()) }) {
		return fmt.Errorf("%v lies outside the range of this mesh, %v", p, universe)
	}
	return nil
}

// Support says, in one line, why this host can have no kernel paths as far as nftables is concerned; nil if it can. It tries:
// all rules and sets are made, and removed again, in one transaction, under a name of their own.
func (h *Host) Support() error {
	f := filters{
		device: DefaultDevice, universe: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		addrs: map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.1"), true: netip.MustParseAddr("2001:db8::1")},
		port:  1, devices: []string{linkPrefix + "probe"},
	}
	c, err := h.writer()
	if err != nil {
		return unsupported(err)
	}
	return unsupported(f.table(everything(), contents{}).try(c))
}

// unsupported explains why the kernel has refused the sets and rules of kernel paths.
func unsupported(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("nftables refuses the rules of kernel paths: %w; use Linux 5.7 or later with CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, CONFIG_NFT_NAT, CONFIG_NFT_MASQ and CONFIG_NFT_FIB_INET", err)
}

// SetPlain changes what may go by kernel paths, between two calls of [Host.Apply], of which there must have been one. It sends
// the difference, in one transaction, or replaces the table if so many elements are to go that this is quicker; Keep does not count.
// On error nothing has changed, unless the table itself had been lost: then the next Apply makes it.
func (h *Host) SetPlain(p Plaintext) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.table == nil {
		return errors.New("the host's network is not set up yet; try again in a moment")
	}
	p.Keep = false
	p, err := p.normal(h.table.filters.universe)
	if err != nil {
		return err
	}
	return h.setPlain(p)
}

// Traffic returns how many packets have left by kernel paths for each prefix of the last [Plaintext.Out], as far as there were
// any; where one has several devices, by all of them. Probes are not counted. A count begins anew when the prefix was taken out, or somebody has
// destroyed the table.
func (h *Host) Traffic() (map[netip.Prefix]uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	packets := map[netip.Prefix]uint64{}
	if h.table == nil || !h.table.use.plain {
		return packets, nil
	}
	for _, v6 := range []bool{false, true} {
		list, err := readSet(h.ns, outSet(v6).name)
		if err != nil {
			return nil, fmt.Errorf("reading what has left by kernel paths: %w", err)
		}
		for e, n := range list {
			p, err := prefixOfRange(e)
			if err != nil {
				return nil, fmt.Errorf("reading what has left by kernel paths: %w", err)
			}
			if n > 0 {
				packets[p] += n
			}
		}
	}
	return packets, nil
}
