// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"time"

	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
)

// Messages of sessions that go through relays: those of handshakes, and keepalives. They are few, so they may cost an allocation.

// frameOf makes the frame with a message for whoever head says, with padding.
func frameOf(head relay.Header, msg []byte) []byte {
	n := head.Len() + len(msg)
	frame := make([]byte, session.Padded(n))
	head.Put(frame, len(msg))
	copy(frame[head.Len():], msg)
	return frame
}

// postBy sends a message that a session has made for the peer by a way through relays. It is for any goroutine.
func (r *Router) postBy(s *shard, p *peer, w *way, msg []byte) {
	via := r.current.Load().firstRelay(w)
	if via == nil {
		s.stats.drop(DropRelayRoute)
		p.fail(errNoRelay)
		return
	}
	h := r.head(p, w)
	h.TOS = messageTOS(msg)
	r.postFrame(s, via, frameOf(h, msg), r.config.Now())
}

// postFrame sends a frame to its next stop, or lets it wait for a key. It is for any goroutine.
func (r *Router) postFrame(s *shard, via *peer, frame []byte, now time.Time) {
	if key := via.sess.Key(now); key != nil && !via.pending.busy.Load() {
		to, _ := via.target()
		if datagram, err := key.Seal(nil, frame); err == nil {
			tos, _ := relay.Tos(frame)
			if err := s.conn.SendTo(datagram, to, tos); err != nil {
				s.stats.drop(DropSend)
				via.fail(err)
				return
			}
			if via.sess.Sent(now, false) {
				r.initiate(s, via, make([]byte, 0, session.InitiationSize), now)
			}
			r.timers.touch(via)
			return
		}
	}
	if via.removed.Load() {
		s.stats.drop(DropNoRoute)
		return
	}
	if via.pending.put(frame, 0, now) {
		s.stats.drop(DropQueue)
	}
	r.initiate(s, via, make([]byte, 0, session.InitiationSize), now)
}

// sendWhole sends a packet for the peer, sealed under the key, by the way that it has, such that it is lost rather than fragmented. Where nothing can be sent
// for other reasons than its size or want of room that is no error. It is for the timer goroutine, whose buffer it uses.
func (r *Router) sendWhole(p *peer, key *session.Keypair, b []byte, now time.Time) (sent bool, err error) {
	buf := r.prober.sealed[:0]
	w := p.relayed()
	if w == nil {
		to, ok := p.target()
		if !ok {
			return false, nil
		}
		return r.sendSealed(key, buf, b, to)
	}
	via := r.current.Load().firstRelay(w)
	if via == nil {
		return false, nil
	}
	outer := via.sess.Key(now)
	to, ok := via.target()
	if outer == nil || !ok {
		return false, nil
	}
	h := r.head(p, w)
	h.Whole, h.Urgent = true, true
	at := session.HeaderSize + h.Len()
	inner, err := key.Seal(buf[:at], b)
	if err != nil {
		return false, nil //nolint:nilerr // used up: the next one begins anew
	}
	frame := inner[session.HeaderSize:]
	h.Put(frame, len(inner)-at)
	sent, err = r.sendSealed(outer, buf, frame, to)
	if sent {
		if via.sess.Sent(now, false) {
			r.initiate(r.shards[0], via, make([]byte, 0, session.InitiationSize), now)
		}
		r.timers.touch(via)
	}
	return sent, err
}

// sendSealed seals b, which may lie where the plaintext will be in buf, and sends it.
func (r *Router) sendSealed(key *session.Keypair, buf, b []byte, to netip.AddrPort) (sent bool, err error) {
	datagram, err := key.Seal(buf, b)
	if err != nil {
		return false, nil //nolint:nilerr // used up: the next one begins anew
	}
	if err := r.shards[0].conn.SendWhole(datagram, to); err != nil {
		return false, err
	}
	return true, nil
}
