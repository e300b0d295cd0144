// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// queueLen is how many packets wait for the daemon in the device, per queue.
	queueLen = 1000
	// lastResort is the metric of the routes that make the universe unreachable if the device is gone: worse than all others, better than none.
	lastResort = 0xff002000
	// metric6 is what the kernel gives IPv6 routes without a metric (IP6_RT_PRIO_USER).
	metric6 = 1024
	// mendTries is how often Apply begins again because an interface has gone while it worked.
	mendTries = 5
	// minMTU6 is what IPv6 needs of a link (RFC 8200, 5).
	minMTU6 = 1280
)

// Plan returns what [Host.Apply] would return as Changes, and changes nothing. A caller that stores it before it calls Apply
// can restore the host even after a crash in the middle.
func (h *Host) Plan(d Desired, prior Changes) (Changes, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, err := d.normal()
	if err != nil {
		return prior, err
	}
	changes := prior
	err = h.ns.run(func() error {
		s, err := plan(d, prior)
		changes = s.changes
		return err
	})
	return changes, err
}

// Apply makes the host as d says: it creates, corrects and removes, and leaves alone what is right. Of workloads it sees to
// the host's side only, and removes those that d does not list. Filters come first, so that forwarding never runs unfiltered.
//
// An error means that some of it could not be done; Apply has tried the rest as far as that makes sense, and can be
// repeated. Result.Changes counts in any case. What the kernel lacks costs a warning, no error.
func (h *Host) Apply(d Desired, prior Changes) (res Result, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	res = Result{Changes: prior.clone()}
	d, err = d.normal()
	if err != nil {
		return res, err
	}
	c, err := h.ns.open()
	if err != nil {
		return res, err
	}
	defer c.Close()
	links, err := c.links()
	if err != nil {
		return res, err
	}
	device, err := findDevice(links, d.Device)
	if err != nil {
		return res, err
	}
	got, warnings, failed := h.setTable(d.filters(), d.Plain)
	defer func() { err = errors.Join(failed, err) }()
	res.Warnings = append(res.Warnings, warnings...)
	res.Repaired, h.repaired = h.repaired, nil
	state := &applied{mtu: d.MTU, universe: d.Universe, gateways: byFamily(d.Addrs), strict: !got.fib}
	if device.Attrs().MTU != d.MTU { // first: below 1280 there is no IPv6
		if err := c.LinkSetMTU(device, d.MTU); err != nil {
			return res, fmt.Errorf("setting the MTU of %s to %d: %w", d.Device, d.MTU, err)
		}
	}
	if h.conf6 == nil {
		if h.conf6, err = h.ns.openConf6(); err != nil {
			return res, err
		}
	}
	state.conf6 = h.conf6
	err = h.ns.run(func() error {
		s, err := plan(d, prior)
		if err != nil {
			return err
		}
		res.Warnings = append(res.Warnings, s.apply()...)
		res.Changes = s.changes
		if failed == nil && (h.table == nil || !h.table.kept) {
			if res.Changes, err = s.changes.tighten(d.Loose); err != nil {
				return err
			}
		}
		warning := deviceSettings(d)
		state.v6 = hasV6(d.Universe) && warning == ""
		if warning != "" {
			res.Warnings = append(res.Warnings, warning)
		}
		if state.strict {
			res.Warnings = append(res.Warnings, looseFilter()...)
		}
		return nil
	})
	if err != nil {
		return res, err
	}
	if err := setDevice(c, device, d, state); err != nil {
		return res, err
	}
	h.last = state

	for try := 1; ; try++ {
		m := &mender{c: c, state: state, device: device.Attrs().Index}
		err := errors.Join(m.workloads(h.ns, links, d.Workloads), m.routes(d.Universe), m.neighbours(), m.slim())
		if errors.Is(err, unix.ENODEV) && try < mendTries { // a workload went away meanwhile: it is missing now
			if links, err = c.links(); err == nil {
				continue
			}
		}
		res.Missing = m.missing
		if m.mended > 0 || len(m.removed) > 0 {
			h.log.Info("host network put right", zap.Int("changes", m.mended), zap.Strings("removed", m.removed))
		}
		return res, err
	}
}

func byFamily(addrs []netip.Addr) map[bool]netip.Addr {
	m := map[bool]netip.Addr{}
	for _, a := range addrs {
		m[a.Is6()] = a
	}
	return m
}

func hasV6(universe []netip.Prefix) bool {
	return slices.ContainsFunc(universe, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

func findDevice(links []netlink.Link, name string) (netlink.Link, error) {
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == name })
	if i < 0 {
		return nil, fmt.Errorf("device %s does not exist; it must be opened before the host's network is set up", name)
	}
	if t, ok := links[i].(*netlink.Tuntap); !ok || t.Mode != netlink.TUNTAP_MODE_TUN {
		return nil, fmt.Errorf("interface %s exists and is not Weft's; rename it, or delete it as by: ip link delete %s", name, name)
	}
	return links[i], nil
}

// deviceSettings sets the sysctls of the TUN device, in the namespace of the calling thread, and warns if it cannot do the
// IPv6 that the universe asks for.
//
// The reverse path filter of the device is loose: while the path to a peer changes, its packets may come by the device although
// its route leads elsewhere already. The router has checked the source by then. Other interfaces keep what they have.
func deviceSettings(d Desired) (warning string) {
	_ = writeSysctl(confKey("ipv4", d.Device, "rp_filter"), "2") // where /proc/sys is read-only the default has to do
	// The router answers packets that cannot be delivered from the host's own address, which comes out of the device then. It lets
	// no other node have that address as a source.
	_ = writeSysctl(confKey("ipv4", d.Device, "accept_local"), "1")
	if !hasV6(d.Universe) {
		return ""
	}
	disabled, err := readSysctl(confKey("ipv6", d.Device, "disable_ipv6"))
	switch {
	case d.MTU < minMTU6:
		return fmt.Sprintf("an MTU of %d is too small for IPv6: workloads get IPv4 only; IPv6 needs %d", d.MTU, minMTU6)
	case err != nil:
		return "this host has no IPv6: workloads get IPv4 only; boot it without ipv6.disable=1"
	case disabled != "0":
		return fmt.Sprintf("IPv6 is disabled on this host: workloads get IPv4 only; set net.ipv6.conf.default.disable_ipv6 and net.ipv6.conf.%s.disable_ipv6 to 0", d.Device)
	}
	_ = writeSysctl(confKey("ipv6", d.Device, "accept_ra"), "0") // the rules drop advertisements as well
	return ""
}

// looseFilter warns if the reverse path filter of veths, which has to replace the filter rule, would have no effect: the kernel
// takes the greater of the interface's setting and that of all.
func looseFilter() []string {
	if v, err := readSysctl(confKey("ipv4", "all", "rp_filter")); err == nil && v == "2" {
		return []string{"net.ipv4.conf.all.rp_filter is 2: senders are not checked on this kernel; set it to 0 or 1"}
	}
	return nil
}

// setDevice brings up the TUN device with its addresses, and those only.
func setDevice(c conn, l netlink.Link, d Desired, state *applied) error {
	a := l.Attrs()
	fail := func(what string, err error) error { return fmt.Errorf("%s %s: %w", what, d.Device, err) }
	if a.Alias != deviceAlias {
		if err := c.LinkSetAlias(l, deviceAlias); err != nil {
			return fail("naming", err)
		}
	}
	if a.Group != groupTunnel {
		if err := c.LinkSetGroup(l, groupTunnel); err != nil {
			return fail("setting the group of", err)
		}
	}
	if a.TxQLen != queueLen {
		if err := c.LinkSetTxQLen(l, queueLen); err != nil {
			return fail("setting the queue length of", err)
		}
	}
	if state.v6 {
		if err := c.LinkSetIP6AddrGenMode(l, nl6GenNone); err != nil {
			return fail("setting the address mode of", err)
		}
	}
	// Addresses before the device is up: nothing is sent from a wrong one.
	have, err := c.addrs(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, want := range d.Addrs {
		if want.Is6() && !state.v6 {
			delete(state.gateways, true)
			continue
		}
		if slices.ContainsFunc(have, func(x netlink.Addr) bool { return x.IPNet.String() == hostPrefix(want).String() }) {
			continue
		}
		if err := c.AddrReplace(l, address(want)); err != nil {
			return fail(fmt.Sprintf("adding %v to", want), err)
		}
	}
	for i, old := range have {
		if slices.ContainsFunc(d.Addrs, func(a netip.Addr) bool { return old.IPNet.String() == hostPrefix(a).String() }) {
			continue
		}
		if err := c.AddrDel(l, &have[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fail(fmt.Sprintf("removing %v from", old.IPNet), err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := c.LinkSetUp(l); err != nil {
			return fail("bringing up", err)
		}
	}
	for _, x := range d.Addrs {
		if x.Is4() || state.v6 {
			c.settled(x, time.Second) // if not, it is a little later
		}
	}
	return nil
}

// nl6GenNone makes no link-local address (IN6_ADDR_GEN_MODE_NONE).
const nl6GenNone = 1

// address is a as netlink wants it. Duplicate address detection would only delay it: the ring sees to it that there is none.
func address(a netip.Addr) *netlink.Addr {
	out := &netlink.Addr{IPNet: hostPrefix(a)}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
}

// hostPrefix is a with all bits in its mask.
func hostPrefix(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
