// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/weftnet/weft/router/session"
)

// However many shards there are, what one flow sends arrives in the order in which it was sent, from its first packet on: also
// while answers arrive at a shard that is not the one which sends.
func TestOrderOverKernel(t *testing.T) {
	const (
		flows   = 24
		packets = 400
		window  = 64 // on their way at once, so that no queue overflows
	)
	for _, s := range []setup{
		{offload: all, shards: 4, suite: session.Weft},
		{offload: none, shards: 2, suite: session.WireGuard, v6: true},
	} {
		t.Run(s.String(), func(t *testing.T) {
			a, b := nodes(t, s)
			for family := range 2 {
				exchange(t, a.listenUDP(netip.AddrPortFrom(addrs(1)[family], 5000)), b.listenUDP(netip.AddrPortFrom(addrs(2)[family], 5000)), []byte("hello"))
				for i := range flows {
					p := uint16(20000 + i)
					here := a.listenUDP(netip.AddrPortFrom(addrs(1)[family], p))
					there := b.listenUDP(netip.AddrPortFrom(addrs(2)[family], p))
					if err := converse(here, there, packets, window); err != nil {
						t.Errorf("flow %d: %v", i, err)
					}
				}
			}
		})
	}
}

// converse sends numbered datagrams from here to there, at most window ahead of those that have arrived, and an answer to
// every eighth, and checks that both come in order.
func converse(here, there *net.UDPConn, packets, window int) error {
	deadline := time.Now().Add(20 * time.Second)
	for _, c := range []*net.UDPConn{here, there} {
		if err := c.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	room := make(chan struct{}, window)
	failed := make(chan error, 1)
	go func() {
		failed <- inOrder(there, packets, func(n int) error {
			<-room
			if n%8 != 7 {
				return nil
			}
			return number(there, here, n/8)
		})
	}()
	answers := make(chan error, 1)
	go func() { answers <- inOrder(here, packets/8, func(int) error { return nil }) }()
	for n := range packets {
		select {
		case room <- struct{}{}:
		case err := <-failed:
			return err
		}
		if err := number(here, there, n); err != nil {
			return err
		}
	}
	if err := <-failed; err != nil {
		return err
	}
	return <-answers
}

// number sends the datagram n.
func number(from, to *net.UDPConn, n int) error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 600), uint32(n))
	_, err := from.WriteTo(b[:cap(b)], to.LocalAddr())
	return err
}

// inOrder receives the datagrams 0 to packets-1.
func inOrder(c *net.UDPConn, packets int, each func(n int) error) error {
	b := make([]byte, 2000)
	for want := range packets {
		if _, _, err := c.ReadFrom(b); err != nil {
			return fmt.Errorf("datagram %d of %d: %w", want, packets, err)
		}
		if got := int(binary.BigEndian.Uint32(b)); got != want {
			return fmt.Errorf("datagram %d came when %d was due", got, want)
		}
		if err := each(want); err != nil {
			return err
		}
	}
	return nil
}
