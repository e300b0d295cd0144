// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/mesh"
)

const (
	// maxEndpoints is how many addresses a record names, and seenPlaces how many of these places are kept for addresses at which
	// others see this node, if it has that many of its own.
	maxEndpoints = 16
	seenPlaces   = 4
	// seenGap is the shortest time between two changes of the record, which costs the whole mesh, for what others see.
	seenGap = 10 * time.Second
	// maxPast bounds how many addresses are remembered that the host had.
	maxPast = 64
)

// reach is what the data path knows of how this node is reached.
type reach struct {
	observed  []netip.AddrPort // at which others see it
	symmetric bool             // a NAT gives it another port for each of them, so that none is of use to a third
	links     []mesh.NodeID    // living direct neighbours
}

// whereabouts is where others reach this node, as its record says.
type whereabouts struct {
	mu     sync.Mutex
	link   hostnet.Link
	past   []netip.Addr // that the host had and has no more, the latest last: who still says that it sees the node there is late
	said   []netip.Addr // of link, in an event
	saidAt time.Time
	seen   []netip.AddrPort // by others
	seenAt time.Time        // when that changed
	links  []mesh.NodeID
}

// exit returns the way out of the host, as it was last found.
func (w *whereabouts) exit() hostnet.Link {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.link
}

// set takes over what was found, and tells whether the host's addresses are others than before.
func (w *whereabouts) set(l hostnet.Link) (moved bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	moved = l.Addr != w.link.Addr || !slices.Equal(l.Addrs, w.link.Addrs)
	w.past = slices.DeleteFunc(w.past, func(a netip.Addr) bool { return slices.Contains(l.Addrs, a) || slices.Contains(w.link.Addrs, a) })
	for _, a := range w.link.Addrs {
		if !slices.Contains(l.Addrs, a) {
			w.past = append(w.past, a)
		}
	}
	w.past = w.past[max(0, len(w.past)-maxPast):]
	w.link = l
	return moved
}

// news tells whether the addresses are others than when it told so last, which may be once in pathRest.
func (w *whereabouts) news(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.said == nil
	if slices.Equal(w.said, w.link.Addrs) || now.Sub(w.saidAt) < pathRest {
		return false
	}
	w.said, w.saidAt = slices.Clone(w.link.Addrs), now
	return !first
}

// see takes over what the data path knows, and returns how long it is to be asked again at the latest; 0: when it says so.
func (w *whereabouts) see(r reach, now time.Time) (again time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links = slices.Clone(r.links)
	var seen []netip.AddrPort
	for _, a := range r.observed {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if !r.symmetric && a.Port() != 0 && !slices.Contains(w.past, a.Addr()) && a.Addr().IsGlobalUnicast() && !slices.Contains(seen, a) {
			seen = append(seen, a)
		}
	}
	slices.SortFunc(seen, func(a, b netip.AddrPort) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
	})
	if slices.Equal(seen, w.seen) {
		return 0
	}
	if wait := seenGap - now.Sub(w.seenAt); wait > 0 && !w.seenAt.IsZero() {
		return wait
	}
	w.seen, w.seenAt = seen, now
	return 0
}

// endpoints returns the addresses for the record, best first: the one to advertise, those of the host's interfaces, those at
// which others see it. The order depends on nothing else.
func (w *whereabouts) endpoints(port uint16) []netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list, seen []netip.AddrPort
	for _, a := range append([]netip.Addr{w.link.Addr}, w.link.Addrs...) {
		if ep := netip.AddrPortFrom(a.Unmap(), port); ep.IsValid() && !slices.Contains(list, ep) {
			list = append(list, ep)
		}
	}
	for _, a := range w.seen {
		if !slices.Contains(list, a) {
			seen = append(seen, a)
		}
	}
	most := maxEndpoints - min(len(seen), seenPlaces)
	list = append(list[:min(len(list), most)], seen...)
	return list[:min(len(list), maxEndpoints)]
}

// neighbours returns the living direct neighbours, for the record.
func (w *whereabouts) neighbours() []mesh.NodeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.links
}

// followNetwork keeps this node's record in step with where others reach it, until ctx ends: the host's network is
// watched, and looked at now and then all the same.
func (n *Node) followNetwork(ctx context.Context, e *engines) {
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := n.sys.watchNetwork(ctx, e.moved.raise); err != nil {
			n.log.Warn("changes of the host's addresses are noticed late: only twice a minute", zap.Error(err))
		}
	})
	defer watching.Wait()
	t := time.NewTicker(repairInterval)
	defer t.Stop()
	for {
		var later <-chan time.Time
		if again := n.lookAround(e); again > 0 {
			later = time.After(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-e.moved:
		case <-t.C:
		case <-later:
		}
	}
}

// lookAround looks where others reach this node, and puts that into its record if it has changed. It returns when to do that
// again, 0 if that is open.
func (n *Node) lookAround(e *engines) (again time.Duration) {
	link, err := n.sys.egress(n.cfg.Advertise)
	if err != nil { // what it had before may come back
		n.setWarning("network", err.Error())
	} else {
		n.setWarning("network", "")
		if e.where.set(link) {
			n.log.Info("the host's addresses have changed", zap.Stringer("best", link.Addr), zap.Stringers("all", link.Addrs))
			e.plane.Moved()
			n.changed.raise()
		}
		if e.where.news(time.Now()) {
			n.noteSelf(events.Path, "this node is reached at "+join(link.Addrs), "the addresses of the host have changed")
		}
	}
	again = e.where.see(e.plane.Reach(), time.Now())
	if err := e.mesh.SetRecord(n.describe(e)); err != nil {
		n.setWarning("record", err.Error())
	} else {
		n.setWarning("record", "")
	}
	return again
}

// sayAdvertised says once if the address to advertise is none of the host's own.
func (n *Node) sayAdvertised(link hostnet.Link) {
	if a := n.cfg.Advertise.Unmap(); a.IsValid() && !slices.Contains(link.Addrs, a) {
		n.log.Info("no interface of this host has the address of --advertise; it is taken for the one that a NAT in front of the host gives it", zap.Stringer("address", a))
	}
}
