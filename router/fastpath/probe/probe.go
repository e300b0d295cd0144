// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/router/fastpath"
)

// Config is what a Prober is made of.
type Config struct {
	// Node is the ID of this node, not 0.
	Node uint64
	// Port is the UDP port of the mesh on this host, not 0.
	Port uint16
	// OnProbe is told of a probe that has come: from where, by which device, and what it says of itself. It is called by up to two goroutines,
	// concurrently, and must not block. No more than PerPeer from one source and InAll from all are told in a second.
	OnProbe func(from netip.AddrPort, ifindex int, node uint64, kind fastpath.Kind, echo uint64)
	// Log gets what an operator should know; nil means nowhere.
	Log *zap.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Stats are counts since New.
type Stats struct {
	Sent     uint64 // probes that left
	Unsent   uint64 // that did not
	Received uint64 // of others, that OnProbe was told
	Limited  uint64 // of others, that it was not, as there were too many
	Foreign  uint64 // datagrams that are no probes
}

// Prober sends and receives probes. All methods are safe for concurrent use.
type Prober struct {
	config  Config
	limits  *limits
	changed chan struct{} // there is a new listener; of capacity 1
	started atomic.Bool

	sent, unsent, received, limited, foreign atomic.Uint64

	mu     sync.RWMutex
	closed bool
	ends   []*end
}

// end is what there is for one address of this host.
type end struct {
	addr    netip.Addr
	listen  *net.UDPConn
	reading bool // Run has a goroutine for it
	send    map[fastpath.Kind]int
}

// ErrClosed says that Run has ended, or Close was called.
var ErrClosed = errors.New("closed")

// New makes a Prober that has no addresses yet. It opens and starts nothing.
func New(c Config) *Prober {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Prober{config: c, limits: newLimits(), changed: make(chan struct{}, 1)}
}

// SetAddrs makes the overlay addresses of this host those given, at most one of each family; others that it had are given up. It opens sockets in the network namespace of
// the calling thread. An address need not be there yet. An error says for each address that cannot be used why; it is tried again by the next call.
func (p *Prober) SetAddrs(addrs []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("probes of kernel paths: %w", ErrClosed)
	}
	var errs []error
	p.ends = slices.DeleteFunc(p.ends, func(e *end) bool {
		if slices.Contains(addrs, e.addr) {
			return false
		}
		errs = append(errs, e.close())
		return true
	})
	for _, a := range addrs {
		if slices.ContainsFunc(p.ends, func(e *end) bool { return e.addr == a }) {
			continue
		}
		e, err := open(a, p.config.Port)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.ends = append(p.ends, e)
	}
	select {
	case p.changed <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

// Send sends a probe by a kind of path, VXLAN or Direct, to the overlay address and port of a peer. by is the index of the device by which it leaves, 0: the one to
// which the route of its mark leads. Of IPv6 it is 0. size is that of the IP packet in bytes; a smaller
// one than there can be is made larger. An error holds what the kernel said, as EMSGSIZE where the device is too narrow, and ENETUNREACH or
// EHOSTUNREACH where there is no such path. It does not block.
func (p *Prober) Send(kind fastpath.Kind, by int, to netip.AddrPort, size int, echo uint64) error {
	err := p.transmit(kind, by, to, size, echo)
	if err != nil {
		p.unsent.Add(1)
		return fmt.Errorf("sending a probe of %d bytes by %v to %v: %w", size, kind, to, err)
	}
	p.sent.Add(1)
	return nil
}

var (
	errAddress = errors.New("this host has no overlay address of that family")
	errSize    = errors.New("no IP packet can be that large")
	errKind    = errors.New("that is no kernel path")
)

func (p *Prober) transmit(kind fastpath.Kind, by int, to netip.AddrPort, size int, echo uint64) error {
	if kind.Mark() == 0 {
		return errKind
	}
	if size > maxSize {
		return errSize
	}
	headers := headers4
	if to.Addr().Is6() {
		headers = headers6
	}
	b := message{kind: kind, node: p.config.Node, echo: echo}.append(make([]byte, 0, max(least, size)), size-headers)
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, e := range p.ends {
		if e.addr.Is4() == to.Addr().Is4() {
			return sendTo(e.send[kind], b, e.control(by), to)
		}
	}
	return errAddress
}

// Run receives probes until ctx ends, which is no error, and then closes all. It returns when all its goroutines have ended. It may be called once.
func (p *Prober) Run(ctx context.Context) error {
	if !p.started.CompareAndSwap(false, true) {
		return errors.New("probes of kernel paths: Run was called twice")
	}
	var readers sync.WaitGroup
	for {
		p.mu.Lock()
		for _, e := range p.ends {
			if !e.reading {
				e.reading = true
				readers.Go(func() { p.read(ctx, e) })
			}
		}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			err := p.Close()
			readers.Wait()
			return err
		case <-p.changed:
		}
	}
}

// Close closes all sockets, for who does not call Run. It may be called again.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, e := range p.ends {
		errs = append(errs, e.close())
	}
	p.ends = nil
	return errors.Join(errs...)
}

const (
	// rest is how long is waited after what must not go on at any speed: an error, or more probes than are told. What comes meanwhile waits in the buffer of
	// the socket, or is lost.
	rest = 20 * time.Millisecond
)

// read tells of probes until its socket is closed.
func (p *Prober) read(ctx context.Context, e *end) {
	b, control := make([]byte, maxSize), make([]byte, controlSpace)
	failed := false
	for {
		n, c, _, from, err := e.listen.ReadMsgUDPAddrPort(b, control)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			if !failed {
				p.config.Log.Warn("probes of kernel paths are not received; other nodes reach this host by udp", zap.Stringer("address", e.addr), zap.Error(err))
			}
			failed = true
			pause(ctx)
			continue
		}
		failed = false
		if !p.take(b[:n], control[:c], from) {
			pause(ctx)
		}
	}
}

func pause(ctx context.Context) {
	t := time.NewTimer(rest)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// take tells of a datagram if it is a probe. It reports false if there are too many.
func (p *Prober) take(b, control []byte, from netip.AddrPort) bool {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if !p.limits.allow(from.Addr(), p.config.Now()) {
		p.limited.Add(1)
		return false
	}
	m, err := parse(b)
	if err != nil || m.node == p.config.Node {
		p.foreign.Add(1)
		return true
	}
	p.received.Add(1)
	p.config.OnProbe(from, arrived(control), m.node, m.kind, m.echo)
	return true
}

// Stats returns the counts.
func (p *Prober) Stats() Stats {
	return Stats{
		Sent: p.sent.Load(), Unsent: p.unsent.Load(), Received: p.received.Load(), Limited: p.limited.Load(), Foreign: p.foreign.Load(),
	}
}
