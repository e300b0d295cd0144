// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// meetTime is how long the two ends wait for each other's first connection.
const meetTime = 5 * time.Second

// Peer is where the other node takes the session's connections and datagrams.
type Peer struct {
	TCP, UDP netip.AddrPort
}

// Progress tells how far a measurement is.
type Progress struct {
	Step, Steps int // of the phases, from 1
	Phase       Phase
	Elapsed     time.Duration // of the phase
	// So far, one of them by the kind of the phase; what the other node counts is up to half a second old.
	Bytes, Packets, Samples int64
	// Done is the phase's result at its end, nil before.
	Done *Figures
}

// Outcome is what a measurement has shown.
type Outcome struct {
	Figures   []Figures // one for each phase of [Plan]
	Strangers int64     // connections and datagrams that the two ends turned away, as not of the session
	Elapsed   time.Duration
}

// Measure runs a session with a peer that has opened one by [Open] with the same
// secret and parameters. It returns early with ctx's cause when ctx ends, which
// the peer notices at once, and with an error when the peer ends the session,
// cannot be reached, or is silent for [Silence].
//
// progress may be nil. It is called from one goroutine at a time, twice in a
// second or more often, and should return soon.
func Measure(ctx context.Context, h Host, secret Secret, p Params, peer Peer, progress func(Progress)) (Outcome, error) {
	if err := p.Check(); err != nil {
		return Outcome{}, err
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	limit := p.Limit()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the measurement took longer than %v", limit))
	defer cancel()
	s := newSession(ctx, h, secret, p)
	begin := time.Now()
	var out Outcome
	err := s.run(func() error {
		if err := s.meet(peer); err != nil {
			return err
		}
		for i := range s.plan {
			f, err := s.lead(i, peer, progress)
			if err != nil {
				return err
			}
			out.Figures = append(out.Figures, f)
		}
		if err := s.tell(note{Type: noteEnd}); err != nil {
			return err
		}
		n, err := s.hear(noteEnd, 0, patience)
		out.Strangers = n.Strangers + s.strangers.Load()
		return err
	})
	out.Elapsed = time.Since(begin)
	return out, err
}

// meet connects to the peer, and proves that datagrams get through.
func (s *session) meet(peer Peer) error {
	pc, err := s.host.Network.ListenPacket(s.ctx, s.host.Addr)
	if err != nil {
		return fmt.Errorf("opening a UDP socket on %v: %w", s.host.Addr, err)
	}
	s.track(pc)
	ctl, err := s.dial(peer, greeting{purpose: forControl})
	if err != nil {
		return err
	}
	s.converse(ctl)
	s.udp = s.newDatagrams(pc, peer.UDP)
	if err := s.tell(note{Type: noteHello, Port: addrPort(pc.LocalAddr()).Port()}); err != nil {
		return err
	}
	if _, err := s.hear(noteHello, 0, meetTime); err != nil {
		return err
	}
	return s.udp.probe()
}

// dial connects for a purpose.
func (s *session) dial(peer Peer, g greeting) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, meetTime)
	defer cancel()
	c, err := s.host.Network.Dial(ctx, s.host.Addr, peer.TCP)
	if err != nil {
		return nil, fmt.Errorf("%v cannot be reached by TCP over the overlay: %w; look at weft peers, and for a firewall on that node that drops it", peer.TCP.Addr(), err)
	}
	if g.purpose != forControl { // run closes that one
		s.track(c)
	}
	if err = c.SetWriteDeadline(time.Now().Add(meetTime)); err == nil {
		_, err = c.Write(g.encode(s.secret))
	}
	if err != nil {
		abort(c)
		return nil, errEnded
	}
	return c, nil
}

// lead runs a phase as the asking side.
func (s *session) lead(i int, peer Peer, progress func(Progress)) (Figures, error) {
	p := s.plan[i]
	s.reset(i, p.Back)
	if err := s.tell(note{Type: notePhase, Phase: i}); err != nil {
		return Figures{}, err
	}
	if _, err := s.hear(noteArmed, i, patience); err != nil {
		return Figures{}, err
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			s.drop(c)
		}
	}()
	for n := range p.Streams {
		c, err := s.dial(peer, greeting{purpose: forStream, phase: uint8(i), stream: uint8(n)})
		if err != nil {
			return Figures{}, err
		}
		conns = append(conns, c)
	}
	if _, err := s.hear(noteReady, i, meetTime); err != nil {
		return Figures{}, err
	}
	stop := s.follow(i, progress)
	defer stop()
	if err := s.tell(note{Type: noteStart, Phase: i}); err != nil {
		return Figures{}, err
	}
	f, err := s.part(i, true, conns)
	stop()
	if err == nil {
		progress(Progress{Step: i + 1, Steps: len(s.plan), Phase: p, Elapsed: f.Elapsed, Done: &f})
	}
	return f, err
}

// reset makes the counts ready for a phase, which this side takes or sends.
func (s *session) reset(i int, takes bool) {
	s.taken.Store(0)
	s.theirs.Store(0)
	packets := s.plan[i].Kind == Packets
	if packets && takes {
		s.udp.arm(i)
	}
	s.flood.Store(packets)
}

// follow tells the progress of a phase, until stop is called, which may be done
// more than once.
func (s *session) follow(i int, progress func(Progress)) (stop func()) {
	p := s.plan[i]
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * beatInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := Progress{Step: i + 1, Steps: len(s.plan), Phase: p, Elapsed: time.Since(begin)}
			count := s.taken.Load()
			if !p.Back && p.Kind != Latency {
				count = s.theirs.Load()
			}
			switch p.Kind {
			case Latency:
				now.Samples = count
			case Streams:
				now.Bytes = count
			case Packets:
				now.Packets = count
			}
			progress(now)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
