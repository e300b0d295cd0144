// SPDX-License-Identifier: Apache-2.0

// Package hostnet owns what Weft makes on a host: addresses, routes and
// settings of its TUN device, one veth pair for each workload, one nftables
// table, and the sysctls that forwarding needs.
//
// The caller states the whole that should exist ([Host.Apply]); the package
// compares it with what the kernel has and changes the difference, so that a
// crash at any point is repaired by the next Apply. Between two of them single
// workloads come and go ([Host.Attach], [Host.Detach]). Everything is marked,
// so that it can be told from what others made: routes by [RouteProtocol],
// devices by their names and by an alias beginning "weft: ", rules by the table
// "inet weft". What does not bear these marks is never changed or removed,
// sysctls excepted, whose prior values are handed to the caller in [Changes].
//
// The path of a packet: a workload's default route leads to the host's overlay
// address through its veth; the host routes each local workload's address to
// its veth and the universe to the TUN device. There is no bridge, and all
// neighbour entries are permanent, so nothing waits for ARP or neighbour
// discovery.
//
// What may leave and come unsealed by kernel paths is in sets of the nftables
// table, and nothing else may ([Plaintext]): the package makes sure of it
// whatever the routes of router/fastpath/kernel say. An intact table is left
// alone, also one that an earlier run has left; it is changed without the loss
// of a packet, and made again when somebody has destroyed it ([Host.Guard]).
//
// It is an edge: it talks to the kernel by netlink, nftables and /proc/sys and
// runs no programs. Linux only; root (CAP_NET_ADMIN, and CAP_SYS_ADMIN to enter
// the workloads' namespaces). internal/node imports it, nothing else.
package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// RouteProtocol marks Weft's routes (rtm_protocol, see rtnetlink(7)), on the host and inside the workloads.
const RouteProtocol = 87

// DefaultDevice is the TUN device's name unless told otherwise.
const DefaultDevice = "weft0"

const (
	minMTU = 576   // what every IPv4 host accepts (RFC 791)
	maxMTU = 65535 // of a TUN device
)

// A Workload is one network namespace attached to the host.
type Workload struct {
	ID     string       // names the workload on this host for as long as it exists; not empty, at most 200 bytes
	Netns  string       // path of the namespace; only Attach looks at it
	IfName string       // interface inside the namespace; "" is "eth0"
	Addrs  []netip.Addr // at most one of each family, inside the universe
	MTU    int          // bytes; 0 is the MTU of the last Apply
	// MAC is the hardware address of the interface inside; nil is one computed from the ID.
	MAC net.HardwareAddr
	// AddressesOnly is a workload whose interface somebody else makes, with a route on the host: all that there is to do is to let its
	// packets pass.
	AddressesOnly bool
}

// Desired is everything that should exist on the host.
type Desired struct {
	Device     string         // TUN device, which exists already; "" is "weft0"
	MTU        int            // of the device, in bytes
	Addrs      []netip.Addr   // the host's overlay addresses, at most one of each family; none while it has none yet
	Universe   []netip.Prefix // at most one of each family, masked
	Masquerade bool           // hide workloads behind the host's own addresses when they talk to the outside
	Workloads  []Workload     // all workloads
	Plain      Plaintext      // what may go by kernel paths
	// Loose are links of the host by which kernel paths go without a tunnel: their reverse path filter must not be strict. What
	// was changed for others before is given back, unless Plain keeps what an earlier run has left.
	Loose []string
}

// Changes is what Weft altered on the host that does not bear its mark. The caller keeps it, across restarts, until
// [Host.Remove]. The zero value is none. It encodes as JSON.
type Changes struct {
	Sysctls []Sysctl `json:"sysctls,omitempty"`
}

// A Sysctl is one setting that Weft changed.
type Sysctl struct {
	Key string `json:"key"` // path below /proc/sys, such as "net/ipv4/ip_forward"
	Was string `json:"was"` // value before Weft
	Set string `json:"set"` // value that Weft wrote
	// With holds other settings, as they were, that the kernel alters when this one is set back.
	With map[string]string `json:"with,omitempty"`
}

// Result says how an Apply went.
type Result struct {
	Warnings []string // what does not work on this host, and what to do, one line each
	Changes  Changes  // prior, and what this Apply changed
	Missing  []string // IDs of workloads without an interface on the host: gone, or to be attached again
	Repaired []string // what somebody else had changed in the nftables table since the last Apply, one line each
}

// A Host is the network of this host. Its methods may be called from any goroutine. Attach and Detach of different workloads run at
// the same time; all else excludes each other.
type Host struct {
	log  *zap.Logger
	ns   namespace
	own  ports
	read func(namespace) (*found, error) // readTable

	lanes   lanes          // of workloads
	freeing errgroup.Group // of interfaces, see unplug

	mu       sync.RWMutex
	last     *applied // nil before the first Apply
	table    *table   // nil before the first Apply, and when it could not be made
	repaired []string // since the last Apply
	conf6    *os.File // see openConf6; nil before the first Apply, and where there is no IPv6
}

// applied is what Attach needs to know of the last Apply.
type applied struct {
	mtu      int
	universe []netip.Prefix
	gateways map[bool]netip.Addr // the host's overlay address, by whether it is v6
	v6       bool                // the host can do IPv6
	strict   bool                // no fib expression: each veth needs the reverse path filter
	conf6    *os.File            // of the Host, see openConf6
}

// New returns the network of the namespace that the process runs in. It does nothing yet.
func New(log *zap.Logger) *Host { return newAt(log, here) }

// newAt returns the network of another namespace, which the caller keeps open as long as it uses the Host.
func newAt(log *zap.Logger, ns namespace) *Host {
	h := &Host{log: log, ns: ns, read: readTable}
	h.freeing.SetLimit(maxFreeing)
	return h
}

// Close waits until the kernel has freed what was removed, which takes milliseconds. After it comes Apply, if anything.
func (h *Host) Close() {
	_ = h.freeing.Wait() // Detach has had the errors
	h.mu.Lock()
	defer h.mu.Unlock()
	h.close()
}

func (h *Host) close() {
	if h.conf6 != nil {
		_ = h.conf6.Close() // opened for reading
	}
	h.conf6, h.last = nil, nil
}

// normal returns d with defaults filled in, in an order of its own, or says what is wrong with it.
func (d Desired) normal() (Desired, error) {
	if d.Device == "" {
		d.Device = DefaultDevice
	}
	if d.MTU < minMTU || d.MTU > maxMTU {
		return d, fmt.Errorf("an MTU of %d is not possible for %s; choose %d to %d", d.MTU, d.Device, minMTU, maxMTU)
	}
	if err := onePerFamily(d.Universe, func(p netip.Prefix) netip.Addr { return p.Addr() }); err != nil {
		return d, fmt.Errorf("the universe has %w", err)
	}
	for _, p := range d.Universe {
		if !p.IsValid() || p != p.Masked() {
			return d, fmt.Errorf("%v is no range; give one whose host bits are zero", p)
		}
	}
	if err := onePerFamily(d.Addrs, func(a netip.Addr) netip.Addr { return a }); err != nil {
		return d, fmt.Errorf("the host has %w", err)
	}
	for _, a := range d.Addrs {
		if err := within(a, d.Universe); err != nil {
			return d, err
		}
	}
	for _, name := range d.Loose {
		if err := named(name); err != nil {
			return d, err
		}
	}
	var err error
	d.Plain, err = d.Plain.normal(d.Universe)
	return d, err
}

// filters returns what the table is to do.
func (d Desired) filters() filters {
	return filters{
		device: d.Device, universe: d.Universe, masquerade: d.Masquerade, addrs: byFamily(d.Addrs),
		port: d.Plain.VXLANPort, devices: d.Plain.Devices, given: d.addressesOnly(),
	}
}

func onePerFamily[T any](list []T, addr func(T) netip.Addr) error {
	seen := map[bool]T{}
	for _, x := range list {
		v6 := addr(x).Is6()
		if other, ok := seen[v6]; ok {
			return fmt.Errorf("both %v and %v; only one of a family is possible", other, x)
		}
		seen[v6] = x
	}
	return nil
}

func within(a netip.Addr, universe []netip.Prefix) error {
	for _, p := range universe {
		if p.Contains(a) {
			return nil
		}
	}
	return fmt.Errorf("address %v lies outside the range of this mesh, %v", a, universe)
}
