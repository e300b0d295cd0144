// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/ipam/ring"
)

// DefaultQuarantine is how long a freed address rests unless Config says otherwise.
const DefaultQuarantine = 60 * time.Second

// Peer is another node of the mesh.
type Peer struct {
	Owner ring.Owner
	Alive bool // it answers, as far as is known, and is not about to leave
	Left  bool // it has left the mesh for good: nothing is granted to it any more
}

// Net carries messages to the allocators of other nodes. Messages may be lost, repeated, delayed and reordered. No method
// may call back into the Allocator before it returns, nor wait for something that waits for the Allocator.
type Net interface {
	// Send passes msg to the HandleMessage of another node. It does not wait for the network. msg is not modified afterwards.
	Send(to ring.Owner, msg []byte) error
	// Broadcast passes delta to the Merge of all nodes. It does not wait for the network.
	Broadcast(delta []byte)
	// Peers returns all other nodes that are known.
	Peers() []Peer
}

// Config is what New needs. All fields without a default are required.
type Config struct {
	Self         ring.Owner // this node; top bit clear
	Universe     Universe
	Seed         Seed    // the same on all nodes
	Reserve      Reserve // of Universe, the same on all nodes
	Store        Store
	Net          Net
	Now          func() time.Time
	Quarantine   time.Duration                 // how long a freed address rests; 0: DefaultQuarantine; negative: not at all
	NameOf       func(owner ring.Owner) string // called without locks; for errors and logs; nil, or an empty answer: 16 hexadecimal digits
	Log          *zap.Logger                   // nil: no logs
	ReclaimAfter time.Duration                 // how long a node must have been dead before its addresses are taken over without being told; 0: never
	OnChange     func()                        // ownership or allocations changed; called without locks, must not block; nil: nobody cares
	OnNews       func(News)                    // called without locks, in order but for calls at the same time, must not block; nil: nobody cares
}

// Allocator hands out addresses of one node. All methods may be called concurrently, unless said otherwise.
type Allocator struct {
	cfg        Config
	log        *zap.Logger
	size       uint32
	quarantine time.Duration
	started    time.Time
	wake       chan struct{} // capacity 1: Run has something to do

	// commitMu serializes commits, and with them changes of the ledger. It is taken before mu and held while the store writes.
	commitMu sync.Mutex

	// mu guards all below. It is never held while the store, Net or OnChange is called.
	mu        sync.Mutex
	ledger    *ledger // replaced with commitMu and mu held
	shares    map[ring.Owner]ring.Set
	space     *space
	byOwner   map[string]*entry
	bySlot    map[uint32]*entry
	batch     *batch
	woken     []uint32 // slots whose rest is over, to be told to the store with the next commit
	doubt     doubt
	failing   bool // the last commit failed
	waiters   []*waiter
	asks      map[ring.Owner]*ask
	pace      pace
	denials   map[ring.Owner]denial
	leaving   bool                  // no more addresses are handed out, nor asked for
	leavingAt time.Time             // since when
	parted    map[ring.Owner]bool   // while leaving: those who will answer no earlier request any more
	partedAt  time.Time             // while leaving: when the others were last told
	closed    map[ring.Owner]uint64 // nodes that are leaving, and the boot whose requests are not answered any more
	reopened  uint64                // what boot returns at least: more than that of a run that was leaving, by a clock that was ahead
	out       []parcel
	changed   bool
	hold      bool                  // nothing new is handed out before somebody was heard: this node may have been retired while it was down
	wants     []*want               // retirements that are wanted, in order
	absent    map[ring.Owner]missed // who is named in the ring and does not answer, and since when
	surveyed  int                   // the length of the log for which this node, as the heir, has heard from a majority
	heirSaid  struct {              // who has said last what it knows, as the heir perhaps
		heir   ring.Owner
		length int // of its log
		asked  time.Time
	}
	buried struct { // what deceased returned for a log
		log  []ring.Retirement
		dead []ring.Owner
	}
	mentioned struct { // what heldBy returned for a ring
		ring   *ring.Ring
		owners map[ring.Owner]bool
	}
	proposal   *proposal
	holdOff    time.Time  // no proposal is made before
	duels      int        // proposals for the next retirement that were overtaken
	stalled    time.Time  // since when there is an undecided proposal, of anybody's
	stalledAt  ring.Votes // which
	survey     *survey
	oddities   oddities
	violated   map[ring.Conflict]bool
	split      map[ring.Split]bool
	lost       uint64            // slots that were taken away though they were effective here
	notes      []func() string   // violations to report once no lock is held
	trouble    string            // the last of them
	obituaries []ring.Retirement // to report once no lock is held
	news       []News            // the same
}

// maxViolations bounds how many different violations are told apart.
const maxViolations = 1024

// New loads the state from the store, or makes that of a new node: one that owns its share of the seed, if it has one.
func New(cfg Config) (*Allocator, error) {
	if cfg.Self == 0 || cfg.Self&seedBit != 0 {
		return nil, fmt.Errorf("ipam: %016x cannot be a node's identity", uint64(cfg.Self))
	}
	if cfg.Universe.Size() == 0 || cfg.Store == nil || cfg.Net == nil || cfg.Now == nil {
		return nil, errors.New("ipam: universe, store, net and clock must be given")
	}
	a := &Allocator{
		cfg:        cfg,
		log:        cfg.Log,
		size:       uint32(cfg.Universe.Size()),
		quarantine: cmp.Or(cfg.Quarantine, DefaultQuarantine),
		started:    cfg.Now(),
		wake:       make(chan struct{}, 1),
		byOwner:    make(map[string]*entry),
		bySlot:     make(map[uint32]*entry),
		asks:       make(map[ring.Owner]*ask),
		denials:    make(map[ring.Owner]denial),
		parted:     make(map[ring.Owner]bool),
		closed:     make(map[ring.Owner]uint64),
		violated:   make(map[ring.Conflict]bool),
		split:      make(map[ring.Split]bool),
		absent:     make(map[ring.Owner]missed),
	}
	if a.log == nil {
		a.log = zap.NewNop()
	}
	a.space = newSpace(a.size)
	a.space.reserve = cfg.Reserve.slots
	seed, err := ring.Seed(a.size, cfg.Seed.Owners)
	if err != nil {
		return nil, fmt.Errorf("the seed does not fit the range %v: %w", cfg.Universe, err)
	}
	s, err := cfg.Store.LoadIPAM()
	if err != nil {
		return nil, fmt.Errorf("cannot load the addresses: %w", err)
	}
	a.ledger = &ledger{self: cfg.Self, ring: seed}
	if len(s.Ring) == 0 {
		a.ledger.effective = seed.OwnedBy(cfg.Self)
		if err := a.save(Change{Ring: seed.Encode(), Grants: a.ledger.encode()}); err != nil {
			return nil, fmt.Errorf("cannot store the addresses: %w", err)
		}
	} else if err := a.load(s); err != nil {
		return nil, fmt.Errorf("%w; reset this node (weft reset) and forget it on another (weft forget), or restore a copy of the data directory that is not older than its last change", err)
	}
	a.stalled, a.stalledAt = a.started, a.ledger.ring.Votes()
	a.hold = len(s.Ring) > 0 && len(a.others(view{})) > 0
	a.space.within(a.ledger.effective)
	return a, nil
}

// load takes over a stored state.
func (a *Allocator) load(s State) error {
	r, err := ring.Decode(s.Ring)
	if err != nil {
		return fmt.Errorf("the stored ring is not readable: %w", err)
	}
	if r.Size() != a.size {
		return fmt.Errorf("the stored ring has %d slots, the range %v has %d", r.Size(), a.cfg.Universe, a.size)
	}
	a.ledger.ring = r
	if err := a.ledger.decode(s.Grants); err != nil {
		return err
	}
	for _, p := range s.Allocations {
		if p.Slot >= a.size || a.bySlot[p.Slot] != nil {
			return fmt.Errorf("the stored allocation of slot %d to %s is not possible", p.Slot, p.Owner)
		}
		e := &entry{owner: p.Owner, slot: p.Slot, state: held}
		a.byOwner[p.Owner], a.bySlot[p.Slot] = e, e
		a.space.take(p.Slot)
		a.space.cursor = max(a.space.cursor, p.Slot+1)
		if !a.ledger.effective.Contains(p.Slot) && !a.ledger.retired(a.cfg.Self) {
			a.notes = append(a.notes, func() string {
				return fmt.Sprintf("workload %s has %s, which is not this node's", p.Owner, a.addr(p.Slot))
			})
		}
	}
	slices.SortFunc(s.Resting, func(x, y Resting) int { return x.Until.Compare(y.Until) })
	limit := a.cfg.Now().Add(max(a.quarantine, 0))
	for _, rest := range s.Resting {
		if rest.Slot >= a.size || a.space.taken(rest.Slot) {
			continue
		}
		// A clock that was set back must not keep the slot for longer than the rest would be.
		if rest.Until.After(limit) {
			rest.Until = limit
		}
		a.space.take(rest.Slot)
		a.space.rest(rest.Slot, rest.Until)
		a.space.cursor = max(a.space.cursor, rest.Slot+1)
	}
	return nil
}

// complete reports whether a ring is all that a node knew, and not a delta.
func complete(r *ring.Ring) bool { return r != nil && r.Known().Len() == uint64(r.Size()) }

// others returns the other nodes that the ring names, as far as they have neither left nor are retired.
func (a *Allocator) others(v view) []ring.Owner {
	return slices.DeleteFunc(a.ledger.ring.Owners(), func(o ring.Owner) bool {
		return o == a.cfg.Self || o&seedBit != 0 || a.ledger.retired(o) || v.lacks(o)
	})
}

// Run asks for more addresses when few are left, and repeats what was not answered, until ctx ends. It returns nil then.
// It must be called once; without it, nothing is repeated.
func (a *Allocator) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-a.wake:
		}
		if next := a.finish(); next > 0 {
			timer.Reset(next)
		} else {
			timer.Stop()
		}
	}
}

// Wake makes Run look again at what there is to do. Call it when the peers change: a node that has just joined asks for
// its first addresses then. It does not block.
func (a *Allocator) Wake() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Encode returns all that this node knows about ownership, for the Merge of others.
func (a *Allocator) Encode() []byte {
	a.mu.Lock()
	r := a.ledger.ring
	a.mu.Unlock()
	return r.Encode()
}

// Merge takes in what another node's Encode returned, or a delta. It returns, in the same form, what of it was new and
// is therefore to be passed on; nil if nothing was. What is new is durable before Merge returns.
func (a *Allocator) Merge(b []byte) (delta []byte, err error) {
	o, err := ring.Decode(b)
	if err != nil {
		return nil, err
	}
	if err := a.change(func(x *edit) {
		x.quiet = true
		x.after(func() { a.hold = a.hold && !complete(o) })
		changed, merr := a.merge(x, o)
		switch err = merr; {
		case x.grown():
			delta = x.ring.Only(changed).WithLog(x.ring).Encode()
		case len(changed) > 0:
			delta = x.ring.Only(changed).Encode()
		}
	}); err != nil {
		return nil, fmt.Errorf("cannot store what was learned about addresses: %w", err)
	}
	if err != nil {
		return nil, err
	}
	a.finish()
	a.Wake()
	return delta, nil
}

// merge merges o into the ledger under change and reports violations. It returns the slots that it changed. a.mu must be
// held.
func (a *Allocator) merge(x *edit, o *ring.Ring) (changed ring.Set, err error) {
	news, lost, err := x.merge(o)
	if err != nil {
		return nil, err
	}
	x.after(func() { a.complain(x.ring, news, lost) })
	return news.Slots, nil
}

// complain takes note of violations that a merge into r met. a.mu must be held.
func (a *Allocator) complain(r *ring.Ring, news ring.News, lost ring.Set) {
	for _, c := range news.Conflicts {
		if a.violated[c] || len(a.violated) >= maxViolations {
			continue
		}
		a.violated[c] = true
		a.notes = append(a.notes, func() string {
			return fmt.Sprintf("%d addresses from %s were given to %s and to %s at the same time; %s keeps them",
				c.Interval.Len(), a.addr(c.Interval.First), a.name(c.Kept), a.name(c.Dropped), a.name(c.Kept))
		})
	}
	if s := news.Split; s != nil && !a.split[*s] && len(a.split) < maxViolations {
		a.split[*s] = true
		a.notes = append(a.notes, func() string {
			return fmt.Sprintf("two parts of the mesh have decided about nodes that are gone without each other: %s went to %s, and %s to %s; the first holds",
				a.name(s.Kept.Dead), a.name(s.Kept.Heir), a.name(s.Dropped.Dead), a.name(s.Dropped.Heir))
		})
	}
	for _, i := range lost {
		a.lost += i.Len()
		to := r.At(i.First).Owner
		a.notes = append(a.notes, func() string {
			return fmt.Sprintf("%d addresses from %s were this node's and were given to %s without it", i.Len(), a.addr(i.First), a.name(to))
		})
	}
}

// violation reports what no run of the protocol leads to. No lock must be held.
func (a *Allocator) violation(what string) {
	a.mu.Lock()
	a.trouble = what
	a.mu.Unlock()
	a.log.Error("addresses in conflict: " + what + "; look for two nodes that share an identity or a seed name, or one that was restored from an old copy")
}

// Owned returns what every owner owns according to the ring, by owner. Seed names whose node has not started are among
// the owners.
func (a *Allocator) Owned() []Holding {
	a.mu.Lock()
	shares := a.share()
	a.mu.Unlock()
	out := make([]Holding, 0, len(shares))
	for o, s := range shares {
		h := Holding{Owner: o, Slots: s.Len()}
		for _, p := range a.cfg.Universe.Prefixes() {
			h.Prefixes = append(h.Prefixes, ring.Prefixes(s, p)...)
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(x, y Holding) int { return cmp.Compare(x.Owner, y.Owner) })
	return out
}

// Holding is what one owner owns.
type Holding struct {
	Owner    ring.Owner
	Prefixes []netip.Prefix // IPv4 first
	Slots    uint64
}

// share returns the slots of every owner; the result is not modified by anybody. a.mu must be held.
func (a *Allocator) share() map[ring.Owner]ring.Set {
	if a.shares == nil {
		a.shares = slotsBy(a.ledger.ring, func(r ring.Register) ring.Owner { return r.Owner })
	}
	return a.shares
}

// slotsBy sorts the slots of a ring by a node that is named in their registers; slots of none are left out.
func slotsBy(r *ring.Ring, node func(ring.Register) ring.Owner) map[ring.Owner]ring.Set {
	slots := make(map[ring.Owner]ring.Set)
	for i, reg := range r.All() {
		o := node(reg)
		s := slots[o]
		if n := len(s); n > 0 && s[n-1].Last+1 == i.First {
			s[n-1].Last = i.Last
		} else {
			slots[o] = append(s, i)
		}
	}
	delete(slots, 0)
	return slots
}

// Usage is how things stand, in slots. Slots that are never handed out count in none but Owned, Effective and Pending.
type Usage struct {
	Size      uint64 // that may be handed out in the whole universe
	Reserved  uint64 // of these, in reserve: handed out by name only
	Owned     uint64 // owned by this node according to the ring
	Effective uint64 // of these, granted with effect: a majority knows
	Pending   uint64 // of these, announced: the grant has not taken effect or not arrived
	Allocated uint64
	Resting   uint64 // released a moment ago
	Free      uint64 // may be handed out unasked at once
	Outgoing  uint64 // granted to others who have not said that they know
	Majority  bool   // this node and those that answer own more than half of the universe, so grants can take effect
	Leaving   bool   // Leave was called
	Failing   bool   // the store refused the last write
	Waiting   []Waiting

	Conflicts    uint64 // violations seen since the start
	LastConflict string // one line about the last; empty if there is none
}

// Waiting is a call that waits for an address.
type Waiting struct {
	Owner  string
	Since  time.Time
	Reason string
}

// Usage returns how things stand.
func (a *Allocator) Usage() Usage {
	v := a.look()
	a.mu.Lock()
	a.expire()
	own := a.share()[a.cfg.Self]
	n := a.counts()
	u := Usage{
		Size:         uint64(a.size) - 2,
		Reserved:     a.cfg.Reserve.Len(),
		Owned:        own.Len(),
		Effective:    a.ledger.effective.Len(),
		Pending:      a.ledger.announced().Len(),
		Allocated:    uint64(len(a.byOwner)),
		Resting:      n.resting,
		Free:         a.space.left(),
		Majority:     a.majority(v),
		Leaving:      a.leaving,
		Failing:      a.failing,
		Conflicts:    uint64(len(a.violated)) + a.lost,
		LastConflict: a.trouble,
	}
	for _, o := range a.ledger.open() {
		if !v.gone(o.to) {
			u.Outgoing += o.grants.Known().Len()
		}
	}
	var reasons []waitReason
	for _, w := range a.waiters {
		u.Waiting = append(u.Waiting, Waiting{Owner: w.owner, Since: w.since})
		reasons = append(reasons, a.reason(w, v))
	}
	a.mu.Unlock()
	for i, r := range reasons {
		u.Waiting[i].Reason = a.text(r)
	}
	return u
}

// counts returns how full this node is. a.mu must be held.
func (a *Allocator) counts() counts {
	rest := uint64(len(a.space.rests))
	return counts{usable: a.space.total, inUse: a.space.inside - min(a.space.dozing(), a.space.inside), resting: rest}
}

// name returns what to call an owner. No lock must be held: NameOf may wait for one that is held around Merge.
func (a *Allocator) name(o ring.Owner) string {
	if a.cfg.NameOf != nil {
		if n := a.cfg.NameOf(o); n != "" {
			return n
		}
	}
	return fmt.Sprintf("%016x", uint64(o))
}

// addr returns the address of a slot, IPv4 if there is one, for people to read.
func (a *Allocator) addr(slot uint32) netip.Addr {
	v4, v6 := a.cfg.Universe.Addrs(slot)
	if v4.IsValid() {
		return v4
	}
	return v6
}
