// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tmpfs mounts a small file system in memory until the test ends.
func tmpfs(t *testing.T, size int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Fatalf("mounting a small file system, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves no room on a file system, and returns how to give the room back.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(filepath.Clean(path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, size := range []int{1 << 16, 1 << 12, 1} {
		for b := make([]byte, size); err == nil; {
			_, err = f.Write(b)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// fullDisk lets a store run into a full disk, and checks that it survives, reads, changes nothing, and goes on when
// there is room again.
func fullDisk(t *testing.T, disk string) {
	dir := filepath.Join(disk, "data")
	s := open(t, dir)
	want := map[string]string{}
	for round := range 8 {
		for i := range 20 {
			k, v := fmt.Sprintf("%d-%d", round, i), strings.Repeat("x", 10*i)
			put(t, s, Workloads, k, v)
			want["workloads/"+k] = v
		}
		empty := fill(t, disk)
		failed := 0
		for i := range 200 {
			k := fmt.Sprintf("full-%d-%d", round, i)
			v := strings.Repeat(k, 1000)
			err := s.Update(func(tx *Tx) error { return tx.Put(IPAM, k, []byte(v)) })
			if err == nil { // there were free pages in the file
				want["ipam/"+k] = v
				continue
			}
			failed++
			if text := "saving to " + dir + ": the disk is full (no space left on device); nothing was changed: free some space there and try again"; err.Error() != text {
				t.Fatalf("got  %v\nwant %s", err, text)
			}
			if got := state(t, s); !reflect.DeepEqual(got, want) { // reads all pages by the memory map
				t.Fatal("a change that failed was made in part")
			}
			if failed == 20 {
				break
			}
		}
		if failed != 20 {
			t.Fatalf("the disk was never full: %d commits failed", failed)
		}
		if round%2 == 0 { // a restart while it is full
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			if got := state(t, s); !reflect.DeepEqual(got, want) {
				t.Fatal("something else is served than was stored")
			}
		}
		empty()
		put(t, s, Meta, "round", fmt.Sprint(round))
		want["meta/round"] = fmt.Sprint(round)
		if err := s.Update(func(tx *Tx) error { return tx.Clear(IPAM) }); err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(want, func(k, _ string) bool { return strings.HasPrefix(k, "ipam/") })
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if got := state(t, s); !reflect.DeepEqual(got, want) {
		t.Error("something else is served than was stored")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// A disk on which not even the first transaction fits is refused, and the start leaves nothing behind.
	defer fill(t, disk)()
	other := filepath.Join(disk, "other")
	if _, err := Open(other); err == nil || !strings.HasPrefix(err.Error(), "data directory "+other) || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("opened on a full disk: %v", err)
	}
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// A page of a tmpfs file that was never written is made when it is read through a memory map, or is a bus error where there is
// no room. bbolt must not read such pages.
func TestFullTmpfs(t *testing.T) { fullDisk(t, tmpfs(t, 1<<20)) }

// On ext4 a file grows without blocks, and gets them when it is written.
func TestFullExt4(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Logf("no mkfs.ext4: only tmpfs is tried")
		return
	}
	image := filepath.Join(tmpfs(t, 8<<20), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 4<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", "-F", "-m", "0", "-O", "^has_journal", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	disk := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, disk).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", disk).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	fullDisk(t, disk)
}

// An upgrade needs room for a copy; without it, the old file stays what it was.
func TestUpgradeOnFullDisk(t *testing.T) {
	disk := tmpfs(t, 1<<20)
	writeSchema1(t, disk)
	before := read(t, disk, FileName)
	empty := fill(t, disk)
	_, err := Open(disk)
	want := fmt.Sprintf("data directory %s has to be upgraded from schema 1 to %d, and its file cannot be copied first: no space left on device; free some space there and try again", disk, Schema)
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if got := Files(disk); len(got) != 1 || string(read(t, disk, FileName)) != string(before) {
		t.Errorf("files %v", got)
	}
	empty()
	if err := open(t, disk).Close(); err != nil {
		t.Fatal(err)
	}
}
