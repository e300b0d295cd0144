// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"math/bits"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/ipam/ring"
)

// drawSet draws a set of slots below size.
func drawSet(t *rapid.T, size uint32, label string) ring.Set {
	var in []ring.Interval
	for range rapid.IntRange(0, 4).Draw(t, label+" intervals") {
		first := rapid.Uint32Range(0, size-1).Draw(t, label+" first")
		in = append(in, ring.Interval{First: first, Last: rapid.Uint32Range(first, size-1).Draw(t, label+" last")})
	}
	return ring.NewSet(in...)
}

// The space agrees with a map, and goes round.
func TestSpace(t *testing.T) {
	const size = 3 * pageSlots
	rapid.Check(t, func(t *rapid.T) {
		s := newSpace(size)
		domain := drawSet(t, size, "domain")
		s.within(domain)
		taken := make(map[uint32]bool)
		handable := func(slot uint32) bool { return domain.Contains(slot) && slot != 0 && slot != size-1 }
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch slot := rapid.Uint32Range(0, size-1).Draw(t, "slot"); rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				from := s.cursor
				got, ok := s.next()
				want, found := uint32(0), false
				for i := range uint32(size) {
					if c := (from + i) % size; handable(c) && !taken[c] {
						want, found = c, true
						break
					}
				}
				if got != want || ok != found {
					t.Fatalf("next after %d is %d, %v; want %d, %v", from, got, ok, want, found)
				}
				if ok {
					s.take(got)
					taken[got] = true
				}
			case 2: // a run, to fill pages
				for n := slot; n < min(slot+pageSlots+100, size); n++ {
					if !taken[n] {
						s.take(n)
						taken[n] = true
					}
				}
			case 3:
				if taken[slot] {
					s.free(slot)
					delete(taken, slot)
				}
			case 4:
				domain = drawSet(t, size, "domain")
				s.within(domain)
			}
		}
		left, all := uint64(0), s.all()
		for slot := range uint32(size) {
			if handable(slot) && !taken[slot] {
				left++
			}
			if s.taken(slot) != taken[slot] || all.Contains(slot) != taken[slot] {
				t.Fatalf("slot %d: taken %v, want %v", slot, s.taken(slot), taken[slot])
			}
		}
		if s.left() != left || all.Len() != uint64(len(taken)) {
			t.Fatalf("%d left and %d taken, want %d and %d", s.left(), all.Len(), left, len(taken))
		}
	})
}

func TestSpaceRests(t *testing.T) {
	s, t0 := newSpace(64), time.Unix(1000, 0)
	s.within(ring.Set{{First: 0, Last: 63}})
	for i := range uint32(3) {
		s.take(10 + i)
		s.rest(10+i, t0.Add(time.Duration(i)*time.Second))
	}
	if !s.wake(11) || s.wake(11) || s.wake(20) {
		t.Error("wake")
	}
	if got := s.expire(t0.Add(-1)); got != nil {
		t.Errorf("too early: %v", got)
	}
	if got := s.expire(t0.Add(time.Minute)); len(got) != 2 || got[0] != 10 || got[1] != 12 {
		t.Errorf("expired: %v", got)
	}
	if s.taken(10) || !s.taken(11) || s.taken(12) || len(s.rests) != 0 {
		t.Error("what is taken is wrong")
	}
}

// Blocks given are free, aligned, few, useful and not too much; and there are some if there can be.
func TestPickBlocks(t *testing.T) {
	const size = 256
	rapid.Check(t, func(t *rapid.T) {
		free, near := drawSet(t, size, "free"), drawSet(t, size, "near")
		limit := rapid.Uint64Range(0, size).Draw(t, "limit")
		got := pickBlocks(free, near, limit, newSpace(size).usable)
		if len(got.Subtract(free)) > 0 {
			t.Fatalf("%v is not free in %v", got, free)
		}
		n := usable(got, size)
		if n > limit {
			t.Fatalf("%v has %d usable slots, limit %d", got, n, limit)
		}
		if (n == 0) != (limit == 0 || usable(free, size) == 0) {
			t.Fatalf("%v of %v with limit %d", got, free, limit)
		}
		blocks := 0
		for _, i := range got {
			for range i.Blocks() {
				blocks++
			}
		}
		if blocks > maxBlocks {
			t.Fatalf("%d blocks", blocks)
		}
		// One block of the greatest size that fits is there if the space is not in crumbs.
		best := uint64(0)
		for _, run := range free {
			for b := range run.Blocks() {
				best = max(best, min(b.Len(), 1<<(bits.Len64(limit)-min(1, bits.Len64(limit)))))
			}
		}
		if limit > 0 && best > 2 && n+2 < best {
			t.Fatalf("%v given of %v, though a block of %d is free (limit %d)", got, free, best, limit)
		}
	})
}

func TestPickBlocksPrefers(t *testing.T) {
	iv := func(first, last uint32) ring.Set { return ring.Set{{First: first, Last: last}} }
	for _, c := range []struct {
		name       string
		free, near ring.Set
		limit      uint64
		want       ring.Set
	}{
		{"the upper half", iv(1, 255), nil, 127, iv(128, 255)},
		{"a whole quarter before a part of the half", iv(1, 255), nil, 85, iv(64, 127)},
		{"less than three quarters would be too little", iv(1, 255), nil, 126, iv(32, 127)},
		{"a whole block before a part", iv(16, 19).Union(iv(64, 127)), nil, 4, iv(16, 19)},
		{"the buddy of what the recipient has", iv(16, 19).Union(iv(32, 35)), iv(20, 23), 4, iv(16, 19)},
		{"crumbs, if there is nothing else", ring.NewSet(iv(1, 1)[0], iv(3, 3)[0], iv(5, 5)[0]), nil, 1, iv(5, 5)},
		{"no block of what is never handed out", iv(0, 0).Union(iv(255, 255)), nil, 2, nil},
		{"the last slot goes along", iv(254, 255), nil, 1, iv(254, 255)},
	} {
		got := pickBlocks(c.free, c.near, c.limit, newSpace(256).usable)
		if len(got) != len(c.want) || len(got) > 0 && got[0] != c.want[0] {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// All that is free is dealt out, in blocks, to those who stay.
func TestDeal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		free := drawSet(t, 1024, "free")
		owned := make(map[ring.Owner]ring.Set)
		for i := range rapid.IntRange(0, 5).Draw(t, "others") {
			owned[ring.Owner(i+1)] = drawSet(t, 1024, "owned").Subtract(free)
		}
		var all ring.Set
		n := uint64(0)
		for o, s := range deal(free, owned) {
			if _, ok := owned[o]; !ok {
				t.Fatalf("%d is not there", o)
			}
			all = all.Union(s)
			n += s.Len()
		}
		if len(owned) > 0 && (len(all.Subtract(free)) > 0 || len(free.Subtract(all)) > 0 || n != free.Len()) {
			t.Fatalf("%v dealt of %v, %d times", all, free, n)
		}
	})
	lots := deal(ring.Set{{First: 0, Last: 1023}}, map[ring.Owner]ring.Set{1: nil, 2: nil, 3: nil})
	for o, s := range lots {
		if s.Len() < 256 {
			t.Errorf("%d gets %d of 1024", o, s.Len())
		}
	}
}
