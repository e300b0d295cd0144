// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/mesh/udpstream"
)

// How a stream is opened. TCP is tried first, at the address that answered last, then at
// the others; QUIC over the router's packets follows tcpLead later, at once where TCP
// failed within tcpMemory. Whenever a try fails, the next begins at once, but a copy
// of a node that is refused does not try on. The first that greets successfully wins, and the
// others are closed.
const (
	tcpLead   = 400 * time.Millisecond
	tcpNext   = 150 * time.Millisecond // between two addresses of a node
	tcpMemory = time.Minute
	helloLead = 1500 * time.Millisecond // instead of tcpLead, once TCP has connected
	refusedTo = time.Second             // what is left for the other tries where TCP says that nobody listens
)

// try is one way to open a stream.
type try struct {
	tcp   netip.AddrPort // where to by TCP; not valid: by QUIC
	udp   Addr           // where to by QUIC
	after time.Duration  // since the beginning
}

// addr is where the try goes to, for messages.
func (t try) addr() netip.AddrPort {
	if t.tcp.IsValid() {
		return t.tcp
	}
	return t.udp.Addr
}

// triesAt returns the ways to whoever is at an address.
func (w *ways) triesAt(a netip.AddrPort) []try { return w.tries([]netip.AddrPort{a}, Addr{Addr: a}) }

// tries returns the ways to a node, in the order in which they begin.
func (w *ways) tries(tcp []netip.AddrPort, udp Addr) []try {
	var ts []try
	for i, a := range tcp {
		ts = append(ts, try{tcp: a, after: time.Duration(i) * tcpNext})
	}
	last := try{udp: udp, after: tcpLead}
	if len(tcp) == 0 || w.failedLately(tcp[0], time.Now()) {
		last.after = 0
	}
	ts = append(ts, last)
	slices.SortStableFunc(ts, func(a, b try) int { return cmp.Compare(a.after, b.after) })
	return ts
}

// greeter opens streams. Whoever uses it owns what it starts: nothing is left when a method returns.
type greeter struct {
	network Network
	udp     func(ctx context.Context, to Addr) (net.Conn, error) // nil: no QUIC
	keys    [][32]byte                                           // accepted, the preferred one first
	noted   func(t try, them introduction, err error)            // told how each try ended that was not called off
}

// greeting is a stream on which the other side said welcome.
type greeting struct {
	*stream
	them introduction
	by   try
}

// first makes the tries for as long as ctx allows, which must have a deadline, and returns the first
// that leads to the node want (0: anybody). Its errors are those of Probe.
func (g greeter) first(ctx context.Context, tries []try, me introduction, want NodeID) (greeting, error) {
	if g.udp == nil {
		tries = slices.DeleteFunc(slices.Clone(tries), func(t try) bool { return !t.tcp.IsValid() })
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		greeting
		err error
	}
	results := make(chan result, len(tries))
	begin := time.Now()
	begun, ended := 0, 0
	connected := make(chan struct{}, len(tries))
	var lead time.Duration // how much later QUIC begins
	start := func() {
		t := tries[begun]
		begun++
		go func() {
			s, them, err := g.greet(ctx, t, me, want, connected)
			results <- result{greeting{s, them, t}, err}
		}()
	}
	var won *greeting
	var byTCP, byUDP []error
	take := func(r result) {
		ended++
		switch {
		case r.err != nil && (won != nil || errors.Is(r.err, context.Canceled)):
		case r.err != nil && r.by.tcp.IsValid():
			byTCP = append(byTCP, r.err)
		case r.err != nil:
			byUDP = append(byUDP, r.err)
		case won != nil:
			_ = r.Close() // came second; nothing is lost with it
		default:
			won = &r.greeting
		}
		if g.noted != nil && (r.err == nil || !errors.Is(r.err, context.Canceled)) {
			g.noted(r.by, r.them, r.err)
		}
	}
	refused := false
	var last <-chan time.Time // when it is enough
	for won == nil && !refused && ctx.Err() == nil && ended < len(tries) {
		var due <-chan time.Time
		stop := func() bool { return true }
		if begun < len(tries) {
			after := tries[begun].after
			if !tries[begun].tcp.IsValid() {
				after += lead
			}
			if begun == ended || time.Since(begin) >= after {
				start()
				continue
			}
			t := time.NewTimer(time.Until(begin.Add(after)))
			due, stop = t.C, t.Stop
		}
		select {
		case <-due:
		case <-ctx.Done():
		case <-last:
			refused = true
		case <-connected:
			lead = helloLead - tcpLead
		case r := <-results:
			take(r)
			refused = errors.Is(r.err, ErrClone) // trying on would draw away packets that are for the other one
			if won == nil && !refused && begun < len(tries) {
				start()
			}
			if last == nil && errors.Is(r.err, errRefused) && r.by.tcp.IsValid() {
				t := time.NewTimer(refusedTo)
				defer t.Stop()
				last = t.C
			}
		}
		stop()
	}
	expired := errors.Is(ctx.Err(), context.DeadlineExceeded)
	if won != nil || refused || !expired {
		cancel()
	}
	for ended < begun {
		take(<-results)
	}
	if won != nil {
		return *won, nil
	}
	return greeting{}, bestError(byTCP, byUDP, cmp.Or(context.Cause(ctx), errNoWay))
}

// errNoWay: there was nothing to try.
var errNoWay = errors.New("no address is known")

// bestError picks the error to report: what TCP ended in, unless somebody answered by UDP.
func bestError(byTCP, byUDP []error, otherwise error) error {
	errs := byTCP
	for _, err := range byUDP {
		if len(byTCP) == 0 || !errors.Is(err, ErrUnreachable) {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return otherwise
	}
	return worst(errs)
}

// greet makes one try.
func (g greeter) greet(ctx context.Context, t try, me introduction, want NodeID, connected chan<- struct{}) (*stream, introduction, error) {
	s, them, err := g.greetAnybody(ctx, t, me, connected)
	if err != nil {
		return nil, introduction{}, dialError(t.addr(), err)
	}
	if want != 0 && them.id != want {
		err := fmt.Errorf("is node %v (%s) now, not node %v", them.id, them.name, want)
		return nil, introduction{}, &DialError{Addr: t.addr(), Err: errors.Join(err, ignoreClosed(s.Close()))}
	}
	return s, them, nil
}

// greetAnybody offers one key after the other until the other side has one.
func (g greeter) greetAnybody(ctx context.Context, t try, me introduction, connected chan<- struct{}) (s *stream, them introduction, err error) {
	for _, keys := range offers(g.keys) {
		if s, them, err = g.offer(ctx, t, me, keys, connected); !errors.Is(err, ErrWrongToken) {
			break
		}
		connected = nil // it was said already
	}
	return s, them, err
}

func (g greeter) offer(ctx context.Context, t try, me introduction, keys [][32]byte, connected chan<- struct{}) (*stream, introduction, error) {
	dial := func() (net.Conn, error) { return g.udp(ctx, t.udp) }
	if t.tcp.IsValid() {
		dial = func() (net.Conn, error) { return g.network.Dial(ctx, t.tcp) }
	}
	conn, err := dial()
	if err != nil {
		return nil, introduction{}, called(ctx, err)
	}
	if t.tcp.IsValid() && connected != nil {
		connected <- struct{}{}
	}
	stop := context.AfterFunc(ctx, func() {
		// Ends whatever greet waits for. A connection closed meanwhile needs it no more.
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	deadline, _ := ctx.Deadline()
	s, them, err := greet(conn, keys[0], me, time.Until(deadline), keys[1:]...)
	if err != nil {
		stop()
		return nil, introduction{}, called(ctx, err)
	}
	err = me.judge(them)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, introduction{}, errors.Join(err, ignoreClosed(s.Close()))
	}
	return s, them, nil
}

// called turns err into context.Canceled if that is why it came about.
func called(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Canceled
	}
	return err
}

// greeter returns the mesh's own.
func (m *Mesh) greeter() greeter {
	return greeter{network: m.network, udp: dialUDP(m.streams), keys: *m.keys.Load(), noted: m.noteTry}
}

// noteTry remembers how a try ended.
func (m *Mesh) noteTry(t try, them introduction, err error) {
	if err == nil || errors.Is(err, ErrWrongToken) {
		m.noteKeys(t.addr(), err != nil)
	}
	switch {
	case !t.tcp.IsValid() && err != nil:
		m.streams.Forget(udpstream.Addr{Node: uint64(t.udp.Node), Addr: t.udp.Addr})
	case !t.tcp.IsValid():
	case err == nil:
		m.ways.answered(them.id, them.boot, t.tcp)
		m.checkUDP(them.id, t.tcp)
	case errors.Is(err, ErrUnreachable):
		m.ways.failed(t.tcp, err, time.Now())
	}
}

// greet opens a stream as greeter.first does, and learns from it.
func (m *Mesh) greet(ctx context.Context, tries []try, why purpose, want NodeID) (greeting, error) {
	g, err := m.greeter().first(ctx, tries, m.introduce(why), want)
	if err == nil && !g.by.tcp.IsValid() {
		if i := slices.IndexFunc(tries, func(t try) bool { return t.tcp.IsValid() }); i >= 0 {
			m.checkTCP(g.them.id, tries[i].tcp)
		}
	}
	return g, err
}

// triesOf returns the ways to a node.
func (m *Mesh) triesOf(id NodeID) []try {
	return m.ways.tries(m.addrsOf(id), Addr{Node: id, Addr: m.packetAddr(id)})
}

// dialNode opens an authenticated stream to a node. It ends early when the mesh does.
func (m *Mesh) dialNode(id NodeID, why purpose, timeout time.Duration) (*peerConn, error) {
	run := m.runContext()
	if run == nil {
		return nil, ErrNotRunning
	}
	ctx, cancel := context.WithTimeout(run, min(timeout, m.tuning.StreamTimeout))
	defer cancel()
	g, err := m.greet(ctx, m.triesOf(id), why, id)
	if err != nil {
		m.cfg.Packets.Examine(id)
		return nil, fmt.Errorf("a stream to node %v: %w", id, err)
	}
	m.adopt(g.them.universe)
	m.log.Debug("stream", zap.Stringer("to", id), zap.Stringer("at", g.by.addr()), zap.Bool("tcp", g.by.tcp.IsValid()))
	c := &peerConn{stream: g.stream, done: m.track(g.stream)}
	if !m.accepts(g.key) { // it was taken away meanwhile
		m.closeQuietly(c)
	}
	return c, nil
}
