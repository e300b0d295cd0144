// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func release(id string) Release {
	return Release{Key: Key{ContainerID: id, IfName: "eth0"}, Network: "weft", Netns: "/run/netns/" + id}
}

// worked returns the container IDs that Each hands over, all of which it accepts.
func worked(t *testing.T, b *Backlog) []string {
	t.Helper()
	var ids []string
	if err := b.Each(func(r Release) error { ids = append(ids, r.ContainerID); return nil }); err != nil {
		t.Error(err)
	}
	return ids
}

func put(t *testing.T, b *Backlog, r Release) {
	t.Helper()
	if err := b.Put(r); err != nil {
		t.Fatal(err)
	}
}

func TestBacklogKeepsAndForgets(t *testing.T) {
	run := filepath.Join(t.TempDir(), "run", "weft")
	b := NewBacklog(run)
	if got := worked(t, b); got != nil {
		t.Errorf("a backlog that was never used has %v", got)
	}
	for i, id := range []string{"c", "a", "b"} {
		put(t, b, release(id))
		at := time.Unix(1_700_000_000+int64(i), 0)
		if err := os.Chtimes(filepath.Join(run, "cni", entryName(release(id))), at, at); err != nil {
			t.Fatal(err)
		}
	}
	var seen []string
	err := NewBacklog(run).Each(func(r Release) error { // another process
		seen = append(seen, r.ContainerID)
		if r.ContainerID == "a" {
			return errors.New("not now")
		}
		return nil
	})
	if err == nil || err.Error() != "not now" {
		t.Errorf("what f has against it is not told: %v", err)
	}
	if fmt.Sprint(seen) != "[c a b]" {
		t.Errorf("handed over %v, want the oldest first: [c a b]", seen)
	}
	if got := worked(t, b); fmt.Sprint(got) != "[a]" {
		t.Errorf("%v is kept, want what f has refused: [a]", got)
	}
	if _, err := os.Stat(filepath.Join(run, "cni")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of an empty backlog stays: %v", err)
	}
}

func TestBacklogKeepsTheWholeRelease(t *testing.T) {
	b := NewBacklog(t.TempDir())
	want := Release{Key: Key{ContainerID: strings.Repeat("x", 128), IfName: `a<"\&`}, Network: "a-b", Netns: "/proc/1/ns/net"}
	put(t, b, release("other"))
	put(t, b, want)
	want.Netns = "/later" // the same key: the later one counts
	put(t, b, want)
	var got []Release
	if err := b.Each(func(r Release) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || fmt.Sprint(got[1]) != fmt.Sprint(want) {
		t.Errorf("got %v, want two of which the second is %v", got, want)
	}
}

func TestBacklogModes(t *testing.T) {
	run := filepath.Join(t.TempDir(), "run")
	b := NewBacklog(run)
	put(t, b, release("a"))
	for path, want := range map[string]os.FileMode{
		run: os.ModeDir | 0o700, filepath.Join(run, "cni"): os.ModeDir | 0o700, filepath.Join(run, "cni", entryName(release("a"))): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", path, info, err, want)
		}
	}
}

// TestBacklogRefuses holds that what would be a GC of everything never gets in.
func TestBacklogRefuses(t *testing.T) {
	run := t.TempDir()
	b := NewBacklog(run)
	huge := release("a")
	huge.Netns = strings.Repeat("/x", maxEntry)
	for name, r := range map[string]Release{
		"no key": {Network: "weft"}, "no interface": {Key: Key{ContainerID: "a"}}, "no container": {Key: Key{IfName: "eth0"}},
		"of many": {Key: release("a").Key, Valid: []Key{release("b").Key}}, "huge": huge,
	} {
		if err := b.Put(r); err == nil {
			t.Errorf("%s: it is kept", name)
		}
	}
	if entries, err := os.ReadDir(run); err != nil || len(entries) != 0 {
		t.Errorf("%v is left, %v", entries, err)
	}
}

func TestBacklogPutsAside(t *testing.T) {
	run := t.TempDir()
	b := NewBacklog(run)
	put(t, b, release("good"))
	dir := filepath.Join(run, "cni")
	good, err := os.ReadFile(filepath.Join(dir, entryName(release("good"))))
	if err != nil {
		t.Fatal(err)
	}
	name := func(id string) string { return filepath.Join(dir, entryName(release(id))) }
	for path, content := range map[string][]byte{
		name("empty"): nil, name("cut"): good[:10], name("other"): good, name("large"): bytes.Repeat([]byte(" "), maxEntry+1),
		filepath.Join(dir, "all"): []byte(`{"network":"weft"}`), name("no key"): []byte(`{}`), name("many"): []byte(`{"container_id":"many","ifname":"eth0","valid":[{}]}`),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink(name("good"), name("link")), os.Mkdir(name("directory"), 0o700), unix.Mkfifo(name("fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var got []string
	err = b.Each(func(r Release) error { got = append(got, r.ContainerID); return nil })
	if fmt.Sprint(got) != "[good]" {
		t.Errorf("handed over %v, want [good]", got)
	}
	if n := len(strings.Split(fmt.Sprint(err), "\n")); n != 10 {
		t.Errorf("%d told, want 10: %v", n, err)
	}
	want := "backlog of releases: " + name("directory") + " is none: it is no file; it is now " + name("directory") +
		".malformed, and what it should have released goes with the runtime's next GC"
	if !strings.Contains(fmt.Sprint(err), want) {
		t.Errorf("got %v\nwhich has not: %s", err, want)
	}
	if got := worked(t, b); got != nil {
		t.Errorf("told twice, or handed over: %v", got)
	}
}

// TestBacklogAfterAKill: a plugin killed while it wrote leaves nothing that counts or stays.
func TestBacklogAfterAKill(t *testing.T) {
	run := t.TempDir()
	b := NewBacklog(run)
	put(t, b, release("a"))
	for range 2 {
		if err := os.WriteFile(filepath.Join(run, "cni", "new"), []byte(`{"container_id":"x",`), 0o600); err != nil {
			t.Fatal(err)
		}
		worked(t, b)
		if _, err := os.Stat(filepath.Join(run, "cni")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was begun stays: %v", err)
		}
		if err := os.Mkdir(filepath.Join(run, "cni"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBacklogNewerStays: an entry that comes while the older one of its key is carried out is not forgotten with it.
func TestBacklogNewerStays(t *testing.T) {
	run := t.TempDir()
	b := NewBacklog(run)
	put(t, b, release("a"))
	if err := b.Each(func(r Release) error { return NewBacklog(run).Put(r) }); err != nil {
		t.Fatal(err)
	}
	if got := worked(t, b); fmt.Sprint(got) != "[a]" {
		t.Errorf("%v is kept, want [a]", got)
	}
}

// TestBacklogStoppedWriter: whoever holds the lock for long makes others fail, not hang.
func TestBacklogStoppedWriter(t *testing.T) {
	run := t.TempDir()
	b := NewBacklog(run)
	put(t, b, release("a"))
	dir, err := os.Open(filepath.Join(run, "cni"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	b.patience = 20 * time.Millisecond
	want := "lock " + filepath.Join(run, "cni") + ": resource temporarily unavailable"
	if err := b.Put(release("b")); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestBacklogRemovedMeanwhile: what waits for the lock of a directory that is then removed comes into the next one.
func TestBacklogRemovedMeanwhile(t *testing.T) {
	run := t.TempDir()
	dir := filepath.Join(run, "cni")
	for again := range 2 {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		locked, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(locked.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- NewBacklog(run).Put(release("a")) }()
		time.Sleep(20 * time.Millisecond) // it waits by now, or will find the directory as it is then: both have to do
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if again == 1 { // by another plugin
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		_ = locked.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := worked(t, NewBacklog(run)); fmt.Sprint(got) != "[a]" {
			t.Errorf("%v is kept, want [a]", got)
		}
	}
}

// TestBacklogLocksTheOneThatIsThere: two that hold locks of different directories would write the same file.
func TestBacklogLocksTheOneThatIsThere(t *testing.T) {
	run := t.TempDir()
	b := NewBacklog(run)
	dir := filepath.Join(run, "cni")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := b.lock(0)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		f, err := b.lock(time.Minute)
		if err == nil {
			_ = f.Close()
		}
		got <- err
	}()
	for opened(t, dir) < 2 {
		time.Sleep(time.Millisecond)
	}
	if err := errors.Join(os.Rename(dir, dir+"-old"), os.Mkdir(dir, 0o700), first.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is no longer there was locked: %v", err)
	}
}

// opened returns how often this process has the directory open.
func opened(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && to == dir {
			n++
		}
	}
	return n
}

func TestBacklogUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewBacklog(file).Put(release("a")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("got %v, want that it is no directory", err)
	}
	if err := NewBacklog(file).Each(func(Release) error { return nil }); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("got %v, want that it is no directory", err)
	}
}

// TestBacklogBothSides puts and works off at once, as if each were a process of its own: nothing is lost.
func TestBacklogBothSides(t *testing.T) {
	run := t.TempDir()
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			b := NewBacklog(run)
			for i := range each {
				if err := b.Put(release(fmt.Sprintf("%d-%d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	seen := map[string]int{}
	b := NewBacklog(run)
	for last := false; !last; {
		select {
		case <-done:
			last = true
		default:
		}
		if err := b.Each(func(r Release) error { seen[r.ContainerID]++; return nil }); err != nil {
			t.Error(err)
		}
	}
	if len(seen) != writers*each {
		t.Errorf("%d of %d were handed over", len(seen), writers*each)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was handed over %d times", id, n)
		}
	}
	if _, err := os.Stat(filepath.Join(run, "cni")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory stays: %v", err)
	}
}

func FuzzBacklogEntry(f *testing.F) {
	f.Add([]byte(`{"container_id":"a","ifname":"eth0","network":"weft","netns":"/x"}`))
	f.Add([]byte(`{"network":"weft","valid":[]}`))
	f.Add([]byte(`null`))
	name := entryName(Release{Key: Key{ContainerID: "a", IfName: "eth0"}})
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := decodeEntry(name, content)
		if err == nil && (r.ContainerID != "a" || r.IfName != "eth0" || len(r.Valid) != 0) {
			t.Errorf("%q is taken as %+v", content, r)
		}
	})
}

// What one network has lost does not end that another has lost the same.
func TestBacklogKeepsNetworksApart(t *testing.T) {
	b := NewBacklog(t.TempDir())
	one, other := release("a"), release("a")
	other.Network = "other"
	put(t, b, one)
	put(t, b, other)
	networks := map[string]bool{}
	if err := b.Each(func(r Release) error { networks[r.Network] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(networks) != 2 {
		t.Errorf("kept are those of %v", networks)
	}
}
