// SPDX-License-Identifier: Apache-2.0

package router

import (
	"time"

	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/session"
)

const (
	// shelfSpan is how much may wait for Config.RelayLimit, in time at that rate, and leastShelf and mostShelf are the bounds of that in bytes.
	shelfSpan             = 50 * time.Millisecond
	leastShelf, mostShelf = 32 << 10, 2 << 20
	// shelfGrain is how exactly frames are passed on when they may be.
	shelfGrain = time.Millisecond
	// maxSpare is how many buffers are kept for frames to come.
	maxSpare = 256
)

// shelf is where bulk waits that this host is to pass on for others, and that comes faster than it may: for a moment, as in front of a link of
// that rate. Of what is merely dropped beyond a rate a single TCP connection gets half of the rate: it loses a whole window at once, again and again. It
// is the shard's own.
type shelf struct {
	limit int // bytes
	all   []shelved
	first int // of all
	bytes int
	to    map[*peer]int // how many frames wait
	spare [][]byte
}

type shelved struct {
	to    *peer
	frame []byte
}

func (f *shelf) size(s shelved) int { return len(s.frame) + session.Overhead }

// init sets how much may wait in one of so many shelves, where bits pass in a second.
func (f *shelf) init(bits uint64, shelves int) {
	n := float64(bits) / 8 * shelfSpan.Seconds() / float64(shelves)
	f.limit = int(min(max(n, leastShelf), mostShelf))
	f.to = map[*peer]int{}
}

func (f *shelf) empty() bool { return f.first == len(f.all) }

// put puts a copy of a frame on the shelf. It reports false if it is full: for small frames it is twice as large.
func (f *shelf) put(to *peer, frame []byte, small bool) bool {
	limit := f.limit
	if small {
		limit *= 2
	}
	s := shelved{to: to}
	if n := len(f.spare); n > 0 {
		s.frame, f.spare = f.spare[n-1][:0], f.spare[:n-1]
	}
	s.frame = append(s.frame, frame...)
	if f.bytes+f.size(s) > limit {
		f.keep(s.frame)
		return false
	}
	f.all = append(f.all, s)
	f.bytes += f.size(s)
	f.to[to]++
	return true
}

// take takes the first one, which there must be, off the shelf. Its frame is to be given back to keep.
func (f *shelf) take() shelved {
	s := f.all[f.first]
	f.all[f.first] = shelved{}
	f.first++
	f.bytes -= f.size(s)
	if f.to[s.to]--; f.to[s.to] == 0 {
		delete(f.to, s.to)
	}
	switch {
	case f.empty():
		f.all, f.first = f.all[:0], 0
	case f.first > len(f.all)/2:
		n := copy(f.all, f.all[f.first:])
		clear(f.all[n:])
		f.all, f.first = f.all[:n], 0
	}
	return s
}

func (f *shelf) keep(frame []byte) {
	if len(f.spare) < maxSpare {
		f.spare = append(f.spare, frame)
	}
}

// admit decides on a frame, with the head at hand, that is to be passed on: at once, if it reports true. Otherwise it waits, or has been dropped.
func (s *shard) admit(to *peer, frame []byte, now time.Time) bool {
	size := len(frame) + session.Overhead
	small, f := size <= relaySmall, &s.carry.shelf
	waits := !f.empty() && (!small || f.to[to] > 0) && !s.carry.head.Urgent // for its turn, so that flows keep their order
	ready := !waits && s.r.relayBudget.take(now, size, small || s.carry.head.Urgent)
	if !ready && (s.carry.head.Urgent || !f.put(to, frame, small)) {
		s.stats.drop(DropRelayLimit)
		return false
	}
	s.carry.in.packets++
	s.carry.in.bytes += uint64(size)
	return ready
}

// unshelve passes on what has waited and may go now, and sets the pause until there is more.
func (s *shard) unshelve(now time.Time) error {
	f := &s.carry.shelf
	s.carry.pause = 0
	handed := false
	for !f.empty() && !s.out.blocked {
		size := f.size(f.all[f.first])
		if !s.r.relayBudget.take(now, size, false) {
			break
		}
		x := f.take()
		if x.to.relayed() != nil || x.to.removed.Load() {
			s.stats.drop(DropRelayRoute)
			f.keep(x.frame)
			continue
		}
		handed = true
		err := s.handOn(x.to, x.frame, now)
		f.keep(x.frame)
		if err != nil {
			return err
		}
	}
	if handed {
		s.settleHanded(now)
		if err := s.flush(); err != nil {
			return err
		}
	}
	if !f.empty() && !s.out.blocked { // else the socket says when
		s.carry.pause = max(s.r.relayBudget.wait(f.size(f.all[f.first])), shelfGrain)
	}
	return nil
}

// handOn hands a frame to its next stop, to which there is a direct way.
func (s *shard) handOn(to *peer, frame []byte, now time.Time) error {
	c := &s.carry
	if c.out.peer != to {
		s.settleHanded(now)
		c.out.peer, c.out.key = to, to.sess.Key(now)
	}
	if c.out.key != nil && !to.pending.busy.Load() {
		if ok, err := s.makeRoom(len(frame)); !ok || err != nil {
			return err
		}
		addr, _ := to.target()
		if s.out.hand(c.out.key, to, frame, addr) {
			c.out.packets++
			c.out.bytes += uint64(len(frame) + session.Overhead)
			return nil
		}
	}
	c.out.key = nil
	err := s.wait(to, frame, now)
	s.txRun = run{}
	c.out.key = to.sess.Key(now)
	return err
}

// passOn hands a frame that is for another on to its next stop, for which it stays in place.
func (s *shard) passOn(known *snapshot, frame []byte, now time.Time) error {
	c := &s.carry
	to := known.byID[c.head.Next()]
	switch {
	case s.r.config.NoRelay:
		s.stats.drop(DropRelayRefused)
		return nil
	case to == nil || to.relayed() != nil:
		s.stats.drop(DropRelayRoute)
		return nil
	}
	c.head.Pass(frame, relay.Carry(c.head.TOS, s.rxTOS))
	if !s.admit(to, frame, now) {
		return nil
	}
	return s.handOn(to, frame, now)
}
