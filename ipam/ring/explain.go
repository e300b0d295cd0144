// SPDX-License-Identifier: Apache-2.0

package ring

// Kind is what happened to a slot.
type Kind uint8

// The kinds of what can have happened to a slot, in the order in which they can first happen.
const (
	Seeded    Kind = iota + 1 // owned from the beginning on
	Adopted                   // by the node whose name the seed has
	Passed                    // granted and claimed, or granted and taken back, it is not known between whom
	Granted                   // From has granted it to Owner, who has not claimed it
	Claimed                   // Owner has claimed what it was granted, or taken back what it had granted
	TakenOver                 // by the heir that a retirement named
	Retired                   // From, whose it was or who had granted it, is retired, and Owner is to take it over
)

// String is a word or two in lower case.
func (k Kind) String() string {
	switch k {
	case Seeded:
		return "seeded"
	case Adopted:
		return "adopted"
	case Passed:
		return "passed on"
	case Granted:
		return "granted"
	case Claimed:
		return "claimed"
	case TakenOver:
		return "taken over"
	case Retired:
		return "retired"
	default:
		return "unknown"
	}
}

// Step is something that has happened to a slot, as far as a ring still holds it.
type Step struct {
	Kind    Kind
	Version Version // that was written; zero for Passed and Retired
	Owner   Owner   // whose the slot was by it; 0: not known any more
	From    Owner   // of Granted and Retired: whose it was
	Times   uint32  // of Passed: how often

	// Retirements are, for Retired, the log's entry about From; for TakenOver those of all whose slot it can have been, the
	// last of which named the heir, or nothing if the log does not tell. They must not be modified.
	Retirements []Retirement
}

// Explain says what has happened to a slot, the oldest first, as far as its register and the log still hold it; nothing if
// nothing is known of it. What it says follows from the register as long as all writes were legal.
//
// In an epoch that begins with its first write, every grant is followed by one write that ends it: so the count tells how
// often the slot has changed hands, and whether the seed's share was adopted.
func (r *Ring) Explain(slot uint32) []Step {
	reg := r.At(slot)
	if reg == (Register{}) {
		return nil
	}
	// The last write but a pending grant: holder had the slot then.
	holder, last := reg.Owner, reg.Version
	if reg.From != 0 {
		holder = reg.From
		last.Count = max(last.Count, 1) - 1
	}
	steps := r.origin(holder, last)
	first := uint32(1)
	if last.Epoch == 0 && last.Count >= 2 && last.Count%2 == 0 {
		first = 2
		steps = append(steps, Step{Kind: Adopted, Version: Version{0, 2}, Owner: known(holder, last.Count == 2)})
	}
	if last.Count > first {
		if n := (last.Count - first) / 2; n > 1 {
			steps = append(steps, Step{Kind: Passed, Times: n - 1})
		}
		steps = append(steps, Step{Kind: Claimed, Version: last, Owner: holder})
	}
	if reg.From != 0 {
		steps = append(steps, Step{Kind: Granted, Version: reg.Version, Owner: reg.Owner, From: reg.From})
	}
	for i, e := range r.log.entries {
		if e.Dead == reg.Owner || e.Dead == reg.From {
			heir := r.log.entries[len(r.log.entries)-1].Heir
			steps = append(steps, Step{Kind: Retired, Owner: heir, From: e.Dead, Retirements: r.log.entries[i : i+1]})
		}
	}
	return steps
}

// origin is how the epoch of a slot began that holder had at version last.
func (r *Ring) origin(holder Owner, last Version) []Step {
	if last.Count == 0 {
		return nil
	}
	s := Step{Kind: Seeded, Version: Version{last.Epoch, 1}, Owner: known(holder, last.Count == 1)}
	if n := uint64(last.Epoch); n > 0 {
		s.Kind = TakenOver
		if n <= uint64(len(r.log.entries)) {
			if heir := r.log.entries[n-1].Heir; s.Owner == 0 || s.Owner == heir {
				s.Owner, s.Retirements = heir, r.log.entries[:n]
			}
		}
	}
	return []Step{s}
}

func known(o Owner, is bool) Owner {
	if is {
		return o
	}
	return 0
}
