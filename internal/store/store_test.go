// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, b Bucket, k, v string) {
	t.Helper()
	if err := s.Update(func(tx *Tx) error { return tx.Put(b, k, []byte(v)) }); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s *Store, b Bucket, k string) string {
	t.Helper()
	var v []byte
	if err := s.View(func(tx *Tx) error { v = tx.Get(b, k); return nil }); err != nil {
		t.Fatal(err)
	}
	return string(v)
}

func TestKeepsOverReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := open(t, dir)
	put(t, s, Meta, "a", "1")
	put(t, s, Workloads, "a", "2")
	boom := errors.New("boom")
	err := s.Update(func(tx *Tx) error {
		if err := tx.Put(Meta, "a", []byte("never")); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if a, b := get(t, s, Meta, "a"), get(t, s, Workloads, "a"); a != "1" || b != "2" {
		t.Errorf("got %q, %q", a, b)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := open(t, dir)
	defer func() { _ = s.Close() }()
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, FileName): 0o600} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, st.Mode().Perm(), want)
		}
	}
}

func TestDiscardLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "er", "data")
	if err := open(t, dir).Discard(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(filepath.Dir(dir))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// A process that was killed while it made the file leaves one that can be used.
func TestUnfinishedFileIsFinished(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).Discard(); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path, 0o600, nil) // made by bbolt, and not a bucket in it yet
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	put(t, s, Meta, "a", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Of many that start at once one gets the directory, and its file stays.
func TestStartRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winners []*Store
	for range 8 {
		wg.Go(func() {
			s, err := Open(dir)
			switch {
			case err == nil:
				mu.Lock()
				winners = append(winners, s)
				mu.Unlock()
			case !errors.Is(err, ErrInUse):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d of 8 opened it", len(winners))
	}
	put(t, winners[0], Meta, "a", "1")
	if err := winners[0].Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if got := get(t, s, Meta, "a"); got != "1" {
		t.Errorf("what the winner wrote is gone: %q", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestClear(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, IPAM, "a", "1")
	put(t, s, Meta, "a", "1")
	if err := s.Update(func(tx *Tx) error { return tx.Clear(IPAM) }); err != nil {
		t.Fatal(err)
	}
	if get(t, s, IPAM, "a") != "" || get(t, s, Meta, "a") != "1" {
		t.Error("cleared the wrong bucket")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer func() { _ = s.Close() }()
	_, err := Open(dir)
	want := "data directory " + dir + " is in use by another process; stop it (weft stop) or choose another with --data-dir"
	if !errors.Is(err, ErrInUse) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if !Exists(dir) {
		t.Error("the refused Open removed the file of the first")
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Update(func(tx *Tx) error {
		return tx.Put(Meta, "schema", binary.BigEndian.AppendUint32(nil, Schema+1))
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir)
	want := fmt.Sprintf("data directory %s was written by a newer version (schema %d, this one knows %d); run that version of weft again, or weft reset to start as a new node", dir, Schema+1, Schema)
	if !errors.Is(err, ErrSchema) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// Damage of every kind is refused with the same advice and without a change to
// the file, or, where it hit nothing that is in use, is harmless; never a panic.
func TestDamageIsRefusedAndKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 20 {
		put(t, s, Allocations, fmt.Sprint("owner", i), strings.Repeat("x", 40))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, FileName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"text":      []byte("this is no database"),
		"zeros":     make([]byte, len(good)),
		"truncated": good[:len(good)/3],
		"one page":  good[:os.Getpagesize()],
	}
	// What disks do: a page lost, a page of another place, a bit of a value.
	// (Damage within a page's own structure that leaves its header whole is
	// caught as well, but not under the race detector's pointer checks.)
	page := os.Getpagesize()
	for i := range len(good) / page {
		for kind, fill := range map[string][]byte{"zeroed": make([]byte, page), "erased": bytes.Repeat([]byte{0xff}, page), "stray": good[4*page : 5*page]} {
			b := bytes.Clone(good)
			copy(b[i*page:(i+1)*page], fill)
			cases[fmt.Sprintf("any: page %d %s", i, kind)] = b
		}
	}
	for at := range good {
		if strings.HasPrefix(string(good[at:]), "xxxx") && at%7 == 0 {
			b := bytes.Clone(good)
			b[at] ^= 1
			cases[fmt.Sprintf("any: value bit at %d", at)] = b
		}
	}
	bits := 0
	for name, b := range cases {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err == nil {
			if !strings.HasPrefix(name, "any: ") {
				t.Errorf("%s: accepted", name)
			}
			_ = s.Close()
			continue
		}
		if strings.Contains(name, "value bit") {
			bits++
		}
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "data directory "+dir+" is corrupt (") ||
			!strings.HasSuffix(err.Error(), "restore weft.db from a backup, or run weft reset to start as a new node") {
			t.Errorf("%s: %v", name, err)
		}
		after, rerr := os.ReadFile(path)
		if rerr != nil || !bytes.Equal(after, b) {
			t.Errorf("%s: the damaged file was changed (%v)", name, rerr)
		}
	}
	if bits == 0 {
		t.Error("no changed value was noticed")
	}
}

func TestForeignFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	db, err := bolt.Open(filepath.Join(dir, FileName), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "it was not written by weft") {
		t.Errorf("got %v", err)
	}
}

func TestUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(file, "data")
	_, err := Open(dir)
	want := "data directory " + dir + " cannot be made: not a directory; choose another with --data-dir"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
