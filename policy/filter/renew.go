// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// standby is the table that judges in the place of [Table] while that is made anew.
const standby = Table + "-standby"

// renew makes the table anew. If there is one that packets meet, another table judges by the model meanwhile: nothing is open for a moment, and what is forbidden
// by either is dropped. On error one of the two judges: the table as it was, or the standby.
func (f *Filter) renew(m *model, l layout, d digest, have *contents) error {
	staged := d.count > readable
	now := "which stays as it was"
	if have != nil && have.hooked() {
		if err := f.standIn(m, l, d); err != nil {
			return unmade(standby, "so that inet "+Table+" stays as it was", err)
		}
		if staged {
			now = "in whose place inet " + standby + " judges"
		}
	} else if staged {
		now = "which does not judge yet"
	}
	if err := f.make(Table, m, l, d, have); err != nil {
		f.dirty = true // the guard puts it right, and has the standby go
		return unmade(Table, now, err)
	}
	return nil
}

// standIn has the standby judge. One that an earlier run has left, and that judges, stays: what it knows may be old, but it is closed.
func (f *Filter) standIn(m *model, l layout, d digest) error {
	f.stood = true
	left, err := f.conn.look(standby, judging)
	if err != nil {
		return err
	}
	if left != nil && left.judges() {
		return nil
	}
	if err := f.make(standby, m, l, d, left); err != nil {
		return err
	}
	f.wait() // no packet is under way that has passed its hooks before they judged
	return nil
}

// stepDown removes the standby, if there is one. Packets meet the table by now, or nothing is to be judged.
func (f *Filter) stepDown() error {
	if !f.stood {
		return nil
	}
	f.wait()
	there, err := f.exists(standby)
	if err == nil && there {
		var b buffer
		b.composeRemoval(standby, newContents())
		err = f.conn.commit(b)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("network policy: removing nftables table inet %s, which judges as well: %w; the next attempt follows", standby, err)
	}
	f.stood = false
	return nil
}

// make makes a table of that name, instead of what there is: in one transaction, or, if there is too much for one, in several, of which the last has packets
// meet it. On error there is none of it, or what there was.
func (f *Filter) make(name string, m *model, l layout, d digest, have *contents) error {
	var b buffer
	staged := d.count > readable
	flush := func() error {
		err := f.conn.commit(b)
		b = b[:0]
		return err
	}
	if have != nil {
		b.composeRemoval(name, have)
		if staged {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	b.composeSkeleton(name, l, d.count)
	err := m.contents(name, func(part buffer) error {
		b = append(b, part...)
		if staged {
			return flush()
		}
		return nil
	})
	if err == nil {
		b.composeHooks(name, l)
		b.composePhase(name, "", copies()[0], d)
		err = f.transact(b)
	}
	if err == nil || !staged {
		return err
	}
	b = nil
	b.composeRemoval(name, newContents())
	if gone := flush(); gone != nil && !errors.Is(gone, unix.ENOENT) {
		err = fmt.Errorf("%w; removing it: %w", err, gone)
	}
	return err
}

// exists says whether there is a table of that name, whatever is in it.
func (f *Filter) exists(name string) (bool, error) {
	err := f.conn.ask(request(unix.NFT_MSG_GETTABLE, unix.NFTA_TABLE_NAME, name), false, func(header, []byte) error { return nil })
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}
