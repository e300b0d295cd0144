// SPDX-License-Identifier: Apache-2.0

package udpstream

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// MaxDatagram is the size of the largest datagram sent, in bytes. QUIC wants at least as
// much of any path.
const MaxDatagram = 1200

// Limits of an endpoint. An outgoing connection serves all streams to one address.
const (
	MaxIncoming   = 128       // connections that others opened, half-open ones included
	MaxPerNode    = 8         // of them from one node
	MaxStreams    = 16        // streams in a connection that others opened, at the same time
	MaxOutgoing   = 1024      // connections opened here
	firstWindow   = 128 << 10 // bytes that may come in unread on a connection, at first
	maxWindow     = 1 << 20   // and in the end
	windowBudget  = 16 << 20  // bytes by which all connections together may exceed firstWindow
	queue         = 512       // datagrams that wait for QUIC; of more, the newest are dropped
	connIdle      = 30 * time.Second
	endpointIdle  = time.Minute
	handshakeTime = 3 * time.Second
	protocol      = "weft/1" // ALPN
)

// Addr is where a datagram goes to or came from: a node, or while that is not known an
// address. It is a net.Addr.
type Addr struct {
	Node uint64         // 0: not known
	Addr netip.AddrPort // a hint, if Node is not 0; not valid: none
}

// Network implements net.Addr.
func (Addr) Network() string { return "weft-udp" }

// String returns the node in 16 hex digits, else the address. QUIC takes two addresses with the same
// text for the same.
func (a Addr) String() string {
	if a.Node != 0 {
		return fmt.Sprintf("%016x", a.Node)
	}
	return a.Addr.String()
}

// Config says what an endpoint works with. All fields are required.
type Config struct {
	// Send sends a datagram of at most MaxDatagram bytes. It does not keep b and does not block.
	Send func(b []byte, to Addr) error
	// Accept is given each stream that others open. It is called from one goroutine per connection
	// and should return soon; the stream is the callee's.
	Accept func(net.Conn)
	// ResetKey lets others see at once that this node has forgotten a connection, even by
	// having been restarted. The same for each life of a node.
	ResetKey [32]byte
}

// Endpoint opens and accepts streams. Its methods are safe for concurrent use.
type Endpoint struct {
	cfg Config

	mu     sync.Mutex
	life   *life // nil: no state
	closed bool
}

// New returns an endpoint. It starts nothing yet.
func New(cfg Config) *Endpoint { return &Endpoint{cfg: cfg} }

// ErrClosed is what a closed endpoint answers.
var ErrClosed = fmt.Errorf("streams over UDP: %w", net.ErrClosed)

// Deliver takes in a datagram. b is copied. It never blocks; a datagram too many is dropped.
func (e *Endpoint) Deliver(b []byte, from Addr) {
	l, err := e.begin()
	if err != nil {
		return // QUIC sends again
	}
	defer e.end(l)
	l.conn.deliver(b, from)
}

// Dial opens a stream, for as long as ctx allows. The other end learns of it with the first byte.
func (e *Endpoint) Dial(ctx context.Context, to Addr) (net.Conn, error) {
	l, err := e.begin()
	if err != nil {
		return nil, err
	}
	defer e.end(l)
	return l.dial(ctx, to)
}

// Forget has the next Dial to the address begin with a new connection: an old one did not work.
func (e *Endpoint) Forget(to Addr) {
	e.mu.Lock()
	l := e.life
	e.mu.Unlock()
	if l != nil {
		l.forget(to, nil)
	}
}

// Active tells whether there is any state of QUIC.
func (e *Endpoint) Active() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.life != nil
}

// Close ends all streams and waits for every goroutine.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	l := e.life
	e.life, e.closed = nil, true
	e.mu.Unlock()
	if l == nil {
		return nil
	}
	return l.close()
}

// begin returns the present life, a new one if need be, which lasts until end at least unless
// the endpoint is closed.
func (e *Endpoint) begin() (*life, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	if e.life == nil {
		l, err := newLife(e.cfg)
		if err != nil {
			return nil, err
		}
		e.life = l
		l.idle = time.AfterFunc(endpointIdle, func() { e.retire(l) })
	}
	e.life.users++
	return e.life, nil
}

func (e *Endpoint) end(l *life) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l.users--
	l.used = time.Now()
}

// retire ends l if nothing has happened for a while, and comes again otherwise.
func (e *Endpoint) retire(l *life) {
	e.mu.Lock()
	if e.life != l {
		e.mu.Unlock()
		return
	}
	if l.users > 0 || time.Since(l.used) < endpointIdle || l.busy() {
		l.idle.Reset(endpointIdle)
		e.mu.Unlock()
		return
	}
	e.life = nil
	e.mu.Unlock()
	_ = l.close() // of a transport without connections
}

// life is the state of an endpoint while it has any.
type life struct {
	cfg       Config
	conn      *packetConn
	transport *quic.Transport
	listener  *quic.Listener
	tls       *tls.Config
	ctx       context.Context // ends with close
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	users int       // guarded by Endpoint.mu, as the next two
	used  time.Time // when the last call ended
	idle  *time.Timer

	mu       sync.Mutex
	incoming map[uint64]int // connections by node
	total    int            // sum of incoming
	outgoing map[string]*outgoing
	granted  map[*quic.Conn]uint64 // bytes of windowBudget
	spent    uint64                // sum of granted
}

// outgoing is a connection that was opened here, or is about to be.
type outgoing struct {
	ready chan struct{} // closed when conn or err is set
	conn  *quic.Conn
	err   error
}

func newLife(cfg Config) (*life, error) {
	cert, err := certificate()
	if err != nil {
		return nil, err
	}
	l := &life{
		cfg: cfg, conn: newPacketConn(cfg.Send), incoming: make(map[uint64]int),
		outgoing: make(map[string]*outgoing), granted: make(map[*quic.Conn]uint64), used: time.Now(),
		tls: &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, Certificates: []tls.Certificate{cert},
			SessionTicketsDisabled: true, ServerName: "weft",
			InsecureSkipVerify: true, //nolint:gosec // nobody relies on TLS here, see the package comment
		},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	reset := quic.StatelessResetKey(cfg.ResetKey)
	l.transport = &quic.Transport{
		Conn: l.conn, ConnectionIDLength: 8, StatelessResetKey: &reset, ConnContext: l.admit,
		DisableVersionNegotiationPackets: true,
	}
	if l.listener, err = l.transport.Listen(l.tls, l.config()); err != nil {
		return nil, fmt.Errorf("streams over UDP: %w", errors.Join(err, l.close()))
	}
	l.wg.Go(l.accept)
	return l, nil
}

// certificate makes one that nobody looks at.
func certificate() (tls.Certificate, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(100, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, pub, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func (l *life) config() *quic.Config {
	return &quic.Config{
		Versions: []quic.Version{quic.Version1}, HandshakeIdleTimeout: handshakeTime, MaxIdleTimeout: connIdle,
		InitialStreamReceiveWindow: firstWindow / 2, MaxStreamReceiveWindow: maxWindow / 2,
		InitialConnectionReceiveWindow: firstWindow, MaxConnectionReceiveWindow: maxWindow,
		AllowConnectionWindowIncrease: l.grant,
		MaxIncomingStreams:            MaxStreams, MaxIncomingUniStreams: -1,
		InitialPacketSize: MaxDatagram, DisablePathMTUDiscovery: true, // the router knows the paths
	}
}

var (
	errBusy     = errors.New("streams over UDP: too many connections")
	errNoStream = errors.New("streams over UDP: too many streams to that node")
)

// admit decides whether a connection that somebody opens may be. Whoever sends may have forged
// the node, being a member: hence both bounds.
func (l *life) admit(ctx context.Context, who *quic.ClientInfo) (context.Context, error) {
	a, ok := who.RemoteAddr.(Addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ok || l.total >= MaxIncoming || l.incoming[a.Node] >= MaxPerNode {
		return nil, errBusy
	}
	l.total++
	l.incoming[a.Node]++
	context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.total--
		if l.incoming[a.Node]--; l.incoming[a.Node] == 0 {
			delete(l.incoming, a.Node)
		}
	})
	return ctx, nil
}

// grant lets a connection's window grow within the budget of all.
func (l *life) grant(c *quic.Conn, delta uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spent+delta > windowBudget {
		return false
	}
	l.granted[c] += delta
	l.spent += delta
	return true
}

// release gives back what was granted to a connection that has ended.
func (l *life) release(c *quic.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spent -= l.granted[c]
	delete(l.granted, c)
}

// busy tells whether there are connections.
func (l *life) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total+len(l.outgoing) > 0
}

// accept takes connections, and on each its streams, until the life ends.
func (l *life) accept() {
	for {
		c, err := l.listener.Accept(l.ctx)
		if err != nil {
			return
		}
		l.wg.Go(func() { l.serve(c) })
	}
}

func (l *life) serve(c *quic.Conn) {
	context.AfterFunc(c.Context(), func() { l.release(c) })
	for {
		s, err := c.AcceptStream(l.ctx)
		if err != nil {
			return
		}
		l.cfg.Accept(newStream(c, s))
	}
}

// dial opens a stream in the connection to the address, and opens that first if need be.
func (l *life) dial(ctx context.Context, to Addr) (net.Conn, error) {
	for {
		o, mine, err := l.connection(to)
		if err != nil {
			return nil, err
		}
		if mine {
			o.conn, o.err = l.transport.Dial(ctx, to, l.tls, l.config())
			if o.err != nil {
				l.forget(to, o)
			} else {
				context.AfterFunc(o.conn.Context(), func() {
					l.forget(to, o)
					l.release(o.conn)
				})
			}
			close(o.ready)
		}
		select {
		case <-o.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if o.err != nil {
			if !mine && ctx.Err() == nil && (errors.Is(o.err, context.Canceled) || errors.Is(o.err, context.DeadlineExceeded)) {
				continue // whoever dialled was called off, or had less time
			}
			return nil, plain(o.err)
		}
		s, err := o.conn.OpenStream()
		var full *quic.StreamLimitReachedError
		switch {
		case errors.As(err, &full):
			return nil, errNoStream
		case err != nil && !mine && ctx.Err() == nil:
			l.forget(to, o)
			continue // it had ended meanwhile
		case err != nil:
			return nil, plain(err)
		}
		return newStream(o.conn, s), nil
	}
}

// connection returns the connection to the address; mine: the caller is to open it.
func (l *life) connection(to Addr) (o *outgoing, mine bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.outgoing[to.String()]; o != nil {
		return o, false, nil
	}
	if len(l.outgoing) >= MaxOutgoing {
		return nil, false, errBusy
	}
	o = &outgoing{ready: make(chan struct{})}
	l.outgoing[to.String()] = o
	return o, true, nil
}

// forget drops the connection to the address from the books, if it is o or o is nil. Its streams go on.
func (l *life) forget(to Addr, o *outgoing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.outgoing[to.String()]; old != nil && (o == nil || o == old) {
		delete(l.outgoing, to.String())
	}
}

// close ends the life. The others are told as well as one datagram can.
func (l *life) close() error {
	if l.idle != nil {
		l.idle.Stop()
	}
	l.cancel()
	l.mu.Lock()
	open := make([]*outgoing, 0, len(l.outgoing))
	for _, o := range l.outgoing {
		open = append(open, o)
	}
	l.mu.Unlock()
	var errs []error
	for _, o := range open {
		select {
		case <-o.ready:
			if o.conn != nil {
				errs = append(errs, o.conn.CloseWithError(0, ""))
			}
		default: // ends with the transport
		}
	}
	if l.listener != nil {
		errs = append(errs, l.listener.Close())
	}
	errs = append(errs, l.transport.Close())
	l.wg.Wait()
	return errors.Join(errs...)
}
