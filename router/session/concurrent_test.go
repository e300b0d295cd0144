// SPDX-License-Identifier: Apache-2.0

package session

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestConcurrentMachine does everything at once from several threads, as shards and a control
// thread do, for the race detector; afterwards the two nodes still come to terms.
func TestConcurrentMachine(t *testing.T) {
	d := newDuo(t, Weft, WireGuard)
	d.shake(t, epoch)
	var clock atomic.Int64
	now := func() time.Time { return epoch.Add(time.Duration(clock.Add(int64(30 * time.Millisecond)))) }
	var wg sync.WaitGroup
	handle := func(to *Machine, msg []byte) {
		for len(msg) > 0 {
			if msg[0] == TypeData {
				if k := to.Keypair(Receiver(msg)); k != nil {
					if plaintext, err := k.Open(msg, now()); err == nil {
						k.Peer().Received(now(), k, len(plaintext) == 0)
					}
				}
				return
			}
			r, _ := to.Receive(nil, msg, addrA, now()) // refusals are part of it
			msg = r.Reply
			to = map[*Machine]*Machine{d.a: d.b, d.b: d.a}[to]
		}
	}
	for _, side := range []struct {
		p  *Peer
		to *Machine
	}{{d.ab, d.b}, {d.ba, d.a}} {
		for range 2 {
			wg.Go(func() {
				for range 2000 {
					if k := side.p.Key(now()); k != nil {
						msg, _ := k.Seal(nil, []byte("x"))
						side.p.Sent(now(), false)
						handle(side.to, msg)
					} else {
						msg, _ := side.p.Initiate(nil, now())
						handle(side.to, msg)
					}
				}
			})
		}
		wg.Go(func() {
			for i := range 200 {
				msg, _ := side.p.Tick(nil, now())
				handle(side.to, msg)
				side.p.Stats()
				side.p.Next()
				if i%50 == 49 {
					side.p.Reset()
				}
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			p, err := d.a.AddPeer(PeerConfig{Public: PublicKey{9}})
			if err != nil {
				t.Error(err)
				return
			}
			p.Initiate(nil, now())
			d.a.RemovePeer(p)
		}
	})
	wg.Wait()
	d.ab.Reset()
	d.ba.Reset()
	d.shake(t, now().Add(time.Minute))
	carry(t, d.ab, d.b, []byte("still works"), now())
	if d.a.table.used > 6 || d.b.table.used > 6 {
		t.Errorf("%d and %d indices are left", d.a.table.used, d.b.table.used)
	}
}
