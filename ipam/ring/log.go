// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// Retirement is one entry of the log: a node that is gone for good, and who gets its slots.
type Retirement struct {
	Dead   Owner
	Heir   Owner
	By     Owner // who proposed it
	At     int64 // seconds since 1970, by the clock of By; not negative
	Forced bool  // without a majority
}

// compare orders entries that contradict each other.
func (x Retirement) compare(y Retirement) int {
	c := cmp.Or(cmp.Compare(x.At, y.At), cmp.Compare(x.Dead, y.Dead), cmp.Compare(x.Heir, y.Heir), cmp.Compare(x.By, y.By))
	switch {
	case c != 0 || x.Forced == y.Forced:
		return c
	case x.Forced:
		return 1
	default:
		return -1
	}
}

// log is the retirements in the order in which they were decided. It is never modified, only replaced, so that rings can
// share it.
type log struct {
	entries []Retirement
	index   map[Owner]int // where in entries who is dead
}

// with returns the log with one entry more.
func (l log) with(e Retirement) log {
	index := make(map[Owner]int, len(l.entries)+1)
	maps.Copy(index, l.index)
	index[e.Dead] = len(l.entries)
	return log{append(slices.Clip(l.entries), e), index}
}

// Ballot orders the proposals for one entry of the log. A node uses each of its ballots for one proposal only. The zero
// Ballot is none; no other is nobody's.
type Ballot struct {
	Count uint32
	Node  Owner
}

// Compare returns -1, 0 or +1 as b is before, equal to or after c.
func (b Ballot) Compare(c Ballot) int {
	return cmp.Or(cmp.Compare(b.Count, c.Count), cmp.Compare(b.Node, c.Node))
}

// Votes is the state of an acceptor of single-decree Paxos (Lamport, "Paxos Made Simple", 2001) that is to decide the entry after the log's last one.
// Accepted is never after Promised.
type Votes struct {
	Promised Ballot     // no proposal before it is accepted any more
	Accepted Ballot     // the last proposal that was accepted; zero: none
	Value    Retirement // what it proposed
}

// join returns the state of an acceptor that has seen what both have.
func (v Votes) join(w Votes) Votes {
	if c := v.Accepted.Compare(w.Accepted); c < 0 || c == 0 && v.Value.compare(w.Value) < 0 {
		v.Accepted, v.Value = w.Accepted, w.Value
	}
	if v.Promised.Compare(w.Promised) < 0 {
		v.Promised = w.Promised
	}
	return v
}

// Split is two logs that contradict each other, from entry Index on: without a forced retirement no legal history leads
// to that.
type Split struct {
	Index         int
	Kept, Dropped Retirement
}

// Log returns the retirements in the order in which they were decided. It must not be modified.
func (r *Ring) Log() []Retirement { return r.log.entries }

// Votes returns the state of the votes on the next entry of the log.
func (r *Ring) Votes() Votes { return r.votes }

// Retired returns the log's entry about o, nil if there is none. It must not be modified.
func (r *Ring) Retired(o Owner) *Retirement {
	if i, ok := r.log.index[o]; ok {
		return &r.log.entries[i]
	}
	return nil
}

// RetiredAt returns the place in the log of everybody who is retired; nil if nobody is. It must not be modified.
func (r *Ring) RetiredAt() map[Owner]int { return r.log.index }

// Retire appends an entry to the log; votes begin anew. It is an error if the node is retired already (ErrRetired), or the
// heir is, or anybody named is nobody, or both are the same, or the time is before 1970.
func (r *Ring) Retire(e Retirement) error {
	if err := r.mayRetire(e); err != nil {
		return err
	}
	r.log = r.log.with(e)
	r.votes = Votes{}
	return nil
}

// mayRetire says what speaks against an entry as the log's next one.
func (r *Ring) mayRetire(e Retirement) error {
	switch {
	case e.Dead == 0, e.Heir == 0, e.Dead == e.Heir:
		return fmt.Errorf("ring: %016x cannot take over from %016x", uint64(e.Heir), uint64(e.Dead))
	case r.Retired(e.Dead) != nil:
		return fmt.Errorf("ring: %016x is %w", uint64(e.Dead), ErrRetired)
	case r.Retired(e.Heir) != nil:
		return fmt.Errorf("ring: the heir %016x is %w", uint64(e.Heir), ErrRetired)
	case e.By == 0, e.At < 0:
		return fmt.Errorf("ring: the retirement of %016x by %016x at %d s cannot be written down", uint64(e.Dead), uint64(e.By), e.At)
	}
	return nil
}

// Promise raises the promise to b, if it is after what was promised before and somebody's; that is reported.
func (r *Ring) Promise(b Ballot) bool {
	if b.Node == 0 || b.Compare(r.votes.Promised) <= 0 {
		return false
	}
	r.votes.Promised = b
	return true
}

// Accept takes note of the proposal of e with ballot b, unless a later ballot is promised already; that is reported. It
// is an error if e cannot be the next entry, or if the ballot is nobody's or has proposed something else before.
func (r *Ring) Accept(b Ballot, e Retirement) (bool, error) {
	if err := r.mayRetire(e); err != nil {
		return false, err
	}
	if b.Node == 0 || b == r.votes.Accepted && e != r.votes.Value {
		return false, fmt.Errorf("ring: ballot %d of %016x cannot propose to retire %016x: it is nobody's, or was used before",
			b.Count, uint64(b.Node), uint64(e.Dead))
	}
	if b.Compare(r.votes.Promised) < 0 {
		return false, nil
	}
	r.votes = Votes{Promised: b, Accepted: b, Value: e}
	return true, nil
}

// WithLog returns a copy of r that has the log and the votes of o.
func (r *Ring) WithLog(o *Ring) *Ring {
	c := r.Clone()
	c.log, c.votes = o.log, o.votes
	return c
}

// mergeLog takes over the log of o if it is after r's, and merges the votes if the logs are the same. The longer log is
// after the shorter one, even if they contradict each other, so that a log never becomes shorter than the epochs of the
// takeovers that it has led to; of equally long ones the first difference decides. So all nodes converge.
func (r *Ring) mergeLog(o *Ring) (changed bool, split *Split) {
	ours, theirs := r.log.entries, o.log.entries
	order := cmp.Compare(len(ours), len(theirs))
	for i := range min(len(ours), len(theirs)) {
		if x, y := ours[i], theirs[i]; x != y {
			if order = cmp.Or(order, x.compare(y)); order < 0 {
				x, y = y, x
			}
			split = &Split{i, x, y}
			break
		}
	}
	switch {
	case order < 0:
		r.log, r.votes = o.log, o.votes
		return true, split
	case order > 0:
		return false, split
	}
	before := r.votes
	r.votes = r.votes.join(o.votes)
	return r.votes != before, nil
}
