// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/bench"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
)

const (
	channelBench = "bench" // of mesh.Send
	// featureBench in a node's record says that it knows that channel.
	featureBench = "bench"
	// answerTime is how long a node may take to answer that it takes part.
	answerTime = 5 * time.Second
)

var errInterrupted = errors.New("interrupted")

// benches does this node's part in measurements: those that it is asked for by
// weft bench, and those that other nodes ask for. There is one at a time.
type benches struct {
	n    *Node
	e    *engines
	net  bench.Network
	work sync.WaitGroup // measurements

	mu      sync.Mutex
	ctx     context.Context // of Run; nil: it does not
	current *engagement     // nil: none
}

// engagement is a measurement in which this node takes part.
type engagement struct {
	with    mesh.NodeID
	name    string
	since   time.Time
	session uint64
	answer  chan bench.Message // capacity 1; nil where this node was asked
}

// Run allows measurements until ctx ends, and waits for their end.
func (b *benches) Run(ctx context.Context) {
	b.mu.Lock()
	b.ctx = ctx
	b.mu.Unlock()
	<-ctx.Done()
	b.mu.Lock()
	b.ctx = nil
	b.mu.Unlock()
	b.work.Wait()
}

// errBusy says that a measurement runs.
type errBusy struct {
	node, with string
	since      time.Time
	now        time.Time
}

func (e errBusy) Error() string {
	return fmt.Sprintf("busy: node %s is measuring with node %s since %s (%v ago); try again when that is done",
		e.node, e.with, e.since.Format(time.TimeOnly), e.now.Sub(e.since).Round(time.Second))
}

// engage begins a measurement that lasts until ctx does or release is called,
// which must be.
func (b *benches) engage(g *engagement) (ctx context.Context, release func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx == nil {
		return nil, nil, b.n.errNotReady()
	}
	g.since = time.Now()
	if c := b.current; c != nil {
		return nil, nil, errBusy{node: b.n.cfg.Name, with: c.name, since: c.since, now: g.since}
	}
	b.current = g
	b.work.Add(1)
	return b.ctx, func() {
		b.mu.Lock()
		b.current = nil
		b.mu.Unlock()
		b.work.Done()
	}, nil
}

// Bench implements [api.Service].
func (n *Node) Bench(ctx context.Context, r api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error) {
	e, err := n.ready()
	if err != nil {
		return api.BenchResult{}, err
	}
	p := bench.Params{Time: r.Time, Streams: r.Streams, Bytes: r.Bytes}.Defaults()
	if err := p.Check(); err != nil {
		return api.BenchResult{}, err
	}
	to, err := findNode(e.members(), r.Node)
	if err != nil {
		return api.BenchResult{}, err
	}
	return e.benches.measure(ctx, to, p, progress)
}

// measure does the asking side.
func (b *benches) measure(ctx context.Context, to mesh.Node, p bench.Params, progress func(api.BenchProgress)) (api.BenchResult, error) {
	var none api.BenchResult
	ask := bench.Message{Params: p}
	var err error
	if ask.From, err = b.ownAddr(); err != nil {
		return none, err
	}
	if ask.Secret, err = bench.NewSecret(rand.Reader); err != nil {
		return none, err
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return none, fmt.Errorf("drawing a number: %w", err)
	}
	ask.Session = binary.BigEndian.Uint64(id[:])

	g := &engagement{with: to.ID, name: shownName(to), session: ask.Session, answer: make(chan bench.Message, 1)}
	running, release, err := b.engage(g)
	if err != nil {
		return none, err
	}
	defer release()
	session, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	defer context.AfterFunc(ctx, func() { end(errInterrupted) })()
	defer context.AfterFunc(running, func() { end(fmt.Errorf("node %s stops", b.n.cfg.Name)) })()

	res := b.describe(to, ask, p)
	peer, err := b.rendezvous(session, g, to, ask)
	if err != nil {
		return none, err
	}
	res.To.Address = peer.TCP.Addr()
	log := b.n.log.Named("bench").With(zap.String("with", g.name), zap.Stringer("node", to.ID))
	log.Info("measuring the way to another node", zap.Duration("per phase", p.Time), zap.Int("streams", p.Streams), zap.Int64("bytes at most", p.Bytes))
	out, err := bench.Measure(session, b.host(ask.From), ask.Secret, p, peer, func(p bench.Progress) { progress(progressOf(p)) })
	if err != nil {
		log.Info("the measurement was broken off", zap.Error(err))
		return none, fmt.Errorf("measuring the way to node %s: %w", g.name, err)
	}
	log.Info("the measurement is done", zap.Duration("after", out.Elapsed), zap.Int64("turned away", out.Strangers))
	b.addPath(&res, to)
	addFigures(&res, out)
	return res, nil
}

// rendezvous asks the node to take part.
func (b *benches) rendezvous(ctx context.Context, g *engagement, to mesh.Node, ask bench.Message) (bench.Peer, error) {
	payload, err := ask.Encode()
	if err != nil {
		return bench.Peer{}, err
	}
	if err := b.e.mesh.Send(to.ID, channelBench, payload); err != nil {
		return bench.Peer{}, fmt.Errorf("asking node %s: %w", g.name, err)
	}
	timeout := time.NewTimer(answerTime)
	defer timeout.Stop()
	var m bench.Message
	select {
	case <-ctx.Done():
		return bench.Peer{}, context.Cause(ctx)
	case <-timeout.C:
		return bench.Peer{}, fmt.Errorf("node %s did not answer within %v; see weft peers for how it is, and its log", g.name, answerTime)
	case m = <-g.answer:
	}
	switch m.Code {
	case bench.Accepted:
	case bench.Busy:
		now := time.Now()
		return bench.Peer{}, errBusy{node: g.name, with: m.BusyWith, since: now.Add(-m.BusyFor), now: now}
	case bench.Unwilling:
		return bench.Peer{}, fmt.Errorf("node %s was launched with --no-bench and lets nobody measure the way to it; measure from there, or launch it without the flag", g.name)
	case bench.NotReady:
		return bench.Peer{}, fmt.Errorf("node %s is not ready yet: %s", g.name, m.Text)
	default:
		return bench.Peer{}, fmt.Errorf("node %s refused: %s", g.name, m.Text)
	}
	if addr := m.TCP.Addr(); !b.owns(to.ID, addr) {
		return bench.Peer{}, fmt.Errorf("node %s answered with the address %v, which is not one of its own; see weft ipam", g.name, addr)
	}
	return bench.Peer{TCP: m.TCP, UDP: m.UDP}, nil
}

// take takes a message of another node. It returns soon: a measurement that it
// begins goes on by itself.
func (b *benches) take(from mesh.NodeID, payload []byte) {
	m, err := bench.DecodeMessage(payload)
	if !m.Answer {
		b.asked(from, m, err)
		return
	}
	if err != nil {
		m = bench.Message{Session: m.Session, Answer: true, Code: bench.Invalid, Text: err.Error()}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if g := b.current; g != nil && g.answer != nil && g.with == from && g.session == m.Session {
		select {
		case g.answer <- m:
		default: // it has been answered
		}
	}
}

// asked answers another node's request, and begins the measurement if this node
// takes part.
func (b *benches) asked(from mesh.NodeID, ask bench.Message, err error) {
	answer := bench.Message{Session: ask.Session, Answer: true}
	refuse := func(code bench.Code, err error) {
		answer.Code, answer.Text = code, err.Error()
		if busy := (errBusy{}); errors.As(err, &busy) {
			answer.Code, answer.BusyWith, answer.BusyFor = bench.Busy, busy.with, busy.now.Sub(busy.since)
		}
		b.reply(from, answer)
	}
	if err == nil {
		err = ask.Params.Check()
	}
	if err != nil {
		refuse(bench.Invalid, err)
		return
	}
	if b.n.cfg.NoBench {
		refuse(bench.Unwilling, errors.New("launched with --no-bench"))
		return
	}
	if _, err := b.n.ready(); err != nil {
		refuse(bench.NotReady, err)
		return
	}
	if !b.owns(from, ask.From) {
		refuse(bench.Invalid, fmt.Errorf("%v is not an address of the asking node", ask.From))
		return
	}
	addr, err := b.ownAddr()
	if err != nil {
		refuse(bench.NotReady, err)
		return
	}
	g := &engagement{with: from, name: b.n.nameOf(b.e.mesh)(ring.Owner(from)), session: ask.Session}
	running, release, err := b.engage(g)
	if err != nil {
		refuse(bench.NotReady, err)
		return
	}
	ctx, end := context.WithCancelCause(context.WithoutCancel(running))
	unhook := context.AfterFunc(running, func() { end(fmt.Errorf("node %s stops", b.n.cfg.Name)) })
	done := func() {
		unhook()
		end(nil)
		release()
	}
	target, err := bench.Open(ctx, b.host(addr), ask.Secret, ask.Params, ask.From)
	if err != nil {
		done()
		refuse(bench.Failed, err)
		return
	}
	answer.TCP, answer.UDP = target.Ports().TCP, target.Ports().UDP
	if !b.reply(from, answer) {
		end(errInterrupted)
	}
	go func() { // counted by engage
		defer done()
		log := b.n.log.Named("bench").With(zap.String("with", g.name), zap.Stringer("node", from))
		log.Info("another node measures the way here", zap.Duration("per phase", ask.Params.Time), zap.Int("streams", ask.Params.Streams), zap.Int64("bytes at most", ask.Params.Bytes))
		strangers, err := target.Run()
		log.Info("the measurement has ended", zap.Duration("after", time.Since(g.since)), zap.Int64("turned away", strangers), zap.Error(err))
	}()
}

func (b *benches) reply(to mesh.NodeID, m bench.Message) bool {
	payload, err := m.Encode()
	if err == nil {
		err = b.e.mesh.Send(to, channelBench, payload)
	}
	if err != nil {
		b.n.log.Debug("an answer about a measurement was not sent", zap.Stringer("to", to), zap.Error(err))
	}
	return err == nil
}

func (b *benches) host(addr netip.Addr) bench.Host {
	return bench.Host{Network: b.net, Addr: addr, Usage: func() bench.Usage {
		return bench.Usage{Process: bench.ProcessTime(), Engine: b.e.plane.CPUTime()}
	}}
}

// ownAddr is the host's address on the overlay, IPv4 if there is one.
func (b *benches) ownAddr() (netip.Addr, error) {
	l, ok := b.e.alloc.Lookup(hostOwner)
	if !ok {
		return netip.Addr{}, b.n.errNotReady()
	}
	return addresses(l)[0], nil
}

// owns tells whether the ring gives the address to the node.
func (b *benches) owns(id mesh.NodeID, a netip.Addr) bool {
	for _, h := range b.e.alloc.Owned() {
		if h.Owner == ring.Owner(id) {
			return slices.ContainsFunc(h.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		}
	}
	return false
}

// findNode finds the other node that a user means: by its name, or by the
// beginning of its NodeID.
func findNode(nodes []mesh.Node, what string) (mesh.Node, error) {
	var others, named, begun []mesh.Node
	for _, m := range nodes {
		if m.Status == mesh.Left {
			continue
		}
		if m.Status != mesh.Self {
			others = append(others, m)
		}
		if what == "" {
			continue
		}
		if m.Name == what {
			named = append(named, m)
		}
		if strings.HasPrefix(m.ID.String(), what) {
			begun = append(begun, m)
		}
	}
	found := named
	if len(found) == 0 {
		found = begun
	}
	switch {
	case len(others) == 0:
		return mesh.Node{}, errors.New("this node is alone in its mesh; there is nobody to measure with")
	case len(found) == 0:
		return mesh.Node{}, fmt.Errorf("there is no node %q; the others are %s", what, list(others, shownName))
	case len(found) > 1:
		return mesh.Node{}, fmt.Errorf("%q may be each of %d nodes; give the NodeID of one: %s", what, len(found),
			list(found, func(m mesh.Node) string { return fmt.Sprintf("%v (%s)", m.ID, shownName(m)) }))
	case found[0].Status == mesh.Self:
		return mesh.Node{}, fmt.Errorf("%s is this node; name another one: %s", shownName(found[0]), list(others, shownName))
	case found[0].Status != mesh.Alive:
		return mesh.Node{}, fmt.Errorf("node %s is %v since %s; only a node that is alive can be measured with",
			shownName(found[0]), found[0].Status, found[0].Since.Format(time.DateTime))
	case !slices.Contains(found[0].Features, featureBench):
		return mesh.Node{}, fmt.Errorf("node %s (version %s) does not know measurements yet; upgrade it", shownName(found[0]), found[0].Build)
	}
	return found[0], nil
}

func shownName(m mesh.Node) string {
	if m.Name == "" {
		return m.ID.String()
	}
	return m.Name
}

// list names some nodes.
func list(nodes []mesh.Node, name func(mesh.Node) string) string {
	const most = 10
	var names []string
	for _, m := range nodes {
		names = append(names, name(m))
	}
	slices.Sort(names)
	return strings.Join(head(names, most), ", ")
}
