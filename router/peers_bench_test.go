// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/weftnet/weft/router/session"
)

// manyPeers describes n nodes with a prefix and two addresses each.
func manyPeers(n int) []Peer {
	peers := make([]Peer, n)
	for i := range peers {
		var key session.PrivateKey
		binary.BigEndian.PutUint32(key[1:], uint32(i+1))
		key[31] = 64
		at := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		peers[i] = Peer{
			Key: key.Public(), ID: uint64(i + 2), Boot: 1, Name: fmt.Sprint("node", i), Suite: session.Weft, MTU: 1400,
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(at, 6783), netip.AddrPortFrom(at.Next(), 6783)},
			Prefixes:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i>>16), byte(i >> 8), byte(i)}), 32)},
		}
	}
	return peers
}

func manyRouter(tb testing.TB) *Router {
	tb.Helper()
	l := &loop{}
	r, err := New(Config{
		Private: session.PrivateKey{30: 1, 31: 64}, ID: 1, TUN: []Queue{l}, Conns: []Conn{l},
		Poll: func(Queue, Conn) (Poller, error) { return nil, nil },
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// BenchmarkSetPeers is what a router needs for many peers: all at once, and when one of them changes. B/peer is what
// an idle peer takes of the heap.
func BenchmarkSetPeers(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		peers := manyPeers(n)
		b.Run(fmt.Sprint("all/", n), func(b *testing.B) {
			var used uint64
			for b.Loop() {
				r := manyRouter(b)
				before := heap()
				if err := r.SetPeers(peers); err != nil {
					b.Fatal(err)
				}
				used = heap() - before
				runtime.KeepAlive(r)
			}
			b.ReportMetric(float64(used)/float64(n), "B/peer")
		})
		b.Run(fmt.Sprint("one/", n), func(b *testing.B) {
			r := manyRouter(b)
			if err := r.SetPeers(peers); err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				peers[i%n].MTU ^= 1
				if err := r.SetPeers(peers); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// What an idle peer costs is bounded: a node of a mesh of a thousand has a thousand of them, and talks to a few.
func TestIdlePeersAreSmall(t *testing.T) {
	const n, most = 1000, 4096
	peers := manyPeers(n)
	r := manyRouter(t)
	before := heap()
	if err := r.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	if used := (heap() - before) / n; used > most {
		t.Errorf("an idle peer takes %d bytes, more than %d", used, most)
	} else {
		t.Logf("an idle peer takes %d bytes", used)
	}
	runtime.KeepAlive(r)
}
