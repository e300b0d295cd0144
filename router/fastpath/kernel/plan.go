// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/router/fastpath"
)

const (
	minMTU  = 576  // what every IPv4 host accepts (RFC 791)
	minMTU6 = 1280 // of a link that carries IPv6 (RFC 8200, 5)
	maxMTU  = 65535
)

// planner finds out which objects make what is desired. It is pure.
type planner struct {
	config  Config
	desired Desired
	hops    map[uint64]netip.Addr // given, and returned

	out  objects
	macs map[mac]uint64
	held map[netip.Prefix]uint64
	errs []error // of what is left out
}

func (p *planner) fail(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

func (p *planner) plan() objects {
	p.out, p.macs, p.held = newObjects(), map[mac]uint64{macOf(p.config.ID): p.config.ID}, map[netip.Prefix]uint64{}
	p.device(Device4, p.desired.MTU4)
	p.device(Device6, p.desired.MTU6)
	peers := slices.Clone(p.desired.Peers)
	slices.SortStableFunc(peers, func(a, b Peer) int { // an earlier one has its MAC before a later one
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	ids := make([]uint64, 0, len(peers))
	for _, x := range peers {
		ids = append(ids, x.ID)
	}
	p.hops = assignHops(ids, p.hops)
	tried := map[uint32]bool{}
	for _, x := range peers {
		p.peer(x, tried)
	}
	for _, u := range p.desired.Universe {
		if tried[TableDirect] {
			p.lookup(TableDirect, MarkDirect, u)
		}
		if tried[TableVXLAN] && u.Addr().Is6() {
			p.lookup(TableVXLAN, MarkVXLAN, u)
		}
	}
	return p.out
}

func (p *planner) device(name string, mtu int) {
	switch {
	case mtu == 0:
	case mtu < minMTU || mtu > maxMTU:
		p.fail("an MTU of %d is not possible for %s; choose %d to %d", mtu, name, minMTU, maxMTU)
	default:
		p.out.devices[name] = device{mtu: mtu, v6: mtu >= minMTU6 && p.has(true), source: p.desired.Source4}
	}
}

// has says whether the overlay has a family.
func (p *planner) has(v6 bool) bool {
	return slices.ContainsFunc(p.desired.Universe, func(u netip.Prefix) bool { return u.Addr().Is6() == v6 })
}

// lookup is the rule of a table for a family of the universe, and the end of it.
func (p *planner) lookup(table, mark uint32, u netip.Prefix) {
	p.out.rules[rule{v6: u.Addr().Is6(), priority: table, table: table, mark: mark}] = struct{}{}
	// Only the universe: the packets in which a VXLAN device wraps marked ones have the mark as well, and go elsewhere.
	p.out.routes[routeKey{table: table, dst: u, metric: lastResort}] = route{unreachable: true}
}

// peer adds what one peer needs, and notes in which tables it is.
func (p *planner) peer(x Peer, tried map[uint32]bool) {
	var vxlan string
	if x.VXLAN.IsValid() {
		vxlan = p.tunnel(x)
	}
	for _, whole := range x.Prefixes {
		if other, ok := p.held[whole]; ok {
			p.fail("%v belongs to two nodes, %016x and %016x; it leads to the first", whole, other, x.ID)
			continue
		}
		p.held[whole] = x.ID
		for _, dst := range halves(whole, p.desired.Universe) {
			ways := map[fastpath.Kind]route{}
			if r, ok := p.byTunnel(x, vxlan, dst); ok {
				ways[fastpath.VXLAN] = r
			}
			if r, ok := p.bySegment(x, dst); ok {
				ways[fastpath.Direct] = r
			}
			for kind, r := range ways {
				table := uint32(TableVXLAN)
				switch {
				case kind == fastpath.Direct:
					table = TableDirect
				case dst.Addr().Is4():
					continue
				}
				tried[table] = true
				p.out.routes[routeKey{table: table, dst: dst, metric: metricOf(dst)}] = r
			}
			r, ok := ways[x.Path]
			switch {
			case ok:
				p.out.routes[routeKey{table: mainTable, dst: dst, metric: metricOf(dst)}] = r
			case x.Path != fastpath.UDP:
				p.fail("node %016x cannot be reached at %v by %v: there is no such way to it", x.ID, dst, x.Path)
			}
		}
	}
}

// tunnel adds the peer to the VXLAN device that reaches it and returns that, "" if none does.
func (p *planner) tunnel(x Peer) string {
	name := deviceFor(x.VXLAN.Addr())
	d, ok := p.out.devices[name]
	m := macOf(x.ID)
	other, taken := p.macs[m]
	switch {
	case !ok:
		p.fail("node %016x cannot be reached by vxlan at %v: there is no device %s", x.ID, x.VXLAN.Addr(), name)
		return ""
	case taken:
		p.fail("node %016x cannot be reached by vxlan: its hardware address %v is that of node %016x as well; `weft reset` there gives it another NodeID", x.ID, m, other)
		return ""
	}
	p.macs[m] = x.ID
	p.out.fdb[entryKey{name, m}] = x.VXLAN
	for _, dst := range x.Prefixes {
		if dst.Addr().Is4() {
			p.out.neighbours[neighbourKey{name, p.hops[x.ID]}] = m
			if dst.Contains(x.Host4) {
				p.out.neighbours[neighbourKey{name, x.Host4}] = m
			}
		} else if d.v6 {
			p.out.neighbours[neighbourKey{name, hop6(x.ID)}] = m
		}
	}
	return name
}

func (p *planner) byTunnel(x Peer, name string, dst netip.Prefix) (route, bool) {
	switch {
	case name == "":
		return route{}, false
	case dst.Addr().Is4():
		return route{device: name, via: p.hops[x.ID], src: p.desired.Source4}, true
	}
	return route{device: name, via: hop6(x.ID), src: p.desired.Source6}, p.out.devices[name].v6
}

func (p *planner) bySegment(x Peer, dst netip.Prefix) (route, bool) {
	r := route{device: x.Device, via: x.Hop4, src: p.desired.Source4}
	if dst.Addr().Is6() {
		r.via, r.src = x.Hop6, p.desired.Source6
		if !r.via.Is6() {
			return r, false
		}
	}
	return r, x.Device != "" && r.via.IsValid()
}

func metricOf(dst netip.Prefix) uint32 {
	if dst.Addr().Is4() {
		return metric4
	}
	return metric6
}
