// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"time"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/pathmtu"
	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// The way in: UDP -> open -> source check -> join -> TUN.

// receive handles one batch of datagrams. more tells that there may be others. An error ends the shard.
func (s *shard) receive(now time.Time) (more bool, err error) {
	n, err := s.conn.Recv(s.in[:s.want])
	if err != nil {
		return false, s.failed(err, DropReceive)
	}
	more = n == s.want
	// What is light and came before one of these goes before it: so a flow that has become heavy does not overtake itself.
	if s.light != nil {
		if err := s.receiveLight(now); err != nil {
			return false, err
		}
	}
	size, err := s.received(s.in[:n], s.strays.take(), now)
	if size > 0 {
		s.want = min(max(s.haste.bytes*n/size, s.haste.batch), receiveBatch)
	}
	return more, err
}

// receiveLight handles all light datagrams that have arrived, or lightBytes of a flood of them, each of which counts flowCost besides. An error ends the shard.
func (s *shard) receiveLight(now time.Time) error {
	for size := 0; size < lightBytes; {
		n, err := s.light.RecvLight(s.few)
		if err != nil {
			return s.failed(err, DropReceive)
		}
		if n == 0 {
			return nil
		}
		got, err := s.received(s.few[:n], nil, now)
		if err != nil || n < len(s.few) {
			return err
		}
		size += got + n*flowCost
	}
	return nil
}

// received handles datagrams, and single ones behind them, and returns the size of the former.
func (s *shard) received(ms, strays []underlay.Message, now time.Time) (size int, err error) {
	if len(ms) > 0 {
		s.failures = 0
	}
	known := s.r.current.Load()
	for i := range ms {
		m := &ms[i]
		size += m.N
		s.rxTOS = m.TOS
		if m.N > len(m.Buf) {
			s.stats.drop(DropLong)
			continue
		}
		s.rxRun.placed = false
		for first, rest := underlay.Cut(m.Buf[:m.N], m.Segment); ; first, rest = underlay.Cut(rest, m.Segment) {
			if err := s.datagram(known, first, m.Addr, now); err != nil {
				return size, err
			}
			if len(rest) == 0 {
				break
			}
		}
	}
	for _, m := range strays {
		s.rxTOS, s.rxRun.placed = m.TOS, false
		if err := s.datagram(known, m.Buf, m.Addr, now); err != nil {
			return size, err
		}
	}
	if err := s.deliver(s.join.Take()); err != nil {
		return size, err
	}
	if err := s.settleRx(now); err != nil {
		return size, err
	}
	if err := s.settleFrames(now); err != nil {
		return size, err
	}
	return size, s.flush()
}

// datagram handles one datagram, by its first byte.
func (s *shard) datagram(known *snapshot, b []byte, from netip.AddrPort, now time.Time) error {
	if len(b) > maxDatagram {
		s.stats.drop(DropLong)
		return nil
	}
	if len(b) == 0 {
		s.stats.drop(DropShort)
		return nil
	}
	switch b[0] {
	case session.TypeData:
		return s.inbound(known, b, from, now)
	case session.TypeInitiation, session.TypeResponse, session.TypeCookie:
		return s.handshake(known, b, from, now)
	case ControlType:
		s.control.handle(b, from, now)
	default:
		s.stats.drop(DropType)
	}
	return nil
}

// inbound handles a data message.
func (s *shard) inbound(known *snapshot, b []byte, from netip.AddrPort, now time.Time) error {
	if len(b) < session.Overhead {
		s.stats.drop(DropShort)
		return nil
	}
	key := s.r.machine.Keypair(session.Receiver(b))
	if key == nil {
		s.stats.drop(DropIndex)
		s.stranger(from, now)
		return nil
	}
	// What follows in the space is not part of the frame there until Add.
	plain, err := key.OpenTo(s.join.Space(), b, now)
	if err != nil {
		s.join.Drop()
		s.stats.drop(reasonOf(err))
		return nil
	}
	if relay.IsFrame(plain) {
		return s.relayed(known, key, plain, from, now)
	}
	return s.opened(known, key, plain, session.DataFlags(b), from, now)
}

// opened handles what has opened under the key, with the flags of its message. It is in the space of join.
func (s *shard) opened(known *snapshot, key *session.Keypair, plain []byte, flags session.Flags, from netip.AddrPort, now time.Time) error {
	if s.rxRun.key != key {
		if err := s.settleRx(now); err != nil {
			return err
		}
		p := known.bySession[key.Peer()]
		if p == nil { // removed since, or added after known was loaded
			s.join.Drop()
			s.stats.drop(DropUnknownPeer)
			return nil
		}
		s.rxRun = run{peer: p, key: key, mtu: known.mtuTo(p)}
	}
	if !s.rxRun.placed || s.carry.inside {
		s.roam(s.rxRun.peer, from, now)
		s.rxRun.placed = !s.carry.inside
	}
	if len(plain) == 0 {
		s.join.Drop()
		return nil // a keepalive
	}
	if pathmtu.IsMessage(plain) {
		return s.message(known, plain, from, now)
	}
	s.rxRun.data = true
	return s.packet(known, plain, flags&session.OpenChecksum != 0)
}

// packet handles a packet from the peer of rxRun, whose checksum is open or not. It is in the space of join.
func (s *shard) packet(known *snapshot, plain []byte, open bool) error {
	var p packet.Packet
	if !s.accept(known, s.rxRun.peer, plain, &p, open) {
		s.join.Drop()
		return nil
	}
	s.haste.passesIn(s.rxTOS, plain, &p)
	s.rxRun.packets++
	s.rxRun.bytes += uint64(p.Len)
	return s.gather(plain, &p, open)
}

// accept judges and parses a packet that a peer has sealed, whose checksum is open or not. It reports whether the packet may pass.
func (s *shard) accept(known *snapshot, from *peer, plain []byte, p *packet.Packet, open bool) bool {
	if err := p.Parse(plain); err != nil {
		s.stats.drop(DropMalformed)
		return false
	}
	if open {
		if _, ok := p.Checksum(plain); !ok {
			s.stats.drop(DropMalformed)
			return false
		}
	}
	if p.Src != s.rxRun.src || p.Dst != s.rxRun.dst {
		if owner, ok := known.routes.Lookup(p.Src); !ok || owner != from {
			s.stats.drop(DropSource)
			return false
		}
		if owner, ok := known.routes.Lookup(p.Dst); owner != self && (!ok || !transits(from, owner)) {
			s.stats.drop(DropTransit)
			return false
		}
		s.rxRun.src, s.rxRun.dst = p.Src, p.Dst
	}
	if (s.rxTOS^p.TOS)&packet.ECNMask != 0 && !s.decapsulate(from, plain, p) {
		s.stats.drop(DropECN)
		return false
	}
	if s.rxRun.mtu < known.local.MTU {
		packet.ClampMSS(plain[:p.Len], p, s.rxRun.mtu)
	}
	return true
}

// gather joins a packet, which is in the space, to what is to be delivered, or delivers that and begins anew with it.
func (s *shard) gather(plain []byte, p *packet.Packet, open bool) error {
	if open && !s.offloads.VNetHdr {
		open = !packet.CompleteChecksum(plain[:p.Len], p)
	}
	if !s.join.Add(p, open) {
		if err := s.deliver(s.join.Take()); err != nil {
			return err
		}
		s.join.Add(p, open) // there is no frame any more that it could not be added to
	}
	if s.join.Done() {
		return s.deliver(s.join.Take())
	}
	return nil
}

// deliver writes a packet or superpacket, which follows its offload header, to the TUN device. An empty one is none.
func (s *shard) deliver(frame []byte) error {
	if len(frame) == 0 {
		return nil
	}
	if !s.offloads.VNetHdr {
		frame = frame[packet.VNetHdrLen:]
	}
	if err := s.queue.Write(frame); err != nil {
		return s.failed(err, DropWrite)
	}
	return nil
}

// settleRx tells the session and the counters of rxRun.
func (s *shard) settleRx(now time.Time) error {
	t := s.rxRun
	s.rxRun = run{}
	if t.peer == nil {
		return nil
	}
	s.stats.rx.add(t.packets, t.bytes)
	t.peer.rx.add(t.packets, t.bytes)
	return s.tellReceived(&t, now)
}

// tellReceived tells the session of a run that came in.
func (s *shard) tellReceived(t *run, now time.Time) error {
	established, initiate := t.peer.sess.Received(now, t.key, !t.data)
	s.r.timers.touch(t.peer)
	if initiate {
		s.initiate(t.peer, now)
	}
	if established {
		t.peer.settled()
		s.r.explore(t.peer)
		return s.flushPending(t.peer, now)
	}
	return nil
}

// roam makes the source of an authentic datagram the place where the peer is, or lets that be judged if it is a node.
func (s *shard) roam(p *peer, from netip.AddrPort, now time.Time) {
	if s.carry.inside {
		s.heardBy(p, now)
		return
	}
	if e := p.endpoint.Load(); e == nil || *e != from {
		s.r.endpoints.move(p, from)
		if p.course.way.Load() == nil {
			s.r.forgetPath(p)
		}
	}
	s.r.reaching.came(p, way{Addr: from}, now)
}
