// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/ipam/ring"
)

// How long things take.
const (
	retry     = time.Second            // between two messages about the same to the same node
	patience  = 250 * time.Millisecond // before somebody else is asked too
	silence   = 3 * time.Second        // before a node that does not answer counts as one that cannot help
	grace     = 3 * time.Second        // after the start, before a missing majority makes calls fail
	fresh     = 200 * time.Millisecond // a refusal holds for calls that come so soon after it
	abstain   = 10 * time.Second       // before a node with nothing to spare is asked again to top up the reserve
	maxAsking = 16                     // donors asked at a time

	minReserve, maxReserve = 64, 4096
)

// ask is a request that was not answered yet.
type ask struct {
	first, last time.Time
	urgent      bool
}

// denial is the last refusal of a node.
type denial struct {
	at     time.Time
	urgent bool
	reason refusal
	usage  counts
}

// reserve returns how many free slots this node likes to have: a quarter of what it uses, 64 at least, but in a small
// universe no more than its 64th part.
func (a *Allocator) reserve() uint64 {
	least := min(minReserve, max(1, uint64(a.size)/64))
	return min(max(least, uint64(len(a.byOwner))/4), maxReserve)
}

// low reports whether this node wants more slots. a.mu must be held.
func (a *Allocator) low() bool {
	return !a.leaving && a.space.left() < a.reserve() && !a.ledger.retired(a.cfg.Self)
}

// onGrant takes over what a donor has handed over, along with all that the donor knows, and spreads the news once more:
// the donor may not have come to it.
func (a *Allocator) onGrant(x *edit, from ring.Owner, m *message) {
	a.learn(x, m.ring)
	got, err := x.receive(from, m.grants)
	if err != nil {
		a.log.Error("granted address blocks not taken", zap.Error(err))
		return
	}
	x.delta = x.delta.Union(got)
	if len(got) > 0 {
		a.note(x, News{Kind: Received, Node: from, Slots: got.Len()})
	}
	if len(x.ring.Same(m.grants)) == 0 {
		x.send(from, &message{kind: kindReceived, grants: m.grants})
	}
	x.after(func() { delete(a.asks, from) })
}

// onDeny takes note of a refusal, once what came along with it is known.
func (a *Allocator) onDeny(x *edit, from ring.Owner, m *message) {
	a.greet(from, m)
	if m.ring != nil {
		a.learn(x, m.ring)
	}
	x.after(func() {
		switch {
		case m.reason == refusedClosed && a.leaving:
			a.parted[from] = a.parted[from] || m.closed >= a.boot()
		case m.reason == refusedClosed:
			delete(a.asks, from) // an earlier run was leaving; see greet
		case m.exact:
			a.refuse(from, m)
		case m.reason == refusedUnderway:
			if q := a.asks[from]; q != nil {
				q.first = a.cfg.Now() // it does answer
			}
		case m.reason == refusedStale:
			delete(a.asks, from)
		default:
			delete(a.asks, from)
			a.denials[from] = denial{at: a.cfg.Now(), urgent: m.urgent, reason: m.reason, usage: m.usage}
		}
	})
}

// refuse ends the waiting for an address that its owner does not give away.
func (a *Allocator) refuse(from ring.Owner, m *message) {
	reason := ElsewhereInUse
	switch m.reason {
	case refusedStale, refusedUnderway:
		return
	case refusedNoMajority:
		reason = ElsewhereNoMajority
	case refusedLeaving:
		return // the slot comes to somebody who can be asked
	}
	a.end(func(w *waiter) error {
		if w.exact && w.slot == m.slot && a.ledger.ring.At(w.slot).Owner == from {
			return &ElsewhereError{Addr: a.addr(w.slot), Owner: from, Reason: reason}
		}
		return nil
	})
}

// end ends the waiting of those for whom why returns an error. a.mu must be held.
func (a *Allocator) end(why func(w *waiter) error) {
	a.waiters = slices.DeleteFunc(a.waiters, func(w *waiter) bool {
		if w.err = why(w); w.err != nil {
			close(w.done)
		}
		return w.err != nil
	})
}

// work does all that is due, and returns when there is more to do, 0 if nothing is open. a.mu must be held.
func (a *Allocator) work(now time.Time, v view) time.Duration {
	if a.hold && (now.Sub(a.started) >= grace || len(a.others(v)) == 0) {
		a.hold = false
	}
	a.expire()
	a.serve()
	a.pursue(now, v)
	if a.hold {
		return patience
	}
	a.askExact(now, v)
	a.askMore(now, v)
	a.part(now, v)
	reclaiming := a.reclaim(now, v)
	a.giveUp(now, v)
	waiting := func(o *outgoing) bool { return !o.handed && o.tries < 3 }
	joining := len(a.share()[a.cfg.Self]) == 0 && len(a.denials) == 0 && !a.leaving && !a.ledger.retired(a.cfg.Self)
	switch {
	case len(a.waiters) > 0, joining, slices.ContainsFunc(a.ledger.outgoing, waiting):
		return patience
	case a.low(), a.leaving, len(a.ledger.open()) > 0:
		return retry
	}
	return reclaiming
}

// send sends a message that depends on nothing that is not durable. a.mu must be held.
func (a *Allocator) send(to ring.Owner, m *message) { a.out = append(a.out, parcel{to, m.encode()}) }

// richest returns those who answer and own something, the richest first.
func (a *Allocator) richest(v view) []ring.Owner { return a.byWealth(v, a.share()) }

// byWealth returns those who answer and have something of what is theirs, who has the most first. Between equals every node has an order of its own, so
// that not all ask the same one.
func (a *Allocator) byWealth(v view, theirs map[ring.Owner]ring.Set) []ring.Owner {
	type rich struct {
		o ring.Owner
		n uint64
	}
	var list []rich
	for _, o := range v.alive {
		if s := theirs[o]; len(s) > 0 {
			list = append(list, rich{o, s.Len()})
		}
	}
	slices.SortFunc(list, func(x, y rich) int {
		return cmp.Or(cmp.Compare(y.n, x.n), cmp.Compare(x.o^a.cfg.Self, y.o^a.cfg.Self))
	})
	out := make([]ring.Owner, len(list))
	for i, r := range list {
		out[i] = r.o
	}
	return out
}

// boot tells the runs of this node apart, later ones being greater: where the clock was set back in between, others who
// know of an earlier run say so (see greet).
func (a *Allocator) boot() uint64 { return max(uint64(a.started.UnixNano()), a.reopened) }

// askExact asks the owners of addresses that are waited for by name.
func (a *Allocator) askExact(now time.Time, v view) {
	for _, w := range a.waiters {
		if !w.exact || now.Sub(w.asked) < retry {
			continue
		}
		if o := a.ledger.ring.At(w.slot).Owner; v.has(o) {
			a.send(o, &message{kind: kindRequest, urgent: true, exact: true, slot: w.slot, boot: a.boot(), closed: a.closed[o], ring: a.ledger.ring})
			w.asked = now
		}
	}
}

// askMore asks others for slots if somebody waits for one, or the reserve is low. One at first; more while refusals come
// in, or answers do not.
func (a *Allocator) askMore(now time.Time, v view) {
	urgent := slices.ContainsFunc(a.waiters, func(w *waiter) bool { return !w.exact })
	own := len(a.share()[a.cfg.Self]) > 0
	if !urgent && !a.low() {
		clear(a.asks)
		return
	}
	if own && !a.majority(v) {
		return
	}
	donors := a.richest(v)
	if len(donors) == 0 && !own {
		donors = v.alive // they know who has
	}
	limit := retry
	if urgent {
		limit = patience
	}
	allowed, open := 1, 0
	var quick, slow []ring.Owner
	for _, o := range donors {
		if a.declined(o, now, urgent) {
			if urgent {
				allowed = min(allowed+1, maxAsking)
			}
			continue
		}
		q := a.asks[o]
		switch {
		case q == nil, urgent && !q.urgent:
			quick = append(quick, o)
		case now.Sub(q.last) < limit:
			open++
		case now.Sub(q.last) >= retry:
			slow = append(slow, o)
		}
	}
	for _, o := range append(quick, slow...) {
		if open >= allowed {
			break
		}
		q := a.asks[o]
		if q == nil || urgent && !q.urgent {
			q = &ask{first: now, urgent: urgent}
			a.asks[o] = q
		}
		q.last = now
		a.send(o, &message{kind: kindRequest, urgent: urgent, have: a.space.left(), boot: a.boot(), closed: a.closed[o], ring: a.ledger.ring})
		open++
	}
}

// declined reports whether a node need not be asked, because it said not long ago that it has nothing.
func (a *Allocator) declined(o ring.Owner, now time.Time, urgent bool) bool {
	d, ok := a.denials[o]
	switch {
	case !ok:
		return false
	case urgent && d.urgent && d.reason != refusedNoMajority && a.outdated(o, d):
		return now.Sub(d.at) < patience
	case urgent && d.reason != refusedNoMajority:
		return d.urgent && !slices.ContainsFunc(a.waiters, func(w *waiter) bool { return !w.exact && !d.holds(w) })
	case d.reason == refusedFull:
		return now.Sub(d.at) < abstain
	}
	return now.Sub(d.at) < retry
}

// holds reports whether the refusal answers a waiter.
func (d denial) holds(w *waiter) bool { return d.urgent && !d.at.Before(w.since.Add(-fresh)) }

// outdated reports whether a node got, or is about to get, more slots than it spoke of when it refused: they were under way from a third one, which
// does not have them any more.
func (a *Allocator) outdated(o ring.Owner, d denial) bool {
	return a.space.usable(a.share()[o]) > d.usage.usable
}

// giveUp ends the waiting of those whom nobody can help.
func (a *Allocator) giveUp(now time.Time, v view) {
	a.end(func(w *waiter) error {
		if w.exact {
			return a.hopelessExact(w, now, v)
		}
		if a.hopeless(w, now, v) {
			return a.exhausted(now, v, 2*silence)
		}
		return nil
	})
}

func (a *Allocator) hopelessExact(w *waiter, now time.Time, v view) error {
	o := a.ledger.ring.At(w.slot).Owner
	var reason ElsewhereReason
	switch {
	case now.Sub(a.started) < grace:
		return nil
	case o != a.cfg.Self && !v.has(o), o != a.cfg.Self && now.Sub(w.since) >= 2*silence:
		reason = ElsewhereUnreachable
	case !a.majority(v):
		reason = ElsewhereNoMajority
	default:
		return nil
	}
	return &ElsewhereError{Addr: a.addr(w.slot), Owner: o, Reason: reason}
}

// hopeless reports whether there is nobody left from whom a waiter could get an address.
func (a *Allocator) hopeless(w *waiter, now time.Time, v view) bool {
	own := len(a.share()[a.cfg.Self]) > 0
	if !own && len(v.alive) == 0 {
		return false // this node has yet to join
	}
	if !a.majority(v) {
		return now.Sub(a.started) >= grace && (own || now.Sub(w.since) >= grace)
	}
	if len(a.ledger.announced()) > 0 && now.Sub(w.since) < silence {
		return false // they are on their way to this node
	}
	for _, o := range a.richest(v) {
		if d := a.denials[o]; d.holds(w) && (now.Sub(w.since) >= silence || d.reason != refusedNoMajority && !a.outdated(o, d)) {
			continue
		}
		q := a.asks[o]
		if q == nil || !q.urgent || now.Sub(later(q.first, w.since)) < silence {
			return false
		}
	}
	return true
}

func later(x, y time.Time) time.Time {
	if x.After(y) {
		return x
	}
	return y
}

// exhausted says who holds the universe, as far as was said no longer ago than known.
func (a *Allocator) exhausted(now time.Time, v view, known time.Duration) *ExhaustedError {
	e := &ExhaustedError{Universe: a.cfg.Universe, Usable: uint64(a.size) - 2 - a.cfg.Reserve.Len(), Reserved: a.cfg.Reserve.Len(), Majority: a.majority(v), Self: a.cfg.Self}
	for o, s := range a.share() {
		h := Holder{Owner: o, Usable: a.space.usable(s)}
		d, answered := a.denials[o]
		switch {
		case o == a.cfg.Self:
			n := a.counts()
			h.InUse, h.Resting, h.Reachable = n.inUse, n.resting, true
		case v.has(o) && answered && now.Sub(d.at) < known:
			h.InUse, h.Resting, h.Reachable = d.usage.inUse, d.usage.resting, true
		}
		if h.Usable > 0 {
			e.Holders = append(e.Holders, h)
		}
	}
	slices.SortFunc(e.Holders, func(x, y Holder) int { return cmp.Compare(x.Owner, y.Owner) })
	return e
}

// waitReason says what is waited for; the names of the nodes are put in where no lock is held.
type waitReason struct {
	text  string
	nodes []ring.Owner
}

// reason says what a waiter waits for. a.mu must be held.
func (a *Allocator) reason(w *waiter, v view) waitReason {
	switch {
	case a.hold:
		return waitReason{text: "this node has just started, and hears the others first"}
	case len(a.share()[a.cfg.Self]) == 0 && len(v.alive) == 0:
		return waitReason{text: "this node has no addresses yet and reaches no other node"}
	case w.exact && a.ledger.ring.At(w.slot).Owner != a.cfg.Self:
		return waitReason{"asked for the address, no answer yet:", []ring.Owner{a.ledger.ring.At(w.slot).Owner}}
	case w.exact || len(a.ledger.announced()) > 0:
		return waitReason{text: "addresses were granted, and a majority of the mesh has to record that"}
	}
	r := waitReason{text: "asked for addresses, no answer yet:"}
	for o := range a.asks {
		r.nodes = append(r.nodes, o)
	}
	if len(r.nodes) == 0 {
		r.text = "no node that has addresses can be reached"
	}
	return r
}

// text puts the names into a reason. No lock must be held.
func (a *Allocator) text(r waitReason) string {
	names := make([]string, len(r.nodes))
	for i, o := range r.nodes {
		names[i] = a.name(o)
	}
	slices.Sort(names)
	if len(names) > 8 {
		names = append(names[:8], "others")
	}
	return strings.TrimSuffix(r.text+" "+strings.Join(names, ", "), " ")
}
