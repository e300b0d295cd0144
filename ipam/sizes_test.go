// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// Ranges of every size that there is work: a node founds a mesh with it, hands out addresses up to the last one, grants some to
// another, and has them all after a restart.
func TestEverySize(t *testing.T) {
	var ranges []string
	for bits := 8; bits <= 29; bits++ {
		ranges = append(ranges, fmt.Sprintf("10.0.0.0/%d", bits), fmt.Sprintf("10.0.0.0/%d,fd00::/64", bits))
	}
	for bits := 64; bits <= 112; bits++ {
		ranges = append(ranges, fmt.Sprintf("fd00::/%d", bits), fmt.Sprintf("10.0.0.0/8,fd00::/%d", bits))
	}
	for _, universe := range ranges {
		l := newLone(t, universe)
		l.cfg.Net = &peerNet{peers: []ring.Owner{2}}
		l.restart()
		l.clock.add(time.Minute)
		u := l.cfg.Universe
		size := u.Size()
		last, last6 := u.Addrs(uint32(size - 2))
		if !last.IsValid() {
			last = last6
		}
		lease, err := l.AllocateExact(t.Context(), "last", last)
		if err != nil || uint64(lease.Slot) != size-2 || lease.V4.IsValid() != u.V4.IsValid() || lease.V6.IsValid() != u.V6.IsValid() {
			t.Fatalf("%s: %+v, %v", universe, lease, err)
		}
		for i := range 4 {
			lease := l.must(fmt.Sprint("w", i))
			if lease.Slot != uint32(i+1) || u.V4.IsValid() && !u.V4.Contains(lease.V4) || u.V6.IsValid() && !u.V6.Contains(lease.V6) {
				t.Fatalf("%s: %+v", universe, lease)
			}
		}
		l.HandleMessage(2, (&message{kind: kindRequest, urgent: true, boot: 1, ring: l.ledger.ring}).encode())
		given := l.ledger.ring.OwnedBy(2)
		if n := given.Len(); n == 0 || n > (size+1)/2 || usable(given, uint32(size)) == 0 {
			t.Errorf("%s: %v was given", universe, given)
		}
		before, usage := l.List(), l.Usage()
		l.restart()
		if after := l.List(); !slices.Equal(before, after) || len(after) != 5 {
			t.Errorf("%s: %v after a restart, %v before", universe, after, before)
		}
		if again := l.Usage(); again.Free != usage.Free || again.Free+again.Allocated != size-2-usable(given, uint32(size)) {
			t.Errorf("%s: %+v after a restart, %+v before", universe, again, usage)
		}
		if l.store.broken != nil {
			t.Errorf("%s: %v", universe, l.store.broken)
		}
	}
}

// Small ranges fill up to the last address, refuse the next one at once, and go on after a release.
func TestSmallSizesFillUp(t *testing.T) {
	for _, universe := range []string{"10.0.0.0/29", "10.0.0.0/28", "10.0.0.0/24,fd00::/64", "10.0.0.0/20", "fd00::/125", "fd00::/120", "fd00::/116"} {
		l := newLone(t, universe)
		l.clock.add(time.Minute)
		n := int(l.cfg.Universe.Size()) - 2
		seen := make(map[uint32]bool)
		for i := range n {
			lease := l.must(fmt.Sprint(i))
			if seen[lease.Slot] || lease.Slot == 0 || int(lease.Slot) == n+1 {
				t.Fatalf("%s: %+v", universe, lease)
			}
			seen[lease.Slot] = true
		}
		start := time.Now()
		_, err := l.Allocate(t.Context(), "one too many")
		want := fmt.Sprintf("no address left in %s: %d of %d in use (0000000000000001 %d); detach workloads or start a mesh with a larger range", universe, n, n, n)
		var full *ExhaustedError
		if !errors.As(err, &full) || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("%s: refused after %v", universe, took)
		}
		if err := l.Release("2"); err != nil {
			t.Fatal(err)
		}
		l.clock.add(DefaultQuarantine)
		l.must("another")
	}
}

// The largest IPv4 range costs what is in use, and not what could be.
func TestLargeRangeIsSmallInMemory(t *testing.T) {
	for _, universe := range []string{"10.0.0.0/8", "10.0.0.0/8,fd00::/64", "fd00::/64"} {
		used := heap(t, func() any {
			l := newLone(t, universe)
			l.cfg.Store = &nullStore{}
			l.restart()
			for i := range 10_000 {
				l.must(fmt.Sprintf("net:[4026%06d]/eth0", i))
			}
			return l.Allocator
		})
		t.Logf("%s with 10,000 leases: %d KiB", universe, used>>10)
		if used > 4<<20 {
			t.Errorf("%s with 10,000 leases: %d bytes, 4 MiB are allowed", universe, used)
		}
	}
}
