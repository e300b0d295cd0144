// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/ipam/ring"
)

func TestParseReserve(t *testing.T) {
	for _, c := range []struct {
		universe, in, out string
		n                 uint64
	}{
		{"10.32.0.0/12", "", "", 0},
		{"10.32.0.0/12", "10.32.0.0/24", "10.32.0.0/24", 255}, // without the first
		{"10.32.0.0/12", "10.47.255.0/24", "10.47.255.0/24", 255},
		{"10.32.0.0/12", "10.33.0.0/24 10.32.9.0/24 10.32.9.128/25", "10.32.9.0/24,10.33.0.0/24", 512},
		{"10.32.0.0/12", "10.33.1.0/24 10.33.0.0/24", "10.33.0.0/23", 512},
		{"10.32.0.0/12", "10.32.0.7/32", "10.32.0.7/32", 1},
		{"10.32.0.0/12,fd00::/64", "fd00::1:0/112 10.33.0.0/16", "10.33.0.0/16", 1 << 16},
		{"10.32.0.0/12,fd00::/64", "fd00::100/120", "10.32.1.0/24", 256},
		{"fd00::/64", "fd00::100/120", "fd00::100/120", 256},
		{"fd00::/64", "fd00::4000:0/98", "fd00::4000:0/98", 1<<30 - 1},
		{"10.32.0.0/29", "10.32.0.0/30", "10.32.0.0/30", 3},
	} {
		u := mustUniverse(t, c.universe)
		r, err := u.ParseReserve(strings.Fields(c.in))
		if err != nil {
			t.Errorf("%s of %s: %v", c.in, c.universe, err)
			continue
		}
		if r.String() != c.out || r.Len() != c.n {
			t.Errorf("%s of %s: %q with %d, want %q with %d", c.in, c.universe, r, r.Len(), c.out, c.n)
		}
		if c.out == "" {
			continue
		}
		if again, err := u.ParseReserve(strings.Split(r.String(), ",")); err != nil || again.String() != r.String() || again.Len() != r.Len() {
			t.Errorf("%s is not read back: %v, %v", r, again, err)
		}
	}
}

func TestParseReserveErrors(t *testing.T) {
	many := make([]string, MaxReserve+1)
	for i := range many {
		many[i] = fmt.Sprintf("10.32.%d.0/25", i)
	}
	for _, c := range []struct{ universe, in, want string }{
		{"10.32.0.0/12", "10.32.0.0", `reserve "10.32.0.0" is not in CIDR notation; write it like 10.32.0.0/12`},
		{"10.32.0.0/12", "10.32.0.9/24", "reserve 10.32.0.9/24 has host bits set; write 10.32.0.0/24"},
		{"10.32.0.0/12", "10.31.0.0/24", "reserve 10.31.0.0/24 lies outside the mesh's range 10.32.0.0/12; choose a part of it"},
		{"10.32.0.0/12", "10.32.0.0/11", "reserve 10.32.0.0/11 lies outside the mesh's range 10.32.0.0/12; choose a part of it"},
		{"10.32.0.0/12", "fd00::/120", "reserve fd00::/120 lies outside the mesh's range 10.32.0.0/12; choose a part of it"},
		{"fd00::/64", "::ffff:10.32.0.0/120", "reserve ::ffff:10.32.0.0/120 lies outside the mesh's range fd00::/64; choose a part of it"},
		{"fd00::/64", "fd00::8000:0/97", "reserve fd00::8000:0/97 reaches beyond the first 2147483648 addresses of range fd00::/64, and no others are handed out; choose a part of those"},
		{"fd00::/64", "fd00::/96", "reserve fd00::/96 reaches beyond the first 2147483648 addresses of range fd00::/64, and no others are handed out; choose a part of those"},
		{"10.32.0.0/24,fd00::/64", "fd00::100/120", "reserve fd00::100/120 reaches beyond the first 256 addresses of range 10.32.0.0/24,fd00::/64, and no others are handed out; choose a part of those"},
		{"10.32.0.0/12", "10.32.0.0/12", "the reserve 10.32.0.0/12 leaves 0 of the 1048574 addresses of range 10.32.0.0/12; leave at least 2, for the host and a workload"},
		{"10.32.0.0/29", "10.32.0.0/30 10.32.0.4/31", "the reserve 10.32.0.0/30,10.32.0.4/31 leaves 1 of the 6 addresses of range 10.32.0.0/29; leave at least 2, for the host and a workload"},
		{"10.32.0.0/12", strings.Join(many, " "), "the reserve is made of 65 blocks; give at most 64"},
	} {
		if r, err := mustUniverse(t, c.universe).ParseReserve(strings.Fields(c.in)); err == nil || err.Error() != c.want {
			t.Errorf("%s of %s: %v, %v\nwant %s", c.in, c.universe, r, err, c.want)
		}
	}
}

// The identity is what nodes agree on: this value must never change.
func TestUniverseIDWithReserve(t *testing.T) {
	u := mustUniverse(t, "10.32.0.0/12")
	id := func(reserve ...string) string {
		r, err := u.ParseReserve(reserve)
		if err != nil {
			t.Fatal(err)
		}
		return u.ID(Seed{Owners: []ring.Owner{1}}, r).String()
	}
	if got, want := id("10.33.0.0/24", "10.40.0.0/16"), "c9cf8c47394f7b706f024db34df47134"; got != want {
		t.Errorf("ID %s, want %s", got, want)
	}
	if id("10.33.0.0/24", "10.40.0.0/16") != id("10.40.0.0/16", "10.33.0.0/25", "10.33.0.128/25") || id("10.33.0.0/24") == id("10.33.0.0/25") || id("10.33.0.0/24") == id() {
		t.Error("the ID does not tell reserves apart")
	}
}

func withReserve(t testing.TB, universe string, reserve ...string) *lone {
	t.Helper()
	l := newLone(t, universe)
	var err error
	if l.cfg.Reserve, err = l.cfg.Universe.ParseReserve(reserve); err != nil {
		t.Fatal(err)
	}
	l.store = newFakeStore(l.cfg.Universe.Size())
	l.cfg.Store = l.store
	l.restart()
	return l
}

func TestReserve(t *testing.T) {
	l := withReserve(t, "10.32.0.0/28", "10.32.0.0/30", "10.32.0.8/29") // leaves 4 to 7
	l.clock.add(time.Minute)
	usage := func(free, allocated, resting uint64) {
		t.Helper()
		if u := l.Usage(); u.Size != 14 || u.Reserved != 10 || u.Free != free || u.Allocated != allocated || u.Resting != resting {
			t.Errorf("usage %+v, want %d free, %d allocated, %d resting", u, free, allocated, resting)
		}
	}
	usage(4, 0, 0)
	for i := range uint32(4) {
		if lease := l.must(fmt.Sprint(i)); lease.Slot != 4+i {
			t.Errorf("lease %+v", lease)
		}
	}
	usage(0, 4, 0)
	full := func() {
		t.Helper()
		var e *ExhaustedError
		_, err := l.Allocate(t.Context(), "x")
		want := "no address left in 10.32.0.0/28: 4 of 4 in use (0000000000000001 4), 10 in reserve, to be had by name only; detach workloads or start a mesh with a larger range"
		if !errors.As(err, &e) || err.Error() != want {
			t.Fatalf("got  %v\nwant %s", err, want)
		}
	}
	full()
	static := func(owner, addr string) {
		t.Helper()
		if lease, err := l.AllocateExact(t.Context(), owner, netip.MustParseAddr(addr)); err != nil || lease.V4.String() != addr {
			t.Fatalf("%+v, %v", lease, err)
		}
	}
	static("static", "10.32.0.9")
	static("other", "10.32.0.14")
	usage(0, 6, 0)
	full()
	l.restart()
	if lease, ok := l.Lookup("static"); !ok || lease.Slot != 9 {
		t.Errorf("after a restart: %+v, %v", lease, ok)
	}
	usage(0, 6, 0)
	if err := l.Release("static"); err != nil {
		t.Fatal(err)
	}
	usage(0, 5, 1)
	l.clock.add(DefaultQuarantine)
	usage(0, 5, 0)
	if _, err := l.Allocate(t.Context(), "x"); err == nil {
		t.Error("what was released is handed out unasked")
	}
	if err := l.Release("2"); err != nil {
		t.Fatal(err)
	}
	l.clock.add(DefaultQuarantine)
	usage(1, 4, 0)
	if lease := l.must("x"); lease.Slot != 6 {
		t.Errorf("lease %+v", lease)
	}
}

// What is granted is worth half of what is free without the reserve, and reserved slots go along or stay.
func TestReserveGranted(t *testing.T) {
	for _, c := range []struct {
		reserve string
		want    ring.Set
	}{
		{"10.32.0.0/25", ring.Set{{First: 192, Last: 255}}},   // the upper half of what is worth something
		{"10.32.0.128/25", ring.Set{{First: 64, Last: 127}}},  // likewise
		{"10.32.0.192/27", ring.Set{{First: 128, Last: 255}}}, // 95 of 222, with what is reserved
	} {
		l := withReserve(t, "10.32.0.0/24", c.reserve)
		l.cfg.Net = &peerNet{peers: []ring.Owner{2}}
		l.restart()
		free := l.space.left()
		l.HandleMessage(2, (&message{kind: kindRequest, urgent: true, boot: 1, ring: l.ledger.ring}).encode())
		given := l.ledger.ring.OwnedBy(2)
		if len(given) != 1 || given[0] != c.want[0] {
			t.Errorf("reserve %s: %v was given, want %v", c.reserve, given, c.want)
		}
		if l.space.usable(given) > (free+1)/2 || l.space.left() != free-l.space.usable(given) {
			t.Errorf("reserve %s: %d free, %d given, %d left", c.reserve, free, l.space.usable(given), l.space.left())
		}
	}
	// Who has nothing but reserved addresses left has nothing to give, but does give one that is asked for by name.
	l := withReserve(t, "10.32.0.0/28", "10.32.0.8/29", "10.32.0.4/30", "10.32.0.0/32")
	l.cfg.Net = &peerNet{peers: []ring.Owner{2}}
	l.restart()
	for i := range 3 {
		l.must(fmt.Sprint(i))
	}
	ask := message{kind: kindRequest, urgent: true, boot: 1, ring: l.ledger.ring}
	l.HandleMessage(2, ask.encode())
	if given := l.ledger.ring.OwnedBy(2); len(given) != 0 {
		t.Errorf("%v was given", given)
	}
	ask.exact, ask.slot = true, 9
	l.HandleMessage(2, ask.encode())
	if given := l.ledger.ring.OwnedBy(2); given.Len() != 1 || !given.Contains(9) {
		t.Errorf("%v was given", given)
	}
}

// Whatever is in reserve, the space agrees with a map.
func TestSpaceWithReserve(t *testing.T) {
	const size = 512
	rapid.Check(t, func(t *rapid.T) {
		s := newSpace(size)
		s.reserve = drawSet(t, size, "reserve").Subtract(ring.Set{{First: 0, Last: 0}, {First: size - 1, Last: size - 1}})
		s.within(drawSet(t, size, "domain"))
		taken := map[uint32]bool{}
		common := func(slot uint32) bool {
			return s.slots.Contains(slot) && slot != 0 && slot != size-1 && !s.reserve.Contains(slot)
		}
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			switch slot := rapid.Uint32Range(1, size-2).Draw(t, "slot"); rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				if got, ok := s.next(); ok {
					if !common(got) || taken[got] {
						t.Fatalf("handed out %d", got)
					}
					s.take(got)
					taken[got] = true
				} else if s.left() > 0 {
					t.Fatal("nothing handed out, though something is left")
				}
			case 1: // by name
				if !taken[slot] {
					s.take(slot)
					taken[slot] = true
				}
			case 2:
				if taken[slot] {
					s.free(slot)
					delete(taken, slot)
				}
			case 3:
				s.within(drawSet(t, size, "domain"))
			}
		}
		var left, usable, dozing uint64
		for slot := range uint32(size) {
			if common(slot) {
				usable++
				if !taken[slot] {
					left++
				}
			}
			if taken[slot] {
				s.rest(slot, time.Time{})
				if !s.reserve.Contains(slot) {
					dozing++
				}
			}
		}
		if s.left() != left || s.total != usable || s.usable(s.slots) != usable || s.dozing() != dozing {
			t.Fatalf("%d of %d left, %d doze; want %d of %d, %d", s.left(), s.total, s.dozing(), left, usable, dozing)
		}
	})
}
