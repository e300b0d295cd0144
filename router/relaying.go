// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
)

// What comes in frames: package relay says what they are. Some are to be passed on, the others have a message for this host in them.
//
// # What a relay can do, and what not
//
// The session between source and destination runs through the relays as through any network: what they could change does not authenticate, what
// they could repeat is a replay, and what they keep is lost, as it would be to whoever sits on a wire. What is in the frame itself
// is believed as far as the address of a datagram is:
//
//   - A frame is taken from the session of the node that it names as the stop before, so nobody sends frames from outside, and a frame names
//     every relay that it passed since the last honest one.
//   - It is passed on to a node that is reached directly, and never back to one that it names already, so frames do not run in circles, and none
//     becomes more than one. What a node passes on is bounded in all (Config.RelayLimit).
//   - There are no frames in frames.
//   - The way that a message came is a way to its sender only when the message has opened under the key of the node that the frame
//     names as its source: then whoever brought it had got it, and stands on the way already. Even so it does not take the
//     place of a way that is known to work; see heard.
//   - A message that does not open leads to nothing that goes by the way that the frame says.

// relaying is what a shard knows of frames.
type relaying struct {
	in  run // frames from one session, not accounted for yet
	out run // frames that were handed to one neighbour

	shelf shelf         // frames that wait for their turn
	pause time.Duration // until it comes; 0: none waits

	inside bool         // the message at hand came in a frame
	head   relay.Header // of that frame
	back   carriage     // the way back
}

// relayed handles a frame that has opened under the key; it is in the space of join.
func (s *shard) relayed(known *snapshot, key *session.Keypair, plain []byte, from netip.AddrPort, now time.Time) error {
	c := &s.carry
	if c.in.key != key {
		if err := s.settleFrames(now); err != nil {
			return err
		}
		p := known.bySession[key.Peer()]
		if p == nil {
			s.join.Drop()
			s.stats.drop(DropUnknownPeer)
			return nil
		}
		c.in = run{peer: p, key: key}
	}
	c.in.data = true
	s.roam(c.in.peer, from, now)
	id := c.in.peer.config.Load().ID
	h := &c.head
	if !h.Parse(plain) || id == 0 || h.From() != id || h.To() != s.r.config.ID {
		s.join.Drop()
		s.stats.drop(DropRelayFrame)
		return nil
	}
	var err error
	if h.Next() != 0 {
		s.haste.passesOn(s.rxTOS)
		err = s.passOn(known, plain, now)
		s.join.Drop()
		return err
	}
	outer := s.rxTOS
	s.rxTOS, c.inside = relay.Carry(h.TOS, outer), true
	err = s.unwrapped(known, plain, now)
	s.rxTOS, c.inside = outer, false
	return err
}

// settleFrames tells the sessions and the counters of the frames that came in and those that were handed on.
func (s *shard) settleFrames(now time.Time) error {
	c := &s.carry
	s.settleHanded(now)
	s.settleBy(&c.back, now)
	t := c.in
	c.in = run{}
	if t.peer == nil {
		return nil
	}
	t.peer.carried.add(t.packets, t.bytes)
	return s.tellReceived(&t, now)
}

// settleHanded tells the session with a neighbour of the frames that were handed to it.
func (s *shard) settleHanded(now time.Time) {
	t := s.carry.out
	s.carry.out = run{}
	if t.packets > 0 {
		s.stats.relayed.add(t.packets, t.bytes)
		s.tellSent(t.peer, now)
	}
}

// unwrapped handles the message in a frame for this host, the head of which is known. The frame is in the space of join.
func (s *shard) unwrapped(known *snapshot, frame []byte, now time.Time) error {
	msg := s.carry.head.Message(frame)
	switch msg[0] {
	case session.TypeData:
		return s.unseal(known, frame, msg, now)
	case session.TypeInitiation, session.TypeResponse, session.TypeCookie:
		err := s.handshake(known, msg, s.origin(), now)
		s.join.Drop()
		return err
	}
	s.join.Drop()
	s.stats.drop(DropType)
	return nil
}

// unseal is inbound for a data message in a frame.
func (s *shard) unseal(known *snapshot, frame, msg []byte, now time.Time) error {
	if len(msg) < session.Overhead {
		s.join.Drop()
		s.stats.drop(DropShort)
		return nil
	}
	key := s.r.machine.Keypair(session.Receiver(msg))
	if key == nil {
		s.join.Drop()
		s.stats.drop(DropIndex)
		s.stranger(netip.AddrPort{}, now)
		return nil
	}
	flags := session.DataFlags(msg)
	plain, err := key.Open(msg, now)
	if err != nil {
		s.join.Drop()
		s.stats.drop(reasonOf(err))
		return nil
	}
	if p := known.bySession[key.Peer()]; relay.IsFrame(plain) || p != nil && p.config.Load().ID != s.carry.head.Source() {
		s.join.Drop()
		s.stats.drop(DropRelayFrame)
		return nil
	}
	// The space is where it belongs: there the next packet of a flow follows the one before.
	n := copy(frame, plain)
	return s.opened(known, key, frame[:n], flags, netip.AddrPort{}, now)
}

// answer sends a message back by the way that the message at hand came.
func (s *shard) answer(msg []byte, now time.Time) {
	h := s.wayBack()
	h.TOS = messageTOS(msg)
	s.r.postFrame(s, s.carry.in.peer, frameOf(h, msg), now)
}

// boardBack sees to how packets get back by the way that the message at hand came.
func (s *shard) boardBack(now time.Time) (by *carriage, addr netip.AddrPort) {
	by = &s.carry.back
	if via := s.carry.in.peer; by.via != via {
		s.settleBy(by, now)
		by.via = via
	}
	by.key, by.head = by.via.sess.Key(now), s.wayBack()
	addr, _ = by.via.target()
	return by, addr
}

// wayBack returns the head of frames that go back by the way that the message at hand came.
func (s *shard) wayBack() relay.Header {
	h := relay.Header{N: s.carry.head.N}
	last := int(h.N) + 1
	for i := range last + 1 {
		h.Nodes[i] = s.carry.head.Nodes[last-i]
	}
	return h
}

// heardBy notes that an authentic message of the peer has come in the frame at hand.
func (s *shard) heardBy(p *peer, now time.Time) {
	h := s.wayBack()
	w := way{N: h.N}
	copy(w.Relays[:], h.Nodes[1:h.N+1])
	s.r.reaching.came(p, w, now)
}

// knockOf stands for a node where an address is asked for.
func knockOf(id uint64) netip.Addr {
	a := [16]byte{0: reservedULA}
	binary.BigEndian.PutUint64(a[8:], id)
	return netip.AddrFrom16(a)
}

// reservedULA is the first byte of fc00::/8, of which no addresses are given out (RFC 4193 §3.2).
const reservedULA = 0xfc

// origin stands for the sender of the message at hand where an address is asked for, to tell senders apart under load: an address that
// nobody has. Who it really is no relay can say for others: each node by each last relay is a sender of its own.
func (s *shard) origin() netip.AddrPort {
	h := &s.carry.head
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], maphash.Comparable(s.r.origins, [2]uint64{h.Source(), h.From()}))
	a[0] = reservedULA
	return netip.AddrPortFrom(netip.AddrFrom16(a), 1)
}
