// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// While states are replaced and changed, and others read them, not one forbidden datagram gets through, and an allowed connection goes on.
func TestNothingOpensMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	// Either all but port 9 is open by the identity's last cell, or nothing but port 8: the mixture of both would open port 9.
	state := func(open bool) *compile.State {
		s := isolated(0, 81)
		s.Identities[clientAddr(false)] = 5
		if open {
			s.Tables[1].Cells[compile.Cell{Identity: 5}] = by(true, "all")
			s.Tables[1].Cells[compile.Cell{Identity: 5, Protocol: policy.UDP, First: 9, Last: 9}] = by(false, "but one")
		} else {
			s.Tables[1].Cells[compile.Cell{Identity: 5}] = by(false, "none")
			s.Tables[1].Cells[compile.Cell{Identity: 5, Protocol: policy.TCP, First: 81, Last: 81}] = by(true, "but one")
		}
		return s
	}
	must(t, f.Replace(state(true)))
	kept := connect(t, w.client, clientAddr(false), w.pods[0], podAddr(0, false), 81)
	must(t, kept.echo(patience))

	target, err := w.pods[0].socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, podAddr(0, false), 9)
	must(t, err)
	defer func() { _ = unix.Close(target) }()
	source, err := w.client.socket(unix.SOCK_DGRAM, clientAddr(false), 0)
	must(t, err)
	defer func() { _ = unix.Close(source) }()
	var sent atomic.Int64
	var stop atomic.Bool
	var flood sync.WaitGroup
	flood.Go(func() {
		for !stop.Load() {
			if unix.Sendto(source, []byte("!"), 0, sockaddr(podAddr(0, false), 9)) == nil {
				sent.Add(1)
			}
		}
	})
	for i, end := 0, time.Now().Add(3*time.Second); time.Now().Before(end) || sent.Load() < 1000; i++ {
		must(t, f.Replace(state(i%2 == 1)))
	}
	must(t, kept.echo(patience))
	stop.Store(true)
	flood.Wait()
	if n, _, err := unix.Recvfrom(target, make([]byte, 16), 0); err == nil {
		t.Errorf("%d bytes came through, of %d datagrams", n, sent.Load())
	}
}
