// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// observedFor is how long an address is told of after somebody has last seen this node there.
	observedFor = 2 * time.Minute
	// agreeWithin is how far apart in time two may have seen different ports for us to conclude that each of them has one of its own.
	agreeWithin = 3 * linkGap
	// maxObservers bounds those whose word is kept, and maxObserved the addresses.
	maxObservers = 32
	maxObserved  = 8
)

// observed is where others have seen this node.
type observed struct {
	by    []sighting // in no order of meaning
	known []netip.AddrPort
	sym   bool
}

type sighting struct {
	by   uint64
	addr netip.AddrPort
	at   moment
}

func (o *observed) init() { o.by = make([]sighting, 0, MaxLinks) }

// clear forgets all: this host has other addresses.
func (o *observed) clear() { o.by = o.by[:0] }

// note notes that a node has seen this one at a, and reports whether the list has changed.
func (o *observed) note(by uint64, a netip.AddrPort, now moment) bool {
	if !a.IsValid() {
		return false
	}
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	i := slices.IndexFunc(o.by, func(s sighting) bool { return s.by == by && s.addr.Addr() == a.Addr() })
	switch {
	case i < 0 && len(o.by) >= maxObservers:
		oldest := 0
		for j, s := range o.by {
			if s.at.Before(o.by[oldest].at) {
				oldest = j
			}
		}
		o.by[oldest] = sighting{by, a, now}
	case i < 0:
		o.by = append(o.by, sighting{by, a, now})
	case o.by[i].addr != a:
		// The NAT has forgotten the port, or was restarted: what others have seen before is of no use either.
		old := o.by[i].addr
		o.by[i] = sighting{by, a, now}
		o.by = slices.DeleteFunc(o.by, func(s sighting) bool { return s.addr == old })
	default:
		o.by[i].at = now
		return false
	}
	return o.refresh()
}

// expire forgets what is too old. It returns whether the list has changed, and when to look again; zero: not.
func (o *observed) expire(now moment) (next moment, changed bool) {
	n := len(o.by)
	o.by = slices.DeleteFunc(o.by, func(s sighting) bool { return now.Sub(s.at) > observedFor })
	for _, s := range o.by {
		next = sooner(next, s.at.Add(observedFor+time.Second))
	}
	if len(o.by) < n && o.refresh() {
		changed = true
	}
	return next, changed
}

// refresh computes the list anew and reports whether it has changed.
func (o *observed) refresh() bool {
	var all []netip.AddrPort
	sym := false
	for i, s := range o.by {
		if !slices.Contains(all, s.addr) {
			all = append(all, s.addr)
		}
		for _, t := range o.by[:i] {
			if t.addr.Addr() == s.addr.Addr() && t.addr.Port() != s.addr.Port() && t.by != s.by && s.at.Sub(t.at).Abs() <= agreeWithin {
				sym = true
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	if sym { // ports that were made for one other node are of no use to the rest
		all = slices.CompactFunc(all, func(a, b netip.AddrPort) bool { return a.Addr() == b.Addr() })
	}
	all = all[:min(len(all), maxObserved)]
	if sym == o.sym && slices.Equal(all, o.known) {
		return false
	}
	o.known, o.sym = all, sym
	return true
}

// list returns the addresses, ascending, and whether each of those who have seen them has seen another port.
func (o *observed) list() ([]netip.AddrPort, bool) { return slices.Clone(o.known), o.sym }
