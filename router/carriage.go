// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"net/netip"
	"time"

	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
)

// What is sent through relays. Package relay says in what form; relaying.go is what relays and destinations do.
//
// Whatever goes to a peer whose way leads through relays is sealed for that peer, wrapped into a frame, and sealed for the first relay. Both happen in
// place, in the batch of the shard, so that runs of datagrams form as on a direct way. Without a key of the peer packets wait in its queue as
// ever; without one of the relay the finished frames wait in the queue of the relay.

// carriage is how datagrams get to a peer.
type carriage struct {
	via  *peer            // the first relay; nil: directly
	key  *session.Keypair // of via; nil: there is none
	head relay.Header     // of the frames
	most int              // the largest packet in a frame
	used bool             // since via's session was told
}

var errNoRelay = errors.New("the first relay on the way is not reached directly: nothing can be sent until another way is found")

// head returns the header of frames that go to p by w.
func (r *Router) head(p *peer, w *way) relay.Header {
	h := relay.Header{N: w.N}
	h.Nodes[0] = r.config.ID
	copy(h.Nodes[1:], w.Relays[:w.N])
	h.Nodes[w.N+1] = p.config.Load().ID
	return h
}

// firstRelay returns the peer to which frames go that take the way w; nil if it is not known, or not reached directly.
func (s *snapshot) firstRelay(w *way) *peer {
	via := s.byID[w.Relays[0]]
	if via == nil || via.relayed() != nil {
		return nil
	}
	return via
}

// board sees to how the datagrams of txRun get to the peer, and returns where they go first. It reports false if they cannot go anywhere.
func (s *shard) board(known *snapshot, to *peer, now time.Time) (addr netip.AddrPort, ok bool) {
	by := &s.txRun.by
	w := to.relayed()
	if w == nil {
		s.settleBy(by, now)
		by.via = nil
		addr, _ = to.target()
		return addr, true
	}
	via := known.firstRelay(w)
	if via == nil {
		to.fail(errNoRelay)
		return netip.AddrPort{}, false
	}
	if by.via != via {
		s.settleBy(by, now)
		by.via = via
	}
	by.key, by.head, by.most = via.sess.Key(now), s.r.head(to, w), known.mostTo(to)
	addr, _ = via.target()
	return addr, true
}

// settleBy tells the session with the first relay that frames were sent in it.
func (s *shard) settleBy(by *carriage, now time.Time) {
	if by.used {
		by.used = false
		s.tellSent(by.via, now)
	}
}

// tellSent tells the session with a neighbour that frames were sent in it.
func (s *shard) tellSent(p *peer, now time.Time) {
	if !p.course.frames.Load() {
		p.course.frames.Store(true) // the way to it is in use
	}
	if p.sess.Sent(now, false) {
		s.initiate(p, now)
	}
	s.r.timers.touch(p)
}

// put puts a packet, for which there is room, into the batch, sealed under a key of the peer and carried there. It reports false if the
// key is of no use.
func (s *shard) put(by *carriage, key *session.Keypair, to *peer, plain []byte, flags session.Flags, addr netip.AddrPort, now time.Time) (ok bool, err error) {
	if by.via == nil {
		return s.out.seal(key, to, plain, flags, addr), nil
	}
	h := &by.head
	h.TOS = s.out.tos(plain)
	h.Whole = to.path.sent(len(plain))
	frame, ok := s.out.wrap(key, h, plain, flags)
	if !ok {
		return false, nil
	}
	if by.key != nil && !by.via.pending.busy.Load() && s.out.close(by.key, to, frame, addr) {
		by.used = true
		return true, nil
	}
	return true, s.waitFrame(by, frame, now)
}

// waitFrame lets a frame wait for a key of the first relay, or until those have gone that have waited. It may lie in what is free of the batch.
func (s *shard) waitFrame(by *carriage, frame []byte, now time.Time) error {
	kept, via := s.txRun, by.via // by may be that of txRun
	s.txRun = run{}
	err := s.wait(via, frame, now)
	s.txRun = kept
	by.key = via.sess.Key(now)
	return err
}

// drainFrame puts a frame that has waited in the queue of the peer, its next stop, into the batch, under the key of txRun. It reports false if that
// is of no use any more; then txRun has none.
func (s *shard) drainFrame(to *peer, addr netip.AddrPort, frame []byte) (ok bool, err error) {
	var h relay.Header
	if s.txRun.by.via != nil || !h.Parse(frame) {
		s.stats.drop(DropRelayRoute) // the peer was reached directly when the frame came
		return true, nil
	}
	if ok, err := s.makeRoom(len(frame)); !ok || err != nil {
		return true, err
	}
	if !s.out.hand(s.txRun.key, to, frame, addr) {
		s.txRun.key = nil
		return false, nil
	}
	s.txRun.frames = true
	if h.At > 0 {
		s.stats.relayed.add(1, uint64(len(frame)+session.Overhead))
	}
	return true, nil
}

// wrap makes the frame with a packet, sealed for its destination, and returns it: in what is free of the batch, where close expects it. It reports false if
// the key is of no use.
func (b *transmitBatch) wrap(k *session.Keypair, h *relay.Header, plain []byte, flags session.Flags) (frame []byte, ok bool) {
	at := len(b.arena) + session.HeaderSize
	sealed, err := sealed(k, b.arena[:at+h.Len()], plain, flags)
	if err != nil {
		return nil, false
	}
	frame = sealed[at:]
	h.Put(frame, len(frame)-h.Len())
	padded := frame[:session.Padded(len(frame))]
	clear(padded[len(frame):])
	return padded, true
}

// close appends the frame that wrap has made for a peer. It reports false if the key is of no use.
func (b *transmitBatch) close(k *session.Keypair, to *peer, frame []byte, addr netip.AddrPort) bool {
	at := len(b.arena)
	tos, whole := relay.Tos(frame)
	datagram, err := k.Seal(b.arena, frame) // in place
	if err != nil {
		return false
	}
	b.add(datagram, at, owner{peer: to}, tos, whole, addr)
	return true
}

// hand appends a frame that has been made before, for the next stop on its way. It reports false if the key is of no use.
func (b *transmitBatch) hand(k *session.Keypair, to *peer, frame []byte, addr netip.AddrPort) bool {
	at := len(b.arena)
	tos, whole := relay.Tos(frame)
	datagram, err := k.SealOver(b.arena, frame, len(frame), 0)
	if err != nil {
		return false
	}
	b.add(datagram, at, owner{peer: to, strict: true}, tos, whole, addr)
	return true
}
