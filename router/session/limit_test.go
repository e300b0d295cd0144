// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestBucketAgainstOracle: what a bucket lets through in any stretch of time is at most its
// capacity plus what flowed in; and after a rest it lets its capacity through.
func TestBucketAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b bucket
		const cost, full = 10 * time.Millisecond, 50 * time.Millisecond
		now := epoch
		var taken []time.Time
		for range rapid.IntRange(1, 80).Draw(t, "n") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "ms")) * time.Millisecond)
			if b.take(now, cost, full) {
				taken = append(taken, now)
			}
		}
		for i := range taken {
			for j := i; j < len(taken); j++ {
				if got, most := time.Duration(j-i+1)*cost, full+taken[j].Sub(taken[i]); got > most {
					t.Fatalf("%v passed within %v, at most %v may", got, taken[j].Sub(taken[i]), most)
				}
			}
		}
		now = now.Add(full)
		for i := range 6 {
			if got := b.take(now, cost, full); got != (i < 5) {
				t.Fatalf("after a rest, try %d: %v", i, got)
			}
		}
		if b.take(now.Add(-time.Hour), cost, full) {
			t.Fatal("a clock that steps back fills the bucket")
		}
		if !b.take(now.Add(-time.Hour+full), cost, full) {
			t.Fatal("a clock that stepped back stops the bucket for ever")
		}
	})
}

func TestGateBusy(t *testing.T) {
	var g gate
	g.init(100)
	now := epoch
	for i := range 200 {
		if g.busy(now) {
			t.Fatalf("under load at message %d of a burst of 200", i)
		}
	}
	if !g.busy(now) {
		t.Fatal("not under load after the burst")
	}
	now = now.Add(999 * time.Millisecond)
	if !g.busy(now) {
		t.Fatal("load ended before a second was over")
	}
	now = now.Add(time.Second)
	if g.busy(now) {
		t.Fatal("load did not end")
	}
	now = now.Add(-time.Hour)
	if g.busy(now) {
		t.Fatal("a clock that steps back means load")
	}
}

func TestGateSources(t *testing.T) {
	var g gate
	g.init(100)
	allowed := func(addr string, now time.Time) (n int) {
		for range 20 {
			if g.allow(netip.MustParseAddr(addr), now) {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		addr string
		want int
	}{
		{"192.0.2.1", 5},
		{"::ffff:192.0.2.1", 0}, // the same host
		{"192.0.2.2", 5},
		{"2001:db8::1", 5},
		{"2001:db8::2", 0}, // the same /64
		{"2001:db8:0:1::1", 5},
		{"fe80::1%eth0", 5},
		{"fe80::1%eth1", 0},
	} {
		if got := allowed(c.addr, epoch); got != c.want {
			t.Errorf("%s: %d, want %d", c.addr, got, c.want)
		}
	}
	if got := allowed("192.0.2.1", epoch.Add(100*time.Millisecond)); got != 2 {
		t.Errorf("after 100 ms: %d, want 2", got)
	}
}

// TestGateCookies: what strangers get is bounded, in a second and at once, and what friends get does not suffer.
func TestGateCookies(t *testing.T) {
	var g gate
	g.init(100)
	friend, stranger := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	g.befriend(friend, epoch)
	now := epoch
	for second := range 5 {
		n := 0
		for range 10000 {
			now = now.Add(time.Second / 10000)
			if g.cookie(stranger, now) {
				n++
			}
		}
		if want := 100 * cookieShare; second > 0 && n != want || n > 2*want {
			t.Errorf("second %d: strangers got %d cookies", second, n)
		}
		for i := range 6 {
			if got := g.cookie(friend, now); got != (i < 5) {
				t.Errorf("second %d: cookie %d for a friend: %v", second, i, got)
			}
		}
	}
	for i := range uint32(2 * maxSources) {
		g.befriend(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, i))), now)
	}
	if len(g.friends) != maxSources {
		t.Errorf("%d friends, want %d", len(g.friends), maxSources)
	}
	g.befriend(stranger, now.Add(friendLife))
	if len(g.friends) != 1 {
		t.Errorf("%d friends, want 1", len(g.friends))
	}
}

// TestGateProven: handshakes with cookies are bounded too, from however many addresses they come.
func TestGateProven(t *testing.T) {
	var g gate
	g.init(100)
	n := 0
	for i := range uint32(4000) {
		if g.allow(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, i))), epoch) {
			n++
		}
	}
	if want := 100 * provenShare * loadBurst; n != want {
		t.Errorf("%d handshakes at once, want %d", n, want)
	}
}

// TestGateFriends: strangers with cookies, from however many networks, take nothing from friends, who are bounded one by one.
func TestGateFriends(t *testing.T) {
	for _, friend := range []string{"192.0.2.1", "2001:db8::1"} {
		var g gate
		g.init(100)
		friend := netip.MustParseAddr(friend)
		g.befriend(friend, epoch)
		now := epoch
		for i := range uint64(3 * maxSources) {
			b := binary.BigEndian.AppendUint64(nil, 0xfd00<<48|i)
			now = now.Add(time.Second / 10000)
			g.allow(netip.AddrFrom16([16]byte(append(b, make([]byte, 8)...))), now)
		}
		if g.allow(netip.MustParseAddr("198.51.100.7"), now) {
			t.Error("the flood leaves room for strangers: it is none")
		}
		for i := range 2 * sourceBurst {
			if got := g.allow(friend, now); got != (i < sourceBurst) {
				t.Errorf("%v: handshake %d of a friend: %v", friend, i, got)
			}
		}
		if !g.allow(friend, now.Add(sourceCost)) {
			t.Errorf("%v: a friend is shut out after its burst", friend)
		}
	}
}

// TestGateBounded: a flood of addresses takes bounded memory, shuts nobody out for long, and the
// table empties.
func TestGateBounded(t *testing.T) {
	var g gate
	g.init(maxSources) // so that the table is what is tried
	addr := func(i uint32) netip.Addr {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, i)))
	}
	now := epoch
	passed := 0
	for i := range uint32(3 * maxSources) {
		if g.allow(addr(i), now) {
			passed++
		}
	}
	if passed != maxSources || len(g.sources) != maxSources {
		t.Errorf("%d passed, %d kept, want %d", passed, len(g.sources), maxSources)
	}
	now = now.Add(sourceFull)
	if !g.allow(addr(1<<31), now) {
		t.Error("still full after the buckets have filled")
	}
	if len(g.sources) != 1 {
		t.Errorf("%d kept, want 1", len(g.sources))
	}
}
