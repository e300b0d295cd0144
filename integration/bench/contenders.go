// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

const (
	linkMTU   = 1500
	vxlanMTU  = 1450
	vxlanPort = 4789

	plainName = "veth"
	vxlanName = "vxlan"
	wgName    = "wireguard-go" // what the others are compared with

	nebulaName = "nebula"

	// The kernel paths' measure: what they are compared with.
	routedVeth  = "routed-veth"
	routedVXLAN = "routed-vxlan"
)

// contender is one way from one host to the other.
type contender struct {
	name     string
	from, to *lab.Namespace
	addr     netip.Addr
	start    func() error // before each turn
	check    func() error // once it has carried a packet: is it what its name says
	stop     func()       // after it
	pids     func() []int // of the forwarding processes, both hosts'
	kinds    []kind       // in which it takes part
	third    *third       // of the measurement fair
	hand     *contender   // of the measurement byhand: the same made by hand
	answers  bool         // whoever gets datagrams answers the first one
	samples  samples
}

func nothing() error { return nil }
func noPIDs() []int  { return nil }

// without returns the list but for one.
func without(list []kind, k kind) []kind {
	return slices.DeleteFunc(slices.Clone(list), func(l kind) bool { return l == k })
}

// summary tells what the last turn saw.
func (c *contender) summary() string {
	var out []string
	for _, m := range metrics() {
		if s := c.samples.last(m); s != "" && m.ratio {
			out = append(out, s)
		}
	}
	return strings.Join(out, "; ")
}

// names are all who can take part.
func names() []string {
	return append([]string{plainName, vxlanName, routedVeth, routedVXLAN, wgName, nebulaName}, weftNames()...)
}

// contenders sets up those that are asked for.
func (b *bench) contenders() ([]*contender, error) {
	var all []*contender
	for _, set := range []struct {
		name string
		up   func() (*contender, error)
	}{{plainName, b.plain}, {vxlanName, b.vxlan}, {routedVeth, b.routedVeth}, {routedVXLAN, b.routedVXLAN}, {wgName, b.wireguard}, {nebulaName, b.nebula}} {
		if !b.competes(set.name) {
			continue
		}
		if _, err := os.Stat(b.nebulaBinary); set.name == nebulaName && err != nil {
			if len(b.only) > 0 {
				return nil, fmt.Errorf("nebula: %w", err)
			}
			b.notes = append(b.notes, "Nebula takes no part: there is no "+b.nebulaBinary+".")
			continue
		}
		c, err := set.up()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", set.name, err)
		}
		all = append(all, c)
	}
	if !slices.ContainsFunc(weftNames(), b.competes) {
		return all, nil
	}
	if err := b.weft(); err != nil {
		return nil, err
	}
	for _, c := range b.mesh.contenders() {
		if b.competes(c.name) {
			all = append(all, c)
		}
	}
	pairByHand(all)
	return all, nil
}

// competes reports whether the contender is asked for.
func (b *bench) competes(name string) bool {
	return len(b.only) == 0 || slices.Contains(b.only, name)
}

func (b *bench) plain() (*contender, error) {
	return &contender{
		name: plainName, from: b.hosts[0].Namespace, to: b.hosts[1].Namespace, addr: b.hosts[1].Link().V4(),
		start: nothing, check: nothing, stop: func() {}, pids: noPIDs, samples: samples{},
		kinds: common(),
		third: &third{from: b.hosts[0].Namespace, to: b.third.Namespace, addr: b.third.Link().V4(), start: nothing},
	}, nil
}

// own returns the address of the i-th host in a network of a contender.
func own(network, i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(network), byte(i + 1)}), 24)
}

// raise gives a device its address and sets it up.
func raise(h *lab.Host, device string, p netip.Prefix) error {
	dev, err := h.Netlink().LinkByName(device)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}
	if err := h.Netlink().AddrAdd(dev, a); err != nil {
		return err
	}
	return h.Netlink().LinkSetUp(dev)
}

func (b *bench) vxlan() (*contender, error) {
	for i, h := range b.hosts {
		dev := &netlink.Vxlan{
			LinkAttrs: netlink.NewLinkAttrs(), VxlanId: 77, Port: vxlanPort,
			SrcAddr: h.Link().V4().AsSlice(), Group: b.hosts[1-i].Link().V4().AsSlice(),
		}
		dev.Name, dev.MTU = "vxlan77", vxlanMTU
		if err := h.Netlink().LinkAdd(dev); err != nil {
			return nil, err
		}
		if err := raise(h, dev.Name, own(1, i)); err != nil {
			return nil, err
		}
	}
	return &contender{
		name: vxlanName, from: b.hosts[0].Namespace, to: b.hosts[1].Namespace, addr: own(1, 1).Addr(),
		start: nothing, check: nothing, stop: func() {}, samples: samples{}, kinds: []kind{tcpKind, udpKind, latencyKind}, pids: noPIDs,
	}, nil
}
