// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/ipam/ring"
)

// entry is an allocation in memory.
type entry struct {
	owner string
	slot  uint32
	state entryState
	batch *batch    // the commit that decides about it, while its state is staged or releasing
	rest  time.Time // until when the slot would have rested had it not been asked for by name; zero: it was free
}

type entryState uint8

const (
	staged    entryState = iota // picked, not durable yet, to be seen by nobody
	held                        // durable
	releasing                   // still durable, its removal is under way
	void                        // not durable, and never going to be
)

// batch is what one commit will decide. Calls that come while another commit is under way share one.
type batch struct {
	entries []*entry
	done    bool
	err     error
}

// stage puts an entry into the commit to come. a.mu must be held.
func (a *Allocator) stage(e *entry, s entryState) *batch {
	if a.batch == nil {
		a.batch = new(batch)
	}
	e.state, e.batch = s, a.batch
	a.batch.entries = append(a.batch.entries, e)
	return a.batch
}

// commit makes a batch durable, unless another call has already done so. No lock must be held.
func (a *Allocator) commit(b *batch) error {
	a.commitMu.Lock()
	defer a.commitMu.Unlock()
	if b.done {
		return b.err
	}
	// A batch that is not done is the current one: only this function takes it away, with commitMu held.
	a.mu.Lock()
	a.batch = nil
	until := a.cfg.Now().Add(a.quarantine).Round(0).Truncate(time.Millisecond)
	c := Change{Wake: a.woken}
	a.woken = nil
	for _, e := range b.entries {
		switch {
		case e.state == releasing:
			c.Delete = append(c.Delete, e.owner)
			if a.quarantine > 0 {
				c.Rest = append(c.Rest, Resting{e.slot, until})
			}
		case a.ledger.effective.Contains(e.slot):
			c.Put = append(c.Put, Allocation{e.owner, e.slot})
		default:
			a.drop(e) // the slot was taken away since it was picked
		}
	}
	a.mu.Unlock()

	b.err = a.save(c)

	a.mu.Lock()
	defer a.mu.Unlock()
	b.done = true
	for _, e := range b.entries {
		e.batch = nil
		switch {
		case e.state == staged && b.err == nil:
			e.state = held
			a.changed = true
		case e.state == staged:
			a.drop(e)
		case e.state == releasing && b.err == nil:
			a.forget(e)
			if a.quarantine > 0 {
				a.space.rest(e.slot, until)
			} else {
				a.space.free(e.slot)
			}
			a.changed = true
		case e.state == releasing:
			e.state = held
		}
	}
	return b.err
}

// drop takes back an entry that was staged.
func (a *Allocator) drop(e *entry) {
	a.forget(e)
	if e.rest.IsZero() {
		a.space.free(e.slot)
	} else {
		a.space.rest(e.slot, e.rest)
	}
}

// forget removes an entry; its slot stays taken.
func (a *Allocator) forget(e *entry) {
	e.state = void
	delete(a.byOwner, e.owner)
	delete(a.bySlot, e.slot)
}

// edit is a change to the ledger under way.
type edit struct {
	*ledger
	before *ledger
	quiet  bool // the caller spreads the news of retirements
	out    []parcel
	delta  ring.Set // what to gossip of the new ring
	then   []func() // called, with a.mu held, when the change is current
}

// after has f called, with a.mu held, when the change is current.
func (x *edit) after(f func()) { x.then = append(x.then, f) }

// grown reports whether the log of retirements has.
func (x *edit) grown() bool { return len(x.ring.Log()) > len(x.before.ring.Log()) }

func (x *edit) send(to ring.Owner, m *message) { x.out = append(x.out, parcel{to, m.encode()}) }

// change lets f change a copy of the ledger, makes that durable, and then makes it current and sends what f wants sent.
// If it cannot be made durable nothing happened. f is called with a.mu held, which is given up while the store writes:
// what only makes sense along with the changed ledger belongs into then. No lock must be held.
func (a *Allocator) change(f func(x *edit)) error {
	a.commitMu.Lock()
	defer a.commitMu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	x := &edit{ledger: a.ledger.copy(), before: a.ledger}
	f(x)
	var c Change
	if x.ring != x.before.ring {
		c.Ring = x.ring.Encode()
	}
	if g := x.encode(); !bytes.Equal(g, x.before.encode()) {
		c.Grants = g
	}
	if c.Ring != nil || c.Grants != nil {
		// What is about to be given away must not be handed out in the meantime.
		a.space.within(x.before.effective.Intersect(x.effective))
		a.mu.Unlock()
		err := a.save(c)
		a.mu.Lock()
		if err != nil {
			a.space.within(x.before.effective)
			return err
		}
		a.changed = true
	}
	a.ledger = x.ledger
	if x.ring != x.before.ring {
		a.shares = nil
	}
	a.space.within(x.effective)
	for _, f := range x.then {
		f()
	}
	a.out = append(a.out, x.out...)
	if x.grown() {
		a.mourn(x.ring.Log()[len(x.before.ring.Log()):])
	}
	switch delta := x.ring.Only(x.delta); {
	case x.grown() && !x.quiet:
		a.out = append(a.out, parcel{0, delta.WithLog(x.ring).Encode()})
	case len(x.delta) > 0:
		a.out = append(a.out, parcel{0, delta.Encode()})
	}
	return nil
}

// doubt is what the store may or may not hold, because a commit of it failed.
type doubt struct {
	ledger bool
	owners map[string]bool
	slots  map[uint32]bool
}

func (d *doubt) any() bool { return d.ledger || len(d.owners) > 0 || len(d.slots) > 0 }

// add takes note that a change may or may not have been made.
func (d *doubt) add(c Change) {
	if d.owners == nil {
		d.owners, d.slots = make(map[string]bool), make(map[uint32]bool)
	}
	d.ledger = d.ledger || c.Ring != nil || c.Grants != nil
	for _, o := range c.Delete {
		d.owners[o] = true
	}
	for _, p := range c.Put {
		d.owners[p.Owner] = true
	}
	for _, s := range c.Wake {
		d.slots[s] = true
	}
	for _, r := range c.Rest {
		d.slots[r.Slot] = true
	}
}

// resolve adds to a change what is needed to be sure of all that is in doubt. a.mu must be held.
func (a *Allocator) resolve(c Change) Change {
	d := &a.doubt
	if d.ledger && c.Ring == nil {
		c.Ring = a.ledger.ring.Encode()
	}
	if d.ledger && c.Grants == nil {
		c.Grants = a.ledger.encode()
	}
	for _, p := range c.Put {
		delete(d.owners, p.Owner)
	}
	for _, o := range c.Delete {
		delete(d.owners, o)
	}
	for _, o := range slices.Sorted(maps.Keys(d.owners)) {
		if e := a.byOwner[o]; e != nil && e.state != staged {
			c.Put = append(c.Put, Allocation{o, e.slot})
		} else {
			c.Delete = append(c.Delete, o)
		}
	}
	for _, r := range c.Rest {
		delete(d.slots, r.Slot)
	}
	for _, s := range slices.Sorted(maps.Keys(d.slots)) {
		if until, ok := a.space.rests[s]; ok {
			c.Rest = append(c.Rest, Resting{s, until})
		} else {
			c.Wake = append(c.Wake, s)
		}
	}
	return c
}

// save writes a change, and whatever is in doubt. commitMu must be held, a.mu must not.
func (a *Allocator) save(c Change) error {
	a.mu.Lock()
	if a.doubt.any() {
		c = a.resolve(c)
	}
	a.mu.Unlock()
	if c.Ring == nil && c.Grants == nil && len(c.Delete)+len(c.Put)+len(c.Wake)+len(c.Rest) == 0 {
		return nil
	}
	err := a.cfg.Store.SaveIPAM(c)
	a.mu.Lock()
	before := a.failing
	a.failing = err != nil
	if err != nil {
		a.doubt.add(c)
	} else {
		a.doubt = doubt{}
	}
	a.mu.Unlock()
	switch {
	case err != nil && !before:
		a.log.Error("cannot store addresses; none is handed out or given back until the disk accepts writes again", zap.Error(err))
	case err == nil && before:
		a.log.Info("addresses can be stored again")
	}
	return err
}

// parcel is a message to send once no lock is held; to 0: gossip.
type parcel struct {
	to  ring.Owner
	msg []byte
}

// maxAdvances bounds how many changes one call of finish makes that lead to one another.
const maxAdvances = 8

// due reports whether advance has something to do. a.mu must be held.
func (a *Allocator) due(now time.Time, v view) bool {
	l := a.ledger
	return len(l.ripe(v.has)) > 0 || slices.ContainsFunc(l.outgoing, l.revocable) || a.wantsStep(l, now, v) || len(a.heritage(l, v)) > 0
}

// advance makes the changes that are due.
func (a *Allocator) advance(x *edit, now time.Time, v view) {
	if back, err := x.revoke(); err != nil {
		a.log.Error("address blocks not taken back", zap.Error(err))
	} else {
		x.delta = x.delta.Union(back)
	}
	a.handOver(x, v)
	a.propose(x, now, v)
	a.inherit(x, v)
}

// finish does what is due, sends what has gathered and returns when it wants to be called again, 0 for not at all. No
// lock must be held.
func (a *Allocator) finish() time.Duration {
	v := a.look()
	for range maxAdvances {
		a.mu.Lock()
		due := a.due(a.cfg.Now(), v)
		a.mu.Unlock()
		if !due {
			break
		}
		if err := a.change(func(x *edit) { a.advance(x, a.cfg.Now(), v) }); err != nil {
			a.log.Debug("the state of the addresses could not be stored; that is tried again", zap.Error(err))
			break
		}
	}
	a.mu.Lock()
	next := a.work(a.cfg.Now(), v)
	out, notes, changed, obituaries := a.out, a.notes, a.changed, a.obituaries
	a.out, a.notes, a.changed, a.obituaries = nil, nil, false, nil
	news := a.news
	a.news = nil
	a.mu.Unlock()
	a.spread(news)
	for _, r := range obituaries {
		a.announce(r)
	}
	for _, n := range notes {
		a.violation(n())
	}
	for _, p := range out {
		if p.to == 0 {
			a.cfg.Net.Broadcast(p.msg)
		} else if err := a.cfg.Net.Send(p.to, p.msg); err != nil {
			a.log.Debug("message not sent; it is repeated", zap.String("to", a.name(p.to)), zap.Error(err))
		}
	}
	if changed && a.cfg.OnChange != nil {
		a.cfg.OnChange()
	}
	return next
}
