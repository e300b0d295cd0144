// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/integration/lab"
)

const routedVNI = 78

// routed sets up a contender that is what the kernel paths are, made by hand: a workload on each of two hosts of its own, which forward. Across
// connects the two hosts, and tells the next hop by which each reaches the other one.
func (b *bench) routed(name string, network, mtu int, across func(pair [hosts]*lab.Host) (hop [hosts]netip.Addr)) *contender {
	var pair [hosts]*lab.Host
	var subnets [hosts]netip.Prefix
	var ends [hosts]*lab.Workload
	for i := range pair {
		pair[i] = b.lab.Host(fmt.Sprintf("%s%d", name, i+1), b.lan)
		subnets[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, byte(network + i), 0}), 24)
		ends[i] = pair[i].Workload("w")
		ends[i].AttachByHand(subnets[i], mtu)
	}
	for i, hop := range across(pair) {
		pair[i].RouteByHand(subnets[1-i], hop)
	}
	return &contender{
		name: name, from: ends[0].Namespace, to: ends[1].Namespace, addr: ends[1].V4,
		start: nothing, check: nothing, stop: func() {}, pids: noPIDs, samples: samples{}, kinds: []kind{tcpKind, udpKind, latencyKind},
	}
}

// routedVeth is what a direct path is: routes to the other host's address.
func (b *bench) routedVeth() (*contender, error) {
	return b.routed(routedVeth, 10, linkMTU, func(pair [hosts]*lab.Host) [hosts]netip.Addr {
		return [hosts]netip.Addr{pair[1].Link().V4(), pair[0].Link().V4()}
	}), nil
}

// routedVXLAN is what a path by VXLAN is: routes to the other host's address on a VXLAN device.
func (b *bench) routedVXLAN() (*contender, error) {
	return b.routed(routedVXLAN, 20, vxlanMTU, func(pair [hosts]*lab.Host) [hosts]netip.Addr {
		for i, h := range pair {
			h.VXLANByHand("vxlan78", routedVNI, vxlanPort, pair[1-i].Link().V4(), own(4, i), vxlanMTU)
		}
		return [hosts]netip.Addr{own(4, 1).Addr(), own(4, 0).Addr()}
	}), nil
}
