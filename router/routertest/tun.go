// SPDX-License-Identifier: Apache-2.0

package routertest

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/tun"
)

// Queue is a TUN queue in memory: a router.Queue.
type Queue struct {
	vnet  bool
	event event

	mu     sync.Mutex
	out    [][]byte // towards the router
	in     [][]byte // from the router
	fail   error
	closed bool
}

// NewQueue makes a queue, with offload headers or without.
func NewQueue(vnet bool) *Queue { return &Queue{vnet: vnet, event: newEvent()} }

// Inject gives a packet to the router as the kernel would: an ordinary one with its
// checksums complete.
func (q *Queue) Inject(b []byte) {
	q.InjectSuper(packet.VNetHdr{}, b)
}

// InjectSuper gives a packet with that offload header to the router; the header is left
// out if the queue has none.
func (q *Queue) InjectSuper(h packet.VNetHdr, b []byte) {
	var frame []byte
	if q.vnet {
		frame = make([]byte, packet.VNetHdrLen)
		h.Encode(frame)
	}
	q.mu.Lock()
	if len(q.out) < depth {
		q.out = append(q.out, append(frame, b...))
	}
	q.mu.Unlock()
	q.event.set()
}

// Waiting returns how many packets the router has not read yet.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.out)
}

// Delivered returns the packets that the router has written since the last call, one by one and without offload headers.
func (q *Queue) Delivered() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.in
	q.in = nil
	return all
}

// SetWriteError makes every write fail; nil ends that.
func (q *Queue) SetWriteError(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fail = err
}

// Close makes all calls that follow fail with os.ErrClosed.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.event.set()
	return nil
}

// Read is that of router.Queue.
func (q *Queue) Read(b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, os.ErrClosed
	}
	if len(q.out) == 0 {
		return 0, nil
	}
	n := copy(b, q.out[0])
	q.out = slices.Delete(q.out, 0, 1)
	return n, nil
}

// Write is that of router.Queue. It refuses what a kernel refuses: an offload header that
// does not fit its packet, and what is no IP packet.
func (q *Queue) Write(b []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return os.ErrClosed
	case q.fail != nil:
		return q.fail
	}
	if q.vnet {
		var h packet.VNetHdr
		if err := h.Decode(b); err != nil {
			return err
		}
		return q.deliver(b[packet.VNetHdrLen:], h)
	}
	return q.deliver(b, packet.VNetHdr{})
}

// deliver takes a packet or superpacket apart, as the kernel does. q.mu is held.
func (q *Queue) deliver(b []byte, h packet.VNetHdr) error {
	var p packet.Packet
	if err := p.Parse(b); err != nil {
		return err
	}
	if p.Len != len(b) {
		return errors.New("routertest: the packet is longer than it says")
	}
	var s packet.Splitter
	if err := s.Init(slices.Clone(b), h); err != nil {
		return err
	}
	for segment, ok := s.Next(); ok; segment, ok = s.Next() {
		if len(q.in) < depth {
			q.in = append(q.in, slices.Clone(segment))
		}
	}
	return nil
}

// Offloads is that of router.Queue: all or none.
func (q *Queue) Offloads() tun.Offloads {
	return tun.Offloads{VNetHdr: q.vnet, TSO: q.vnet, USO: q.vnet}
}

func (q *Queue) ready() router.Events {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.out) > 0 || q.closed {
		return router.ReadTUN
	}
	return 0
}

// event is a channel that tells one waiter that something may have changed.
type event chan struct{}

func newEvent() event { return make(event, 1) }

func (e event) set() {
	select {
	case e <- struct{}{}:
	default:
	}
}

// Poll makes a Poller over a *Queue and a *Conn, or a *Conn alone, for router.Config.Poll.
func Poll(q router.Queue, c router.Conn) (router.Poller, error) {
	queue, ok := q.(*Queue)
	conn, ok2 := c.(*Conn)
	if !ok && q != nil || !ok2 {
		return nil, errors.New("routertest: Poll is for its own queues and conns")
	}
	if queue == nil {
		queue = NewQueue(false) // in which there is never anything
	}
	return &poller{queue: queue, conn: conn, wake: newEvent()}, nil
}

type poller struct {
	queue *Queue
	conn  *Conn
	wake  event
}

func (p *poller) Wait(want router.Events, timeout time.Duration) (router.Events, error) {
	var over <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		over = t.C
	}
	for {
		udp, later := p.conn.ready()
		if got := want & (p.queue.ready() | udp); got != 0 {
			return got, nil
		}
		var arrival <-chan time.Time
		if later >= 0 {
			arrival = time.After(later)
		}
		select {
		case <-arrival:
		case <-p.queue.event:
		case <-p.conn.event:
		case <-p.wake:
			return 0, nil
		case <-over:
			return 0, nil
		}
	}
}

func (p *poller) Wake()        { p.wake.set() }
func (p *poller) Close() error { return nil }
