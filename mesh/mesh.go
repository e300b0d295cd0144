// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"

	"github.com/weftnet/weft/mesh/udpstream"
)

// Config says who this node is and what the mesh works with. Identity, Name, Keys and
// Packets are required.
type Config struct {
	Identity Identity
	Name     string
	Boot     uint64 // random per process start; 0: New draws it
	Keys     Keys
	Accept   []Keys       // accepted besides Keys, at most 7; see SetKeys
	Universe UniverseInfo // zero: learnt from the first node met that knows it

	Port      uint16     // TCP, and UDP of the router; 0 (tests): any free one
	Advertise netip.Addr // where others reach this node; invalid: chosen from the host's routes
	Targets   []string   // "host", "host:port", "addr", "[v6]:port"; joined one by one, retried forever
	Known     [][]byte   // records kept from an earlier run, as Node.Signed had them, this node's own among them

	Packets Packets
	Network Network     // nil: SystemNetwork
	Log     *zap.Logger // nil: none

	// OnChange tells that Nodes, Targets or Universe may return something else. Calls
	// are coalesced and come from one goroutine of the mesh.
	OnChange func()
	// OnMessage hands over a message sent by Send; payload is the callee's. Messages of
	// one sender come in order and one at a time, those of different senders
	// concurrently. The sender's next message waits until it returns.
	OnMessage func(from NodeID, channel string, payload []byte)
	// OnRefused tells that somebody was turned away; once per source and reason. It may be called from any goroutine, must not
	// block, and must not call the mesh.
	OnRefused func(Refusal)

	// Authentic replaces the check of a record's signature, for tests that run a thousand nodes in one process and let one
	// check count for all; nil: each node checks for itself.
	Authentic func(signed []byte, check func() bool) bool

	Tuning Tuning // zero: the defaults
}

// Tuning holds the timings that tests may want to change. Zero fields take the
// default, which is named with each.
type Tuning struct {
	Shared *Shared // for many meshes in one process; nil: none

	ProbeInterval    time.Duration // 1 s: how often a member is probed
	ProbeTimeout     time.Duration // 500 ms: when a probe takes other ways
	GossipInterval   time.Duration // 200 ms
	PushPullInterval time.Duration // 60 s: exchange of memberlist's lists, slower above 32 nodes
	DigestInterval   time.Duration // 5 s: comparison of all states with another member
	StreamTimeout    time.Duration // 3 s: dials, hellos, reads and writes of streams
	RejoinInterval   time.Duration // 2.5 s: how often nodes that are not alive are tried
}

const defaultStreamTimeout = 3 * time.Second

func (t Tuning) withDefaults() Tuning {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.ProbeInterval, time.Second)
	def(&t.ProbeTimeout, 500*time.Millisecond)
	def(&t.GossipInterval, 200*time.Millisecond)
	def(&t.PushPullInterval, time.Minute)
	def(&t.DigestInterval, 5*time.Second)
	def(&t.StreamTimeout, defaultStreamTimeout)
	def(&t.RejoinInterval, 2500*time.Millisecond)
	return t
}

// Mesh is one node's part of the mesh. All methods are safe for concurrent use.
type Mesh struct {
	// Fixed by New.
	cfg       Config
	id        NodeID
	tuning    Tuning
	log       *zap.Logger
	network   Network
	listener  net.Listener
	addr      netip.AddrPort // advertised
	boot      uint64
	started   time.Time
	transport *transport
	ways      ways
	bufs      packetBufs
	streams   *udpstream.Endpoint

	// Channels and things that guard themselves.
	gossip     memberlist.TransmitLimitedQueue
	strangers  gate
	larder     larder
	oddities   gate
	echoes     echoes
	merges     chan *incoming
	changes    chan struct{} // capacity 1
	rejoinNow  chan struct{} // capacity 1
	nudged     chan struct{} // capacity 1
	stirred    chan struct{} // capacity 1
	gossiping  chan struct{} // capacity 1: changes wait
	digests    chan rawDigest
	syncs      chan struct{} // capacity maxSyncs: held by each sync that others began
	joined     chan struct{}
	joinedOnce sync.Once
	closing    chan struct{} // closed when Run begins to close down
	ended      chan struct{} // closed when Run is done
	leaving    chan struct{} // capacity 1: held by whoever may use memberlist's Leave or Shutdown
	wg         sync.WaitGroup
	member     atomic.Pointer[memberlist.Memberlist] // set by Run
	keys       atomic.Pointer[[][32]byte]
	aliveCount atomic.Int32 // nodes alive, this one not counted
	dropped    atomic.Uint64
	version    atomic.Uint64 // see Version

	states map[string]State // fixed once running

	memberConfig *memberlist.Config // memberlist's; see tuneSuspicion

	sumsMu  sync.Mutex
	sums    map[string]*stateSum
	budgets map[string]*budget // of what a state may gossip

	// mu is never held across anything that may wait, nor across calls of memberlist,
	// which calls back with its own locks held.
	mu       sync.Mutex
	phase    phase
	misuse   error
	run      context.Context // while running
	cancel   context.CancelFunc
	universe UniverseInfo
	records  recordSet
	peers    map[NodeID]*peer
	targets  []*target
	outboxes map[NodeID]*outbox
	inboxes  map[NodeID]*inbox
	conns    map[*io.Closer]struct{}
	door     doorman
	flood    flood
	outbids  int // see outbid in self.go
	turned   turnedAway

	alive      []NodeID         // nodes whose status is Alive, in any order
	away       map[NodeID]*peer // those whose status is Failed or Stopped
	memberSum  uint64           // of all members that are alive, this one among them
	memberPast past             // what memberSum was
	alarmed    time.Time        // when there was an alarm last, see heal.go
	pulled     time.Time        // when lists of members were exchanged last

	deathChecks int // under way, see death.go
	tries       int // of nodes that are not alive, under way, see rejoin.go
}

// phase is where in its life a Mesh is; it only grows.
type phase uint8

const (
	idle phase = iota
	running
	over
)

// New checks cfg and opens the TCP listener; nothing else happens before Run.
// Stop closes it if Run is never called.
func New(cfg Config) (*Mesh, error) {
	m := &Mesh{
		cfg: cfg, id: cfg.Identity.ID(), tuning: cfg.Tuning.withDefaults(), log: cfg.Log, network: cfg.Network, boot: cfg.Boot,
		started: time.Now(), universe: cfg.Universe,
		merges: make(chan *incoming, mergeQueue), changes: make(chan struct{}, 1), rejoinNow: make(chan struct{}, 1),
		nudged: make(chan struct{}, 1), stirred: make(chan struct{}, 1), gossiping: make(chan struct{}, 1), digests: make(chan rawDigest, digestQueue), syncs: make(chan struct{}, maxSyncs),
		joined: make(chan struct{}), closing: make(chan struct{}), ended: make(chan struct{}), leaving: make(chan struct{}, 1),
		states: make(map[string]State), sums: make(map[string]*stateSum), budgets: make(map[string]*budget), away: make(map[NodeID]*peer), peers: make(map[NodeID]*peer),
		outboxes: make(map[NodeID]*outbox), inboxes: make(map[NodeID]*inbox), conns: make(map[*io.Closer]struct{}),
		door: doorman{bySource: make(map[string]int), byNode: make(map[NodeID]int), byHost: make(map[string]int), gossip: make(map[NodeID]int)},
	}
	m.ways.began = m.started
	m.records.shared = cfg.Tuning.Shared
	m.records.seen, m.records.forgot = m.wasSeen, m.forgotten
	m.strangers.init(0)
	m.oddities.init(5 * time.Minute)
	m.gossip.RetransmitMult = 1 // times the number of digits of NumNodes
	m.gossip.NumNodes = func() int { return int(math.Pow10(transmissions(m.Alive()+1))) - 1 }
	m.transport, m.streams = newTransport(m), m.newStreams()
	keys := hellos(append([]Keys{cfg.Keys}, cfg.Accept...))
	m.keys.Store(&keys)
	if m.log == nil {
		m.log = zap.NewNop()
	}
	if m.network == nil {
		m.network = SystemNetwork{}
	}
	if err := m.prepare(); err != nil {
		return nil, err
	}
	m.countMember(m.id, m.boot, 1)
	if err := m.listen(); err != nil {
		return nil, err
	}
	if err := m.firstRecords(); err != nil {
		return nil, errors.Join(err, m.listener.Close())
	}
	return m, nil
}

// prepare checks the configuration.
func (m *Mesh) prepare() error {
	c := &m.cfg
	switch {
	case !m.id.Valid():
		return errors.New("start the mesh: the node has no identity")
	case c.Name == "" || !printable(c.Name, maxName):
		return fmt.Errorf("start the mesh: the name %q is not 1 to %d printable bytes; choose another with --name", clip(c.Name), maxName)
	case c.Keys.Hello == [32]byte{}:
		return errors.New("start the mesh: there is no key: give it a token")
	case c.Packets == nil:
		return errors.New("start the mesh: nothing sends its gossip packets")
	}
	if err := c.Universe.check(); err != nil {
		return fmt.Errorf("start the mesh: %w", err)
	}
	for m.boot == 0 {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return fmt.Errorf("start the mesh: %w", err)
		}
		m.boot = binary.BigEndian.Uint64(b[:])
	}
	for _, host := range c.Targets {
		if err := m.Connect([]string{host}); err != nil && !errors.Is(err, ErrTargetKnown) {
			return fmt.Errorf("start the mesh: --peer %w", err)
		}
	}
	return nil
}

// listen opens the listener and settles the address to advertise.
func (m *Mesh) listen() error {
	l, err := m.network.Listen(m.cfg.Port)
	if err != nil {
		return fmt.Errorf("start the mesh: %w", err)
	}
	at, err := netip.ParseAddrPort(l.Addr().String())
	ip := m.cfg.Advertise.Unmap().WithZone("")
	if err == nil && !ip.IsValid() {
		ip, err = egress(m.hints())
	}
	m.addr = netip.AddrPortFrom(ip, at.Port())
	if err == nil && !sendable(m.addr) {
		err = fmt.Errorf("others cannot reach this node at %v: choose another address with --advertise", m.addr)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start the mesh: %w", err), l.Close())
	}
	m.listener = l
	m.cfg.Port = at.Port()
	return nil
}

// hints returns addresses that this node will want to reach.
func (m *Mesh) hints() []netip.Addr {
	var hints []netip.Addr
	for _, t := range m.cfg.Targets {
		if host, _, err := splitTarget(t, 1); err == nil {
			if a, err := netip.ParseAddr(host); err == nil {
				hints = append(hints, a)
			}
		}
	}
	for _, raw := range m.cfg.Known {
		if r, err := parseRecord(raw); err == nil && r.ID != m.id && len(r.Endpoints) > 0 && len(hints) < maxAddrs {
			hints = append(hints, r.Endpoints[0].Addr())
		}
	}
	return hints
}

// firstRecords fills the records with what is known from an earlier run and with
// this node's own, above whatever it wrote then.
func (m *Mesh) firstRecords() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	own := Record{
		ID: m.id, Seq: uint64(max(0, m.started.UnixMilli())), Boot: m.boot, Name: m.cfg.Name,
		Endpoints: []netip.AddrPort{m.addr}, Universe: m.universe.ID,
	}
	for _, raw := range m.cfg.Known {
		s, err := parseRecord(raw)
		switch {
		case err != nil:
			s = new(storedRecord)
		case s.ID == m.id:
			own.Seq = max(own.Seq, s.Seq+1)
			continue
		case !m.authentic(s):
			err = errSignature
		case s.Universe != m.universe.ID:
			err = errors.New("it is of another mesh")
		}
		if err != nil {
			m.log.Warn("a node record kept from earlier is of no use here", zap.Stringer("node", s.ID), zap.Error(err))
			continue
		}
		if m.records.put(s) {
			p := m.peer(s.ID)
			p.status = m.statusOf(p, s)
			m.listAway(s.ID, p)
		}
	}
	s, err := m.cfg.Identity.signRecord(own)
	if err != nil {
		return fmt.Errorf("start the mesh: %w", err)
	}
	m.records.put(s)
	return nil
}

// authentic tells whether the node itself made the record.
func (m *Mesh) authentic(s *storedRecord) bool {
	if m.cfg.Authentic != nil {
		return m.cfg.Authentic(s.raw, s.authentic)
	}
	return s.authentic()
}

// Joined is closed when this node has exchanged states with another one.
func (m *Mesh) Joined() <-chan struct{} { return m.joined }

// Port returns the TCP port that the mesh listens on.
func (m *Mesh) Port() uint16 { return m.addr.Port() }

// Boot returns the number of this process, as its record carries it.
func (m *Mesh) Boot() uint64 { return m.boot }

// Dropped returns how many packets and changes were dropped because queues were
// full; the exchange of states makes up for them.
func (m *Mesh) Dropped() uint64 { return m.dropped.Load() }

// Deliver takes in a packet that the router received from a node that it has
// authenticated. b is copied. It never blocks: packets that cannot be taken at once are
// dropped, as are those that no node is named for.
func (m *Mesh) Deliver(b []byte, from Addr, at time.Time) {
	if len(b) < 2 || !from.Node.Valid() || from.Node == m.id {
		m.dropped.Add(1)
		return
	}
	if m.ways.heard(from, at) {
		m.changed()
	}
	switch kind(b[0]) {
	case kindMember:
		m.transport.deliver(b[1:], from.Node, at)
	case kindDigest:
		m.takeDigest(b[1:], from.Node)
	case kindChanges:
		m.takeChanges(b[1:], from.Node)
	case kindStream:
		m.streams.Deliver(b[1:], udpstream.Addr{Node: uint64(from.Node), Addr: from.Addr})
	default: // of a newer release
		m.dropped.Add(1)
	}
}
