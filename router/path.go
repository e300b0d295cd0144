// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/pathmtu"
	"github.com/weftnet/weft/router/session"
)

const (
	// raiseInterval is the default of Config.RaiseInterval.
	raiseInterval = time.Minute
	// probeGrain is how exactly the times of probes are kept.
	probeGrain = 20 * time.Millisecond
)

// path is how large packets reach a peer, and the search for that. The timer goroutine asks, the shards answer the peer and
// take its answers.
type path struct {
	// Read for every packet.
	known atomic.Uint64 // sizes, packed
	big   atomic.Bool   // packets were sent that a narrow path might lose; set by the shards

	again atomic.Bool // begin anew; set by whichever goroutine has a reason
	anew  atomic.Bool // and forget what is known

	mu      sync.Mutex       // not held during system calls
	machine *pathmtu.Machine // nil: none yet, or the peer is not probed; made and given up by the timer goroutine
}

// sizes are what a shard has to know of a path. The zero sizes are those of one of which nothing is known.
type sizes struct {
	mtu       int  // largest packet; 0: as large as configured
	whole     int  // largest packet that is known to pass without fragments
	confirmed bool // mtu, or what is configured, is known to pass
	pieces    bool // the peer takes packets in pieces
}

const (
	sizeBits      = 16
	sizeMask      = 1<<sizeBits - 1
	confirmedFlag = 1 << (2 * sizeBits)
	piecesFlag    = confirmedFlag << 1
)

func (p *path) sizes() sizes {
	v := p.known.Load()
	return sizes{
		mtu: int(v & sizeMask), whole: max(int(v>>sizeBits&sizeMask), pathmtu.Floor),
		confirmed: v&confirmedFlag != 0, pieces: v&piecesFlag != 0,
	}
}

// publish tells the shards what the machine knows of a path that may have packets of at most largest bytes.
func (p *path) publish(l pathmtu.Limits, largest int) {
	v := uint64(l.Whole) << sizeBits
	if l.MTU < largest {
		v |= uint64(l.MTU)
	}
	if l.Confirmed {
		v |= confirmedFlag
	}
	if l.Answers {
		v |= piecesFlag
	}
	p.known.Store(v)
	if p.anew.Load() { // since the machine was asked
		p.doubt()
	}
}

// doubt takes back that any size is known to pass.
func (p *path) doubt() { p.known.And(^uint64(sizeMask<<sizeBits | confirmedFlag)) }

// sent notes that a packet of n bytes was sealed, and tells whether its datagram must arrive whole: anything else would hide that the path
// has become narrower. While nothing is known of a peer all that it gets goes in one way, as changing between the two costs system calls.
func (p *path) sent(n int) (whole bool) {
	if n <= pathmtu.Floor {
		return p.known.Load() != 0
	}
	if !p.big.Load() {
		p.big.Store(true)
	}
	return n <= p.sizes().whole
}

// explore makes the search for the path MTU begin anew, as there is another key.
func (r *Router) explore(p *peer) {
	if !p.path.again.Swap(true) {
		r.timers.hurry(p)
	}
}

// forgetPath is explore when the path is another, or narrower than was known: from now on nothing has to arrive whole.
func (r *Router) forgetPath(p *peer) {
	p.path.anew.Store(true)
	p.path.doubt()
	r.explore(p)
}

// prober is the memory of the timer goroutine for probes.
type prober struct {
	plain  [MaxMTU]byte // zeros behind the header
	sealed [maxDatagram]byte
}

// probe does what is due for the path to p and returns when to look again; zero if something has to happen first. Many
// paths are looked at together.
func (r *Router) probe(p *peer, now time.Time) time.Time {
	next := r.search(p, now)
	if !next.IsZero() {
		next = now.Add(max(next.Sub(now), 0).Truncate(probeGrain) + probeGrain)
	}
	return next
}

func (r *Router) search(p *peer, now time.Time) time.Time {
	x := &p.path
	if c := p.config.Load(); c.NoProbes || c.External {
		x.mu.Lock()
		x.machine = nil
		x.mu.Unlock()
		x.known.Store(0)
		return time.Time{}
	}
	if p.sess.Key(now) == nil {
		return time.Time{} // the next one begins anew
	}
	known := r.current.Load()
	most, largest := known.mostTo(p), known.maxTo(p)
	x.begin(most, r.config.RaiseInterval)
	for busy := x.big.Swap(false); ; busy = false {
		requests, next := x.tick(now, busy, largest)
		once := true
		for _, q := range requests { // without mu: shards that have an answer do not wait for the kernel
			err := r.sendProbe(p, q, now)
			if errors.Is(err, unix.EMSGSIZE) {
				x.with(func(m *pathmtu.Machine) { m.Refused(q.Size) })
				once = false
			}
			if errors.Is(err, unix.EAGAIN) {
				x.with(func(m *pathmtu.Machine) { m.Postponed(now) })
				once = false
				break
			}
		}
		x.with(func(m *pathmtu.Machine) {
			if c, ok := m.Changed(); ok {
				r.tellPath(p, c)
			}
		})
		if once {
			return next
		}
	}
}

// with calls f with the machine, which there must be.
func (p *path) with(f func(m *pathmtu.Machine)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p.machine)
}

// begin sees to it that there is a machine, which knows what has happened to a path that may have packets of at most largest bytes.
func (p *path) begin(largest int, raise time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.machine == nil {
		p.machine = pathmtu.New(largest, raise)
	}
	if p.anew.Swap(false) {
		p.machine.Move(largest)
	}
	p.machine.SetMax(largest)
	if p.again.Swap(false) {
		p.machine.Restart()
	}
}

// tick asks the machine what to send, and publishes what it knows. The requests are for the timer goroutine only.
func (p *path) tick(now time.Time, busy bool, largest int) ([]pathmtu.Request, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	requests, next := p.machine.Tick(now, busy)
	p.publish(p.machine.Limits(), largest)
	return requests, next
}

// sendProbe sends one probe. What is wrong with the network, other than sizes, is for others to tell.
func (r *Router) sendProbe(p *peer, q pathmtu.Request, now time.Time) error {
	key := p.sess.Key(now)
	if key == nil {
		return nil
	}
	b := r.prober.plain[:q.Size]
	pathmtu.Message{Kind: pathmtu.Probe, Size: uint16(q.Size), ID: q.ID}.Put(b)
	sent, err := r.sendWhole(p, key, b, now)
	if sent {
		r.shards[0].stats.probesTx.Add(1)
	}
	return err
}

func (r *Router) tellPath(p *peer, c pathmtu.Change) {
	text := "larger packets reach a peer"
	if c.To < c.From {
		text = "only smaller packets reach a peer; senders are told, where packets must not be fragmented"
	}
	r.config.Log.Info(text, zap.String("peer", p.config.Load().Name), zap.Int("from", c.From), zap.Int("to", c.To))
}

// message handles what the router of a peer, that of rxRun, has sealed for ours. It is in the space of join.
func (s *shard) message(known *snapshot, b []byte, from netip.AddrPort, now time.Time) error {
	peer := s.rxRun.peer
	m, ok := pathmtu.Parse(b)
	if m.Kind == pathmtu.Piece && peer.external {
		ok = false // WireGuard clients know nothing of pieces, and there is little room for them
	}
	var whole []byte
	if ok && m.Kind == pathmtu.Piece {
		whole = s.pieces.Add(peer, m, b)
	}
	s.join.Drop()
	switch {
	case !ok:
		s.stats.drop(DropMalformed)
	case m.Kind == pathmtu.Probe:
		return s.acknowledge(peer, m, from, now)
	case m.Kind == pathmtu.Ack:
		peer.path.mu.Lock()
		var known, urgent bool
		if peer.path.machine != nil {
			known, urgent = peer.path.machine.Acked(m.ID, now)
		}
		peer.path.mu.Unlock()
		if known {
			s.stats.probesAcked.Add(1)
		}
		if urgent {
			s.r.timers.hurry(peer)
		}
	case whole != nil:
		s.rxRun.data = true
		return s.packet(known, append(s.join.Space(), whole...), false)
	default:
		s.rxRun.data = true
	}
	return nil
}

// acknowledge answers a probe, under the key that it came under: there may be no other yet.
func (s *shard) acknowledge(to *peer, probe pathmtu.Message, from netip.AddrPort, now time.Time) error {
	var b [pathmtu.HeaderLen]byte
	pathmtu.Message{Kind: pathmtu.Ack, Size: probe.Size, ID: probe.ID}.Put(b[:])
	if ok, err := s.makeRoom(len(b)); !ok || err != nil {
		return err
	}
	by := &carriage{}
	if s.carry.inside {
		by, from = s.boardBack(now)
	}
	_, err := s.put(by, s.rxRun.key, to, b[:], 0, from, now) // a key that has opened a probe can fail only by being given up meanwhile
	return err
}

// makeRoom sees to it that a packet of n bytes fits the batch. It reports false, and has counted the packet, if none can be had.
func (s *shard) makeRoom(n int) (bool, error) {
	if s.out.fits(n) {
		return true, nil
	}
	if err := s.flush(); err != nil {
		return false, err
	}
	if !s.out.fits(n) {
		s.stats.drop(DropFull)
		return false, nil
	}
	return true, nil
}

// fragment sends an IPv4 packet in fragments of at most mtu bytes.
func (s *shard) fragment(to *peer, addr netip.AddrPort, b []byte, flags session.Flags, mtu int, now time.Time) error {
	complete(b, flags)
	var p packet.Packet
	if p.Parse(b) != nil || !s.cut.Init(b, &p, mtu) {
		s.stats.drop(DropTooBig)
		return nil
	}
	for f, ok := s.cut.Next(); ok; f, ok = s.cut.Next() {
		if err := s.seal(to, addr, f, 0, now); err != nil {
			return err
		}
	}
	return nil
}

// sealPieces is sealNow for a packet that is too large for the path, and that IPv6 does not allow to be too large.
func (s *shard) sealPieces(to *peer, addr netip.AddrPort, plain []byte, mtu int, now time.Time) (ok bool, err error) {
	size, _ := pathmtu.PieceSize(mtu) // mtu is not below pathmtu.Floor
	m := pathmtu.Message{ID: s.r.pieceID.Add(1)}
	for {
		n := pathmtu.Split(s.piece[:], plain, size, &m)
		if n == 0 {
			break
		}
		if ok, err := s.makeRoom(n); !ok || err != nil {
			return true, err
		}
		if ok, err := s.put(&s.txRun.by, s.txRun.key, to, s.piece[:n], 0, addr, now); !ok || err != nil {
			s.txRun.key = nil
			return false, err
		}
	}
	s.txRun.packets++
	s.txRun.bytes += uint64(len(plain))
	return true, nil
}
