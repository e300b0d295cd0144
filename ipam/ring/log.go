// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"cmp"
	"fmt"
	"slices"
)

// Retirement is one entry of the log: a node that is gone for good, and who gets its slots.
type Retirement struct {
	Dead   Owner
	Heir   Owner
	By     Owner // who proposed it
	At     int64 // seconds since 1970, by the clock of By
	Forced bool  // without a majority
}

// compare orders entries that contradict each other.
func (x Retirement) compare(y Retirement) int {
	forced := map[bool]int{true: 1}
	return cmp.Or(cmp.Compare(x.At, y.At), cmp.Compare(x.Dead, y.Dead), cmp.Compare(x.Heir, y.Heir),
		cmp.Compare(x.By, y.By), forced[x.Forced]-forced[y.Forced])
}

// Ballot orders the proposals for one entry of the log. A node uses each of its ballots for one proposal only. The zero
// Ballot is none.
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
func (r *Ring) Log() []Retirement { return r.log }

// Votes returns the state of the votes on the next entry of the log.
func (r *Ring) Votes() Votes { return r.votes }

// Retired returns the log's entry about o, nil if there is none.
func (r *Ring) Retired(o Owner) *Retirement {
	for i := range r.log {
		if r.log[i].Dead == o {
			return &r.log[i]
		}
	}
	return nil
}

// RetiredAt returns the place in the log of everybody who is retired; nil if nobody is.
func (r *Ring) RetiredAt() map[Owner]int {
	if len(r.log) == 0 {
		return nil
	}
	m := make(map[Owner]int, len(r.log))
	for i, e := range r.log {
		m[e.Dead] = i
	}
	return m
}

// Retire appends an entry to the log; votes begin anew. It is an error if the node is retired already (ErrRetired), or the
// heir is, or either is nobody, or both are the same.
func (r *Ring) Retire(e Retirement) error {
	if err := r.mayRetire(e); err != nil {
		return err
	}
	r.log = append(slices.Clone(r.log), e)
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
	}
	return nil
}

// Promise raises the promise to b, if it is after what was promised before; that is reported.
func (r *Ring) Promise(b Ballot) bool {
	if b.Compare(r.votes.Promised) <= 0 {
		return false
	}
	r.votes.Promised = b
	return true
}

// Accept takes note of the proposal of e with ballot b, unless a later ballot is promised already; that is reported. It
// is an error if e cannot be the next entry.
func (r *Ring) Accept(b Ballot, e Retirement) (bool, error) {
	if err := r.mayRetire(e); err != nil {
		return false, err
	}
	if b == (Ballot{}) || b.Compare(r.votes.Promised) < 0 {
		return false, nil
	}
	r.votes = Votes{Promised: b, Accepted: b, Value: e}
	return true, nil
}

// WithLog returns a copy of r that has the log and the votes of o.
func (r *Ring) WithLog(o *Ring) *Ring {
	c := *r
	c.log, c.votes = o.log, o.votes
	return &c
}

// mergeLog takes over the log of o if it is after r's, and merges the votes if the logs are the same. Logs are ordered by
// their first difference, so that nodes converge even where logs contradict each other.
func (r *Ring) mergeLog(o *Ring) (changed bool, split *Split) {
	n := min(len(r.log), len(o.log))
	for i := range n {
		x, y := r.log[i], o.log[i]
		switch c := x.compare(y); {
		case c < 0:
			r.log, r.votes = o.log, o.votes
			return true, &Split{i, y, x}
		case c > 0:
			return false, &Split{i, x, y}
		}
	}
	if len(o.log) > n {
		r.log, r.votes = o.log, o.votes
		return true, nil
	}
	if len(r.log) > n {
		return false, nil
	}
	before := r.votes
	r.votes = r.votes.join(o.votes)
	return r.votes != before, nil
}
