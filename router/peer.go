// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftnet/weft/router/envelope"
	"github.com/weftnet/weft/router/session"
)

// pendingLife is how long a packet may wait for a key. Later it would only confuse whoever sent it.
const pendingLife = 10 * time.Second

// peer is one peer at work.
type peer struct {
	// Fixed.
	key      session.PublicKey
	external bool
	sess     *session.Peer

	// Written by SetPeers.
	config  atomic.Pointer[Peer]
	removed atomic.Bool

	// Written by whichever goroutine it happens in.
	endpoint  atomic.Pointer[netip.AddrPort] // source of the last authenticated datagram; nil: none yet
	attempt   atomic.Uint32                  // initiations since the last handshake that succeeded
	called    atomic.Pointer[netip.AddrPort] // where the last initiation went
	stayed    atomic.Uint32                  // the attempt that was repeated by stay
	lastError atomic.Pointer[error]
	touched   atomic.Bool // its timers may have changed; see timers
	oddMarks  atomic.Bool // it was logged that its congestion marks make no sense
	rx, tx    traffic
	carried   traffic // frames that it has handed us, and that we have passed on
	pending   pending
	path      path
	course    course
	pair      atomic.Pointer[envelope.Pair] // made when it is needed first; see pair.go

	// Owned by the timer goroutine.
	active bool
	next   time.Time // of the next Tick; zero: none
	greet  time.Time // when to begin a handshake; zero: not
	probe  time.Time // of the next look at the path; zero: none
}

type traffic struct{ packets, bytes atomic.Uint64 }

func (t *traffic) add(packets, bytes uint64) {
	t.packets.Add(packets)
	t.bytes.Add(bytes)
}

// target returns where datagrams for the peer go.
func (p *peer) target() (netip.AddrPort, bool) {
	if a, ok := p.straight(); ok {
		return a, true
	}
	if e := p.endpoint.Load(); e != nil {
		return *e, true
	}
	if all := p.config.Load().Endpoints; len(all) > 0 {
		return all[0], true
	}
	return netip.AddrPort{}, false
}

// nextTarget returns where the next initiation goes: first where the peer was last heard from, then to its candidates
// in turn, and round again until a handshake succeeds. If a way is known to work it goes there.
func (p *peer) nextTarget() (netip.AddrPort, bool) {
	if a, ok := p.straight(); ok && p.course.proven.Load() {
		return a, true
	}
	all := p.config.Load().Endpoints
	heard := p.endpoint.Load()
	n := len(all)
	at := -1 // index of heard in all
	if heard != nil {
		if at = slices.Index(all, *heard); at < 0 {
			n++
		}
	}
	if n == 0 {
		return netip.AddrPort{}, false
	}
	i := int((p.attempt.Add(1) - 1) % uint32(n))
	switch {
	case heard == nil:
		return all[i], true
	case i == 0:
		return *heard, true
	case at < 0 || i <= at: // those before heard move back by one
		return all[i-1], true
	}
	return all[i], true
}

// stay makes the next initiation go where the last one went, and not to the next candidate: a cookie that came from there is good for our
// address towards there only, which is another one where the candidates are of both families. Nobody is held by cookies for longer
// than one attempt.
func (p *peer) stay() {
	if n := p.attempt.Load(); n > 0 && p.stayed.Swap(n) != n {
		p.attempt.CompareAndSwap(n, n-1)
	}
}

// sentTo tells whether the last initiation went to a.
func (p *peer) sentTo(a netip.AddrPort) bool {
	called := p.called.Load()
	return called != nil && *called == a
}

// reachable tells whether there is an address to begin a handshake with.
func (p *peer) reachable() bool {
	if p.relayed() != nil {
		return true
	}
	_, ok := p.target()
	return ok
}

// settled notes that a handshake succeeded.
func (p *peer) settled() {
	p.attempt.Store(0)
	p.stayed.Store(0)
	p.lastError.Store(nil)
}

// fail notes an error. It allocates only if it is not the same as before.
func (p *peer) fail(err error) {
	if old := p.lastError.Load(); old == nil || !errors.Is(err, *old) {
		p.lastError.Store(&err)
	}
}

func (p *peer) stats(now time.Time) PeerStats {
	c := p.config.Load()
	sess := p.sess.Stats()
	s := PeerStats{
		Key:       p.key,
		Name:      c.Name,
		Heard:     p.endpoint.Load() != nil,
		Suite:     sess.Suite,
		State:     Idle,
		Handshake: sess.LastHandshake,
		RxPackets: p.rx.packets.Load(),
		RxBytes:   p.rx.bytes.Load(),
		TxPackets: p.tx.packets.Load(),
		TxBytes:   p.tx.bytes.Load(),
		Relayed:   Traffic{Packets: p.carried.packets.Load(), Bytes: p.carried.bytes.Load()},
	}
	s.Endpoint, _ = p.target()
	if p.sess.Key(now) != nil {
		s.State = Established
	} else if sess.Handshaking {
		s.State = Handshaking
	}
	if err := p.lastError.Load(); err != nil {
		s.LastError = (*err).Error()
	}
	return s
}

// pending holds packets that wait for a key: the newest session.MaxQueued. It costs nothing while empty.
//
// When there is a key one shard sends them, and the others put what they have for the peer behind them until all of that has been
// handed to the kernel, so that nothing is overtaken.
type pending struct {
	busy atomic.Bool // packets wait, or a shard holds the queue; changed under mu

	mu    sync.Mutex
	ring  []queued
	first int // index of the oldest
	n     int
	held  bool // a shard is sending what waited
}

type queued struct {
	b    []byte
	mark uint8 // of b (transmitBatch)
	at   time.Time
}

// put keeps a copy of b, with its mark, and reports whether the oldest packet had to go for it.
func (q *pending) put(b []byte, mark uint8, now time.Time) (dropped bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ring == nil {
		q.ring = make([]queued, session.MaxQueued)
	}
	q.busy.Store(true)
	slot := &q.ring[(q.first+q.n)%len(q.ring)]
	if q.n == len(q.ring) {
		q.first = (q.first + 1) % len(q.ring)
		dropped = true
	} else {
		q.n++
	}
	slot.b = append(slot.b[:0], b...)
	slot.mark, slot.at = mark, now
	return dropped
}

// hold makes the caller the one who sends what waits, until release. It reports false if nothing waits or another is at it.
func (q *pending) hold() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.held || q.n == 0 {
		return false
	}
	q.held = true
	return true
}

// next takes the oldest packet out; ok is false if there is none. It is for the holder.
func (q *pending) next() (w queued, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n == 0 {
		return queued{}, false
	}
	w, q.ring[q.first] = q.ring[q.first], queued{}
	q.first = (q.first + 1) % len(q.ring)
	q.n--
	return w, true
}

// back undoes next, and reports whether the packet had to go because the queue has filled up since. It is for the holder.
func (q *pending) back(w queued) (dropped bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n == session.MaxQueued {
		return true
	}
	if q.ring == nil {
		q.ring = make([]queued, session.MaxQueued)
	}
	q.first = (q.first + len(q.ring) - 1) % len(q.ring)
	q.ring[q.first] = w
	q.n++
	return false
}

// release ends hold, after what next has returned was sent, and reports whether more waits.
func (q *pending) release() (more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held = false
	q.tidy()
	return q.n > 0
}

// clear forgets what waits.
func (q *pending) clear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n = 0
	q.tidy()
}

// tidy gives an empty queue up. Called under mu.
func (q *pending) tidy() {
	q.busy.Store(q.held || q.n > 0)
	if q.n == 0 {
		q.ring, q.first = nil, 0
	}
}

// expire drops what has waited too long and returns how many packets that were, and when to look
// again; zero if the queue is empty.
func (q *pending) expire(now time.Time) (dropped int, next time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n > 0 {
		oldest := &q.ring[q.first]
		if next = oldest.at.Add(pendingLife); now.Before(next) {
			return dropped, next
		}
		oldest.b = nil
		q.first = (q.first + 1) % len(q.ring)
		q.n--
		dropped++
	}
	q.tidy()
	return dropped, time.Time{}
}

// endpointIndex finds the peer behind an address: for datagrams that cannot be told otherwise.
type endpointIndex struct {
	mu sync.RWMutex
	m  map[netip.AddrPort]*peer
}

func (x *endpointIndex) init() { x.m = map[netip.AddrPort]*peer{} }

func (x *endpointIndex) get(a netip.AddrPort) *peer {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.m[a]
}

// rebuild indexes all addresses of the peers. Where several claim one, the peer that was heard from
// there goes first.
func (x *endpointIndex) rebuild(peers []*peer) {
	m := make(map[netip.AddrPort]*peer, len(peers))
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range peers {
		for _, a := range p.config.Load().Endpoints {
			m[a] = p
		}
	}
	for _, p := range peers {
		if e := p.endpoint.Load(); e != nil {
			m[*e] = p
		}
	}
	x.m = m
}

// move makes from the endpoint of p.
func (x *endpointIndex) move(p *peer, from netip.AddrPort) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old := p.endpoint.Swap(&from)
	if p.removed.Load() {
		return
	}
	if old != nil && x.m[*old] == p && !slices.Contains(p.config.Load().Endpoints, *old) {
		delete(x.m, *old)
	}
	x.m[from] = p
}
