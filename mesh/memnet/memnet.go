// SPDX-License-Identifier: Apache-2.0

// Package memnet is a network in memory for tests of the mesh and of whole nodes:
// hosts with addresses, names, streams (it implements mesh.Network) and datagrams
// between routers that find and relay (see [Router]), and the faults of real networks:
// loss, duplication, delay and with it reordering, partitions, pairs of hosts that do
// not reach each other, hosts that go dark.
//
// Nothing in it blocks but on channels and timers, so that everything runs under
// testing/synctest in virtual time. Only tests import it.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Net is a network. Its methods are safe for concurrent use. The zero value is
// not ready: use New.
type Net struct {
	luck sync.Mutex // a leaf, guards rng
	rng  *rand.Rand

	ticks ticks

	mu       sync.RWMutex // guards the rest
	hosts    map[netip.Addr]*Host
	names    map[string][]netip.Addr
	routers  map[uint64][]*Router // by node; more than one if one is a copy
	side     map[netip.Addr]int   // who is on which side of a partition; nil: none
	filter   func(proto string, from, to *Host) bool
	loss     float64
	dup      float64
	min, max time.Duration
	step     time.Duration // see Step
	changed  chan struct{} // closed at every change of who reaches whom
	tap      func(proto string, from, to netip.AddrPort, b []byte)
}

// New returns an empty network without faults or delay. seed determines which
// packets meet with which fault.
func New(seed uint64) *Net {
	return &Net{
		rng: rand.New(rand.NewPCG(seed, seed)), hosts: make(map[netip.Addr]*Host),
		names: make(map[string][]netip.Addr), routers: make(map[uint64][]*Router), changed: make(chan struct{}),
	}
}

// Host adds a host with these addresses, of which there must be one at least.
func (n *Net) Host(addrs ...netip.Addr) *Host {
	h := &Host{net: n, addrs: addrs, listeners: make(map[uint16]*listener), routers: make(map[uint16]*Router)}
	n.mu.Lock()
	defer n.mu.Unlock()
	h.lane = len(n.hosts) % lanes
	for _, a := range addrs {
		n.hosts[a] = h
	}
	n.change()
	return h
}

// Name lets the name service answer for name. No address removes the name.
func (n *Net) Name(name string, addrs ...netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[name] = addrs
}

// Faults sets which share of the datagrams is lost and which arrives twice.
func (n *Net) Faults(loss, duplicate float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss, n.dup = loss, duplicate
}

// Delay sets the bounds of the one-way delay. Datagrams overtake each other if
// they differ.
func (n *Net) Delay(least, most time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.min, n.max = least, most
}

// Step has everything arrive at whole multiples of d, as near as they are to when it would arrive else. What arrives at the
// same moment is handed over in parallel, where one after the other everybody would wait for each packet: virtual time stands still while
// anybody does anything. 0, as at first: it arrives when it does.
func (n *Net) Step(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.step = d
}

// Partition lets only hosts of the same group reach each other; hosts in none are
// one group more. Nobody is told: packets vanish and streams stall.
func (n *Net) Partition(groups ...[]*Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = make(map[netip.Addr]int)
	for i, g := range groups {
		for _, h := range g {
			for _, a := range h.addrs {
				n.side[a] = i + 1
			}
		}
	}
	n.change()
}

// Heal ends the partition.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = nil
	n.change()
}

// Filter lets through what f says; proto is "udp" or "tcp". What is filtered
// vanishes, and streams stall. nil: everything. f must not call the network; it is not called twice at a time.
func (n *Net) Filter(f func(proto string, from, to *Host) bool) {
	var one sync.Mutex
	filter := func(proto string, from, to *Host) bool {
		one.Lock()
		defer one.Unlock()
		return f(proto, from, to)
	}
	if f == nil {
		filter = nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.filter = filter
	n.change()
}

// Tap has f see everything that is sent; proto is "udp" or "tcp". f must not
// call the network or keep b; it is not called twice at a time.
func (n *Net) Tap(f func(proto string, from, to netip.AddrPort, b []byte)) {
	var one sync.Mutex
	tap := func(proto string, from, to netip.AddrPort, b []byte) {
		one.Lock()
		defer one.Unlock()
		f(proto, from, to, b)
	}
	if f == nil {
		tap = nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = tap
}

func (n *Net) change() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// reach tells whether a packet gets from one address to the other now, and the
// channel to wait on for that to change. Called with mu held, if only for reading.
func (n *Net) reach(proto string, from, to netip.Addr) (bool, <-chan struct{}) {
	a, b := n.hosts[from], n.hosts[to]
	ok := a != nil && b != nil && !a.dark && !b.dark && !a.still && !(b.still && proto == "tcp") &&
		(a == b || n.side[from] == n.side[to] && (n.filter == nil || n.filter(proto, a, b)))
	return ok, n.changed
}

// delay draws a one-way delay. Called with mu held, if only for reading.
func (n *Net) delay() time.Duration {
	if n.max <= n.min {
		return n.min
	}
	n.luck.Lock()
	defer n.luck.Unlock()
	return n.min + time.Duration(n.rng.Int64N(int64(n.max-n.min)))
}

// happens tells whether something does that happens to a share of the datagrams.
func (n *Net) happens(share float64) bool {
	if share == 0 {
		return false
	}
	n.luck.Lock()
	defer n.luck.Unlock()
	return n.rng.Float64() < share
}

// Host is a machine on the network. It implements mesh.Network.
type Host struct {
	net       *Net
	lane      int // of ticks; fixed
	addrs     []netip.Addr
	dark      bool // guarded by net.mu, as all below
	still     bool
	held      []func() // arrivals for a host that stands still
	listeners map[uint16]*listener
	routers   map[uint16]*Router
}

// Addr returns the host's first address.
func (h *Host) Addr() netip.Addr { return h.addrs[0] }

// Dark takes the host off the network, or puts it back, without telling anybody.
func (h *Host) Dark(dark bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.dark = dark
	h.net.change()
}

// maxHeld is how many datagrams wait for a host that stands still, as in a socket's buffer.
const maxHeld = 256

// Still has the host stand still, or go on, as a process that is stopped by a signal: nothing that it
// sends gets out, streams to it stall, and datagrams to it wait, up to a number. Unlike a real process's its
// timers run on.
func (h *Host) Still(still bool) {
	n := h.net
	n.mu.Lock()
	held := h.held
	h.still, h.held = still, nil
	n.change()
	n.mu.Unlock()
	for _, arrive := range held {
		arrive()
	}
}

// hold keeps a datagram for when the host goes on, which may be now. b is copied.
func (h *Host) hold(b []byte, arrive func([]byte)) {
	h.net.mu.Lock()
	still := h.still
	if still && len(h.held) < maxHeld {
		c := append([]byte(nil), b...)
		h.held = append(h.held, func() { arrive(c) })
	}
	h.net.mu.Unlock()
	if !still {
		arrive(b)
	}
}

// Renumber gives the host other addresses in place of all that it has. Streams to and from the old
// ones stall, and nobody is told.
func (h *Host) Renumber(addrs ...netip.Addr) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range h.addrs {
		delete(n.hosts, a)
	}
	h.addrs = addrs
	for _, a := range addrs {
		n.hosts[a] = h
	}
	n.change()
}

// source returns the host's address of to's family. Called with mu held, if only for reading.
func (h *Host) source(to netip.Addr) (netip.Addr, error) {
	for _, a := range h.addrs {
		if a.Is4() == to.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, syscall.ENETUNREACH
}

// Lookup implements mesh.Network.
func (h *Host) Lookup(_ context.Context, host string) ([]netip.Addr, error) {
	h.net.mu.RLock()
	defer h.net.mu.RUnlock()
	if addrs := h.net.names[host]; len(addrs) > 0 {
		return append([]netip.Addr(nil), addrs...), nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// Listen implements mesh.Network.
func (h *Host) Listen(port uint16) (net.Listener, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for p := uint16(49152); port == 0; p++ {
		if h.listeners[p] == nil {
			port = p
		}
	}
	if h.listeners[port] != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, syscall.EADDRINUSE)
	}
	l := &listener{
		host: h, addr: netip.AddrPortFrom(h.addrs[0], port),
		conns: make(chan net.Conn, 128), closed: make(chan struct{}),
	}
	h.listeners[port] = l
	return l, nil
}

// Dial implements mesh.Network. Where nothing gets through it tries again after 1, 2,
// 4 s and so on, as TCP would.
func (h *Host) Dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	n := h.net
	refuse := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for again := time.Second; ; again *= 2 {
		n.mu.RLock()
		src, err := h.source(addr.Addr())
		if err != nil {
			n.mu.RUnlock()
			return nil, refuse(err)
		}
		if ok, _ := n.reach("tcp", src, addr.Addr()); !ok {
			n.mu.RUnlock()
			t := time.NewTimer(again)
			select {
			case <-t.C:
				continue
			case <-ctx.Done():
				t.Stop()
				return nil, refuse(ctx.Err())
			}
		}
		l := n.hosts[addr.Addr()].listeners[addr.Port()]
		passed, _, stop := n.after(n.delay() + n.delay())
		n.mu.RUnlock()
		local := netip.AddrPortFrom(src, n.port())
		select {
		case <-passed:
		case <-ctx.Done():
			stop()
			return nil, refuse(ctx.Err())
		}
		if l == nil {
			return nil, refuse(os.NewSyscallError("connect", syscall.ECONNREFUSED))
		}
		near, far := n.pipe(local, addr)
		select {
		case l.conns <- far:
			return near, nil
		case <-l.closed:
			return nil, refuse(os.NewSyscallError("connect", syscall.ECONNREFUSED))
		case <-ctx.Done():
			return nil, refuse(ctx.Err())
		}
	}
}

// port draws a port to dial from.
func (n *Net) port() uint16 {
	n.luck.Lock()
	defer n.luck.Unlock()
	return uint16(32768 + n.rng.IntN(16384))
}

type listener struct {
	host   *Host
	addr   netip.AddrPort
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		l.host.net.mu.Lock()
		delete(l.host.listeners, l.addr.Port())
		l.host.net.mu.Unlock()
		close(l.closed)
		err = nil
		for {
			select {
			case c := <-l.conns: // never accepted: reset
				err = errors.Join(err, c.Close())
			default:
				return
			}
		}
	})
	return err
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
