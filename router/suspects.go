// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	maxSuspects  = 1024
	suspectLife  = 10 * time.Minute // without a sign, a source is forgotten
	suspectSweep = time.Minute
	// knockLife is how long it is remembered that somebody unknown began a handshake.
	knockLife = 10 * time.Second
	// unknownGrace is how long an unknown key may go on knocking before it is
	// logged: news of a node that has just joined may reach us after the node does.
	unknownGrace = 4 * time.Second
)

// suspects remembers sources whose handshakes were refused, so that each is logged once. Its size
// is bounded; when it is full, further sources are only counted.
type suspects struct {
	log *zap.Logger

	mu    sync.Mutex
	m     map[netip.Addr]*suspect
	swept time.Time
}

type suspect struct {
	first, last time.Time
	knock       time.Time // last handshake with a key unknown here
	logged      bool
}

func (s *suspects) init(log *zap.Logger) {
	s.log = log
	s.m = map[netip.Addr]*suspect{}
}

// unknown notes a handshake with a key that is no peer's.
func (s *suspects) unknown(from netip.AddrPort, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entry(from.Addr(), now); e != nil {
		e.knock = now
		if now.Sub(e.first) >= unknownGrace {
			s.say(e, from, "handshakes refused: the sender's key belongs to no node of this mesh and no WireGuard client of this node; if it should, compare tokens and check that it has joined")
		}
	}
}

// knock is unknown for a handshake that relays have brought. It logs nothing.
func (s *suspects) knock(from netip.Addr, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entry(from, now); e != nil {
		e.knock = now
	}
}

// refused notes a handshake that failed for another reason that is no accident.
func (s *suspects) refused(from netip.AddrPort, why error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entry(from.Addr(), now); e != nil {
		s.say(e, from, "handshake refused: "+why.Error())
	}
}

// say logs one line per source.
func (s *suspects) say(e *suspect, from netip.AddrPort, text string) {
	if !e.logged {
		e.logged = true
		s.log.Warn(text, zap.Stringer("from", from))
	}
}

// entry returns the entry of a source, a new one if need be; nil if there is no room.
func (s *suspects) entry(a netip.Addr, now time.Time) *suspect {
	e := s.m[a]
	if e == nil {
		if len(s.m) >= maxSuspects && !s.sweep(now) {
			return nil
		}
		e = &suspect{first: now}
		s.m[a] = e
	}
	e.last = now
	return e
}

// sweep forgets old sources, not too often, and reports whether there is room then.
func (s *suspects) sweep(now time.Time) bool {
	if now.Sub(s.swept) < suspectSweep {
		return false
	}
	s.swept = now
	for a, e := range s.m {
		if now.Sub(e.last) > suspectLife {
			delete(s.m, a)
		}
	}
	return len(s.m) < maxSuspects
}

// knocked tells whether an unknown key has begun a handshake from that address a short while ago.
func (s *suspects) knocked(a netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.m[a]
	return e != nil && !e.knock.IsZero() && now.Sub(e.knock) <= knockLife
}
