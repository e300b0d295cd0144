// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

const (
	// observedFor is how long an address is told of after somebody has last seen this node there.
	observedFor = 2 * time.Minute
	// agreeWithin is how far apart in time two may have seen different ports for us to conclude that each of them has one of its own.
	agreeWithin = 3 * linkGap
	// maxObservers bounds what is kept, maxPerObserver that of the word of one, and maxObserved the addresses: those that the most have seen.
	maxObservers   = 32
	maxPerObserver = 4
	maxObserved    = 8
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
	case i < 0:
		o.put(sighting{by, a, now})
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

// put keeps a sighting, in place of the oldest one of the same node or of all if there are too many.
func (o *observed) put(x sighting) {
	oldest, own, ofOwn := -1, -1, 0
	for i, s := range o.by {
		if oldest < 0 || s.at.Before(o.by[oldest].at) {
			oldest = i
		}
		if s.by != x.by {
			continue
		}
		ofOwn++
		if own < 0 || s.at.Before(o.by[own].at) {
			own = i
		}
	}
	switch {
	case ofOwn >= maxPerObserver:
		o.by[own] = x
	case len(o.by) >= maxObservers:
		o.by[oldest] = x
	default:
		o.by = append(o.by, x)
	}
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
	if len(all) > maxObserved {
		slices.SortStableFunc(all, func(a, b netip.AddrPort) int { return cmp.Compare(o.observers(b, sym), o.observers(a, sym)) })
		all = all[:maxObserved]
		slices.SortFunc(all, netip.AddrPort.Compare)
	}
	if sym == o.sym && slices.Equal(all, o.known) {
		return false
	}
	o.known, o.sym = all, sym
	return true
}

// observers returns how many have seen this host at a, whatever the port if that is another one for each of them.
func (o *observed) observers(a netip.AddrPort, anyPort bool) (n int) {
	for _, s := range o.by {
		if s.addr == a || anyPort && s.addr.Addr() == a.Addr() {
			n++
		}
	}
	return n
}

// list returns the addresses, ascending, and whether each of those who have seen them has seen another port.
func (o *observed) list() ([]netip.AddrPort, bool) { return slices.Clone(o.known), o.sym }
