// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"net/netip"
	"time"

	"github.com/weftnet/weft/router/session"
)

// handshake handles a message of a handshake.
func (s *shard) handshake(known *snapshot, b []byte, from netip.AddrPort, now time.Time) error {
	res, err := s.r.machine.Receive(s.handshakeBuf[:0], b, from, now)
	if len(res.Reply) > 0 { // with some errors too
		s.reply(known.bySession[res.Peer], res.Reply, from, now)
	}
	if err != nil {
		s.refuse(b[0], err, from, now)
		return nil
	}
	s.stats.handshakes.Add(1)
	if res.Peer == nil { // a cookie, for the next initiation to there
		if p := s.sender(from); p != nil {
			p.stay()
		}
		return nil
	}
	p := known.bySession[res.Peer]
	if p == nil { // removed since, or added after known was loaded: it will try again
		return nil
	}
	s.roam(p, from, now)
	s.r.timers.touch(p)
	if res.Established {
		p.settled()
		s.r.explore(p)
		return s.flushPending(p, now)
	}
	return nil
}

// reply sends what a session answers to the message at hand; p is whom it concerns, nil if that is not known.
func (s *shard) reply(p *peer, msg []byte, from netip.AddrPort, now time.Time) {
	if s.carry.inside {
		if p == nil || p.config.Load().ID == s.carry.head.Source() {
			s.answer(msg, now)
		}
		return
	}
	if err := s.conn.SendTo(msg, from, messageTOS(msg)); err != nil {
		s.stats.drop(DropSend)
		if p != nil {
			p.fail(err)
		}
	}
}

// refuse counts a handshake message that was not accepted, and says so once per
// source if it is no accident.
func (s *shard) refuse(kind byte, err error, from netip.AddrPort, now time.Time) {
	s.stats.drop(reasonOf(err))
	switch {
	case s.carry.inside: // a member has brought it, who need not say the truth about the sender
		if errors.Is(err, session.ErrUnknownPeer) {
			s.r.suspects.knock(knockOf(s.carry.head.Source()), now)
		}
	case errors.Is(err, session.ErrUnknownPeer):
		s.r.suspects.unknown(from, now)
	case errors.Is(err, session.ErrAuth):
		// The token goes into the second message.
		if kind == session.TypeResponse {
			err = errOtherToken
			if p := s.sender(from); p != nil {
				if p.external {
					err = errOtherPreshared
				}
				p.fail(err)
			}
		}
		s.r.suspects.refused(from, err, now)
	case errors.Is(err, session.ErrMAC1), errors.Is(err, session.ErrFlood):
		s.r.suspects.refused(from, err, now)
	}
}

var errOtherToken = errors.New("answer does not authenticate: the other side has another token")

var errOtherPreshared = errors.New("answer does not authenticate: the WireGuard client has another pre-shared key")

// stranger handles a data message for a session that we do not have. If it came from where a peer
// is, that peer has a key which we have lost, by a restart: a new handshake tells it so.
func (s *shard) stranger(from netip.AddrPort, now time.Time) {
	if p := s.sender(from); p != nil {
		s.initiate(p, now)
	}
}

// sender returns the peer that the message at hand seems to be from: the one that is at the address, or that the frame says; nil if there is none.
func (s *shard) sender(from netip.AddrPort) *peer {
	if s.carry.inside {
		return s.r.current.Load().byID[s.carry.head.Source()]
	}
	return s.r.endpoints.get(from)
}

// initiate begins a handshake with the peer, unless one is under way or began less than
// session.RekeyTimeout ago; then the timers see to it.
func (s *shard) initiate(p *peer, now time.Time) {
	s.r.initiate(s, p, s.handshakeBuf[:0], now)
}

// initiate is that of the shard s, for any goroutine; buf is where the message goes.
func (r *Router) initiate(s *shard, p *peer, buf []byte, now time.Time) {
	r.timers.touch(p)
	if !p.reachable() {
		return
	}
	if msg, ok := p.sess.Initiate(buf, now); ok {
		r.post(s, p, msg)
	}
}

// post sends a message that a session has made for the peer, by the shard's socket. It is
// used by the timer goroutine too, so it touches nothing of the shard that is not for all.
func (r *Router) post(s *shard, p *peer, msg []byte) {
	if w := p.relayed(); w != nil {
		r.postBy(s, p, w, msg)
		return
	}
	to, ok := p.target()
	if msg[0] == session.TypeInitiation {
		to, ok = p.nextTarget()
	}
	if !ok {
		s.stats.drop(DropNoEndpoint)
		return
	}
	if msg[0] == session.TypeInitiation {
		p.called.Store(&to)
	}
	if err := s.conn.SendTo(msg, to, messageTOS(msg)); err != nil {
		s.stats.drop(DropSend)
		p.fail(err)
	}
}
