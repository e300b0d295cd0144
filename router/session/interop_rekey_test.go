// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestInteropRekeyByMessages: after 2^60 messages we begin a new session, whoever began the last one, and at the limit of the protocol
// the old key is used no more. The reference goes along and no packet is lost. Its own limit cannot be brought nearer.
func TestInteropRekeyByMessages(t *testing.T) {
	for _, weInitiate := range []bool{true, false} {
		for _, c := range []struct {
			counter uint64
			last    int // packets that the old key still takes
		}{
			{RekeyAfterMessages - 3, -1},
			{RekeyAfterMessages + 1<<50, -1},
			{RejectAfterMessages - 2, 2},
		} {
			t.Run(fmt.Sprintf("we began %v, counter %#x", weInitiate, c.counter), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					x := newInterop(t, interopConfig{})
					x.packet(weInitiate, 64)
					x.run(10 * time.Second)
					a, b := x.packet(true, 64), x.packet(false, 64)
					x.run(10 * time.Second)
					x.expect("ours", x.theirs, a)
					x.expect("theirs", x.ours, b)
					old := x.n.p.Key(time.Now())
					if s := x.n.p.Stats(); s.Handshakes != 1 || s.Initiator != weInitiate {
						t.Fatalf("before: %+v", s)
					}
					setCounter(old, c.counter)
					var toThem, toUs []uint64
					for i := range 20 {
						if i == c.last && x.n.p.Key(time.Now()) == old {
							t.Error("the used up key is still in use")
						}
						toThem = append(toThem, x.packet(true, 100))
						toUs = append(toUs, x.packet(false, 100))
						x.run(50 * time.Millisecond)
					}
					x.run(10 * time.Second)
					x.expect("ours", x.theirs, toThem...)
					x.expect("theirs", x.ours, toUs...)
					if s := x.n.p.Stats(); s.Handshakes != 2 || !s.Initiator {
						t.Errorf("after: %+v", s)
					}
					if k := x.n.p.Key(time.Now()); k == old || k == nil || k.counter.Load() > 100 {
						t.Errorf("the key in use is the old one: %v", k == old)
					}
				})
			})
		}
	}
}
