// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// backlog is what waits in the lanes: sizes of packets.
type backlog [maxLanes][]int

// drain reads n packets as Queue.Read does, and returns the lanes that they came from.
func (b *backlog) drain(t *turns, n int) (lanes []int) {
	look := func() {
		for i := range b {
			if len(b[i]) > 0 {
				t.ready |= 1 << i
			}
		}
	}
	for len(lanes) < n {
		if t.over() {
			look()
		}
		lane, ok := t.current()
		if !ok {
			break
		}
		if len(b[lane]) == 0 {
			t.empty()
			continue
		}
		t.took(b[lane][0])
		b[lane] = b[lane][1:]
		lanes = append(lanes, lane)
	}
	return lanes
}

// A packet that comes into an idle lane waits for one turn of each of the others at most, however much there is in them.
func TestLanesWaitForOneTurn(t *testing.T) {
	for name, size := range map[string]int{"superpackets": 64 << 10, "packets": 1400, "small packets": 64} {
		var b backlog
		for i := range maxLanes - 1 {
			b[i] = slices.Repeat([]int{size}, 10_000)
		}
		var turns turns
		b.drain(&turns, 1000)
		b[maxLanes-1] = []int{64}
		most := (maxLanes - 1) * (quantum/(size+packetCost) + 2)
		if at := slices.Index(b.drain(&turns, most+1), maxLanes-1); at < 0 || at > most {
			t.Errorf("beside %s it is read as number %d, want at most %d", name, at, most)
		}
	}
}

// Whoever yields after each packet reads all lanes by turns, and none of them is left out.
func TestLanesYield(t *testing.T) {
	var b backlog
	for i := range b {
		b[i] = slices.Repeat([]int{1400}, 10)
	}
	var turns turns
	for range 5 {
		seen := map[int]bool{}
		for range maxLanes {
			seen[b.drain(&turns, 1)[0]] = true
			turns.yield()
		}
		if len(seen) != maxLanes {
			t.Fatalf("%d packets come from %d lanes", maxLanes, len(seen))
		}
	}
	turns.yield() // twice is as once
	clear(b[:])
	b[3] = []int{1400}
	if lanes := b.drain(&turns, 2); !slices.Equal(lanes, []int{3}) {
		t.Errorf("read are %d, want the only lane that is left", lanes)
	}
}

// Lanes that always have packets get the same share of bytes, packets of different size notwithstanding.
func TestLanesShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b backlog
		var size, sum [maxLanes]int
		for i := range b {
			size[i] = rapid.SampledFrom([]int{40, 64, 576, 1400, 9000, 65535}).Draw(t, "size")
			b[i] = slices.Repeat([]int{size[i]}, 40_000)
		}
		var turns turns
		for _, lane := range b.drain(&turns, 30_000) {
			sum[lane] += size[lane] + packetCost
		}
		if least, most := slices.Min(sum[:]), slices.Max(sum[:]); most-least > 4*(quantum+65535+packetCost) {
			t.Fatalf("shares %v for packets of %v bytes", sum, size)
		}
	})
}

// Everything is read, once and in the order of its lane, whatever comes when.
func TestLanesLoseNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b backlog
		var turns turns
		in, out := 0, 0
		for range rapid.IntRange(1, 50).Draw(t, "rounds") {
			lane := rapid.IntRange(0, maxLanes-1).Draw(t, "lane")
			n := rapid.IntRange(0, 300).Draw(t, "packets")
			b[lane] = append(b[lane], slices.Repeat([]int{rapid.IntRange(1, 65535).Draw(t, "size")}, n)...)
			in += n
			out += len(b.drain(&turns, rapid.IntRange(0, 300).Draw(t, "read")))
		}
		out += len(b.drain(&turns, in))
		if in != out || turns.ready != 0 && len(b.drain(&turns, 1)) != 0 {
			t.Fatalf("%d of %d packets", out, in)
		}
	})
}

func TestLayouts(t *testing.T) {
	for _, c := range []struct {
		queues     int
		multiQueue bool
		want       []layout
	}{
		{1, true, []layout{{1, 16}, {1, 7}, {1, 1}}},
		{2, true, []layout{{2, 16}, {2, 3}, {1, 7}, {1, 1}}},
		{8, true, []layout{{8, 16}, {2, 3}, {1, 7}, {1, 1}}},
		{MaxQueues, true, []layout{{64, 3}, {2, 3}, {1, 7}, {1, 1}}},
		{8, false, []layout{{1, 1}}},
	} {
		got := layouts(c.queues, c.multiQueue)
		if !slices.Equal(got, c.want) {
			t.Errorf("%d queues: %v, want %v", c.queues, got, c.want)
		}
		for i, l := range got {
			most := maxFiles
			if i > 0 {
				most = oldFiles
			}
			if files := l.queues * (l.lanes + 1); l.lanes > 1 && files > most {
				t.Errorf("%v needs %d files", l, files)
			}
		}
	}
}
