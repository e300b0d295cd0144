// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// ringOf1 and grantsOf1 are what a node that founded a mesh of two, and gave half of 65536 addresses away, had with schema 1.
const (
	ringOf1 = "\x01\x80\x80\x04\x02[\x94\x0eUVJ\xec\x14VX\x95WI\x81*,\x02\x00\xff\xff\x01\x00\x01\x00\xff\xff\x01\x02\x02"

	grantsOf1 = "\x01\x00\x14\x01\x80\x80\x04\x01[\x94\x0eUVJ\xec\x14\x01\x00\xff\xff\x01\x00\x01\x01\xd6\xb0\xbc\x95\xa9\xa0\x95," +
		"\x01\x16\x01\x80\x80\x04\x01VX\x95WI\x81*,\x01\x80\x80\x02\xff\xff\x01\x00\x02"
)

// writeSchema1 makes a file as the first builds wrote it: with checksums, and without digests.
func writeSchema1(t *testing.T, dir string) (holds map[string]string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, FileName), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	holds = map[string]string{}
	if err := db.Update(func(tx *bolt.Tx) error {
		for _, name := range []Bucket{"allocations", "clients", "host", "ipam", "meta", "records", "workloads"} {
			b, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			for i := range 100 {
				k, v := fmt.Sprint("key-", i), fmt.Sprintf("value %d of %s", i, name)
				holds[string(name)+"/"+k] = v
				if err := b.Put([]byte(k), seal(name, k, []byte(v))); err != nil {
					return err
				}
			}
		}
		for k, v := range map[string]string{"ring": ringOf1, "grants": grantsOf1} {
			holds["ipam/"+k] = v
			if err := tx.Bucket([]byte(IPAM)).Put([]byte(k), seal(IPAM, k, []byte(v))); err != nil {
				return err
			}
		}
		return tx.Bucket([]byte(Meta)).Put([]byte("schema"), seal(Meta, "schema", []byte{0, 0, 0, 1}))
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return holds
}

// state is what a store holds but for its schema.
func state(t *testing.T, s *Store) map[string]string {
	t.Helper()
	all := dump(t, s)
	delete(all, "meta/schema")
	return all
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUpgradeFromSchema1(t *testing.T) {
	dir := t.TempDir()
	holds := writeSchema1(t, dir)
	old := read(t, dir, FileName)
	s := open(t, dir)
	if got := state(t, s); !reflect.DeepEqual(got, holds) {
		t.Errorf("it holds %v", got)
	}
	if u, ok := s.Upgraded(); !ok || u != (Upgrade{From: 1, To: Schema, Kept: "weft.db.schema-1"}) {
		t.Errorf("%+v, %v", u, ok)
	}
	if kept := read(t, dir, "weft.db.schema-1"); !bytes.Equal(kept, old) {
		t.Error("the copy is not what the file was")
	}
	if st, err := os.Stat(filepath.Join(dir, "weft.db.schema-1")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	put(t, s, Allocations, "key-7", "another")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir) // and its digests are right
	if u, ok := s.Upgraded(); ok {
		t.Errorf("upgraded again: %+v", u)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// later is a version of the program that is two schemas on. Each step writes down what it saw of the one before.
func later(do map[uint32]func()) plan {
	steps := maps.Clone(migrations())
	for n := Schema; n < Schema+2; n++ {
		steps[uint32(n)] = func(tx *Tx) error {
			v := string(tx.Get(Workloads, "steps"))
			for i := range 3000 { // more than one page
				if err := tx.Put(Workloads, fmt.Sprint(i), []byte(v)); err != nil {
					return err
				}
			}
			if f := do[uint32(n)]; f != nil {
				f()
			}
			return tx.Put(Workloads, "steps", fmt.Appendf(nil, "%s %d", v, n))
		}
	}
	return plan{Schema + 2, steps, nil}
}

// A process that is killed in the middle of any step goes on with it at its next start. What a kill leaves is what the file
// is at that moment.
func TestUpgradeBrokenOff(t *testing.T) {
	dir, killed := t.TempDir(), map[uint32][]byte{}
	holds := writeSchema1(t, dir)
	old := read(t, dir, FileName)
	do := map[uint32]func(){}
	for n := uint32(Schema); n < Schema+2; n++ {
		do[n] = func() { killed[n] = read(t, dir, FileName) }
	}
	p := later(do)
	check := func(dir string) {
		t.Helper()
		s, err := openWith(dir, p)
		if err != nil {
			t.Fatal(err)
		}
		got := state(t, s)
		if want := fmt.Sprintf(" %d %d", Schema, Schema+1); got["workloads/steps"] != want || got["workloads/7"] != fmt.Sprint(" ", Schema) {
			t.Errorf("steps %q, want %q", got["workloads/steps"], want)
		}
		for k, v := range holds {
			if got[k] != v {
				t.Fatalf("%s is %q, was %q", k, got[k], v)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	check(dir)
	if !bytes.Equal(read(t, dir, "weft.db.schema-1"), old) {
		t.Error("the copy is not what the file was")
	}
	for n, b := range maps.Clone(killed) {
		again := t.TempDir()
		if schema, err := inspect(bytes.NewReader(b), int64(len(b)), p.schema); err != nil || schema != n {
			t.Fatalf("killed in the step from %d: schema %d, %v", n, schema, err)
		}
		if err := os.WriteFile(filepath.Join(again, FileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(again, fmt.Sprint("weft.db.schema-", n, ".part")), []byte("killed while it was copied"), 0o644); err != nil {
			t.Fatal(err)
		}
		check(again)
		if !bytes.Equal(read(t, again, fmt.Sprint("weft.db.schema-", n)), b) {
			t.Error("the copy is not what the file was")
		}
	}
}

// A step that fails changes nothing, and says so.
func TestUpgradeFails(t *testing.T) {
	boom := errors.New("a workload without a name")
	for what, step := range map[string]migration{fmt.Sprint("no way from schema ", Schema+1): nil, boom.Error(): func(tx *Tx) error {
		return errors.Join(tx.Clear(Workloads), boom)
	}} {
		dir := t.TempDir()
		holds := writeSchema1(t, dir)
		p := later(nil)
		p.steps[Schema+1] = step
		_, err := openWith(dir, p)
		if err == nil || !strings.HasPrefix(err.Error(), "data directory "+dir+": the state cannot be upgraded") || !strings.Contains(err.Error(), what) ||
			!strings.HasSuffix(err.Error(), "; run the earlier version of weft again, or weft reset to start as a new node") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
		b := read(t, dir, FileName)
		if schema, err := inspect(bytes.NewReader(b), int64(len(b)), p.schema); err != nil || schema != Schema+1 {
			t.Errorf("schema %d, %v", schema, err)
		}
		p = later(nil) // a version that can
		s, err := openWith(dir, p)
		if err != nil {
			t.Fatal(err)
		}
		if got := state(t, s); got["workloads/key-7"] != holds["workloads/key-7"] {
			t.Errorf("workload 7 is %q", got["workloads/key-7"])
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// There is a way from every schema to the next, up to the one that is written now.
func TestMigrationsAreComplete(t *testing.T) {
	for n := uint32(1); n < Schema; n++ {
		if migrations()[n] == nil {
			t.Errorf("no way from schema %d to %d", n, n+1)
		}
	}
	if len(migrations()) != Schema-1 {
		t.Errorf("%d migrations for schema %d", len(migrations()), Schema)
	}
}

// A file of a later schema is refused whatever is in it, and is not touched.
func TestLaterSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.db.Update(func(tx *bolt.Tx) error {
		if _, err := tx.CreateBucket([]byte("unheard of")); err != nil {
			return err
		}
		if err := tx.DeleteBucket([]byte(Clients)); err != nil {
			return err
		}
		for _, b := range []Bucket{Workloads, Meta} { // buckets within buckets
			if _, err := tx.Bucket([]byte(b)).CreateBucket([]byte("deeper")); err != nil {
				return err
			}
		}
		return (&Tx{tx}).Put(Meta, keySchema, binary.BigEndian.AppendUint32(nil, Schema+1))
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before := read(t, dir, FileName)
	_, err := Open(dir)
	want := fmt.Sprintf("data directory %s was written by a newer version (schema %d, this one knows %d); run that version of weft again, or weft reset to start as a new node", dir, Schema+1, Schema)
	if !errors.Is(err, ErrSchema) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if !bytes.Equal(read(t, dir, FileName), before) {
		t.Error("the file was changed")
	}
}

// What the caller cannot use stays what it was, of its schema, and without a copy beside it: the build that wrote it goes on
// with it.
func TestCheckRefuses(t *testing.T) {
	dir := t.TempDir()
	holds := writeSchema1(t, dir)
	before := read(t, dir, FileName)
	refusing := func(tx *Tx) error {
		if got := string(tx.Get(IPAM, "ring")); got != ringOf1 {
			t.Errorf("the ring is %q", got)
		}
		if got := tx.Get("not there yet", "ring"); got != nil {
			t.Errorf("a bucket that is missing holds %q", got)
		}
		return errors.New("has a ring that cannot be taken over")
	}
	for range 2 {
		if _, err := Open(dir, refusing); err == nil || err.Error() != "data directory "+dir+" has a ring that cannot be taken over" {
			t.Fatal(err)
		}
		if !bytes.Equal(read(t, dir, FileName), before) {
			t.Error("the file was changed")
		}
		if got := Files(dir); len(got) != 1 {
			t.Errorf("files: %v", got)
		}
	}
	calls := 0
	counting := func(*Tx) error { calls++; return nil }
	s, err := Open(dir, counting, counting)
	if err != nil {
		t.Fatal(err)
	}
	if got := state(t, s); !reflect.DeepEqual(got, holds) || calls != 2 {
		t.Errorf("after %d checks it holds %v", calls, got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, refusing); err == nil || !strings.HasSuffix(err.Error(), "cannot be taken over") {
		t.Errorf("a file of the newest schema: %v", err)
	}
	if s, err = Open(t.TempDir(), refusing); err != nil {
		t.Fatalf("a new file: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
