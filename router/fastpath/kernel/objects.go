// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"maps"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	mainTable = unix.RT_TABLE_MAIN
	// metric4 and metric6 are those of all routes but the last: what the kernel gives a route without one (IP6_RT_PRIO_USER).
	metric4 = 0
	metric6 = 1024
	// lastResort is the metric of the routes that make the universe unreachable in the tables for probes.
	lastResort = 0xff002000
)

// objects are what exists or should exist in the kernel. The values are comparable: what is equal is the same in the kernel.
type objects struct {
	devices    map[string]device // VXLAN
	fdb        map[entryKey]netip.AddrPort
	neighbours map[neighbourKey]mac
	routes     map[routeKey]route
	rules      map[rule]struct{}
}

type device struct {
	mtu    int
	v6     bool       // carries IPv6
	source netip.Addr // of IPv4
}

// An entryKey is what a VXLAN device sends to one place.
type entryKey struct {
	device string
	mac    mac
}

func (k entryKey) String() string {
	return fmt.Sprintf("forwarding entry of %v on %s", k.mac, k.device)
}

type neighbourKey struct {
	device string
	addr   netip.Addr
}

func (k neighbourKey) String() string { return fmt.Sprintf("neighbour %v on %s", k.addr, k.device) }

type routeKey struct {
	table  uint32
	dst    netip.Prefix
	metric uint32
	tos    uint8 // 0 in Weft's own
}

func (k routeKey) String() string { return fmt.Sprintf("route to %v%s", k.dst, tableName(k.table)) }

type route struct {
	device      string // "" if unreachable
	via, src    netip.Addr
	unreachable bool
	odd         bool // has something that Weft's routes never have
}

// A rule sends the packets of a mark to a table.
type rule struct {
	v6                    bool
	priority, table, mark uint32
	odd                   bool // has something that Weft's rules never have
}

func (r rule) String() string {
	return fmt.Sprintf("rule %d of %s for the mark %#x", r.priority, familyName(r.v6), r.mark)
}

func newObjects() objects {
	return objects{map[string]device{}, map[entryKey]netip.AddrPort{}, map[neighbourKey]mac{}, map[routeKey]route{}, map[rule]struct{}{}}
}

// without returns a copy of those objects that depend on none of the devices for which lost says true.
func (o objects) without(lost func(device string) bool) objects {
	out := objects{maps.Clone(o.devices), maps.Clone(o.fdb), maps.Clone(o.neighbours), maps.Clone(o.routes), maps.Clone(o.rules)}
	maps.DeleteFunc(out.devices, func(name string, _ device) bool { return lost(name) })
	maps.DeleteFunc(out.fdb, func(k entryKey, _ netip.AddrPort) bool { return lost(k.device) })
	maps.DeleteFunc(out.neighbours, func(k neighbourKey, _ mac) bool { return lost(k.device) })
	maps.DeleteFunc(out.routes, func(_ routeKey, r route) bool { return r.device != "" && lost(r.device) })
	return out
}

// segments are the devices of the direct routes.
func (o objects) segments() map[string]bool {
	out := map[string]bool{}
	for _, r := range o.routes {
		if r.device != "" && r.device != Device4 && r.device != Device6 {
			out[r.device] = true
		}
	}
	return out
}

// differ returns what has to be set and what has to go to make have want.
func differ[K, V comparable](have, want map[K]V) (set, gone []K) {
	for key, v := range want {
		if old, ok := have[key]; !ok || old != v {
			set = append(set, key)
		}
	}
	for key := range have {
		if _, ok := want[key]; !ok {
			gone = append(gone, key)
		}
	}
	return set, gone
}

// known says whether there is anything.
func (o objects) known() bool {
	return len(o.devices)+len(o.fdb)+len(o.neighbours)+len(o.routes)+len(o.rules) > 0
}
