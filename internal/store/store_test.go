// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// A power cut while the file was made for the first time leaves pages of zeros, of which none was ever more. A file that is
// longer was.
func TestPowerCutAtTheFirstStart(t *testing.T) {
	pages := func(n int) int { return n * os.Getpagesize() }
	for size, fresh := range map[int]bool{0: true, 1: true, pages(1): true, pages(4): true, pages(4) + 1: false, pages(8): false} {
		dir := t.TempDir()
		path := filepath.Join(dir, FileName)
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if !fresh {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d zeros: %v", size, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d zeros: %v", size, err)
			continue
		}
		if st, err := os.Stat(path); err != nil || st.Size() <= int64(pages(4)) {
			t.Errorf("what was stored fits into %d pages: %v, %v", firstPages, st, err)
		}
		put(t, s, Meta, "a", "1")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir)
		if got := get(t, s, Meta, "a"); got != "1" {
			t.Errorf("%d zeros: got %q", size, got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{FileName: make([]byte, pages(4)), corruptPrefix + "20260101T000000Z": []byte("damaged")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
		t.Errorf("zeros where a damaged file was: %v", err)
	}
}

// A copy that bbolt itself has made is one, whatever transaction it was made at.
func TestCopyByBolt(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 4 {
		put(t, s, Meta, "a", strconv.Itoa(i))
		copied := t.TempDir()
		if err := s.db.View(func(tx *bolt.Tx) error { return tx.CopyFile(filepath.Join(copied, FileName), 0o600) }); err != nil {
			t.Fatal(err)
		}
		want := strconv.Itoa(i)
		for n := range 4 { // starts, each with one transaction
			c, err := Open(copied)
			if err != nil {
				t.Fatalf("the copy of %d, start %d: %v", i, n, err)
			}
			if got := get(t, c, Meta, "a"); got != want {
				t.Errorf("the copy of %d, start %d: got %q, want %q", i, n, got, want)
			}
			want = fmt.Sprint(i, n)
			put(t, c, Meta, "a", want)
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
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
