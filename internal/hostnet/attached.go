// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
)

// Attached is what a workload has got.
type Attached struct {
	HostMAC  net.HardwareAddr // of the end on the host, [HostIf]
	MAC      net.HardwareAddr // of the workload's interface
	MTU      int              // bytes, of both
	Addrs    []netip.Addr     // those of the workload's that are in use
	Routes   []Route          // inside, at most one of each family
	Warnings []string         // what does not work, one line each
	// Unsettled says that packets do not flow yet: [Host.Settle] waits until they do.
	Unsettled bool
}

// A Route is a workload's way out: to everywhere, or to the universe only where it keeps another default route.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr // the host's overlay address
}

// MACs returns the hardware addresses that the two ends of a workload's interface have, that on the host first.
func MACs(w Workload) (host, inside net.HardwareAddr) { return hostMAC(w.ID), w.mac() }

// mac returns the hardware address of the workload's interface: the one that is wanted, or one computed from the ID.
func (w Workload) mac() net.HardwareAddr {
	if len(w.MAC) > 0 {
		return w.MAC
	}
	return workloadMAC(w.ID)
}

// checkMAC refuses what cannot be the address of an interface, and that of the other end.
func (w Workload) checkMAC() error {
	switch {
	case len(w.MAC) == 0:
		return nil
	case len(w.MAC) != 6 || w.MAC[0]&1 != 0 || bytes.Equal(w.MAC, make([]byte, 6)):
		return fmt.Errorf("%v cannot be the hardware address of an interface; give 6 bytes that are no multicast address, as 0a:58:0a:20:00:05", w.MAC)
	case bytes.Equal(w.MAC, hostMAC(w.ID)):
		return fmt.Errorf("hardware address %v is that of the host's end of the interface; give another", w.MAC)
	}
	return nil
}

// everywhere is the destination of all packets of a family.
func everywhere(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}
