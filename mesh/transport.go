// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's view of the network: packets by way of the router,
// streams by way of the hello. It outlives memberlist's use of it: once closed,
// every call fails.
type transport struct {
	m       *Mesh
	packets chan *memberlist.Packet
	streams chan net.Conn
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// packetQueue is how many gossip packets wait for memberlist before more are dropped.
const packetQueue = 512

func newTransport(m *Mesh) *transport {
	return &transport{m: m, packets: make(chan *memberlist.Packet, packetQueue), streams: make(chan net.Conn)}
}

// FinalAdvertiseAddr returns the address that stands for this node.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return memberAddr(t.m.id).Addr().AsSlice(), memberPort, nil
}

// WriteTo sends a gossip packet.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a gossip packet. The type of its errors tells memberlist
// that a packet that could not be sent counts as one that was lost: else a node
// behind a missing route would never be suspected.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	err := t.m.sendMember(b, a.Addr)
	if err != nil {
		return time.Time{}, &net.OpError{Op: "write", Net: "udp", Err: fmt.Errorf("gossip to %s: %w", a.Addr, err)}
	}
	return time.Now(), nil
}

// PacketCh is where memberlist takes packets.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// deliver queues a packet for memberlist, or drops it. Changes in it are taken.
func (t *transport) deliver(b []byte, from NodeID, at time.Time) {
	var news [][]byte
	echo := func(b []byte) bool {
		if t.m.echoes.note(b, time.Now()) {
			return true
		}
		news = append(news, b)
		return false
	}
	b, err := inspect(b, func(b []byte) { t.m.takeChange(b, from) }, echo)
	if err != nil {
		t.m.oddity(from, "a gossip packet that makes no sense was dropped", err)
	}
	if len(b) == 0 {
		return
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: memberUDP(from), Timestamp: at}
	select {
	case t.packets <- p:
	default:
		t.m.dropped.Add(1)
		for _, b := range news {
			t.m.echoes.forget(b)
		}
	}
}

// DialTimeout opens a stream for memberlist.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream for memberlist to the node meant. A timeout shorter
// than that of other streams is that of a probe to which no packet came in answer.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	id, err := parseMemberAddr(a.Addr)
	if err != nil {
		return nil, err
	}
	if timeout < t.m.tuning.StreamTimeout {
		t.m.cfg.Packets.Examine(id)
	}
	c, err := t.m.dialNode(id, purposeGossip, timeout)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// StreamCh is where memberlist takes streams that others opened.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// handOver gives a stream to memberlist, which closes it.
func (t *transport) handOver(ctx context.Context, c *peerConn) {
	select {
	case t.streams <- c:
	case <-ctx.Done():
		t.m.closeQuietly(c)
	}
}

// Shutdown is called by memberlist; the mesh closes the transport itself.
func (t *transport) Shutdown() error { return nil }

// peerConn is an authenticated connection that tells when it is closed.
type peerConn struct {
	*stream
	once sync.Once
	done func()
}

// Close closes the connection; a second time it does nothing.
func (c *peerConn) Close() (err error) {
	c.once.Do(func() {
		err = c.stream.Close()
		c.done()
	})
	return err
}
