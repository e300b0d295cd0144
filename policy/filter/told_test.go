// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
)

// Whoever is denied all the time does not keep what others are denied from being told.
func TestFloodHidesNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	must(t, f.Replace(isolated(0)))
	run(t, f)
	heard := f.Denials(t.Context())
	for _, v6 := range []bool{false, true} {
		flood, err := w.client.socket(unix.SOCK_DGRAM, clientAddr(v6), 0)
		must(t, err)
		quiet, err := w.pods[1].socket(unix.SOCK_DGRAM, podAddr(2, v6), 0)
		must(t, err)
		stop := make(chan struct{})
		var done sync.WaitGroup
		done.Go(func() {
			for port := uint16(1); ; port = max(port+1, 1) {
				select {
				case <-stop:
					return
				default:
					_ = unix.Sendto(flood, []byte("!"), 0, sockaddr(podAddr(0, v6), port))
				}
			}
		})
		time.Sleep(time.Second) // until what is allowed at once is used up
		told := func(port uint16) bool {
			_ = unix.Sendto(quiet, []byte("?"), 0, sockaddr(podAddr(0, v6), port))
			want := policy.Connection{Src: podAddr(2, v6), Dst: podAddr(0, v6), Protocol: policy.UDP, Port: port}
			for end := time.After(2 * time.Second); ; {
				select {
				case d := <-heard:
					if d.Connection == want {
						return true
					}
				case <-end:
					return false
				}
			}
		}
		n := 0
		for port := range uint16(5) {
			if told(1000 + port) {
				n++
			}
		}
		close(stop)
		done.Wait()
		must(t, unix.Close(flood))
		must(t, unix.Close(quiet))
		if n < 3 { // one may be lost on the way to who listens
			t.Errorf("of 5 connections that were denied beside a flood %d were told", n)
		}
	}
	// What the packets have made of the sets is nobody's damage, and nft(8) lists and loads it.
	f.mu.Lock()
	have, err := f.conn.look(Table, whole)
	must(t, err)
	if lines := f.damage(have, whole); len(lines) > 0 {
		t.Errorf("it would be repaired: %q", lines)
	}
	f.mu.Unlock()
	listed, err := w.node.program("", "list", "table", "inet", Table)
	must(t, err)
	if _, err := newSpace(t).program(listed, "-f", "-"); err != nil {
		t.Errorf("%v\n%s", err, listed)
	}
}
