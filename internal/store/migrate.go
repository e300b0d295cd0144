// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// schemaDigests is the first schema whose buckets have digests.
const schemaDigests = 2

// migration brings a file from one schema to the next, within one transaction. The buckets of the newest schema are there
// already, if only empty.
type migration func(*Tx) error

// migrations returns how to get away from every earlier schema, by its number. A line stays for good: files of any age are
// upgraded.
func migrations() map[uint32]migration {
	return map[uint32]migration{
		1: addDigests,
		2: func(*Tx) error { return nil }, // the bucket of events, which is empty
	}
}

// errMigration says that an upgrade did not succeed; the file is what it was.
var errMigration = errors.New("the state cannot be upgraded")

// plan says what Open makes of a file.
type plan struct {
	schema uint32
	steps  map[uint32]migration
	checks []Check // of a file that is not new, before the first step
}

// Upgrade tells what Open did with a file of an earlier schema.
type Upgrade struct {
	From, To uint32 // schemas; equal if nothing had to be done
	Kept     string // the name, in the data directory, of the copy of the old file
}

// Upgraded tells whether Open has upgraded the file, and from what.
func (s *Store) Upgraded() (Upgrade, bool) { return s.upgrade, s.upgrade != (Upgrade{}) }

// prepare makes the buckets of a new file, or upgrades that of an earlier schema. Each step is durable before the next one
// begins, so a process that is killed goes on where it was.
func (p plan) prepare(db *bolt.DB, schema uint32) error {
	if schema == 0 {
		return db.Update(func(tx *bolt.Tx) error { return p.finish(tx, p.schema) })
	}
	for ; schema < p.schema; schema++ {
		step := p.steps[schema]
		if step == nil {
			return fmt.Errorf("%w: there is no way from schema %d to %d", errMigration, schema, schema+1)
		}
		if err := db.Update(func(tx *bolt.Tx) error {
			if err := makeBuckets(tx); err != nil {
				return err
			}
			if err := step(&Tx{tx}); err != nil {
				return fmt.Errorf("%w from schema %d to %d: %w", errMigration, schema, schema+1, err)
			}
			return p.finish(tx, schema+1)
		}); err != nil {
			return err
		}
	}
	return nil
}

// finish writes down the schema that a file has now.
func (p plan) finish(tx *bolt.Tx, schema uint32) error {
	if err := makeBuckets(tx); err != nil {
		return err
	}
	return (&Tx{tx}).Put(Meta, keySchema, binary.BigEndian.AppendUint32(nil, schema))
}

func makeBuckets(tx *bolt.Tx) error {
	for _, b := range buckets() {
		if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
			return err
		}
	}
	return nil
}

// addDigests gives every bucket the digest of what is in it.
func addDigests(t *Tx) error {
	for _, name := range buckets() {
		b := t.tx.Bucket([]byte(name))
		var digest uint64
		if err := b.ForEach(func(_, v []byte) error { digest += weight(v); return nil }); err != nil {
			return err
		}
		if err := b.SetSequence(digest); err != nil {
			return err
		}
	}
	return nil
}
