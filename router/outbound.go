// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/pathmtu"
	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
)

// The way out: TUN -> route -> split -> seal -> UDP.

// transmit reads packets from the queue, for one turn, and sends them. more tells that there may be
// others. An error ends the shard.
func (s *shard) transmit(now time.Time) (more bool, err error) {
	known := s.r.current.Load()
	if s.yields != nil && s.haste.hasty {
		s.yields.Yield()
	}
	size := 0
	more = true
	for n := 0; n < turnPackets && size < s.haste.bytes; n++ {
		if !s.out.roomy() {
			if err := s.flush(); err != nil {
				return false, err
			}
		}
		if s.out.blocked {
			break
		}
		length, err := s.queue.Read(s.frame)
		if err != nil {
			if err := s.failed(err, DropRead); err != nil {
				return false, err
			}
			more = false
			break
		}
		if length == 0 {
			more = false
			break
		}
		s.failures = 0
		size += length
		if err := s.outbound(known, s.frame[:length], now); err != nil {
			return false, err
		}
		if s.out.mark != 0 && s.out.heavy { // it has waited for the others long enough
			if err := s.flush(); err != nil {
				return false, err
			}
		}
	}
	if err := s.settleTx(now); err != nil {
		return false, err
	}
	return more, s.flush()
}

// outbound handles one packet or superpacket as the queue gave it.
func (s *shard) outbound(known *snapshot, frame []byte, now time.Time) error {
	var h packet.VNetHdr
	if s.offloads.VNetHdr {
		if err := h.Decode(frame); err != nil {
			s.stats.drop(DropLocal)
			return nil
		}
		frame = frame[packet.VNetHdrLen:]
	}
	var p packet.Packet
	if err := p.Parse(frame); err != nil {
		s.stats.drop(DropLocal)
		return nil
	}
	frame = frame[:p.Len]
	if isNoise(&p) {
		s.stats.drop(DropNoise)
		return nil
	}
	to, ok := known.routes.Lookup(p.Dst)
	switch {
	case !ok:
		s.stats.drop(DropNoRoute)
		return s.unreachable(known, frame, &p, now)
	case to == self:
		s.stats.drop(DropNoWorkload)
		return s.unreachable(known, frame, &p, now)
	}
	if err := s.weigh(frame, &p, now); err != nil {
		return err
	}
	return s.forward(known, to, &p, h, frame, now)
}

// forward splits a packet or superpacket and sends the segments to the peer.
func (s *shard) forward(known *snapshot, to *peer, p *packet.Packet, h packet.VNetHdr, frame []byte, now time.Time) error {
	mtu := known.mtuTo(to)
	room := mtu
	if p.Src.Is6() { // pieces carry what the way does not
		room = max(mtu, min(minMTU, known.maxTo(to)))
	}
	if s.txRun.peer != to {
		if err := s.settleTx(now); err != nil {
			return err
		}
		s.txRun.peer = to
	}
	s.txRun.key = to.sess.Key(now)
	var err error
	var flags session.Flags
	if k := s.txRun.key; k != nil && k.Suite() == session.Weft {
		if err = s.split.InitOpen(frame, p, h); s.split.Open() {
			flags = session.OpenChecksum
		}
	} else {
		err = s.split.Init(frame, h)
	}
	if err != nil {
		s.stats.drop(DropLocal)
		return nil
	}
	addr, ok := s.board(known, to, now)
	if !ok && s.txRun.key != nil {
		s.stats.drop(DropRelayRoute)
		return nil
	}
	first := true
	for segment, ok := s.split.Next(); ok; segment, ok = s.split.Next() {
		if len(segment) > room {
			if p.DF { // and no later one is larger
				s.stats.drop(DropTooBig)
				complete(segment, flags)
				return s.tooBig(known, segment, p, room, now)
			}
			if err := s.fragment(to, addr, segment, flags, mtu, now); err != nil {
				return err
			}
			continue
		}
		if first {
			first = false
			if mtu < known.local.MTU {
				packet.ClampMSS(segment, p, mtu)
			}
		}
		if err := s.seal(to, addr, segment, flags, now); err != nil {
			return err
		}
	}
	return nil
}

// seal puts one packet, sealed under the key of txRun, into the batch, or lets it wait: for a key, or until those have gone that have waited.
func (s *shard) seal(to *peer, addr netip.AddrPort, plain []byte, flags session.Flags, now time.Time) error {
	if s.txRun.key != nil && !to.pending.busy.Load() {
		if ok, err := s.sealNow(to, addr, plain, flags, now); ok || err != nil {
			return err
		}
	}
	complete(plain, flags) // the next key may be of another suite
	return s.wait(to, plain, now)
}

// sealNow puts one packet, sealed under the key of txRun, into the batch. It reports false if that key is of no use any more; then
// txRun has none.
func (s *shard) sealNow(to *peer, addr netip.AddrPort, plain []byte, flags session.Flags, now time.Time) (ok bool, err error) {
	x := to.path.sizes()
	if by := &s.txRun.by; by.via != nil { // whoever is reached by relays takes pieces
		x.pieces = true
		if x.mtu == 0 || x.mtu > by.most {
			x.mtu = by.most
		}
	}
	if x.pieces && x.mtu > 0 && len(plain) > x.mtu && len(plain) <= pathmtu.MinIPv6 {
		complete(plain, flags)
		return s.sealPieces(to, addr, plain, x.mtu, now)
	}
	if ok, err := s.makeRoom(len(plain)); !ok || err != nil {
		return true, err
	}
	if ok, err := s.put(&s.txRun.by, s.txRun.key, to, plain, flags, addr, now); !ok || err != nil {
		s.txRun.key = nil // used up, or the peer is gone
		return false, err
	}
	s.txRun.packets++
	s.txRun.bytes += uint64(len(plain))
	return true, nil
}

// complete computes the checksum of a packet that flags say is open.
func complete(b []byte, flags session.Flags) {
	var p packet.Packet
	if flags&session.OpenChecksum != 0 && p.Parse(b) == nil {
		packet.CompleteChecksum(b, &p)
	}
}

// wait queues a packet for a peer to which there is no key, and asks for one, or for which others wait.
func (s *shard) wait(to *peer, plain []byte, now time.Time) error {
	if to.removed.Load() {
		s.stats.drop(DropNoRoute)
		return nil
	}
	if to.pending.put(plain, s.out.mark, now) {
		s.stats.drop(DropQueue)
	}
	if to.sess.Key(now) == nil {
		s.initiate(to, now)
	}
	// A key that another shard got in the meantime has found the queue as it was before.
	err := s.flushPending(to, now)
	if s.txRun.peer == nil {
		s.txRun.peer, s.txRun.key = to, to.sess.Key(now)
	}
	return err
}

// flushPending sends what has waited for a key to the peer, if there is one and no other shard is at it.
func (s *shard) flushPending(to *peer, now time.Time) error {
	if to.sess.Key(now) == nil || !to.pending.hold() {
		return nil
	}
	err := s.drain(to, now)
	s.holds = append(s.holds, to) // until all of it has been sent, which may take a while
	if err != nil {
		return err
	}
	return s.flush()
}

// drain puts what waits for the peer into the batch, as far as there is room and the key lasts.
func (s *shard) drain(to *peer, now time.Time) error {
	if err := s.settleTx(now); err != nil {
		return err
	}
	s.txRun.peer, s.txRun.key = to, to.sess.Key(now)
	addr, ok := s.board(s.r.current.Load(), to, now)
	mark := s.out.mark
	defer func() { s.out.mark = mark }()
	for s.txRun.key != nil {
		if !s.out.roomy() {
			if err := s.flush(); err != nil {
				return err
			}
			if !s.out.roomy() {
				break // the socket is full
			}
		}
		w, more := to.pending.next()
		if !more {
			break
		}
		if now.Sub(w.at) > pendingLife {
			s.stats.drop(DropStale)
			continue
		}
		if !ok {
			s.stats.drop(DropRelayRoute)
			continue
		}
		s.out.mark = w.mark
		done, err := s.sendWaiting(to, addr, w.b, now)
		if err != nil {
			return err
		}
		if !done && to.pending.back(w) {
			s.stats.drop(DropQueue)
		}
	}
	return s.settleTx(now)
}

// sendWaiting is sealNow for what has waited, which may also be a frame.
func (s *shard) sendWaiting(to *peer, addr netip.AddrPort, b []byte, now time.Time) (ok bool, err error) {
	if relay.IsFrame(b) {
		return s.drainFrame(to, addr, b)
	}
	return s.sealNow(to, addr, b, 0, now)
}

// release lets the other shards send to those peers again whose pending packets have been sent.
func (s *shard) release() {
	for _, p := range s.holds {
		if p.pending.release() {
			s.owed = append(s.owed, p)
		}
	}
	clear(s.holds)
	s.holds = s.holds[:0]
}

// settleOwed sends what has come for the owed peers while their pending packets were being sent, unless another shard has done so. It goes
// once round: whoever keeps sending to such a peer takes over.
func (s *shard) settleOwed(now time.Time) error {
	for range len(s.owed) {
		if s.out.blocked {
			return nil
		}
		p := s.owed[0]
		s.owed = slices.Delete(s.owed, 0, 1)
		if p.sess.Key(now) == nil && p.pending.busy.Load() && !p.removed.Load() {
			s.initiate(p, now)
		}
		if err := s.flushPending(p, now); err != nil {
			return err
		}
	}
	return nil
}

// settleTx tells the session and the counters of txRun.
func (s *shard) settleTx(now time.Time) error {
	t := s.txRun
	s.txRun = run{}
	s.settleBy(&t.by, now)
	if t.packets == 0 && !t.frames {
		return nil
	}
	s.stats.tx.add(t.packets, t.bytes)
	t.peer.tx.add(t.packets, t.bytes)
	if t.peer.sess.Sent(now, false) {
		s.initiate(t.peer, now)
	}
	s.r.timers.touch(t.peer)
	return nil
}

// isNoise tells what a kernel says to the link unasked, and what no unicast network carries.
func isNoise(p *packet.Packet) bool {
	return p.Dst.IsMulticast() || p.Dst.IsLinkLocalUnicast() || p.Src.IsLinkLocalUnicast() ||
		p.Src.IsUnspecified() || p.Dst.IsUnspecified() || p.Dst == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// unreachable tells the sender of a packet that nobody has its destination.
func (s *shard) unreachable(known *snapshot, orig []byte, p *packet.Packet, now time.Time) error {
	from := known.local.gateway(p)
	if !from.IsValid() || !s.icmpLimit.allow(now) {
		return nil
	}
	return s.deliverICMP(packet.Unreachable(s.icmpBuf[packet.VNetHdrLen:], orig, from))
}

// tooBig tells the sender of a packet what size it may have.
func (s *shard) tooBig(known *snapshot, orig []byte, p *packet.Packet, mtu int, now time.Time) error {
	from := known.local.gateway(p)
	if !from.IsValid() || !s.tooBigLimit.allow(now) {
		return nil
	}
	return s.deliverICMP(packet.TooBig(s.icmpBuf[packet.VNetHdrLen:], orig, from, mtu))
}

// deliverICMP writes the n bytes in icmpBuf to the TUN device; 0 means that none must be sent.
func (s *shard) deliverICMP(n int) error {
	if n == 0 {
		return nil
	}
	clear(s.icmpBuf[:packet.VNetHdrLen]) // an ordinary packet, its checksum complete
	return s.deliver(s.icmpBuf[:packet.VNetHdrLen+n])
}

// gateway returns the source of ICMP errors about p.
func (l *Local) gateway(p *packet.Packet) netip.Addr {
	if p.Src.Is4() {
		return l.Gateway4
	}
	return l.Gateway6
}
