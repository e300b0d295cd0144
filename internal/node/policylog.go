// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/policy/replica"
)

const (
	// logChanges and logBytes are how many changes are on disk beside the whole of a set, and how large they are, before the whole is written anew: at least, as
	// it may take changes as large as itself.
	logChanges = 1024
	logBytes   = 256 << 10
	// unwrittenBytes are kept of changes that are to be written: as much as the sets themselves may be, see manifestLimits.
	unwrittenBytes = 6 << 20
)

// setLog is how a [replica.Set] is on disk, in the store's Meta bucket: as a whole, and what has changed since, a key each. So what is written is in proportion to what
// changes, however much there is. The order of changes does not matter, nor does it if one of them is in the whole already.
type setLog struct {
	key     string
	changes int // on disk
	bytes   int // of these
	whole   int // bytes of the whole
	stale   bool
}

func (l *setLog) at(change int) string { return fmt.Sprintf("%s+%04d", l.key, change) }

// read merges what is on disk into a set.
func (l *setLog) read(tx *store.Tx, into *replica.Set) error {
	*l = setLog{key: l.key}
	b := tx.Get(store.Meta, l.key)
	l.whole = len(b)
	for {
		if _, _, err := into.Merge(b, nil); err != nil {
			return err //nolint:wrapcheck // the caller says of what
		}
		if b = tx.Get(store.Meta, l.at(l.changes)); b == nil {
			return nil
		}
		l.changes++
		l.bytes += len(b)
	}
}

// write puts changes on disk, or the whole of the set with them if it is time for that or it has become less than was ever written. It returns what is to take the place of l once
// the transaction is on disk.
func (l setLog) write(tx *store.Tx, changes [][]byte, whole func() []byte) (setLog, error) {
	size := 0
	for _, b := range changes {
		size += len(b)
	}
	if !l.stale && l.whole > 0 && l.changes+len(changes) <= logChanges && l.bytes+size <= max(l.whole, logBytes) {
		for _, b := range changes {
			if err := tx.Put(store.Meta, l.at(l.changes), b); err != nil {
				return l, err //nolint:wrapcheck // the caller says of what
			}
			l.changes++
		}
		l.bytes += size
		return l, nil
	}
	for l.changes > 0 {
		l.changes--
		if err := tx.Delete(store.Meta, l.at(l.changes)); err != nil {
			return l, err //nolint:wrapcheck // as above
		}
	}
	b := whole()
	return setLog{key: l.key, whole: len(b)}, tx.Put(store.Meta, l.key, b) //nolint:wrapcheck // as above
}

// unwritten are changes that are to be written, as long as they are no more than the whole may be: a disk that refuses them fills no memory.
type unwritten struct {
	changes [][]byte
	bytes   int
	beyond  bool // there were more than are kept here: the whole is to be written
}

func (u *unwritten) add(b []byte) {
	switch {
	case u.beyond:
	case len(u.changes) == logChanges || u.bytes+len(b) > unwrittenBytes:
		*u = unwritten{beyond: true}
	default:
		u.changes = append(u.changes, b)
		u.bytes += len(b)
	}
}

func (u *unwritten) empty() bool { return len(u.changes) == 0 && !u.beyond }
