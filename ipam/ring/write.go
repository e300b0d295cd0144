// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"fmt"
	"math"
)

// The legal writes. Each is refused, leaving r unchanged, if a slot is not in the state that it starts from (ErrNotOwner),
// or lies outside the ring. That nobody else may write the slot at the time is for the caller to see to: see package ipam
// for who may when.

// Grant writes that from, who has claimed the slots of i, gives them to to: pending from (e,n+1) on. That none of the slots
// is in use is for the caller to see to.
func (r *Ring) Grant(from, to Owner, i Interval) error {
	if from == 0 || to == 0 || to == from {
		return fmt.Errorf("ring: %016x cannot grant to %016x", uint64(from), uint64(to))
	}
	return r.write(i, func(reg Register) (Register, error) {
		if reg.Owner != from || reg.From != 0 {
			return reg, notOwner(i, reg, from)
		}
		return reg.next(to, from)
	})
}

// Claim writes that owner has got the slots of i, which were granted to it.
func (r *Ring) Claim(owner Owner, i Interval) error {
	return r.write(i, func(reg Register) (Register, error) {
		if reg.Owner != owner || reg.From == 0 {
			return reg, notPending(i, reg, owner, "to")
		}
		return reg.next(owner, 0)
	})
}

// Revoke writes that from takes back the slots of i, which it has granted to somebody who has not got them and never will.
func (r *Ring) Revoke(from Owner, i Interval) error {
	return r.write(i, func(reg Register) (Register, error) {
		if reg.From != from || from == 0 {
			return reg, notPending(i, reg, from, "by")
		}
		return reg.next(from, 0)
	})
}

// Adopt writes that to is who the seed meant by seed, in the slots of i.
func (r *Ring) Adopt(seed, to Owner, i Interval) error {
	if seed == 0 || to == 0 || to == seed {
		return fmt.Errorf("ring: %016x cannot adopt what is %016x's", uint64(to), uint64(seed))
	}
	return r.write(i, func(reg Register) (Register, error) {
		if reg.Owner != seed || reg.From != 0 {
			return reg, notOwner(i, reg, seed)
		}
		return reg.next(to, 0)
	})
}

// TakeOver writes that heir, whom the log's last entry names, has the slots of i, of which the owner, or who has granted it
// without its having arrived, is retired: (n,1), where n is the length of the log. That is after whatever a retired node
// has written: no register's epoch is ever greater than the length of the log that its writer knew. (After logs that have
// contradicted each other it may be, and the next epoch is taken.)
func (r *Ring) TakeOver(heir Owner, i Interval) error {
	n := len(r.log.entries)
	if n == 0 || r.log.entries[n-1].Heir != heir {
		return fmt.Errorf("ring: %w: %016x is not who takes over", ErrNotOwner, uint64(heir))
	}
	return r.write(i, func(reg Register) (Register, error) {
		if r.Retired(reg.Owner) == nil && r.Retired(reg.From) == nil {
			return reg, notOwner(i, reg, heir)
		}
		epoch := max(uint64(n), uint64(reg.Version.Epoch)+1)
		if epoch > math.MaxUint32 {
			return reg, fmt.Errorf("ring: a slot of %016x has been taken over as often as can be counted", uint64(reg.Owner))
		}
		return Register{Version: Version{uint32(epoch), 1}, Owner: heir}, nil
	})
}

// next is the register that follows in the same epoch.
func (x Register) next(owner, from Owner) (Register, error) {
	if x.Version.Count == math.MaxUint32 {
		return x, fmt.Errorf("ring: a slot of %016x has been written as often as can be counted", uint64(x.Owner))
	}
	return Register{Version{x.Version.Epoch, x.Version.Count + 1}, owner, from}, nil
}

func notOwner(i Interval, reg Register, who Owner) error {
	if reg.From != 0 {
		return fmt.Errorf("ring: %w: part of %v is granted by %016x to %016x, not for %016x to write",
			ErrNotOwner, i, uint64(reg.From), uint64(reg.Owner), uint64(who))
	}
	return fmt.Errorf("ring: %w: part of %v is owned by %016x, not by %016x", ErrNotOwner, i, uint64(reg.Owner), uint64(who))
}

// notPending says that part of i is not granted, "to" or "by" who.
func notPending(i Interval, reg Register, who Owner, role string) error {
	if reg.From != 0 {
		return notOwner(i, reg, who)
	}
	return fmt.Errorf("ring: %w: part of %v is owned by %016x, and no grant %s %016x", ErrNotOwner, i, uint64(reg.Owner), role, uint64(who))
}

// write replaces the registers of the slots of i by what f makes of them, unless f returns an error for one.
func (r *Ring) write(i Interval, f func(Register) (Register, error)) error {
	if i.First > i.Last || i.Last >= r.size {
		return fmt.Errorf("ring: %v is not within the %d slots of the ring", i, r.size)
	}
	var regs []run // what becomes of the runs in i
	for n := r.index(i.First); n < len(r.runs) && r.runs[n].first <= i.Last; n++ {
		x := r.runs[n]
		reg, err := f(x.reg)
		if err != nil {
			return err
		}
		regs = append(regs, run{max(x.first, i.First), reg})
	}
	r.change(i, len(regs), func(b *builder) {
		for _, x := range regs {
			b.add(x.first, x.reg)
		}
	})
	return nil
}
