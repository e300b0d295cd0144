// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/mesh/udpstream"
)

// Bounds of what may come in. Strangers can hold maxStrangers connections for a
// hello's time, no more than perSource of them from one address, so that one
// host cannot keep the others out.
const (
	maxStrangers  = 128
	perSource     = 16
	maxPeerConns  = 1024
	connsPerNode  = 24  // of maxPeerConns
	connsPerHost  = 256 // of maxPeerConns, from one address: several nodes may be behind it
	connsByUDP    = 256 // of maxPeerConns, by QUIC: there the address is what the sender says
	gossipStreams = 128 // handed to memberlist, which may allocate some MiB for each, at the same time
	gossipPerNode = 4
	cloneCheck    = time.Second
	refusedCheck  = 250 * time.Millisecond // where TCP says that nobody is there
	acceptBackoff = 100 * time.Millisecond
)

// doorman counts connections. Guarded by Mesh.mu.
type doorman struct {
	strangers int
	bySource  map[string]int
	peers     int
	byNode    map[NodeID]int
	byHost    map[string]int
	gossip    map[NodeID]int
	gossips   int
}

// acceptLoop takes connections until the listener closes.
func (m *Mesh) acceptLoop(ctx context.Context) {
	for {
		conn, err := m.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if ok, _ := m.oddities.pass("accept|"+err.Error(), time.Now()); ok {
				m.log.Warn("cannot take in a connection, trying on", zap.Error(err))
			}
			if !sleep(ctx, acceptBackoff) { // out of descriptors, most likely
				return
			}
			continue
		}
		m.takeIn(conn)
	}
}

func (m *Mesh) letIn(source string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := &m.door
	if d.strangers >= maxStrangers || d.bySource[source] >= perSource || d.peers >= maxPeerConns {
		return false
	}
	d.strangers++
	d.bySource[source]++
	return true
}

func (m *Mesh) letOut(source string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.door.strangers--
	add(m.door.bySource, source, -1)
}

// serve greets the other side of conn and hands the connection on.
func (m *Mesh) serve(ctx context.Context, conn net.Conn, source string) {
	untrack := m.track(conn)
	s, them, err := m.welcome(ctx, conn, source)
	m.letOut(source)
	if err != nil || s == nil {
		m.closeQuietly(conn)
		untrack()
		return
	}
	leave, err := m.seat(hostOf(conn), them)
	if err != nil {
		m.closeQuietly(s)
		untrack()
		if errors.Is(err, errConns) {
			m.oddity(them.id, "a connection was closed", err)
		}
		return
	}
	untrack()
	untrack = m.track(s)
	if !m.accepts(s.key) { // it was taken away meanwhile
		m.closeQuietly(s)
	}
	peer := &peerConn{stream: s, done: func() {
		untrack()
		leave()
	}}
	switch them.purpose {
	case purposeGossip:
		m.transport.handOver(ctx, peer)
	case purposeMessage:
		m.serveMessages(ctx, peer, them)
		m.closeQuietly(peer)
	case purposeSync:
		m.serveSync(ctx, peer, them)
		m.closeQuietly(peer)
	default:
		m.closeQuietly(peer)
	}
}

// Why a connection may not stay: errConns is for the node to answer for.
var (
	errConns = errors.New("its node has opened more than it may have at the same time")
	errSeats = errors.New("there are too many")
)

// byUDP stands for all hosts of which only the sender says where they are.
const byUDP = "udp"

// hostOf returns what connections are counted by.
func hostOf(conn net.Conn) string {
	if _, ok := conn.RemoteAddr().(udpstream.Addr); ok {
		return byUDP
	}
	return sourceKey(addrOf(conn).Addr())
}

// seat counts a connection of a node that has introduced itself, or says why it may not stay. leave is called when it ends.
func (m *Mesh) seat(host string, them introduction) (leave func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := &m.door
	limit := connsPerHost
	if host == byUDP {
		limit = connsByUDP
	}
	gossip := them.purpose == purposeGossip
	switch {
	case d.byNode[them.id] >= connsPerNode, gossip && d.gossip[them.id] >= gossipPerNode:
		return nil, errConns
	case d.peers >= maxPeerConns, d.byHost[host] >= limit, gossip && d.gossips >= gossipStreams:
		return nil, errSeats
	}
	count := func(n int) {
		d.peers += n
		add(d.byNode, them.id, n)
		add(d.byHost, host, n)
		if gossip {
			d.gossips += n
			add(d.gossip, them.id, n)
		}
	}
	count(1)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		count(-1)
	}, nil
}

// add adds to a count, which is not kept when it is 0.
func add[K comparable](counts map[K]int, k K, n int) {
	if counts[k] += n; counts[k] == 0 {
		delete(counts, k)
	}
}

// welcome runs the acceptor's half of the hello. Both results are zero if the
// other side got an answer and is not to stay.
func (m *Mesh) welcome(ctx context.Context, conn net.Conn, source string) (*stream, introduction, error) {
	keys := *m.keys.Load()
	s, them, err := receive(conn, keys[0], m.tuning.StreamTimeout, keys[1:]...)
	if err != nil {
		m.noteStranger(source, err)
		return nil, introduction{}, err
	}
	me := m.introduce(them.purpose)
	me.verdict = m.examine(ctx, conn, me, them)
	if err := s.answer(me); err != nil {
		return nil, introduction{}, err
	}
	if me.verdict != welcome {
		m.noteRefused(source, me, them)
		return nil, introduction{}, nil
	}
	m.noteKeys(netip.AddrPort{}, false)
	if them.purpose != purposeProbe {
		m.adopt(them.universe)
		m.heardFrom(them.id)
		m.ways.greeted(them.id, them.boot)
	}
	return s, them, nil
}

// examine decides whether the node that introduced itself as them may stay.
func (m *Mesh) examine(ctx context.Context, conn net.Conn, me, them introduction) verdict {
	switch {
	case them.id == me.id && them.boot == me.boot:
		return refusedSelf
	case them.id == me.id:
		return refusedClone
	case me.universe.Known() && them.universe.Known() && me.universe.ID != them.universe.ID:
		return refusedOther
	case them.purpose != purposeProbe && !me.universe.Known() && !them.universe.Known():
		return refusedNone
	case them.purpose != purposeMessage && them.purpose != purposeSync && m.isClone(ctx, conn, them):
		return refusedClone
	}
	return welcome
}

// isClone tells whether another process with the dialler's id is alive at another
// address. A node that was restarted, even elsewhere, is none: nobody answers any
// more in its old place, or it answers there itself.
func (m *Mesh) isClone(ctx context.Context, conn net.Conn, them introduction) bool {
	old, oldBoot, ok := m.aliveElsewhere(them.id, them.boot)
	if !ok {
		return false
	}
	from := them.advertise.Addr()
	if !from.IsValid() {
		from = addrOf(conn).Addr()
	}
	if from == old.Addr() && (!them.advertise.IsValid() || them.advertise.Port() == old.Port()) {
		return false
	}
	// It is asked by TCP, and by QUIC at its address and by the router's path, which may lead to the newcomer by now. What
	// answers has to sign that it is that node: by less any member could keep the others out.
	ctx, cancel := context.WithTimeout(ctx, cloneCheck)
	defer cancel()
	answers := make(chan error, 3) // nil: it lives
	asks := []try{{tcp: old}, {udp: Addr{Node: them.id, Addr: old}}, {udp: Addr{Addr: old}}}
	for _, ask := range asks {
		if !m.spawn(func(context.Context) { answers <- m.greetsAs(ctx, them.id, oldBoot, ask) }) {
			return false
		}
	}
	patience := time.NewTimer(cloneCheck)
	defer patience.Stop()
	for range asks {
		select {
		case err := <-answers:
			if err == nil {
				return true
			}
			if errors.Is(err, errRefused) || errors.Is(err, errSuccessor) {
				patience.Reset(refusedCheck)
			}
		case <-patience.C:
			return false
		}
	}
	return false
}

// errSuccessor: another process of the node answered.
var errSuccessor = errors.New("another process of that node")

// greetsAs asks in one way whether a certain process of a node is alive.
func (m *Mesh) greetsAs(ctx context.Context, id NodeID, boot uint64, by try) error {
	greet := m.greeter()
	if !by.tcp.IsValid() {
		greet.noted = nil // it says nothing of the streams that there are
	}
	g, err := greet.first(ctx, []try{by}, m.introduce(purposeProbe), id)
	if err != nil {
		return err
	}
	m.closeQuietly(g)
	if g.them.boot != boot {
		return errSuccessor
	}
	return nil
}

// answersAs asks by a packet whether a certain process of a node is alive.
func (m *Mesh) answersAs(id NodeID, boot uint64, at net.Addr) error {
	ml := m.member.Load()
	if ml == nil {
		return ErrNotRunning
	}
	_, err := ml.Ping(memberName(id, boot), at)
	return err
}

// noteStranger logs, once per source, what a stranger did wrong.
func (m *Mesh) noteStranger(source string, err error) {
	switch {
	case errors.Is(err, ErrWrongToken):
		if ok, _ := m.strangers.pass("token|"+source, time.Now()); ok {
			m.log.Warn("a host with another token tried to connect and was turned away; said once per host. "+
				"If it belongs here, give it the token that `weft token` prints", zap.String("from", source))
			m.refused(Refusal{From: source, Err: ErrWrongToken})
		}
	case errors.Is(err, ErrVersion):
		if ok, _ := m.strangers.pass("version|"+source, time.Now()); ok {
			m.log.Warn("a node that speaks another version of the protocol was turned away: run the same release of weft on both", zap.String("from", source))
			m.refused(Refusal{From: source, Err: ErrVersion})
		}
	default:
		if ok, _ := m.strangers.pass("junk|"+source, time.Now()); ok {
			m.log.Debug("a connection that is not weft's, or broke off", zap.String("from", source), zap.Error(err))
		}
	}
}

// noteRefused logs, once per source and reason, an authenticated node that may not stay.
func (m *Mesh) noteRefused(source string, me, them introduction) {
	who := []zap.Field{zap.String("from", source), zap.Stringer("node", them.id), zap.String("name", them.name)}
	var text string
	var err error
	switch me.verdict {
	case refusedClone:
		text = "turned away a node whose id another living node has: one's data directory is a copy; run `weft reset` on one of them"
		err = ErrClone
	case refusedOther:
		text = "turned away a node of another mesh: run `weft reset` there to let it join, or remove its --peer"
		err = &UniverseMismatchError{Host: source, Mine: me.universe, Theirs: them.universe}
		who = append(who, zap.Stringer("here", me.universe), zap.Stringer("there", them.universe))
	case refusedNone:
		text = "another node waits to join a mesh through this one, which waits itself: one of them must join a founder, or start without --peer"
		err = ErrNoUniverse
	default: // ourselves
		return
	}
	if ok, _ := m.strangers.pass(text+source, time.Now()); ok {
		m.log.Warn(text, who...)
		m.refused(Refusal{From: source, ID: them.id, Name: them.name, Err: err})
	}
}

// Refusal is somebody who was turned away.
type Refusal struct {
	From string // the source: an address, or the prefix that one host is taken to have
	ID   NodeID // as it says; 0: it did not come to that
	Name string // as it says
	// Err is why: [ErrWrongToken], [ErrVersion], [ErrClone], [ErrNoUniverse] or a [*UniverseMismatchError].
	Err error
}

func (m *Mesh) refused(r Refusal) {
	if m.cfg.OnRefused != nil {
		m.cfg.OnRefused(r)
	}
}
