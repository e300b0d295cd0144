// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/router/session"
)

// Config is what a Router is made of. It does not change afterwards.
type Config struct {
	// Private is this host's key.
	Private session.PrivateKey
	// Preshared is mixed into every handshake; hosts with another one cannot talk to us.
	Preshared session.PresharedKey
	// TUN and Conns have one entry for each shard, at least one. They stay
	// the caller's to close, after Run.
	TUN   []Queue
	Conns []Conn
	// Poll makes the Poller of a shard; nil means epoll(7), for which the Queue and the
	// Conn must have a method FD() int. Run closes what it makes. For ControlConn the Queue is nil.
	Poll func(Queue, Conn) (Poller, error)
	// Log gets what an operator should know; nil means nowhere.
	Log *zap.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Rand is a cryptographic source that is safe for concurrent use; nil means crypto/rand.
	Rand io.Reader
	// CopyDSCP makes datagrams bear the DSCP of the packets in them, which tells the network between hosts what they are; otherwise
	// it is 0. The DSCP of packets that come in is never changed.
	CopyDSCP bool
	// RaiseInterval is the longest time between two attempts to send larger packets on a path that was found to be narrow; 0 means
	// a minute. The first attempts come sooner.
	RaiseInterval time.Duration
	// ID is this node's, by which others in the mesh name it, and Boot the number of this run of its process. Without an ID nothing can be
	// sent but packets.
	ID, Boot uint64
	// Keys seal and open control datagrams; SetKeys replaces them.
	Keys Keys
	// ControlConn is a socket of their own for control datagrams, on the port of Conns; nil: they share those. It stays the caller's to
	// close, after Run.
	ControlConn Conn
	// OnReach is told that what Reach returns may have changed, and OnPath that a node is reached in another way; nil: nobody. Both are called by one
	// goroutine and must not block.
	OnReach func()
	OnPath  func(PathEvent)
	// Control gets the gossip of the mesh. It is called by several goroutines, concurrently, and must not block; b is valid only
	// during the call. nil drops it.
	Control func(b []byte, from Addr, at time.Time)
	// OnProof is told that a node has answered the probe with that echo, by SendProof there. That it was this node is as certain as the echo is
	// secret: any holder of the token can name another. It is called by several goroutines, concurrently, and must not block. nil drops it.
	OnProof func(node, echo uint64, at time.Time)
	// OnAsk is told that a node asks for the echo, by SendAsk there; who answers probes answers it, too. Otherwise it is as OnProof.
	OnAsk func(node, echo uint64, at time.Time)
	// NoRelay makes this host pass nothing on for other nodes.
	NoRelay bool
	// RelayLimit is how much it passes on, in bits per second; 0: as much as it can.
	RelayLimit uint64
}

// Local is what the router knows of its own host.
type Local struct {
	// Prefixes are the addresses of this host and its workloads: what peers may send to.
	// Invalid ones are ignored. Where a peer has the very same prefix, this host goes first, unless the peer is external.
	Prefixes []netip.Prefix
	// Gateway4 and Gateway6 are the sources of the ICMP errors that the router sends to its
	// workloads; it sends none in a family whose gateway is not valid. They should be addresses of the overlay
	// that no device of this host has: of a packet that comes out of weft0 with a source of its
	// own Linux thinks that it is forged, unless net.ipv4.conf.weft0.accept_local says otherwise.
	Gateway4, Gateway6 netip.Addr
	// MTU of the TUN device in bytes; at most MaxMTU, which 0 means.
	MTU int
}

// Router carries packets. All methods are safe for concurrent use.
type Router struct {
	config   Config
	public   session.PublicKey
	machine  *session.Machine
	shards   []*shard
	apart    *apart // nil without a socket for control datagrams
	timers   timers
	suspects suspects
	origins  maphash.Seed
	prober   prober        // the timer goroutine's
	pieceID  atomic.Uint64 // of the last packet that was sent in pieces
	started  atomic.Bool

	// Of control datagrams.
	keys         atomic.Pointer[Keys]
	ways         reacher
	reaching     reaching
	relayBudget  budget    // also of data
	sealed       sync.Pool // of *[envelope.MaxSize]byte
	controlStats counters  // of those that no shard has handled

	// current is what the shards work with, replaced as a whole under mu.
	current   atomic.Pointer[snapshot]
	endpoints endpointIndex

	mu      sync.Mutex // serialises SetPeers, SetLocal and SetKeys
	desired []Peer     // as last given to SetPeers
}

// New makes a router that has no peers and no prefixes yet. It starts nothing.
func New(c Config) (*Router, error) {
	if len(c.TUN) == 0 || len(c.TUN) != len(c.Conns) {
		return nil, fmt.Errorf("router: %d TUN queues and %d UDP sockets: there must be one of each per shard", len(c.TUN), len(c.Conns))
	}
	if c.Poll == nil {
		for i := range c.TUN {
			if !hasFD(c.TUN[i]) || !hasFD(c.Conns[i]) {
				return nil, errors.New("router: queues and conns without descriptors need a Config.Poll")
			}
		}
		if c.ControlConn != nil && !hasFD(c.ControlConn) {
			return nil, errors.New("router: queues and conns without descriptors need a Config.Poll")
		}
		c.Poll = newPoller
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.RaiseInterval <= 0 {
		c.RaiseInterval = raiseInterval
	}
	machine, err := session.New(session.Config{Private: c.Private, Rand: c.Rand})
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	r := &Router{config: c, public: c.Private.Public(), machine: machine}
	r.pieceID.Store(uint64(c.Now().UnixNano())) // none of those before a restart
	r.timers.init()
	r.suspects.init(c.Log)
	r.origins = maphash.MakeSeed()
	r.endpoints.init()
	if err := r.initControl(); err != nil {
		return nil, err
	}
	for i := range c.TUN {
		r.shards = append(r.shards, newShard(r, i, c.TUN[i], c.Conns[i]))
	}
	r.current.Store(&snapshot{local: Local{MTU: MaxMTU}})
	return r, nil
}

// Run carries packets until ctx ends, which is no error, or until something that it cannot
// go on without is gone: a TUN device deleted or a socket closed under it; the error says what.
// It returns when all its goroutines have ended. It may be called once.
func (r *Router) Run(ctx context.Context) error {
	if !r.started.CompareAndSwap(false, true) {
		return errors.New("router: Run was called twice")
	}
	tasks := make([]task, 0, len(r.shards)+1)
	for _, s := range r.shards {
		tasks = append(tasks, task{&s.poller, &s.stop, s.queue, s.conn, s.run})
	}
	if a := r.apart; a != nil {
		tasks = append(tasks, task{&a.poller, &a.stop, nil, a.conn, a.run})
	}
	var pollers []Poller
	for _, l := range tasks {
		p, err := r.config.Poll(l.queue, l.conn)
		if err != nil {
			return errors.Join(fmt.Errorf("router: %w", err), closeAll(pollers))
		}
		*l.poller = p
		pollers = append(pollers, p)
	}

	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, len(tasks))
	for _, l := range tasks {
		go func() { ended <- l.run() }()
	}
	var timers sync.WaitGroup
	timers.Go(func() { r.runTimers(ctx) })

	var reason error // the first; what takes one shard away often takes all
	running := len(tasks)
	select {
	case <-ctx.Done():
	case reason = <-ended:
		running--
	}
	cancel()
	for _, l := range tasks {
		l.stop.Store(true)
		(*l.poller).Wake()
	}
	for range running {
		if err := <-ended; reason == nil {
			reason = err
		}
	}
	timers.Wait()
	return errors.Join(reason, closeAll(pollers))
}

// task is what Run has to know of a goroutine that waits for descriptors.
type task struct {
	poller *Poller // to be made
	stop   *atomic.Bool
	queue  Queue // nil: none
	conn   Conn
	run    func() error
}

func closeAll(pollers []Poller) error {
	var errs []error
	for _, p := range pollers {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Greet begins a handshake with every peer that has an endpoint, spread over about a
// second: after a restart the peers learn so that our old keys are gone.
func (r *Router) Greet() {
	now := r.config.Now()
	peers := r.current.Load().peers
	gap := min(greetGap, greetSpan/time.Duration(max(len(peers), 1)))
	for i, p := range peers {
		r.timers.greet(p, now.Add(time.Duration(i)*gap))
	}
}
