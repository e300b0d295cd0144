// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// TestProcesses holds the processes of a node against a plain list of them.
func TestProcesses(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var ps processes
	var want []process
	for range 10_000 {
		p := process{1 + rng.Uint64N(5), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(1+rng.IntN(100)))}
		i := slices.IndexFunc(want, func(w process) bool { return w.boot == p.boot })
		switch {
		case rng.IntN(2) == 0:
			ps.remove(p.boot)
			if i >= 0 {
				want = slices.Delete(want, i, i+1)
			}
		case i >= 0:
			ps.set(p.boot, p.addr)
			want[i] = p
		default:
			ps.set(p.boot, p.addr)
			want = append(want, p)
		}
		if got := slices.Collect(ps.all()); !slices.Equal(got, want) || ps.len() != len(want) {
			t.Fatalf("%v are there, %d of them, and not %v", got, ps.len(), want)
		}
		for boot := range uint64(7) {
			i := slices.IndexFunc(want, func(w process) bool { return w.boot == boot })
			if ps.has(boot) != (i >= 0) || i >= 0 && ps.addr(boot) != want[i].addr || i < 0 && ps.addr(boot).IsValid() {
				t.Fatalf("process %d of %v: %v at %v", boot, want, ps.has(boot), ps.addr(boot))
			}
		}
		for range ps.all() {
			break
		}
	}
	if _, _, err := parseMember(memberName(1, 0)); err == nil {
		t.Error("a process without a number is a member: none is to have 0")
	}
}

// TestLossIsForgotten has a node that failed come back: what was known of its failure goes, so that a node of a large mesh that was cut
// in two, or has come together, keeps of each of the others no more than it needs.
func TestLossIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 93)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(5*time.Second, "whole", whole(a, b))
		lossOf := func() *loss {
			a.Mesh.mu.Lock()
			defer a.Mesh.mu.Unlock()
			return a.peers[b.id].loss
		}
		c.eventually(5*time.Second, "no loss", func() bool { return lossOf() == nil })
		b.host.Dark(true)
		c.eventually(time.Minute, "failure", func() bool { return a.Alive() == 0 })
		if l := lossOf(); l == nil || !l.last.IsValid() || l.boot != b.Boot() {
			t.Errorf("of the node that failed is known: %+v", l)
		}
		b.host.Dark(false)
		c.eventually(2*time.Minute, "return", func() bool { return a.Alive() == 1 && lossOf() == nil })
		a.Mesh.mu.Lock()
		defer a.Mesh.mu.Unlock()
		if len(a.away) != 0 {
			t.Error("the node is still looked for")
		}
	})
}

// TestSmallPeers has what is kept of each other node stay in its size class.
func TestSmallPeers(t *testing.T) {
	if n := unsafe.Sizeof(peer{}); n > 96 {
		t.Errorf("a peer takes %d bytes", n)
	}
	if n := unsafe.Sizeof(way{}); n > 80 {
		t.Errorf("the way to a node takes %d bytes", n)
	}
}

func TestTokens(t *testing.T) {
	var b tokens
	took := 0
	for now := moment(0); now < moment(10*time.Second); now += moment(time.Millisecond) {
		if b.take(now, 16, 2) {
			took++
		}
	}
	if took != 16+2*10-1 { // the last one is not there yet
		t.Errorf("%d were taken", took)
	}
	b.spend(moment(time.Hour), 2)
	if b.left(moment(time.Hour), 1, 2) || !b.left(moment(time.Hour), 2, 2) || !b.left(moment(time.Hour+time.Second/2), 1, 2) {
		t.Error("what was spent after a while does not count, or what was before still does")
	}
}
