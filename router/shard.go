// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/pathmtu"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/tun"
	"github.com/weftnet/weft/router/underlay"
)

const (
	// receiveBatch is how many datagrams, or runs of them, are received at once at most, and receiveBuffer what each may have.
	receiveBatch  = 32
	receiveBuffer = 64 << 10
	// lightBatch is how many light datagrams, or runs of them, are received at once, and lightBytes how many bytes of them without looking at others.
	lightBatch = 16
	lightBytes = 256 << 10
	// turnPackets is how many packets, or superpackets, are read from the TUN queue before it is the datagrams' turn again.
	turnPackets = 64
	// maxFrame is the largest read from a TUN queue.
	maxFrame = packet.VNetHdrLen + 64<<10
	// idleWait is how long a shard sleeps at most. It then looks at both descriptors, so that a closed
	// one, of which the kernel tells nobody, is noticed.
	idleWait = 5 * time.Second
	// maxFailures is how many errors in a row, without a packet between them, end a shard.
	maxFailures = 1000
)

// shard is one event loop: its own TUN queue, UDP socket and buffers. All of it belongs to the
// goroutine in run but for what is marked.
type shard struct {
	r      *Router
	number int
	queue  Queue
	conn   Conn
	light  lightConn // conn, nil: it has no queue for light datagrams
	yields yielder   // queue, nil: it has no flows to choose from
	poller Poller
	stats  counters     // read by anybody
	stop   atomic.Bool  // written by Run
	thread atomic.Int32 // that runs it, 0: none; read by anybody
	strays strays       // from apart

	offloads tun.Offloads // of the queue
	failures int          // in a row
	haste    haste
	nice     nice

	in    []underlay.Message // datagrams received
	want  int                // how many of in to receive next
	few   []underlay.Message // light ones; empty without light
	rxRun run                // datagrams of one session, not accounted for yet
	rxTOS uint8              // of the datagram at hand
	carry relaying           // frames of relays
	join  packet.Coalescer   // packets to be written to the queue

	frame []byte // read from the queue
	split packet.Splitter
	flows *flows // nil: which are light is not to be told
	out   transmitBatch
	txRun run     // packets for one peer, not accounted for yet
	holds []*peer // whose pending packets are in out
	owed  []*peer // for whom more has come meanwhile
	cut   packet.Fragmenter
	piece [pathmtu.MinIPv6]byte // of a packet that goes in pieces

	pieces pathmtu.Assembler[*peer] // received

	control      controller
	handshakeBuf [session.InitiationSize]byte
	icmpBuf      [packet.VNetHdrLen + minMTU]byte
	icmpLimit    limiter // of errors that tell of an absent destination
	tooBigLimit  limiter
}

func newShard(r *Router, number int, q Queue, c Conn) *shard {
	s := &shard{
		r: r, number: number, queue: q, conn: c,
		offloads:    q.Offloads(),
		in:          make([]underlay.Message, receiveBatch),
		want:        receiveBatch,
		frame:       make([]byte, maxFrame, maxFrame+session.Padding),
		icmpLimit:   limiter{rate: 100, burst: 50},
		tooBigLimit: limiter{rate: 1000, burst: 200},
	}
	s.yields, _ = q.(yielder)
	s.carry.shelf.init(r.config.RelayLimit, len(r.config.TUN))
	s.control = controller{r: r, stats: &s.stats}
	buffers(s.in)
	s.join.Init(make([]byte, packet.CoalescerBuffer(maxDatagram)), s.offloads.TSO, s.offloads.USO)
	s.out.init()
	if l, ok := c.(lightConn); ok && l.LightFD() >= 0 {
		s.light, s.few = l, make([]underlay.Message, lightBatch)
		buffers(s.few)
	}
	if r.config.CopyDSCP {
		s.out.copied, s.haste.always = 0xff, true
	} else {
		s.flows = newFlows(r.config.Now())
	}
	s.haste.begin(r.config.Now())
	return s
}

// buffers gives each of the messages room.
func buffers(ms []underlay.Message) {
	slab := make([]byte, len(ms)*receiveBuffer)
	for i := range ms {
		ms[i].Buf = slab[i*receiveBuffer : (i+1)*receiveBuffer : (i+1)*receiveBuffer]
	}
}

// run is the event loop. It returns nil when it is told to stop, and an error when it cannot go on.
func (s *shard) run() error {
	// The loop is a thread of its own, so that it neither waits for nor delays other goroutines.
	runtime.LockOSThread()
	defer func() {
		if s.nice.end() {
			runtime.UnlockOSThread()
		} // else the thread ends with the goroutine
	}()
	if hasFD(s.queue) {
		s.beginNice()
	}
	s.thread.Store(int32(unix.Gettid()))
	defer s.thread.Store(0)
	if err := s.loop(); err != nil {
		return fmt.Errorf("router shard %d: %w", s.number, err)
	}
	return nil
}

func (s *shard) loop() error {
	var timeout time.Duration
	for {
		want := ReadLight | ReadUDP | ReadTUN
		if s.out.blocked {
			// While nothing can be sent nothing is read that would have to be: the kernel's queue in front of
			// the TUN device is the right place for packets to wait, or to be dropped.
			want = ReadLight | ReadUDP | WriteUDP
		}
		got, err := s.poller.Wait(want, timeout)
		switch {
		case s.stop.Load():
			return nil
		case err != nil:
			return err
		case got == 0 && timeout > 0:
			got = want
		}
		now := s.r.config.Now()
		more, err := s.turn(got, now)
		if err != nil {
			return err
		}
		s.turnNice(now, more)
		timeout = idleWait
		if p := s.carry.pause; p > 0 {
			timeout = min(p, idleWait)
		}
		if more {
			timeout = 0
		}
	}
}

// turn does what the events ask for. more tells that there may be more to do at once.
func (s *shard) turn(got Events, now time.Time) (more bool, err error) {
	s.haste.begin(now)
	if got&WriteUDP != 0 {
		s.out.blocked = false
		if err := s.flush(); err != nil {
			return false, err
		}
	}
	// What may wait longest comes last.
	var moreOut, moreIn bool
	if got&ReadLight != 0 && s.light != nil {
		if err := s.receiveLight(now); err != nil {
			return false, err
		}
	}
	if got&ReadTUN != 0 && !s.out.blocked {
		if moreOut, err = s.transmit(now); err != nil {
			return false, err
		}
	}
	if got&ReadUDP != 0 || s.strays.any.Load() {
		if moreIn, err = s.receive(now); err != nil {
			return false, err
		}
	}
	if err := s.unshelve(now); err != nil {
		return false, err
	}
	if err := s.settleOwed(now); err != nil {
		return false, err
	}
	return moreOut || moreIn || len(s.owed) > 0 && !s.out.blocked, nil
}

// failed counts an error of the queue or the conn. It returns the error if the shard cannot go on:
// if there is nothing behind the descriptor any more, or it has only errors to tell.
func (s *shard) failed(err error, reason Reason) error {
	if errors.Is(err, os.ErrClosed) {
		return err
	}
	s.stats.drop(reason)
	if s.failures++; s.failures >= maxFailures {
		return fmt.Errorf("%d errors in a row, the last: %w", s.failures, err)
	}
	return nil
}

// run accumulates what is told to a session once per batch: a number of packets that
// were exchanged with one peer under one key.
type run struct {
	peer           *peer
	key            *session.Keypair
	packets, bytes uint64
	data           bool       // not only keepalives
	frames         bool       // not only packets of this host
	by             carriage   // how packets that go out get there
	mtu            int        // largest packet that the peer of packets that come in can be sent
	src, dst       netip.Addr // of the last packet that came in, which the peer may send, and to there
	placed         bool       // the peer is known to be where the datagrams at hand, which have come as one, are from
}

// limiter is a token bucket. The zero value, without a rate, lets nothing pass.
type limiter struct {
	rate, burst float64 // per second; at once
	tokens      float64
	last        time.Time
}

func (l *limiter) allow(now time.Time) bool {
	if l.last.IsZero() {
		l.tokens = l.burst
	} else if d := now.Sub(l.last); d > 0 {
		l.tokens = min(l.burst, l.tokens+l.rate*d.Seconds())
	}
	l.last = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}
