// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
)

// alone is a Net without other nodes.
type alone struct{}

func (alone) Send(ring.Owner, []byte) error { return nil }
func (alone) Broadcast([]byte)              {}
func (alone) Peers() []ipam.Peer            { return nil }

// countingStore counts the commits.
type countingStore struct {
	ipam.Store
	n atomic.Int64
}

func (s *countingStore) SaveIPAM(c ipam.Change) error {
	s.n.Add(1)
	return s.Store.SaveIPAM(c)
}

// storedAllocator is an allocator on a store in dir.
func storedAllocator(tb testing.TB, dir string) (*ipam.Allocator, *countingStore) {
	tb.Helper()
	st, err := store.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = st.Close() })
	u, err := ipam.ParseUniverse(DefaultRange)
	if err != nil {
		tb.Fatal(err)
	}
	s := &countingStore{Store: ipamStore{st, func() *workloads { return nil }}}
	a, err := ipam.New(ipam.Config{Self: 1, Universe: u, Seed: founder(1), Store: s, Net: alone{}, Now: time.Now})
	if err != nil {
		tb.Fatal(err)
	}
	return a, s
}

// A hundred calls at once cost few commits, each of which waits for the disk.
func TestFewCommitsForManyCalls(t *testing.T) {
	a, s := storedAllocator(t, t.TempDir())
	before := s.n.Load()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if _, err := a.Allocate(t.Context(), fmt.Sprint("w", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Two, if all come while the first one waits for the disk; a disk that is quicker than goroutines start makes more.
	if n := s.n.Load() - before; n > 50 {
		t.Errorf("%d commits for 100 calls", n)
	} else {
		t.Logf("%d commits for 100 calls", n)
	}
	n := s.n.Load()
	if released, err := a.ReleaseAll("w"); released != 100 || err != nil || s.n.Load() != n+1 {
		t.Errorf("%d released in %d commits, %v", released, s.n.Load()-n, err)
	}
}

// On a full disk addresses are refused, nothing is changed, and it goes on by itself when there is room again.
func TestAllocateOnFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Fatalf("mounting a small file system, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir, filler := filepath.Join(disk, "data"), filepath.Join(disk, "filler")
	a, _ := storedAllocator(t, dir)
	have := map[string]ipam.Lease{}
	n := 0
	for round := range 5 {
		if err := os.WriteFile(filler, make([]byte, 256<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		var err error
		for ; err == nil; n++ { // the file itself may have some room
			owner := fmt.Sprint("w", n, strings.Repeat("-", 400))
			var l ipam.Lease
			if l, err = a.Allocate(t.Context(), owner); err == nil {
				have[owner] = l
			} else if want := "cannot store the address of " + owner + ": saving to " + dir +
				": the disk is full (no space left on device); nothing was changed: free some space there and try again"; err.Error() != want {
				t.Fatalf("got  %v\nwant %s", err, want)
			}
			if n > 5000 {
				t.Fatal("the disk is never full")
			}
		}
		if len(a.List()) != len(have) || !a.Usage().Failing {
			t.Errorf("%d leases, want %d; %+v", len(a.List()), len(have), a.Usage())
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		owner := fmt.Sprint("again", round)
		l, err := a.Allocate(t.Context(), owner)
		if err != nil || a.Usage().Failing {
			t.Fatalf("with room again: %v, %+v", err, a.Usage())
		}
		have[owner] = l
	}
	copied := t.TempDir() // what a crash would leave
	b, err := os.ReadFile(filepath.Join(dir, store.FileName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(copied, store.FileName), b, 0o600); err != nil {
		t.Fatal(err)
	}
	again, _ := storedAllocator(t, copied)
	for _, l := range again.List() {
		if have[l.Owner] != l {
			t.Errorf("after a crash: %+v, was %+v", l, have[l.Owner])
		}
		delete(have, l.Owner)
	}
	if len(have) > 0 {
		t.Errorf("lost: %v", have)
	}
}

// An allocation and its release, each on disk.
func BenchmarkStoredAllocateRelease(b *testing.B) {
	a, _ := storedAllocator(b, b.TempDir())
	for b.Loop() {
		if _, err := a.Allocate(b.Context(), "w"); err != nil {
			b.Fatal(err)
		}
		if err := a.Release("w"); err != nil {
			b.Fatal(err)
		}
	}
}

// The same by a hundred callers.
func BenchmarkStoredAllocateReleaseParallel(b *testing.B) {
	a, s := storedAllocator(b, b.TempDir())
	before := s.n.Load()
	var callers atomic.Int64
	b.SetParallelism(50)
	b.RunParallel(func(pb *testing.PB) {
		owner := fmt.Sprint(callers.Add(1))
		for pb.Next() {
			if _, err := a.Allocate(b.Context(), owner); err != nil {
				b.Error(err)
			}
			if err := a.Release(owner); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(s.n.Load()-before)/float64(b.N), "commits/op")
}

// What the disk takes for the two: four times a page and fdatasync, as a commit of bbolt is one of the pages and one of the header.
func BenchmarkDisk(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(1 << 20); err != nil {
		b.Fatal(err)
	}
	page, n := make([]byte, 4096), int64(0)
	for b.Loop() {
		for range 4 {
			page[0]++
			if _, err := f.WriteAt(page, n%256*4096); err != nil {
				b.Fatal(err)
			}
			n++
			if err := syscall.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
	}
}
