// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// What is sealed is gathered here, and sent.

const (
	transmitMessages = 256
	transmitArena    = 320 << 10
	// roomyMessages and roomyBytes are what a superpacket of segments of 1 KiB or more takes.
	roomyMessages = 64
	roomyBytes    = 80 << 10
)

// owner is whom a message in the batch concerns: the peer that it was sealed for.
type owner struct {
	*peer
	strict bool // frames of others, which the network must not fragment if they say so, whatever the way
}

// transmitBatch holds sealed datagrams until they are sent together.
type transmitBatch struct {
	arena    []byte             // the datagrams, one after the other
	messages []underlay.Message // runs of them
	owners   []owner            // of each, for errors
	sent     int                // how many of messages are done
	blocked  bool               // the socket is full
	full     bool               // the last of messages is not to be made longer
	copied   uint8              // the bits of a packet's TOS that its datagram bears
	mark     uint8              // the bits that the datagrams of the packet at hand bear besides
	light    bool               // there have been light packets since it was empty
	heavy    bool               // and others
}

func (b *transmitBatch) init() {
	b.copied = packet.ECNMask
	b.arena = make([]byte, 0, transmitArena)
	b.messages = make([]underlay.Message, 0, transmitMessages)
	b.owners = make([]owner, 0, transmitMessages)
}

// roomy tells whether the next packet will fit, even if it is a usual superpacket.
func (b *transmitBatch) roomy() bool {
	return len(b.messages)+roomyMessages <= cap(b.messages) && len(b.arena)+roomyBytes <= cap(b.arena)
}

// fits tells whether a packet of n bytes fits, also in a frame.
func (b *transmitBatch) fits(n int) bool {
	return len(b.messages) < cap(b.messages) && len(b.arena)+n+2*(session.Overhead+session.Padding)+relay.MaxHeader <= cap(b.arena)
}

// seal appends a packet, which must fit: to the run that is last if it has the same receiver, TOS and size, or is
// shorter, which ends the run. What lies behind the packet in its memory is used, and comes out as it was. It reports false if
// the key is of no use.
func (b *transmitBatch) seal(k *session.Keypair, to *peer, plain []byte, flags session.Flags, addr netip.AddrPort) bool {
	at := len(b.arena)
	datagram, err := sealed(k, b.arena, plain, flags)
	if err != nil {
		return false
	}
	b.add(datagram, at, owner{peer: to}, b.tos(plain), to.path.sent(len(plain)), addr)
	return true
}

// tos returns the type of service of a packet's datagram.
func (b *transmitBatch) tos(plain []byte) uint8 { return packet.TOS(plain)&b.copied | b.mark }

// sealed appends the datagram with a packet to dst. What lies behind the packet in its memory is used, and comes out as it was.
func sealed(k *session.Keypair, dst, plain []byte, flags session.Flags) ([]byte, error) {
	if padded := session.Padded(len(plain)); padded <= cap(plain) {
		return k.SealOver(dst, plain[:padded], len(plain), flags)
	}
	return k.SealFlags(dst, plain, flags)
}

// add makes arena, which has grown by a datagram at that place, the batch's.
func (b *transmitBatch) add(arena []byte, at int, who owner, tos uint8, whole bool, addr netip.AddrPort) {
	b.arena = arena
	n := len(arena) - at
	if !b.full && len(b.messages) > b.sent {
		m := &b.messages[len(b.messages)-1]
		if size := len(m.Buf) + n; b.owners[len(b.owners)-1] == who && m.Addr == addr && m.TOS == tos && m.Fragment == !whole &&
			n <= m.Segment && size <= underlay.MaxMessage && size <= underlay.MaxSegments*m.Segment {
			m.Buf = arena[at-len(m.Buf):]
			b.full = n < m.Segment
			return
		}
	}
	b.messages = append(b.messages, underlay.Message{Buf: arena[at:], Segment: n, Addr: addr, TOS: tos, Fragment: !whole})
	b.owners = append(b.owners, who)
	b.full = false
}

// flush sends the batch, or as much as the socket takes; then the batch is blocked. An error ends the shard.
func (s *shard) flush() error {
	b := &s.out
	for b.sent < len(b.messages) {
		if b.blocked {
			return nil
		}
		n, err := s.conn.Send(b.messages[b.sent:])
		b.sent += n
		switch {
		case err == nil:
			b.blocked = b.sent < len(b.messages)
			b.full = b.full || b.blocked // of a part of the last one nothing is known but that it is a rest
		case errors.Is(err, os.ErrClosed):
			return err
		case errors.Is(err, unix.EMSGSIZE) && b.owners[b.sent].strict:
			// What a link does that is too narrow: the source finds out by its probes. The last of a run may be shorter, and fit.
			m := &b.messages[b.sent]
			whole := max(len(m.Buf)/m.Segment, 1)
			s.stats.dropN(DropTooBig, uint64(whole))
			if m.Buf = m.Buf[min(whole*m.Segment, len(m.Buf)):]; len(m.Buf) == 0 {
				b.sent++
			}
		case errors.Is(err, unix.EMSGSIZE) && !b.messages[b.sent].Fragment:
			// The link of this host has become narrower than its paths were.
			b.messages[b.sent].Fragment = true
			s.r.forgetPath(b.owners[b.sent].peer)
		default: // concerns one message
			s.stats.dropN(DropSend, datagrams(&b.messages[b.sent]))
			b.owners[b.sent].fail(err)
			b.sent++
		}
	}
	b.arena, b.messages, b.owners, b.sent = b.arena[:0], b.messages[:0], b.owners[:0], 0
	b.light, b.heavy = false, false
	s.release()
	return nil
}

// datagrams returns how many there are in m.
func datagrams(m *underlay.Message) uint64 { return uint64((len(m.Buf) + m.Segment - 1) / m.Segment) }
