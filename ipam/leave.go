// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// Adopt takes over, at the node's first start, the share of the universe that was seeded under a name (NameOwner). There
// is nobody else who may do so, so the share is usable at once. Adopting again what was adopted does nothing; it is an
// AdoptedError if another node has adopted it as far as is known here, which is why a node that can join first should.
func (a *Allocator) Adopt(seed ring.Owner) error {
	if !slices.Contains(a.cfg.Seed.Owners, seed) || seed&seedBit == 0 {
		return errors.New("this node's name is not among the seed names; list it in --seed, or join with --peer instead")
	}
	initial, err := ring.Seed(a.size, a.cfg.Seed.Owners)
	if err != nil {
		return err
	}
	share := initial.OwnedBy(seed)
	var refused error
	err = a.change(func(x *edit) {
		if x.adopted == seed {
			return
		}
		if refused = a.expelled(); refused != nil {
			return
		}
		if r := x.ring.Retired(seed); r != nil {
			refused = &ForgottenError{Retirement: retirement(*r)}
			return
		}
		if other := share.Subtract(x.ring.OwnedBy(seed)); len(other) > 0 {
			// The first grant of all was the adoption; where later ones have gone over it, the best guess is who has it now.
			by := x.ring.At(other[0].First).Owner
			for _, reg := range x.ring.Only(share).All() {
				if reg.Version == (ring.Version{Epoch: 0, Count: 2}) && reg.From == 0 {
					by = reg.Owner
					break
				}
			}
			refused = &AdoptedError{By: by}
			return
		}
		if refused = x.adopt(seed, share); refused == nil {
			x.delta = share
		}
	})
	if err != nil {
		return fmt.Errorf("cannot store the adoption of the seeded share: %w", err)
	}
	a.finish()
	a.Wake()
	return a.named(refused)
}

// Share is how many slots a node got.
type Share struct {
	Owner ring.Owner
	Slots uint64
}

// LeaveReport says what Leave came to.
type LeaveReport struct {
	Granted []Share // what was given away, by owner
	Left    uint64  // slots that this node still owns
	Held    []Lease // allocations because of which it does
}

// Leave gives all free slots of this node, resting ones too, to the other nodes that answer, and waits until a majority
// has recorded that and the recipients have them: until then the node must not stop. From the call on no new address is
// handed out, and no slot asked for; releasing goes on, and a second call gives away what has become free. An error says
// why not everything that is free could be given away, or has arrived; the report holds either way.
func (a *Allocator) Leave(ctx context.Context) (LeaveReport, error) {
	if err, retired := a.Retired(); retired {
		return LeaveReport{}, err
	}
	given := make(map[ring.Owner]uint64)
	a.close()
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for {
		err := a.giveAll(given)
		a.finish()
		a.Wake()
		report, open, rest := a.farewell(given)
		if retired, ok := a.Retired(); ok {
			return report, retired
		}
		switch {
		case err != nil:
			return report, err
		case rest == 0 && len(open) == 0:
			return report, nil
		}
		select {
		case <-ctx.Done():
			if len(open) == 0 {
				return report, fmt.Errorf("%d addresses are still on their way to this node (%w); try again", rest, context.Cause(ctx))
			}
			return report, fmt.Errorf("%s (%w); wait for these nodes or try again",
				a.text(waitReason{"leaving is not confirmed by", open}), context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// close ends the handing out of addresses.
func (a *Allocator) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.leaving {
		a.leaving, a.leavingAt = true, a.cfg.Now()
	}
	a.end(func(*waiter) error { return ErrLeaving })
}

// giveAll grants all that is free to those who answer: who have said since the leaving began that they know of it, because
// what is granted to a node that died a moment ago may be what the others miss for a majority. It waits for them for a
// while. It is an error if there is something and nobody to take it.
func (a *Allocator) giveAll(given map[ring.Owner]uint64) error {
	v := a.look()
	var refused error
	granted := make(map[ring.Owner]uint64)
	err := a.change(func(x *edit) {
		owned := make(map[ring.Owner]ring.Set, len(v.alive))
		silent := false
		for _, o := range v.alive {
			if _, leaving := a.closed[o]; leaving {
				continue
			}
			if a.parted[o] {
				owned[o] = a.share()[o]
			} else {
				silent = true
			}
		}
		free := x.effective.Subtract(a.inUse())
		switch {
		case len(free) == 0:
			return
		case len(owned) == 0 && !silent:
			refused = errors.New("no address was given away, because no other node that stays answers; try again when one does")
			return
		case !a.majority(v):
			refused = errors.New("no address was given away, because the nodes that answer hold no more than half of the range; try again when more of them do")
			return
		case silent && (len(owned) == 0 || a.cfg.Now().Sub(a.leavingAt) < silence):
			return
		}
		shares := deal(free, owned)
		for _, o := range v.alive {
			if len(shares[o]) > 0 && a.give(x, o, shares[o]) {
				granted[o] = shares[o].Len()
			}
		}
		a.handOver(x, v)
	})
	if err != nil {
		return fmt.Errorf("cannot store what is given away: %w", err)
	}
	for o, n := range granted {
		given[o] += n
	}
	return refused
}

// farewell reports how far the leaving has come: open are those who have to confirm something, rest is how many slots are
// on their way to this node or could be given away.
func (a *Allocator) farewell(given map[ring.Owner]uint64) (r LeaveReport, open []ring.Owner, rest uint64) {
	v := a.look()
	r.Held = a.List()
	a.mu.Lock()
	defer a.mu.Unlock()
	own := a.ledger.ring.OwnedBy(a.cfg.Self)
	r.Left, rest = own.Len(), own.Subtract(a.inUse()).Len() // announced ones will come, and can be given away then
	for o, n := range given {
		r.Granted = append(r.Granted, Share{o, n})
	}
	slices.SortFunc(r.Granted, func(x, y Share) int { return cmp.Compare(x.Owner, y.Owner) })
	for _, o := range a.ledger.open() {
		if !v.gone(o.to) {
			open = append(open, o.to)
		}
	}
	for _, o := range v.alive {
		if !a.parted[o] {
			open = append(open, o)
		}
	}
	slices.Sort(open)
	return r, slices.Compact(open), rest
}

// part tells the others that this node leaves, until each has said that it will grant it nothing any more: a grant that
// comes after the node has left would be lost. a.mu must be held.
func (a *Allocator) part(now time.Time, v view) {
	if !a.leaving || now.Sub(a.partedAt) < retry {
		return
	}
	a.partedAt = now
	for _, o := range v.alive {
		if !a.parted[o] {
			a.send(o, &message{kind: kindRequest, last: true, boot: a.boot(), closed: a.closed[o], ring: a.ledger.ring})
		}
	}
}

// greet takes note of which run of another node speaks: one after that which was leaving is back. And it makes this run, if
// it is not leaving, one after any that was: the clock may have been set back in between.
func (a *Allocator) greet(from ring.Owner, m *message) {
	switch {
	case m.last:
		a.closed[from] = max(a.closed[from], m.boot)
	case m.boot > a.closed[from]:
		delete(a.closed, from)
	}
	if !a.leaving && m.closed >= a.boot() && m.closed < math.MaxUint64 {
		a.reopened = m.closed + 1
	}
}

// inUse returns the slots that are allocated, without those that rest. a.mu must be held.
func (a *Allocator) inUse() ring.Set {
	slots := make([]ring.Interval, 0, len(a.bySlot))
	for slot := range a.bySlot {
		slots = append(slots, ring.Interval{First: slot, Last: slot})
	}
	return ring.NewSet(slots...)
}
